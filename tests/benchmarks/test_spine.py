"""How fast the whole path is, beside the embedding alone of the very same chunks in the same run.

    pytest -m benchmark -s tests/benchmarks/test_spine.py

Prints one Markdown table; asserts that everything was found, no time.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition

from corpus import warehouse
from corpus.categories import generation
from corpus.documents import new_document
from corpus.embedding import Embedder, load_embedder
from corpus.index import Filters, open_index
from corpus.settings import Settings
from serving.retrieval import search

pytestmark = pytest.mark.benchmark
ROOT = Path(__file__).parents[2]
HANDBOOK = ROOT.parent / "shared" / "data" / "handbook" / "articles.json"
OWN = ("README.md", "docs", "corpus", "ingestion", "streaming", "serving", "embedded")
EDITS, SEARCHES = 50, 300


@dataclass
class Bench:
    """A home, its command line, and the rows of the table."""

    home: Path
    rows: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def variables(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TWIN_")}
        own = {"TWIN_HOME": str(self.home), "TWIN_PORT": "0", "TWIN_RATE_LIMIT": "1000000", "PYTHONPATH": str(ROOT)}
        return {**inherited, **own}

    def twin(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "embedded.cli", *arguments]
        return subprocess.run(
            command, cwd=self.home.parent, env=self.variables, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.twin("status", "--json"))
        return found

    def addresses(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.home / "addresses.json").read_text())
        return found

    def row(self, figure: str, value: str, remark: str = "") -> None:
        self.rows.append((figure, value, remark))


@dataclass
class App:
    """The running app over one connection that is kept."""

    address: str

    def __post_init__(self) -> None:
        parts = urlsplit(self.address)
        self._connection = HTTPConnection(parts.hostname or "", parts.port, timeout=60)

    def close(self) -> None:
        self._connection.close()

    def get(self, path: str) -> Any:
        return self._asked("GET", path, None)

    def search(self, question: str, limit: int = 10) -> list[dict[str, Any]]:
        hits: list[dict[str, Any]] = self._asked("POST", "/api/search", {"question": question, "limit": limit})
        return hits

    def _asked(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        sent = None if body is None else json.dumps(body).encode()
        self._connection.request(method, path, sent, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        content = json.loads(answer.read())
        assert answer.status == 200, content
        return content


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "home")
    try:
        yield made
    finally:
        made.twin("down")


def timed(act: Callable[[], Any]) -> float:
    """Seconds that it took."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest rank."""
    return sorted(values)[max(0, -(-int(share * 1000) * len(values) // 1000) - 1)]


def spread(seconds: Sequence[float]) -> str:
    shown = [("p50", median(seconds)), ("p95", percentile(seconds, 0.95)), ("max", max(seconds))]
    return ", ".join(
        f"{name} {1000 * value:.0f} ms" if value > 0.02 else f"{name} {1000 * value:.1f} ms" for name, value in shown
    )


def peak(pid: int) -> float:
    """The most memory that a process has held, MB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def processor(pids: Sequence[int]) -> float:
    """Seconds of processor time that these processes have taken."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def disk(place: Path) -> float:
    """What a folder takes on disk, MB; files with several names count once."""
    blocks = {}
    for folder, _, names in os.walk(place):
        for name in names:
            about = os.lstat(Path(folder) / name)
            blocks[about.st_dev, about.st_ino] = about.st_blocks * 512
    return sum(blocks.values()) / 1e6


def starts(bench: Bench) -> None:
    seconds = timed(lambda: bench.twin("up", "--detach"))
    parts = bench.status()["parts"]
    told = ", ".join(f"{part['name']} {part['ready_seconds']:.1f} s" for part in parts)
    bench.row("cold `up` to ready (a new home, model built)", f"{seconds:.1f} s", told)


def written(bootstrap: str, topic: str) -> list[float]:
    """When each message of a topic was written, in seconds since the epoch."""
    settings = {"bootstrap.servers": bootstrap, "group.id": "benchmark", "enable.partition.eof": True}
    with closing(Consumer({**settings, "enable.auto.commit": False})) as reader:
        partitions = reader.list_topics(topic, timeout=10).topics[topic].partitions
        reader.assign([TopicPartition(topic, number, 0) for number in partitions])
        moments, ended = [], 0
        while ended < len(partitions):
            message = reader.poll(10)
            assert message is not None, f"{topic} does not come to its end"
            if message.error() is None:
                moments.append(message.timestamp()[1] / 1000)
            else:
                assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
                ended += 1
    return moments


def streamed(bench: Bench) -> float:
    """Seconds from the first captured change to the last document that downstream is told of, by the log's own clock.

    A document is told of when its points are acknowledged. The commands and their start are not in it.
    """
    bootstrap = bench.addresses()["kafka_bootstrap_servers"]
    return max(written(bootstrap, "twin.features.chunks")) - min(written(bootstrap, "twin.twin.documents"))


def comes_in(bench: Bench) -> tuple[float, float, float, str]:
    """Ingest everything; the seconds until all was searchable, those of the stream alone, the parts' processor seconds,
    and what it was."""
    sources = [str(HANDBOOK)] if HANDBOOK.exists() else [str(ROOT / name) for name in OWN if (ROOT / name).exists()]
    pids = [part["pid"] for part in bench.status()["parts"]]
    worked = processor(pids)
    start = time.perf_counter()
    result = json.loads(bench.twin("ingest", "--json", *sources))
    returned = time.perf_counter() - start
    bench.twin("wait")
    seconds = time.perf_counter() - start
    worked = processor(pids) - worked
    status = bench.status()
    assert status["index"]["documents"] == status["warehouse"]["documents"] == result["inserted"] > 0
    what = f"{result['inserted']} documents"
    bench.row(
        f"first ingest of {what} to all searchable",
        f"{seconds:.1f} s",
        f"`ingest` returned after {returned:.1f} s; with the start of both commands",
    )
    for part in status["parts"]:
        bench.row(f"peak memory of {part['name']}", f"{peak(part['pid']):.0f} MB", "after the first ingest (VmHWM)")
    return seconds, streamed(bench), worked, what


def edited(bench: Bench, app: App) -> None:
    """Change one word of one document after the other, and ask until the new word is the first hit."""
    settings = Settings(home=bench.home, mongodb_uri=bench.addresses()["mongodb_uri"])
    before = app.get("/api/status")["stream"]["counts"]
    seconds = []
    with warehouse.connect(settings) as source:
        listed = app.get("/api/documents?limit=1000")["items"]
        for number in range(EDITS):
            id = listed[number % len(listed)]["document_id"]
            document = source.get(id)
            assert document is not None
            text, new = document.text, f"zq{''.join('bdfghklmnr'[int(digit)] + 'a' for digit in f'{number:04}')}"
            words = re.findall(r" ([a-z]{6,}) ", app.get(f"/api/documents/{id}")["text"])
            old = next(word for word in words[len(words) // 2 :] if text.count(f" {word} ") == 1)
            changed = new_document(
                url=document.url,
                category=document.category,
                platform=document.platform,
                author_name=document.author_name,
                author_id=document.author_id,
                title=document.title,
                text=text.replace(f" {old} ", f" {new} "),
                published_at=document.published_at,
                metadata=document.metadata,
                crawl_id="benchmark",
                crawled_at=datetime.now(UTC),
            )
            start = time.perf_counter()
            assert source.save([changed]).updated == 1
            while not any(new in hit["text"] for hit in app.search(new, 1)):
                assert time.perf_counter() < start + 60, f"{new} of {document.url} is not found"
            seconds.append(time.perf_counter() - start)
    bench.twin("wait")
    status = app.get("/api/status")
    embedded = status["stream"]["counts"]["chunks_embedded"] - before.get("chunks_embedded", 0)
    bench.row(
        f"one-word edit, write to first hit ({EDITS} edits)",
        spread(seconds),
        f"{embedded / EDITS:.2f} chunks embedded an edit; searches run all the while",
    )
    fresh = status["freshness"]
    bench.row(
        "the same by the app itself, commit to acknowledged point",
        ", ".join(f"{name} {1000 * fresh[name]:.0f} ms" for name in ("p50", "p95", "p99")),
        "`twin status`, freshness",
    )


def verified(bench: Bench) -> None:
    """`twin verify` of everything, with the start of the command."""
    start = time.perf_counter()
    report = json.loads(bench.twin("verify", "--json"))
    seconds = time.perf_counter() - start
    assert report["found"] == 0, report
    compared = f"{report['documents']} documents and {report['chunks']:,} chunks"
    bench.row("`twin verify`", f"{seconds:.2f} s", f"{compared}; {report['seconds']:.2f} s of it compare")


def baseline(embedder: Embedder, texts: Sequence[str]) -> tuple[float, float]:
    """Seconds, and seconds of processor time, that the embedder takes for the texts."""
    worked = time.process_time()
    seconds = timed(lambda: embedder.embed(texts))
    return seconds, time.process_time() - worked


def questions(titles: Sequence[str]) -> list[str]:
    """Questions of which none is asked twice."""
    return [f"{titles[number % len(titles)]} {number}" for number in range(SEARCHES)]


def test_the_whole_path(bench: Bench, tmp_path: Path) -> None:
    starts(bench)
    whole, stream, whole_worked, what = comes_in(bench)
    bench.twin("down")
    bench.row("second `up` to ready", f"{timed(lambda: bench.twin('up', '--detach')):.1f} s", "the same home")
    with closing(App(bench.addresses()["app_url"])) as app:
        edited(bench, app)
        verified(bench)
        titles = [document["title"] for document in app.get("/api/documents?limit=1000")["items"]]
        over_http = [timed(partial(app.search, asked)) for asked in questions(titles)]
    bench.twin("down")

    shutil.copytree(bench.home / "index", tmp_path / "copy" / "index")
    shutil.copytree(bench.home / "models", tmp_path / "copy" / "models")
    settings = Settings(home=tmp_path / "copy")
    embedder = load_embedder(settings)
    index = open_index(settings, generation(embedder), embedder.dimensions)
    in_process = [timed(partial(search, index, embedder, asked, Filters(), 10)) for asked in questions(titles)]
    counts = index.counts()
    bench.row(
        f"search with the question's embedding, in process ({SEARCHES} questions)",
        spread(in_process),
        f"{counts.chunks:,} chunks, hybrid, 10 hits",
    )
    bench.row("the same as `POST /api/search` over one connection", spread(over_http), "")
    texts = [chunk.text for record in index.scan() for chunk in index.chunks(record.document_id)]
    index.close()
    assert len(texts) == counts.chunks
    tokens = sum(embedder.count_tokens(texts))
    # The quicker of two: what else happens on the machine must not make the path look good.
    alone, worked = min(baseline(embedder, texts) for _ in range(2))
    bench.row("tokens embedded a second, whole path", f"{tokens / whole:,.0f}", f"{tokens:,} tokens of {what}")
    bench.row(
        "**baseline**: tokens embedded a second, the same chunks by the embedder alone",
        f"{tokens / alone:,.0f}",
        f"{embedder.name}, {settings.embedding_threads} threads, one process, {alone:.1f} s, the quicker of two",
    )
    bench.row(
        "whole path over the baseline", f"{whole / alone:.2f}", "capture, log, cleaning, splitting, index, commands"
    )
    bench.row(
        "the stream alone over the baseline",
        f"{stream / alone:.2f}",
        f"{stream:.1f} s from the first captured change to the last acknowledged document",
    )
    bench.row(
        "processor time of all parts over the baseline",
        f"{whole_worked / worked:.2f}",
        f"{whole_worked:.1f} s over {worked:.1f} s: what others do on the machine counts less",
    )
    bench.row("the environment on disk", f"{disk(Path(sys.prefix)):,.0f} MB", "with the development tools")
    load = os.getloadavg()[1]
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, {datetime.now(UTC):%Y-%m-%d}"
    print(f"\n\n{machine}; load of the last 5 minutes {load:.1f}\n\n| figure | value | |\n|---|---|---|")
    for row in bench.rows:
        print(f"| {' | '.join(row)} |")
