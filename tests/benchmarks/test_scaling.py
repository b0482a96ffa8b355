"""Throughput and lag of the dataflow with one worker and with two, over the same log, documents and model.

    pytest -m benchmark -s tests/benchmarks/test_scaling.py

Each worker embeds on one thread. Prints a Markdown table; asserts that everything came in, no time.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import pytest

from corpus.categories import generation
from corpus.documents import Document, new_document, to_record
from corpus.embedding import load_embedder
from corpus.index import open_index
from corpus.settings import Settings
from embedded import log as embedded_log
from embedded.parts import free_port
from ingestion.topics import create_topics, topics
from streaming.changes import upsert_envelope
from streaming.clients import producer
from streaming.dataflow import feature_dataflow
from streaming.log import Log
from streaming.progress import Progress
from streaming.runner import DataflowRunner

pytestmark = pytest.mark.benchmark
ROOT = Path(__file__).parents[2]
SOURCES = ("docs/*.md", "corpus/*.py", "streaming/*.py", "serving/*.py", "embedded/*.py", "ingestion/*.py")
HERE = "11111111-2222-4333-8444-555555555555"
EDITS = 100


def documents() -> Iterator[Document]:
    for pattern in SOURCES:
        for path in sorted(ROOT.glob(pattern)):
            yield new_document(
                url=f"https://example.org/{path.relative_to(ROOT)}",
                category="article" if path.suffix == ".md" else "code",
                platform="files",
                author_name="The LLM Twin authors",
                title=path.name,
                text=path.read_text(),
                crawl_id="crawl",
                crawled_at=datetime.now(UTC),
            )


def test_one_worker_and_two(tmp_path: Path) -> None:
    os.environ["DO_NOT_TRACK"] = "true"
    port = free_port()
    with (tmp_path / "log.txt").open("wb") as output:
        process = subprocess.Popen(
            embedded_log.command(port), env=embedded_log.environment(), stdout=output, stderr=output
        )
    rows = []
    try:
        while not embedded_log.ready(port):
            time.sleep(0.05)
        for workers in (1, 2):
            rows.append(measured(tmp_path, f"127.0.0.1:{port}", workers))
    finally:
        process.kill()
        process.wait()
    print("\n| workers | chunks/s | documents/s | lag at the half | edit to searchable, p50 | ratio of chunks/s |")
    print("|---|---|---|---|---|---|")
    for workers, (chunks, found, lag, delay) in enumerate(rows, 1):
        print(f"| {workers} | {chunks:.0f} | {found:.1f} | {lag} | {delay * 1000:.0f} ms | {chunks / rows[0][0]:.2f} |")


def measured(directory: Path, bootstrap: str, workers: int) -> tuple[float, float, int, float]:
    """Chunks and documents a second of a first filling, the lag at its half, and how fresh single edits are then."""
    settings = Settings(
        home=directory / f"home-{workers}",
        kafka_bootstrap_servers=bootstrap,
        topic_prefix=f"w{workers}",
        embedding_threads=workers,
    )
    create_topics(bootstrap, settings)
    named = topics(settings)
    embedder = load_embedder(settings)
    index = open_index(settings, generation(embedder), embedder.dimensions)
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
    everything = list(documents())
    outlet = producer(bootstrap)
    version = int(time.time() * 1000) << 11
    for number, one in enumerate(everything):
        outlet.produce(named.documents, **upsert_envelope(to_record(one), version + number, "twin", HERE))
    outlet.flush()

    runner = DataflowRunner(
        lambda stop, stack: feature_dataflow(log, lambda: HERE, index, embedder, progress, stop, stack),
        progress,
        workers,
    )
    embedder.embed(["The first text takes longer than any other."])
    began = time.monotonic()
    runner.start()
    try:
        lag = None
        while (done := progress.counted().get("documents_indexed", 0)) < len(everything):
            if lag is None and done >= len(everything) / 2:
                lag = progress.lag()
            time.sleep(0.01)
        seconds = time.monotonic() - began
        counts = progress.counted()
        delays = []
        for number in range(EDITS):
            one = everything[number % len(everything)]
            edited = {**to_record(one), "text": f"{one.text}\n\nEdit number {number} of this benchmark."}
            start = time.monotonic()
            told = upsert_envelope(edited, version + len(everything) + number, "twin", HERE)
            outlet.produce(named.documents, **told)
            outlet.flush()
            while progress.counted()["documents_indexed"] < len(everything) + number + 1:
                time.sleep(0.001)
            delays.append(time.monotonic() - start)
    finally:
        runner.stop()
        index.close()
    assert counts["documents_indexed"] == len(everything)
    return counts["chunks_embedded"] / seconds, len(everything) / seconds, lag or 0, median(delays)
