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


def damaged(home: Path, record_of: str) -> None:
    """The record of a document made unreadable, and two points that tell nothing of themselves."""
    (generation,) = (path.parent for path in (home / "index").glob("*/chunks"))
    chunks = EdgePoints(generation / "chunks", 384, CHUNK_FIELDS)
    ledger = EdgePoints(generation / "documents", None, LEDGER_FIELDS)
    ledger.set_payload(Where(ids=[ledger_point(record_of)]), {"seen": "abc"})
    near = [chunks.retrieve([point.id], vectors=[DENSE])[0].dense for point in list(chunks.scroll(Where()))[:2]]
    chunks.upsert([Point(id, {}, dense) for id, dense in zip((WRONG_ID, STRANGE_ID), near, strict=True)])
    chunks.close()
    ledger.close()


@pytest.fixture
def while_the_app_is_away(
    running: Any, eventually: Callable[..., Any], ended: Callable[..., None]
) -> Callable[[Callable[[], None]], None]:
    """Does something to the index, which belongs to the app: its supervisor is held meanwhile."""

    def act(harm: Callable[[], None]) -> None:
        supervisor = running.pids()["supervisor"]
        os.kill(supervisor, signal.SIGSTOP)
        try:
            ended({"app": running.kill("app")})
            harm()
        finally:
            os.kill(supervisor, signal.SIGCONT)
        eventually(lambda: running.parts()["app"]["state"] == "ready", "the app")

    return act


def test_faults_made_by_hand_are_named_and_mended(
    running: Any, folder: Any, while_the_app_is_away: Callable[[Callable[[], None]], None]
) -> None:
    folder.add("Whole", "Harmed", "Without a record")
    running.ingest(str(folder.folder), "--prune")
    running.wait()
    clean = running.json("verify")
    lost = running.listed()["Without a record"]

    while_the_app_is_away(lambda: harmed(running.home, lost["document_id"]))
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


def test_a_damaged_record_or_point_holds_nothing_up(
    running: Any, folder: Any, while_the_app_is_away: Callable[[Callable[[], None]], None]
) -> None:
    folder.add("Damaged", "Beside it")
    running.ingest(str(folder.folder))
    running.wait()
    record_of = running.listed()["Damaged"]["document_id"]

    while_the_app_is_away(lambda: damaged(running.home, record_of))
    assert [word for word in folder.words["Beside it"] if not running.finds(word)] == []
    assert set(running.listed()) == set(folder.words)
    folder.write("Damaged", [folder.word(), *folder.words["Damaged"][1:]])
    folder.add("New")
    running.ingest(str(folder.folder))

    assert running.wait()["failed"] == []
    found = running.json("verify", code=1)
    assert {fault["point_id"] for fault in found["faults"]} == {WRONG_ID, STRANGE_ID}
    assert running.json("verify", "--repair")["repaired"] == 2
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
