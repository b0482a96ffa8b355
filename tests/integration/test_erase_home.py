"""What was erased in a running home stands in none of its files, whatever broke off meanwhile."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from corpus.documents import new_document, to_record

pytestmark = pytest.mark.integration


def forms(marker: str) -> list[bytes]:
    """A text as files may have it: UTF-8, UTF-16, and base64 at each of the three places where it can begin."""
    plain = marker.encode()
    coded = []
    for shift in range(3):
        whole = base64.b64encode(b"\0" * shift + plain)
        # The first and last characters depend on the bytes beside the marker.
        coded.append(whole[4 if shift else 0 : -4])
    return [plain, marker.encode("utf-16-le"), marker.encode("utf-16-be"), *coded]


def holding(home: Path, marker: str) -> list[str]:
    """Files below the home that have the marker in any form."""
    files = [path for path in home.rglob("*") if path.is_file()]
    return [str(path.relative_to(home)) for path in files if any(form in path.read_bytes() for form in forms(marker))]


def by(author: str, title: str, text: str) -> dict[str, Any]:
    return to_record(
        new_document(
            url=f"https://example.org/{title.replace(' ', '-')}",
            category="article",
            platform="web",
            author_name=author,
            title=title,
            text=text,
            crawl_id="by hand",
            crawled_at=datetime.now(UTC),
        )
    )


@contextmanager
def database(twin: Any) -> Iterator[Any]:
    """The warehouse of a running home, as any MongoDB client sees it."""
    with MongoClient[dict[str, Any]](json.loads((twin.home / "addresses.json").read_text())["mongodb_uri"]) as client:
        yield client["twin"]


def filled(twin: Any, notes: Any, marker: str) -> dict[str, str]:
    """Two authors; Mallory's documents hold the marker: one was edited, one deleted, one is refused. Ids by name."""
    notes.add("Kept alpha", "Kept bravo")
    twin.ingest(str(notes.folder))
    edited = by("Mallory", f"Letter {marker}", f"The {marker} station reports calm weather. {marker} " * 20)
    deleted = by("Mallory", "Withdrawn", f"The {marker} report was withdrawn. " * 20)
    refused = by("Mallory", "Refused", f"{marker} " * 20)
    with database(twin) as found:
        found["documents"].insert_many([edited, deleted, {**refused, "text": ["no text", marker]}])
        found["authors"].insert_one({"_id": edited["author_id"], "name": "Mallory"})
        twin.wait()
        for number in range(3):
            text = f"The {marker} station was changed {number} times. " * 20
            found["documents"].update_one({"_id": edited["_id"]}, {"$set": {"text": text}})
            twin.wait()
        found["documents"].delete_one({"_id": deleted["_id"]})
        twin.wait()
    return {
        "edited": edited["_id"],
        "deleted": deleted["_id"],
        "refused": refused["_id"],
        "author": edited["author_id"],
    }


def test_an_author_is_erased_from_every_file_and_the_other_stays(
    homes: Callable[..., Any], notes: Callable[..., Any], tmp_path: Path
) -> None:
    twin, kept, marker, file = homes(), notes(), "zqerasedmarkerzq", tmp_path / "receipt.json"
    twin.up()
    ids = filled(twin, kept, marker)
    assert twin.finds(marker)
    assert {name.split("/")[0] for name in holding(twin.home, marker)} >= {"documents", "index"}

    told = twin.run("erase", "--author", "mallory", "--receipt", str(file), "--yes")

    receipt = json.loads(file.read_text())
    # Also what was deleted before: the history of documents still has it.
    assert set(receipt["documents"]) == {ids["edited"], ids["deleted"], ids["refused"]}
    assert [place for place in receipt["places"] if place["left"] != 0] == []
    found = {place["place"]: place["found"] for place in receipt["places"]}
    assert (found["warehouse: documents"], found["warehouse: authors"]) == (2, 1)
    assert found["index: chunks"] > 0
    assert found["warehouse: history"] >= 4
    assert found["log: twin.dead-letters"] == 1
    assert "3 documents erased, 0 left" in told.stdout
    assert holding(twin.home, marker) == []
    assert not twin.finds(marker)
    twin.must_hold(kept)
    with database(twin) as warehouse:
        assert [author["name"] for author in warehouse["authors"].find()] == ["Test Author"]
    # The same address may come again: it is another document.
    with database(twin) as warehouse:
        warehouse["documents"].insert_one(by("Mallory", f"Letter {marker}", f"The {marker} station is back."))
    twin.wait()
    assert twin.finds(marker)
    twin.run("erase", "--resume", "--receipt", str(file), code=1)
    again = json.loads(twin.run("erase", "--resume", "--receipt", str(file), "--force", "--json").stdout)
    assert (again["left"], again["ingested_again"]) == (0, [ids["edited"]])
    twin.down()
    assert holding(twin.home, marker) != []


def test_an_erasure_goes_on_after_the_app_was_killed(
    homes: Callable[..., Any], notes: Callable[..., Any], eventually: Callable[..., Any], tmp_path: Path
) -> None:
    twin, kept, marker, file = homes(), notes(), "zqkilledmarkerzq", tmp_path / "receipt.json"
    twin.up()
    ids = filled(twin, kept, marker)

    with database(twin) as warehouse:
        erase = twin.start(
            "erase",
            *(part for name in ("edited", "deleted", "refused") for part in ("--document", ids[name])),
            *("--receipt", str(file), "--yes"),
        )
        eventually(lambda: warehouse["documents"].find_one({"_id": ids["edited"]}) is None, "the deletion")
        twin.kill("app")
        # Its command asks again for a while; the app would go on with it anyway.
        erase.communicate(timeout=300)
        eventually(lambda: warehouse["erasures"].find_one({})["state"] == "done", "the end of the erasure")
        twin.run("erase", "--resume", "--receipt", str(file), "--force")

    receipt = json.loads(file.read_text())
    assert receipt["left"] == 0
    assert {place["place"]: place["found"] for place in receipt["places"]}["index: chunks"] > 0
    assert holding(twin.home, marker) == []
    twin.wait()
    twin.must_hold(kept)
