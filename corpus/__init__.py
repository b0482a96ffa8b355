"""What a document is and how it becomes searchable: the domain that ingesting, training and answering share."""
