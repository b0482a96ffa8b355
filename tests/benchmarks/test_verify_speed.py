"""How long `twin verify` takes and how much memory: 100,000 synthetic documents in a real MongoDB and a real index."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.benchmark
ROOT = Path(__file__).parents[2]
DOCUMENTS = int(os.environ.get("BENCHMARK_DOCUMENTS", "100000"))

SYNTHETIC = """
import itertools, json, random
from datetime import UTC, datetime
from corpus.categories import point_ids
from corpus.documents import Chunk, new_document
from corpus.index import Record, open_index, places
from corpus.settings import load
from corpus.warehouse import connect

settings = load()
index = open_index(settings, "synthetic-1", 384)
warehouse = connect(settings)
WORDS = [f"word{number}" for number in range(500)]


def synthetic(number):
    source = random.Random(number)
    text = "\\n\\n".join(" ".join(source.choices(WORDS, k=120)) for _ in range(3))
    return new_document(url=f"https://example.org/{number}", category="article", platform="example.org",
        author_name=f"Author {number % 50}", title=f"Note {number}", text=text, crawl_id="crawl",
        crawled_at=datetime(2026, 1, 1, tzinfo=UTC))
"""
FILL = """
import numpy as np

vectors = [[float(value) for value in row] for row in np.random.default_rng(1).normal(size=(64, 384))]
for start in range(0, {count}, 1000):
    made = [synthetic(number) for number in range(start, min(start + 1000, {count}))]
    warehouse.save(made)
    for document in made:
        starts = [0]
        for passage in document.text.split("\\n\\n")[:-1]:
            starts.append(starts[-1] + len(passage) + 2)
        chunks = [Chunk(at, (), passage, begin, begin + len(passage))
                  for at, (begin, passage) in enumerate(zip(starts, document.text.split("\\n\\n")))]
        ids = point_ids(document.id, "synthetic-1", chunks)
        record = Record(document_id=document.id, seen=1, version=1, content_hash=document.content_hash,
            source_hash=document.content_hash, places=places(ids, chunks), title=document.title, url=document.url,
            author=document.author_name, author_id=document.author_id, category="article", platform="example.org",
            crawled_at=document.crawled_at, crawl_id="crawl", text=document.text)
        endless = itertools.islice(itertools.cycle(vectors), start % 64, None)
        index.replace(record, chunks, dict(zip(ids, endless)), None)
"""
# The index' files are mapped, and the system takes those pages back at will: what counts is the memory beside them.
VERIFY = """
import threading
from streaming.verify import Verification


def own():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def watch():
    while not done.wait(0.02):
        seen.append(own())


before, seen, done = own(), [], threading.Event()
watching = threading.Thread(target=watch)
watching.start()
report = Verification(warehouse, index, None, lambda: None, lambda ids: None).run()
done.set()
watching.join()
print(json.dumps({"documents": report.documents, "chunks": report.chunks, "found": report.found,
    "seconds": report.seconds, "before": before, "peak": max(seen)}))
"""


def test_synthetic_documents_are_compared(tmp_path: Path, mongodb_uri: str) -> None:
    variables = {
        **os.environ,
        "TWIN_HOME": str(tmp_path),
        "TWIN_MONGODB_URI": mongodb_uri,
        "TWIN_DATABASE": "synthetic",
        "PYTHONPATH": str(ROOT),
    }

    def run(program: str) -> str:
        ending = "index.close()\nwarehouse.close()\n"
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(SYNTHETIC) + program + ending],
            env=variables,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout

    run(FILL.replace("{count}", str(DOCUMENTS)))
    measured = json.loads(run(VERIFY))

    print(
        f"\nverify: {measured['documents']} documents and {measured['chunks']} chunks in {measured['seconds']:.1f} s, "
        f"{measured['peak'] / 1e6:.0f} MB of its own at most, {measured['before'] / 1e6:.0f} MB of them the open index"
    )
    assert (measured["documents"], measured["found"]) == (DOCUMENTS, 0)
