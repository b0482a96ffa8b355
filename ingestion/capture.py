"""Capture: the one configuration of the Debezium MongoDB connector, its registration at Kafka Connect and its state."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from corpus.documents import LARGEST_CHANGE, WAREHOUSE_HEADER
from corpus.settings import Settings, credentials, masked_text, without_password
from ingestion.topics import DOCUMENTS, WATERMARKS, topics

# Debezium sends a heartbeat each second while it streams; ten missed ones are no coincidence.
SILENCE = timedelta(seconds=10)
CONNECTOR_CLASS = "io.debezium.connector.mongodb.MongoDbConnector"

State = Literal["starting", "snapshotting", "running", "stalled", "failed", "stopped", "unreachable"]


class CaptureFailed(RuntimeError):
    """Capture cannot run; the message is one sentence for a person, without passwords."""


@dataclass(frozen=True, slots=True)
class CaptureStatus:
    """How capture is: `reason` says why when it is not running; `last_heartbeat`: its last sign of life in the log."""

    connector: str
    state: State
    reason: str | None = None
    last_heartbeat: datetime | None = None


def connector_name(warehouse_id: str) -> str:
    """One connector for each warehouse, even when several share a Connect."""
    return f"twin-{warehouse_id[:8]}"


def connector_configuration(settings: Settings, warehouse_id: str) -> dict[str, str]:
    """What the connector captures and how, the same for Kafka Connect and for the embedded engine.

    Raises CaptureFailed without a MongoDB address. Source: Debezium 3.6, connector for MongoDB, connector properties.
    """
    if not settings.mongodb_uri:
        raise CaptureFailed("Capture has no MongoDB to read from: run `twin up`, or set TWIN_MONGODB_URI.")
    collections = (re.escape(f"{settings.database}.{name}") for name in (DOCUMENTS, WATERMARKS))
    return {
        "name": connector_name(warehouse_id),
        "connector.class": CONNECTOR_CLASS,
        "mongodb.connection.string": settings.mongodb_uri,
        "topic.prefix": settings.topic_prefix,
        "capture.scope": "database",
        "capture.target": settings.database,
        "collection.include.list": ",".join(collections),
        # The whole document with every update; a delete is followed by a tombstone, so that compaction can forget it.
        "capture.mode": "change_streams_update_full",
        "tombstones.on.delete": "true",
        # A resume token that MongoDB no longer knows leads to a new snapshot instead of an end.
        "snapshot.mode": "when_needed",
        "key.converter": "org.apache.kafka.connect.json.JsonConverter",
        "key.converter.schemas.enable": "false",
        "value.converter": "org.apache.kafka.connect.json.JsonConverter",
        "value.converter.schemas.enable": "false",
        "extended.headers.enabled": "false",
        # Every record names its warehouse: a Kafka may have served another one before. The changed fields are left out:
        # the whole document is there, and a large text would be sent twice.
        "transforms": "warehouse,whole",
        "transforms.warehouse.type": "org.apache.kafka.connect.transforms.InsertHeader",
        "transforms.warehouse.header": WAREHOUSE_HEADER,
        "transforms.warehouse.value.literal": warehouse_id,
        "transforms.whole.type": "org.apache.kafka.connect.transforms.ReplaceField$Value",
        "transforms.whole.exclude": "updateDescription",
        # Freshness: how long it sleeps when nothing came, and how long MongoDB holds an empty answer back.
        "poll.interval.ms": str(settings.capture_poll_ms),
        "cursor.max.await.time.ms": "100",
        "heartbeat.interval.ms": "1000",
        # A MongoDB that is away is waited for, and found again within a second. One that stays away for more than a
        # minute ends the task: whoever watches the state restarts it.
        "errors.max.retries": "-1",
        "errors.retry.delay.initial.ms": "300",
        "errors.retry.delay.max.ms": "5000",
        "retriable.restart.connector.wait.ms": "1000",
        "mongodb.server.selection.timeout.ms": "30000",
        "mongodb.heartbeat.frequency.ms": "1000",
        # Memory: what waits to be sent, whatever the size of a document.
        "max.queue.size.in.bytes": "33554432",
    }


def connect_configuration(settings: Settings, warehouse_id: str) -> dict[str, str]:
    """The configuration with what only a Connect worker reads: one task, and a producer that takes large documents."""
    return {
        **connector_configuration(settings, warehouse_id),
        "tasks.max": "1",
        "producer.override.max.request.size": str(LARGEST_CHANGE),
        # Java's producer needs room for one message of that size beside those that it is sending.
        "producer.override.buffer.memory": str(LARGEST_CHANGE + 33_554_432),
        "producer.override.compression.type": "lz4",
        "producer.override.linger.ms": "1",
    }


def register(connect_url: str, configuration: Mapping[str, str], timeout: float = 60.0) -> None:
    """Create or update the connector of this configuration at Connect and wait until it runs.

    May be called again at any time: an equal configuration changes nothing, a stopped connector is resumed, a failed
    one restarted once. Raises CaptureFailed with the connector's own reason, or when it does not run after `timeout`
    seconds.
    """
    name, deadline = configuration["name"], time.monotonic() + timeout
    _request(connect_url, "PUT", f"/connectors/{quote(name)}/config", dict(configuration), deadline)
    _request(connect_url, "PUT", f"/connectors/{quote(name)}/resume", None, deadline)
    restarted = False
    while True:
        status = connector_status(connect_url, name)
        if status.state == "running":
            return
        if status.state == "failed" and restarted:
            raise CaptureFailed(f"Connector {name} at {without_password(connect_url)} failed: {status.reason}")
        if status.state == "failed":
            # The failure may be one of before: only a fresh start tells about this configuration.
            restart(connect_url, name)
            restarted = True
        if time.monotonic() > deadline:
            raise CaptureFailed(
                f"Connector {name} at {without_password(connect_url)} is still {status.state} after {timeout:.0f} s"
                f" ({status.reason or 'no reason given'})."
            )
        time.sleep(0.2)


def connector_status(connect_url: str, name: str) -> CaptureStatus:
    """What Connect says of the connector and its task: `running`, `starting`, `failed`, `stopped` or `unreachable`."""
    try:
        found = _request(connect_url, "GET", f"/connectors/{quote(name)}/status")
    except NoSuchConnector:
        return CaptureStatus(name, "stopped", "it is not registered: run `twin capture register`")
    except CaptureFailed as error:
        return CaptureStatus(name, "unreachable", str(error))
    for part in (found["connector"], *found["tasks"]):
        if part["state"] == "FAILED":
            return CaptureStatus(name, "failed", first_line(part.get("trace", "")))
    states = {part["state"] for part in (found["connector"], *found["tasks"])}
    if states & {"PAUSED", "STOPPED"}:
        return CaptureStatus(name, "stopped", "it was stopped at Connect")
    if states == {"RUNNING"} and found["tasks"]:
        return CaptureStatus(name, "running")
    return CaptureStatus(name, "starting", "Connect has not started its task yet")


def capture_status(settings: Settings, warehouse_id: str, now: datetime | None = None) -> CaptureStatus:
    """How capture is, by its own word and by its heartbeats in the log: one that died or hangs never looks idle.

    The embedded engine is asked without the warehouse, so its state is known while MongoDB is away: `warehouse_id` may
    be "" then.
    """
    now = now or datetime.now(UTC)
    if settings.connect_url is None:
        return read_status(status_file(settings), now)
    name = connector_name(warehouse_id)
    status = connector_status(settings.connect_url, name)
    if settings.kafka_bootstrap_servers is None:
        return status
    beat = last_heartbeat(settings.kafka_bootstrap_servers, topics(settings).heartbeat)
    if status.state != "running" or (beat is not None and now - beat <= SILENCE):
        return replace(status, last_heartbeat=beat)
    if _in_snapshot(settings.connect_url, name):
        return CaptureStatus(name, "snapshotting", "the first snapshot is not complete", beat)
    since = f"for {(now - beat).total_seconds():.0f} s" if beat else "yet"
    return CaptureStatus(name, "stalled", f"no heartbeat {since}: is MongoDB reachable from Connect?", beat)


def status_file(settings: Settings) -> Path:
    """Where the embedded engine writes its state."""
    return settings.home / "capture" / "status.json"


def read_status(path: Path, now: datetime) -> CaptureStatus:
    """The state that the embedded engine wrote to `path`; it writes each second, so an old file is a stalled one."""
    try:
        written = json.loads(path.read_bytes())
    except FileNotFoundError:
        return CaptureStatus("twin", "stopped", "it has not been started: run `twin up`")
    beat = datetime.fromisoformat(written["last_heartbeat_at"]) if written["last_heartbeat_at"] else None
    state, reason = written["state"], written["reason"]
    age = now - datetime.fromisoformat(written["written_at"])
    if state in ("starting", "snapshotting", "running") and age > SILENCE:
        state, reason = "stalled", f"no sign of life for {age.total_seconds():.0f} s"
    elif state == "running" and beat is not None and now - beat > SILENCE:
        state, silent = "stalled", f"no heartbeat for {(now - beat).total_seconds():.0f} s"
        reason = f"{silent}: {reason or 'does MongoDB answer?'}"
    return CaptureStatus(written["connector"], state, reason, beat)


def last_heartbeat(bootstrap: str, topic: str, timeout: float = 3.0) -> datetime | None:
    """When the latest heartbeat was written to the log; None when there is none or the log does not answer."""
    from confluent_kafka import Consumer, KafkaException, TopicPartition

    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"{topic}-status",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 10,
            "log_level": 0,
        }
    )
    latest = None
    try:
        partition = TopicPartition(topic, 0)
        _, end = consumer.get_watermark_offsets(partition, timeout=timeout, cached=False)
        consumer.assign([TopicPartition(topic, 0, max(end - 1, 0))])
        # Up to the end of the partition: not every broker counts the records of the last batch in its end offset.
        while (message := consumer.poll(timeout)) is not None and message.error() is None:
            latest = message.timestamp()[1]
    except KafkaException:
        return None
    finally:
        consumer.close()
    return datetime.fromtimestamp(latest / 1000, UTC) if latest else None


def restart(connect_url: str, name: str) -> None:
    """Start the connector and its task anew if they failed."""
    _request(connect_url, "POST", f"/connectors/{quote(name)}/restart?includeTasks=true&onlyFailed=true")


def stop(connect_url: str, name: str) -> None:
    """Stop the connector; its configuration and its position stay."""
    _request(connect_url, "PUT", f"/connectors/{quote(name)}/stop")


def delete(connect_url: str, name: str) -> None:
    """Remove the connector; one that is not there is no error."""
    try:
        _request(connect_url, "DELETE", f"/connectors/{quote(name)}")
    except NoSuchConnector:
        return


def first_line(trace: str) -> str:
    """What a Java stack trace says: the innermost cause's message, on one line, without passwords."""
    causes = [line for line in trace.splitlines() if line.startswith("Caused by: ")] or trace.splitlines()[:1]
    text = causes[-1].removeprefix("Caused by: ") if causes else "no reason given"
    return masked_text(text)[:500]


class NoSuchConnector(CaptureFailed):
    """Connect does not know the connector."""


def _in_snapshot(connect_url: str, name: str) -> bool:
    """Whether the connector has no position yet, or one within a snapshot."""
    offsets = _request(connect_url, "GET", f"/connectors/{quote(name)}/offsets").get("offsets", [])
    return not offsets or any((part.get("offset") or {}).get("initsync") for part in offsets)


def _request(
    connect_url: str, method: str, path: str, body: Any = None, deadline: float | None = None
) -> dict[str, Any]:
    """The answer of Connect's REST interface; a worker that is rebalancing (409) is asked again until `deadline`."""
    deadline = time.monotonic() + 10 if deadline is None else deadline
    where = without_password(connect_url)
    address, told = credentials(connect_url)
    data = None if body is None else json.dumps(body).encode()
    while True:
        try:
            request = urllib.request.Request(  # noqa: S310
                address.rstrip("/") + path, data, {"Content-Type": "application/json", **told}, method=method
            )
            with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
                return dict(json.loads(response.read() or b"{}"))
        except urllib.error.HTTPError as error:
            with error:
                said = _message(error.read())
            if error.code == 404:
                raise NoSuchConnector(f"Connect at {where} does not know {path.split('/')[2]}.") from error
            if error.code != 409 or time.monotonic() > deadline:
                raise CaptureFailed(f"Connect at {where} refused ({error.code}): {first_line(said)}") from error
            time.sleep(0.3)
        except (OSError, HTTPException, ValueError) as error:
            # What the library says of an address that it cannot use holds the password.
            reason = getattr(error, "reason", error) if isinstance(error, OSError) else "it cannot be asked"
            raise CaptureFailed(f"Connect at {where} does not answer ({reason}): is TWIN_CONNECT_URL right?") from error


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
