"""Training data: from versions of documents to samples, through gates, to versions that can be built again."""
