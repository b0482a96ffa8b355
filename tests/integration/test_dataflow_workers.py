"""The dataflow over a real log with several workers: partitions are shared, and a restart goes on from the commit."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import TopicPartition
from numpy.typing import NDArray

from corpus.documents import Document, new_document, to_record
from corpus.index import QdrantIndex, Record, open_index
from corpus.settings import Settings, load
from embedded import log as embedded_log
from embedded.parts import free_port
from ingestion.topics import create_topics, topics
from streaming.changes import delete_envelope, upsert_envelope
from streaming.clients import consumer, consumer_group, producer
from streaming.dataflow import feature_dataflow
from streaming.letters import OpenLetters
from streaming.log import Log
from streaming.progress import Progress
from streaming.runner import DataflowRunner

pytestmark = pytest.mark.integration
HERE = "11111111-2222-4333-8444-555555555555"
PATIENCE = 60.0


class Embedder:
    """Vectors of words' lengths: what is embedded does not matter here, only how often."""

    name, dimensions, max_tokens, special_tokens = "lengths", 4, 256, 2

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        rows = np.array([[len(text), text.count(" "), text.count("e"), 1] for text in texts], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def count_tokens(self, texts: list[str]) -> list[int]:
        return [len(text.split()) + self.special_tokens for text in texts]

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        spans, start = [], 0
        for word in text.split():
            start = text.index(word, start)
            spans.append((start, start + len(word)))
            start += len(word)
        return spans


@pytest.fixture
def bootstrap(tmp_path: Path) -> Iterator[str]:
    port = free_port()
    with (tmp_path / "log.txt").open("wb") as output:
        process = subprocess.Popen(
            embedded_log.command(port), env=embedded_log.environment(), stdout=output, stderr=output
        )
    try:
        until(lambda: embedded_log.ready(port))
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def index(tmp_path: Path) -> Iterator[QdrantIndex]:
    opened = open_index(load({"TWIN_HOME": str(tmp_path)}), "lengths-1", Embedder.dimensions)
    yield opened
    opened.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)


def document(number: int) -> Document:
    return new_document(
        url=f"https://example.org/{number}",
        category="article",
        platform="example.org",
        author_name="Ada",
        title=f"Note {number}",
        text=f"# Note {number}\n\nThe station of note {number} reports nothing new at all today.",
        crawl_id="crawl",
        crawled_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def followed(settings: Settings, bootstrap: str, index: QdrantIndex, workers: int) -> tuple[DataflowRunner, Progress]:
    named = topics(settings)
    log = Log(
        bootstrap=bootstrap,
        changes=named.documents,
        documents=named.feature_documents,
        chunks=named.feature_chunks,
        dead_letters=named.dead_letters,
        index_id=index.id,
        epoch=lambda: "",
    )
    progress = Progress()
    runner = DataflowRunner(
        lambda stop, stack: feature_dataflow(log, lambda: HERE, index, Embedder(), progress, stop, stack),
        progress,
        workers,
    )
    runner.start()
    return runner, progress


def test_workers_share_the_partitions_and_a_restart_goes_on_where_the_last_one_committed(
    bootstrap: str, index: QdrantIndex
) -> None:
    settings = Settings(kafka_bootstrap_servers=bootstrap, partitions=4)
    create_topics(bootstrap, settings)
    changes = topics(settings).documents
    documents = [document(number) for number in range(40)]
    outlet = producer(bootstrap)
    for version, one in enumerate(documents, 1):
        outlet.produce(changes, **upsert_envelope(to_record(one), version, "twin", HERE))
    outlet.flush()

    runner, progress = followed(settings, bootstrap, index, workers=2)
    until(lambda: progress.lag() == 0 and progress.counted().get("documents_indexed") == 40)
    runner.stop()

    assert index.counts().documents == 40
    reader = consumer(bootstrap, consumer_group(index.id, ""))
    partitions = [TopicPartition(changes, number) for number in range(4)]
    committed = [partition.offset for partition in reader.committed(partitions, timeout=10)]
    reader.close()
    assert sum(committed) == 40
    assert all(offset > 0 for offset in committed), "every partition was read by one of the workers"

    for version, one in enumerate(documents[:10], 100):
        outlet.produce(changes, **delete_envelope(one.id, version, "twin", HERE))
    outlet.flush()
    runner, progress = followed(settings, bootstrap, index, workers=1)
    until(lambda: progress.lag() == 0 and progress.counted().get("documents_deleted") == 10)
    runner.stop()

    assert index.counts().documents == 30
    assert "documents_indexed" not in progress.counted(), "nothing that was committed comes again"


def test_an_index_that_is_away_is_waited_for_and_nothing_is_refused(
    bootstrap: str, index: QdrantIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(kafka_bootstrap_servers=bootstrap, partitions=4)
    create_topics(bootstrap, settings)
    outlet = producer(bootstrap)
    tried: list[str] = []

    def away(record: Record, *_: object) -> bool:
        tried.append(record.document_id)
        raise ConnectionError("the index is away")

    with monkeypatch.context() as outage:
        outage.setattr(index, "replace", away)
        runner, progress = followed(settings, bootstrap, index, workers=1)
        for version in range(1, 5):
            record = to_record(document(version))
            outlet.produce(topics(settings).documents, **upsert_envelope(record, version, "twin", HERE))
        outlet.flush()
        until(lambda: len(tried) > 2)
        until(lambda: progress.state == "waiting")
        assert progress.reason == "ConnectionError: the index is away"
        assert index.counts().documents == 0
    until(lambda: progress.lag() == 0 and progress.counted().get("documents_indexed") == 4)

    assert progress.state == "running"
    runner.stop()
    assert "dead_letters" not in progress.counted()
    letters = OpenLetters(bootstrap, settings.dead_letters_topic)
    assert letters.found() == []
    letters.close()
