"""A dataflow that is held up: the log itself tells which partition waits and for how long, and when that is over."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from corpus.documents import ORDER_BITS, Document, new_document, to_record
from corpus.index import QdrantIndex, open_index
from corpus.settings import Settings, load
from embedded import log as embedded_log
from embedded.app import Repeated
from embedded.parts import free_port
from ingestion.topics import create_topics, topics
from streaming.changes import upsert_envelope
from streaming.clients import producer
from streaming.dataflow import feature_dataflow
from streaming.lag import Probe
from streaming.log import Log
from streaming.progress import Progress
from streaming.runner import DataflowRunner

pytestmark = pytest.mark.integration
HERE = "11111111-2222-4333-8444-555555555555"


class Embedder:
    """Vectors of words' lengths, once the model can be loaded."""

    name, dimensions, max_tokens, special_tokens = "lengths", 4, 256, 2

    def __init__(self) -> None:
        self.loads = threading.Event()

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        if not self.loads.is_set():
            raise OSError("the model cannot be loaded")
        return np.array([[len(text), text.count(" "), text.count("e"), 1] for text in texts], np.float32)

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
def bootstrap(tmp_path: Path, eventually: Callable[..., Any]) -> Iterator[str]:
    port = free_port()
    with (tmp_path / "log.txt").open("wb") as output:
        process = subprocess.Popen(
            embedded_log.command(port), env=embedded_log.environment(), stdout=output, stderr=output
        )
    try:
        eventually(lambda: embedded_log.ready(port), "the log")
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def index(tmp_path: Path) -> Iterator[QdrantIndex]:
    opened = open_index(load({"TWIN_HOME": str(tmp_path)}), "lengths-1", Embedder.dimensions)
    yield opened
    opened.close()


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


def test_a_dataflow_that_waits_is_seen_in_the_log_and_its_drain_too(
    bootstrap: str, index: QdrantIndex, eventually: Callable[..., Any]
) -> None:
    settings = Settings(kafka_bootstrap_servers=bootstrap, partitions=4)
    create_topics(bootstrap, settings)
    named = topics(settings)
    log = Log(
        bootstrap,
        named.documents,
        named.feature_documents,
        named.feature_chunks,
        named.dead_letters,
        index.id,
        lambda: "",
    )
    embedder, progress = Embedder(), Progress()
    runner = DataflowRunner(
        lambda stop, stack: feature_dataflow(log, lambda: HERE, index, embedder, progress, stop, stack), progress
    )
    probe = Probe(log)
    looks = Repeated("oldest", probe.look, 0.1)
    runner.start()
    looks.start()
    try:
        eventually(lambda: probe.told()["seconds"] == 0.0, "a look at the empty log")
        outlet = producer(bootstrap)
        # Committed a minute ago at its source, and on its way since.
        long_ago = int(datetime.now(UTC).timestamp() - 60) * 1000
        outlet.produce(named.documents, **upsert_envelope(to_record(document(1)), long_ago << ORDER_BITS, "twin", HERE))
        outlet.flush()

        eventually(lambda: progress.state == "waiting", "the dataflow's failure")
        told = eventually(lambda: (told := probe.told())["stuck"] and told, "the change that waits")
        (behind,) = told["partitions"]
        assert (behind["offset"], behind["seconds"] >= 60, told["stuck"]) == (0, True, True)

        embedder.loads.set()
        eventually(lambda: probe.told()["seconds"] == 0.0, "the end of the age")
        assert (probe.told()["partitions"], probe.told()["stuck"]) == ([], False)
        assert progress.counted()["documents_indexed"] == 1
    finally:
        probe.close()
        looks.stop()
        runner.stop()


def test_the_app_tells_what_is_behind_and_what_is_fresh(
    running: Any, folder: Any, eventually: Callable[..., Any]
) -> None:
    folder.add("Fresh one", "Fresh two")
    running.ingest(str(folder.folder))
    running.wait()

    status = running.asked("/api/status")
    assert status["freshness"]["windows"]["5m"]["changes"] == 2
    assert status["freshness"]["p50"] > 0
    eventually(lambda: running.asked("/api/status")["oldest"]["seconds"] == 0.0, "a look that finds nothing behind")
    assert len(running.asked("/api/status")["oldest"]["partitions"]) == 0
    assert "; objective p95 2 s: burn " in running.run("status").stdout
