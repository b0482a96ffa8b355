"""`make demo`: the main job on this machine, from real documents to a cited answer, with what was measured.

The documents are this project's own documentation and code.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from embedded.home import MODULE

SOURCES = ("README.md", "docs", "corpus", "streaming", "serving", "ingestion")
QUESTION = "Where does a document become chunks?"
TWIN = (*MODULE, "embedded.cli")


def main() -> int:
    """Start, ingest, wait, ask, verify; 0 when the answer has citations and the index is right. Everything stays up."""
    say("Starting the services of one machine (documents, log, capture, app)")
    start = time.monotonic()
    if run("up", "--detach") != 0:
        return 1
    say("Bringing in this project's own documentation and code")
    began = time.monotonic()
    sources = [source for source in SOURCES if Path(source).exists()]
    if run("ingest", *sources, "--author", "The LLM Twin authors") != 0 or run("wait") != 0:
        return 1
    seconds = time.monotonic() - began
    say(f"Asking: {QUESTION}")
    answer = asked("ask", QUESTION)
    if run("ask", QUESTION) != 0:
        return 1
    say("Comparing the index with the documents, point by point")
    if run("verify") != 0:
        return 1
    status = asked("status")
    say("Measured")
    for line in measured(status, seconds, time.monotonic() - start):
        sys.stdout.write(f"  {line}\n")
    address = next(part["address"] for part in status["parts"] if part["name"] == "app")
    say(f"The page stays open: {address}")
    sys.stdout.write(
        "  change a paragraph in docs/, then: .venv/bin/twin ingest docs --prune && .venv/bin/twin wait\n"
        '  ask from here:                     .venv/bin/twin ask "..."\n'
        "  stop everything:                   make down\n"
    )
    return 0 if answer["citations"] else 1


def measured(status: dict[str, Any], seconds: float, total: float) -> list[str]:
    """Each figure with its unit and what it covers: this run, or all since the app started."""
    index, counts = status["index"], status["stream"]["counts"]
    embedded = counts.get("chunks_embedded", 0)
    fresh = status["freshness"]
    lines = [
        f"{index['documents']} documents, {index['chunks']} chunks searchable",
        f"in this run: ingest to searchable {seconds:.1f} s, start to answer {total:.1f} s",
    ]
    since = f"since the app started: {embedded} chunks embedded"
    if fresh["p50"] is not None:
        since += f"; source commit to searchable, last 5 min, p50 {fresh['p50']:.1f} s, p95 {fresh['p95']:.1f} s"
    ready = (
        f"{part['name']} {part['ready_seconds']} s" for part in status["parts"] if part["ready_seconds"] is not None
    )
    return [*lines, since, f"parts ready after: {', '.join(ready)}"]


def say(text: str) -> None:
    sys.stdout.write(f"\n== {text}\n")
    sys.stdout.flush()


def run(*arguments: str) -> int:
    """Run a command of ours in this terminal; its exit code."""
    return subprocess.run([*TWIN, *arguments], check=False).returncode


def asked(*arguments: str) -> Any:
    """The JSON that a command of ours prints."""
    done = subprocess.run([*TWIN, *arguments, "--json"], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    sys.exit(main())
