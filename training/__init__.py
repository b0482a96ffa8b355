"""The training pipeline: from documents to datasets, from datasets to models, from models to an approved one."""
