"""An index that was harmed by hand in a running home: `twin verify` names the faults and `--repair` mends them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from corpus.index import CHUNK_FIELDS, LEDGER_FIELDS, ledger_point
from corpus.points import DENSE, EdgePoints, Point, Where

pytestmark = pytest.mark.integration
WRONG_ID = "00000000-0000-4000-8000-00000000000a"
STRANGE_ID = "00000000-0000-4000-8000-00000000000b"


def harmed(home: Path, record_of: str) -> None:
    """Ten points removed, one changed, one copied, one of another generation, and the record of a document removed."""
    (generation,) = (path.parent for path in (home / "index").glob("*/chunks"))
    chunks = EdgePoints(generation / "chunks", 384, CHUNK_FIELDS)
    ledger = EdgePoints(generation / "documents", None, LEDGER_FIELDS)
    others = [point for point in chunks.scroll(Where()) if point.payload["document_id"] != record_of]
    chunks.delete(Where(ids=[point.id for point in others[:10]]))
    chunks.set_payload(Where(ids=[others[10].id]), {"author": "Mallory"})
    (copied,) = chunks.retrieve([others[11].id], vectors=[DENSE])
    chunks.upsert([Point(WRONG_ID, copied.payload, copied.dense)])
    chunks.upsert([Point(STRANGE_ID, {**copied.payload, "generation": "another"}, copied.dense)])
    ledger.delete(Where(ids=[ledger_point(record_of)]))
    chunks.close()
    ledger.close()


def test_faults_made_by_hand_are_named_and_mended(
    running: Any, folder: Any, eventually: Callable[..., Any], ended: Callable[..., None]
) -> None:
    folder.add("Whole", "Harmed", "Without a record")
    running.ingest(str(folder.folder), "--prune")
    running.wait()
    clean = running.json("verify")
    lost = running.listed()["Without a record"]

    # The index belongs to the app, so it is harmed while the app is away: its supervisor is held meanwhile.
    supervisor = running.pids()["supervisor"]
    os.kill(supervisor, signal.SIGSTOP)
    try:
        ended({"app": running.kill("app")})
        harmed(running.home, lost["document_id"])
    finally:
        os.kill(supervisor, signal.SIGCONT)
    eventually(lambda: running.parts()["app"]["state"] == "ready", "the app")
    found = running.json("verify", code=1)
    mended = running.json("verify", "--repair")
    after = running.json("verify", "--sample", "100")

    faults = {kind: found[kind] for kind in ("missing", "orphaned", "stale", "wrong_generation", "duplicate")}
    assert faults == {
        "missing": 10 + 1,
        "orphaned": lost["chunks"],
        "stale": 1,
        "wrong_generation": 1,
        "duplicate": 1,
    }
    assert {fault["point_id"] for fault in found["faults"]} >= {WRONG_ID, STRANGE_ID}
    assert mended["repaired"] == sum(faults.values())
    assert (after["documents"], after["chunks"]) == (clean["documents"], clean["chunks"])
    running.must_hold(folder)


def test_nothing_is_off_while_documents_are_edited_all_the_time(running: Any, folder: Any) -> None:
    folder.add(*(f"Edited {number}" for number in range(10)))
    for _ in range(5):
        for number in range(10):
            folder.write(f"Edited {number}", [folder.word() for _ in range(4)])
        running.ingest(str(folder.folder))
        running.json("verify")
    running.wait()
    running.must_hold(folder)
