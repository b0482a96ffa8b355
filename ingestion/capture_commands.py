"""`twin capture`: register the connector at Kafka Connect, and say how capture is."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

from corpus.settings import InvalidSettings, Settings, without_password

Handler = Callable[[argparse.Namespace, Settings], int]


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `capture` and its verbs to the command line."""
    parser = subparsers.add_parser("capture", help="the connector that reads changes from MongoDB")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, handler, text in (
        ("register", register_connector, "create the topics and register the connector at Kafka Connect"),
        ("status", show_status, "say whether changes are being captured, and why not"),
    ):
        verb = verbs.add_parser(name, help=text, description=text)
        verb.add_argument("--json", action="store_true", help="print the result as JSON")
        verb.set_defaults(handler=handler)


def register_connector(namespace: argparse.Namespace, settings: Settings) -> int:
    """`twin capture register`: 0 when the connector runs, 1 with the reason otherwise. Raises InvalidSettings."""
    from corpus.warehouse import WarehouseUnavailable
    from ingestion import capture
    from ingestion.topics import TopicsFailed, create_topics

    if settings.connect_url is None or settings.kafka_bootstrap_servers is None:
        raise InvalidSettings(
            "set TWIN_CONNECT_URL and TWIN_KAFKA_BOOTSTRAP_SERVERS; else `twin up` captures by itself"
        )
    try:
        configuration = capture.connect_configuration(settings, _warehouse_id(settings))
        create_topics(settings.kafka_bootstrap_servers, settings)
        capture.register(settings.connect_url, configuration)
    except (capture.CaptureFailed, TopicsFailed, WarehouseUnavailable) as error:
        return _failed(str(error))
    name, where = configuration["name"], without_password(settings.connect_url)
    result = {"connector": name, "state": "running", "address": where}
    print(json.dumps(result) if namespace.json else f"Connector {name} runs at {where}.")  # noqa: T201
    return 0


def show_status(namespace: argparse.Namespace, settings: Settings) -> int:
    """`twin capture status`: 0 when changes are being captured, 1 otherwise."""
    from corpus.warehouse import WarehouseUnavailable
    from ingestion.capture import capture_status

    try:
        status = capture_status(settings, _warehouse_id(settings) if settings.connect_url else "")
    except WarehouseUnavailable as error:
        return _failed(str(error))
    beat = status.last_heartbeat.isoformat() if status.last_heartbeat else None
    if namespace.json:
        shown = {"connector": status.connector, "state": status.state, "reason": status.reason, "last_heartbeat": beat}
        print(json.dumps(shown))  # noqa: T201
    else:
        reason = f": {status.reason}" if status.reason else ""
        print(f"capture is {status.state} (connector {status.connector}){reason}")  # noqa: T201
    return 0 if status.state in ("running", "snapshotting") else 1


def _warehouse_id(settings: Settings) -> str:
    from corpus import warehouse

    with warehouse.connect(settings) as source:
        return source.identity()


def _failed(reason: str) -> int:
    print(f"twin: {reason}", file=sys.stderr)  # noqa: T201
    return 1
