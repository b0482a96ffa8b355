"""Answering: search, cited answers, the chat page and the interfaces for programs, over the index alone."""
