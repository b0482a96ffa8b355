"""Several processes follow one log into one index: it stays right, whoever is killed or sleeps.

The index of several processes is a Qdrant server's. Its place is taken here by Qdrant Edge in a process of its own,
which hands its collections to the workers over a socket.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import KafkaError, TopicPartition

from corpus.documents import Document, new_document, to_record
from corpus.index import CHUNK_FIELDS, LEDGER_FIELDS, QdrantIndex
from corpus.points import EdgePoints, Point, Stored, Where
from corpus.settings import Settings
from corpus.warehouse import Stamp
from ingestion.topics import create_topics, topics
from streaming.changes import delete_envelope, upsert_envelope
from streaming.clients import consumer, consumer_group, producer
from streaming.dataflow import feature_dataflow
from streaming.log import Log
from streaming.progress import Progress
from streaming.runner import DataflowRunner
from streaming.verify import Compared, compare
from tests.streaming.samples import HERE, WordEmbedder

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
PATIENCE = 120.0
KEY = b"tests"
GENERATION = "words-1"
PARTITIONS = 4


class Served(BaseManager):
    """Collections in a process of their own."""


class Collection:
    """A collection as the workers' process asks for it: what is read comes as a whole."""

    def __init__(self, directory: str, dimensions: int | None, indexed: dict[str, str]) -> None:
        self._points = EdgePoints(Path(directory), dimensions, indexed)

    def upsert(self, points: Sequence[Point], only_over: Where | None = None) -> None:
        self._points.upsert(points, only_over)

    def set_payload(self, where: Where, payload: dict[str, Any]) -> None:
        self._points.set_payload(where, payload)

    def delete(self, where: Where) -> None:
        self._points.delete(where)

    def retrieve(self, ids: Sequence[str], without: Sequence[str] = (), vectors: Sequence[str] = ()) -> list[Stored]:
        return self._points.retrieve(ids, without, vectors)

    def scroll(self, where: Where, without: Sequence[str] = ()) -> list[Stored]:
        return list(self._points.scroll(where, without))

    def count(self, where: Where) -> int:
        return self._points.count(where)

    def close(self) -> None:
        """A worker that ends closes its own view of the collection, not the collection."""


def served(directory: Path) -> Served:
    """The process with both collections of an index."""
    chunks = Collection(str(directory / "chunks"), WordEmbedder.dimensions, CHUNK_FIELDS)
    ledger = Collection(str(directory / "documents"), None, LEDGER_FIELDS)
    Served.register("chunks", callable=lambda: chunks)
    Served.register("ledger", callable=lambda: ledger)
    return Served(("127.0.0.1", 0), KEY)


def opened(port: int, name: str) -> QdrantIndex:
    """The index as a client of that process has it."""
    Served.register("chunks")
    Served.register("ledger")
    client = Served(("127.0.0.1", port), KEY)
    client.connect()
    return QdrantIndex(name, GENERATION, client.chunks(), client.ledger())  # type: ignore[attr-defined]


def worker(port: int, bootstrap: str, name: str) -> None:
    """The dataflow until SIGTERM, as `twin stream` runs it."""
    settings = Settings(kafka_bootstrap_servers=bootstrap, partitions=PARTITIONS, topic_prefix=name)
    named = topics(settings)
    log = Log(
        bootstrap=bootstrap,
        changes=named.documents,
        documents=named.feature_documents,
        chunks=named.feature_chunks,
        dead_letters=named.dead_letters,
        index_id=name,
        epoch=lambda: "",
        shared=True,
    )
    index, embedder, progress = opened(port, name), WordEmbedder(), Progress()

    def build(stop: Any, stack: ExitStack) -> Any:
        return feature_dataflow(log, lambda: HERE, index, embedder, progress, stop, stack)  # type: ignore[arg-type]

    runner = DataflowRunner(build, progress)
    ended: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    runner.start()
    while not ended:
        time.sleep(0.05)
    runner.stop()
    print(dict(progress.counted()))


@pytest.fixture
def settings(cluster: Any, request: pytest.FixtureRequest) -> Settings:
    """A log of one's own, by the names of its topics."""
    found = Settings(
        kafka_bootstrap_servers=f"127.0.0.1:{cluster.broker}",
        partitions=PARTITIONS,
        topic_prefix=f"t{abs(hash(request.node.name)) % 10**6}",
    )
    create_topics(found.kafka_bootstrap_servers or "", found)
    return found


@pytest.fixture
def collections(tmp_path: Path) -> Iterator[int]:
    """The port of the process with the collections."""
    program = (
        f"from tests.integration.test_sharing_workers import *; server = served(Path({str(tmp_path)!r})).get_server()"
    )
    program += "; print(server.address[1], flush=True); server.serve_forever()"
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        yield int(process.stdout.readline())
    process.kill()
    process.wait()


@pytest.fixture
def workers(collections: int, settings: Settings) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts a worker; all are ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        program = f"from tests.integration.test_sharing_workers import worker; worker({collections}, "
        program += f"{settings.kafka_bootstrap_servers!r}, {settings.topic_prefix!r})"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        started.append(subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=environment, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE:.0f} s: {what}"
        time.sleep(0.05)


class Author:
    """A warehouse in memory that tells the log of each of its changes, as Debezium would."""

    def __init__(self, settings: Settings, seed: int) -> None:
        self.documents: dict[str, Document] = {}
        self.version = 1_700_000_000_000 << 11
        self._random = random.Random(seed)
        self._outlet = producer(settings.kafka_bootstrap_servers or "")
        self._topic = topics(settings).documents

    def change(self, count: int) -> None:
        for _ in range(count):
            self.version += 1 << 11
            url = f"https://example.org/{self._random.randrange(60)}"
            one = self._made(url)
            if one.id in self.documents and self._random.random() < 0.25:
                del self.documents[one.id]
                told = delete_envelope(one.id, self.version, "twin", HERE)
            else:
                self.documents[one.id] = one
                told = upsert_envelope(to_record(one), self.version, "twin", HERE)
            self._outlet.produce(self._topic, **told)
            self._outlet.poll(0)
        self._outlet.flush()

    def _made(self, url: str) -> Document:
        words = [f"word{self._random.randrange(40)}" for _ in range(4)]
        return new_document(
            url=url,
            category="article",
            platform="example.org",
            author_name="Ada",
            title=f"About {url}",
            text="\n\n".join(f"## {word}\n\n{' '.join([word] * 60)}" for word in words),
            crawl_id="crawl",
            crawled_at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(milliseconds=self.version % 10**9),
        )

    def stamps(self) -> Iterator[Stamp]:
        for one in self.documents.values():
            yield Stamp(one.id, one.content_hash, one.crawled_at, one.title, one.url, one.author_name, "article", "p")


def followed(settings: Settings) -> bool:
    """Whether the group has committed up to the end of every partition, as the log itself tells it."""
    name = topics(settings).documents
    group = consumer_group(settings.topic_prefix, "")
    reader = consumer(settings.kafka_bootstrap_servers or "", group, **{"enable.partition.eof": True})
    try:
        committed = reader.committed([TopicPartition(name, number) for number in range(PARTITIONS)], timeout=60)
        reader.assign([TopicPartition(name, each.partition, max(each.offset, 0)) for each in committed])
        ended: set[int] = set()
        while len(ended) < PARTITIONS:
            message = reader.poll(5)
            error = message.error() if message is not None else None
            if error is None or error.code() != KafkaError._PARTITION_EOF:
                return False
            ended.add(message.partition() or 0)
        return True
    finally:
        reader.close()


def newest(settings: Settings, topic: str) -> dict[str, Any]:
    """The last value of each key, tombstones left out: what a compacted topic comes to."""
    reader = consumer(settings.kafka_bootstrap_servers or "", "newest", **{"enable.partition.eof": True})
    try:
        reader.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
        states: dict[str, Any] = {}
        ended: set[int] = set()
        while len(ended) < PARTITIONS:
            message = reader.poll(5)
            if message is None:
                continue
            error = message.error()
            if error is not None:
                if error.code() == KafkaError._PARTITION_EOF:
                    ended.add(message.partition() or 0)
                continue
            key = (message.key() or b"").decode()
            if message.value():
                states[key] = msgspec.json.decode(message.value())
            else:
                states.pop(key, None)
        return states
    finally:
        reader.close()


def must_be(author: Author, index: QdrantIndex, settings: Settings) -> None:
    """Index, ledger and compacted topics are what the author's documents make them."""
    faults = compare(
        index.ledger_points(), index.chunk_points(), author.stamps(), GENERATION, author.version, Compared()
    )
    assert faults == []
    records = index.records(list(author.documents))
    assert {id: one.content_hash for id, one in author.documents.items()} == {
        id: record.content_hash for id, record in records.items()
    }
    told = {id: record.version for id, record in records.items()}

    def tells(topic: str) -> bool:
        return {id: state["version"] for id, state in newest(settings, topic).items()} == told

    named = topics(settings)
    for topic in (named.feature_documents, named.feature_chunks):
        # Not at once: behind a transaction in which a worker was stopped nothing is read until the broker has ended it.
        until(partial(tells, topic), f"{topic} as the index is")


def test_workers_that_come_go_and_are_killed_share_the_partitions_and_leave_the_index_right(
    settings: Settings, collections: int, workers: Callable[[], subprocess.Popen[str]]
) -> None:
    index = opened(collections, settings.topic_prefix)
    author = Author(settings, seed=3)
    first, second = workers(), workers()
    author.change(150)
    until(lambda: index.counts().documents > 10, "the first documents")

    second.send_signal(signal.SIGKILL)
    author.change(100)
    third = workers()
    author.change(100)
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 0
    author.change(50)
    fourth = workers()
    author.change(100)

    until(lambda: followed(settings), "the group at the end of the log")
    must_be(author, index, settings)
    assert (third.poll(), fourth.poll()) == (None, None)


def test_a_worker_that_slept_while_others_took_its_partitions_changes_nothing_when_it_wakes(
    settings: Settings, collections: int, workers: Callable[[], subprocess.Popen[str]]
) -> None:
    index = opened(collections, settings.topic_prefix)
    author = Author(settings, seed=5)
    sleeper = workers()
    author.change(60)
    until(lambda: index.counts().documents > 5, "the first documents")
    author.change(200)
    sleeper.send_signal(signal.SIGSTOP)
    other = workers()
    author.change(100)

    until(lambda: followed(settings), "the other worker at the end of the log")
    must_be(author, index, settings)
    sleeper.send_signal(signal.SIGCONT)
    author.change(50)
    until(lambda: followed(settings), "both at the end of the log")

    must_be(author, index, settings)
    other.send_signal(signal.SIGTERM)
    assert other.wait(60) == 0
    author.change(50)
    until(lambda: followed(settings), "the worker that woke at the end of the log")
    must_be(author, index, settings)
