"""Bringing documents in: the crawlers of each platform, and the capture of every change from MongoDB."""
