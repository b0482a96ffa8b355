"""Datasets of a home: versions outlive edits and a restart of the log, and an erasure reaches all that was made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration
SENTENCE = (
    "The {0} by the {1} keeps a {2} for every {3} that comes down from the {4} in the {5} of the year, number {6}."
)
WORDS = "river mill lantern garden winter orchard copper bridge meadow candle harbour thread saddle pepper".split()  # noqa: SIM905


def essay(number: int) -> str:
    """An article of two sections whose sentences are in no other."""
    sentences = [
        SENTENCE.format(
            *(WORDS[(number * 5 + line * 3 + place * (number + 2)) % len(WORDS)] for place in range(6)),
            f"{number}.{line}",
        )
        for line in range(8)
    ]
    parts = [
        f"# Essay {number}",
        "## How it began",
        " ".join(sentences[:4]),
        "## How it ended",
        " ".join(sentences[4:]),
    ]
    return "\n\n".join(parts) + "\n"


def test_a_version_is_built_again_after_edits_and_refused_after_an_erasure(
    homes: Callable[..., Any], tmp_path: Path
) -> None:
    twin, folder = homes(), tmp_path / "essays"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.md").write_text(essay(number))
    twin.up()
    twin.ingest(str(folder))
    twin.wait()

    old = twin.json("dataset", "build", "--no-embedding")
    assert sum(old["splits"].values()) == 24
    assert len(old["document_ids"]) == 12
    checked = twin.json("dataset", "check", old["id"], "--no-embedding")
    assert (checked["passes"], checked["ungrounded"]["count"]) == (True, 0)
    assert [overlap["families"] for overlap in checked["overlaps"]] == [0, 0, 0]

    # Edited, deleted and new documents, and a log that lost everything.
    (folder / "3.md").write_text(essay(103))
    (folder / "4.md").unlink()
    (folder / "20.md").write_text(essay(20))
    twin.ingest(str(folder), "--prune")
    twin.wait()
    new = twin.json("dataset", "build", "--no-embedding")
    assert new["id"] != old["id"]
    found = twin.json("dataset", "diff", old["id"], new["id"])["documents"]
    assert [len(found[how]) for how in ("added", "removed", "changed")] == [1, 1, 1]
    twin.down()
    twin.up()
    twin.wait()
    shutil.rmtree(Path(old["folder"]))
    assert twin.json("dataset", "build", "--from", old["id"])["hash"] == old["hash"]
    assert twin.json("dataset", "build", "--no-embedding")["id"] == new["id"]

    # What is erased is in no version's files, and in none that is built again.
    gone = folder / "5.md"
    receipt = twin.json("erase", "--document", str(gone), "--receipt", str(tmp_path / "receipt.json"), "--yes")
    places = {place["place"]: place for place in receipt["places"]}
    assert (receipt["left"], places["files: datasets"]["found"]) == (0, 2)
    assert places["history: versions"]["found"] >= 1
    assert set(receipt["stale"]["datasets"]) == {old["id"], new["id"]}
    refused = twin.run("dataset", "build", "--from", old["id"], code=1).stderr
    assert "was erased for good" in refused
    assert {row["state"] for row in twin.json("dataset", "list")} == {"erased"}
    text = b"number 5.0"
    held = [path for path in twin.home.rglob("*") if path.is_file() and text in path.read_bytes()]
    assert held == []
    gone.unlink()
    last = twin.json("dataset", "build", "--no-embedding")
    assert receipt["documents"][0] not in last["document_ids"]
    assert len(json.dumps(last["documents"])) > 2


def test_a_home_without_documents_says_what_to_do(homes: Callable[..., Any]) -> None:
    twin = homes()
    twin.up()

    assert "twin ingest" in twin.run("dataset", "build", code=1).stderr
    assert "twin dataset build" in twin.run("dataset", "list").stdout
    assert "twin dataset list" in twin.run("dataset", "show", "nobody's", code=1).stderr
