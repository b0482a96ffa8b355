"""A MongoDB for one machine: the wire protocol of a one-node replica set over a SQLite file.

It holds what LLM Twin asks of MongoDB, and answers it as a server does: documents of every BSON type, ordinary
queries and writes, sessions and retryable writes, and change streams that resume. What it does not do (transactions,
views, text search, ...) it refuses by name. `python -m embedded.mongodb --port P --directory DIR` runs it.
"""

REPLICA_SET = "rs0"


def connection_string(port: int) -> str:
    """The address that drivers and connectors use for the embedded MongoDB on `port`."""
    return f"mongodb://127.0.0.1:{port}/?replicaSet={REPLICA_SET}"
