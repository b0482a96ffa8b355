"""What somebody changes in MongoDB itself reaches search like any other change, and `twin wait` is true of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import ObjectId
from pymongo import MongoClient

from corpus.documents import new_document, to_record

pytestmark = pytest.mark.integration


@pytest.fixture
def documents(running: Any) -> Iterator[Any]:
    """The collection of the running home, as any MongoDB client sees it."""
    address = json.loads((running.home / "addresses.json").read_text())["mongodb_uri"]
    with MongoClient[dict[str, Any]](address) as client:
        yield client["twin"]["documents"]


def record(title: str, text: str, **fields: Any) -> dict[str, Any]:
    """A document in the warehouse's own shape, written by hand."""
    now = datetime.now(UTC)
    made = new_document(
        url=f"https://example.org/{title.replace(' ', '-')}",
        category="article",
        platform="web",
        author_name="Test Author",
        title=title,
        text=text,
        crawl_id="by hand",
        crawled_at=now,
    )
    return {**to_record(made), **fields}


def test_a_text_that_is_set_by_hand_is_found(running: Any, documents: Any, notes: Callable[..., Any]) -> None:
    folder = notes("Notes set by hand")
    running.ingest(str(folder.folder))
    running.wait()
    shown = running.shown("Notes set by hand")
    old, new = folder.words["Notes set by hand"][1], folder.word()
    text = documents.find_one({"_id": shown["document_id"]})["text"]

    documents.update_one({"_id": shown["document_id"]}, {"$set": {"text": text.replace(old, new)}})

    assert running.wait()["failed"] == []
    assert (running.finds(new), running.finds(old)) == (True, False)
    after = running.shown("Notes set by hand")
    assert after["text"] == shown["text"].replace(old, new)
    assert after["version"] > shown["version"]
    kept = {chunk["chunk_id"] for chunk in shown["chunks"]} & {chunk["chunk_id"] for chunk in after["chunks"]}
    assert len(kept) == len(shown["chunks"]) - 1


@pytest.mark.parametrize("id", [None, ObjectId(), 5], ids=["our id", "an ObjectId", "a number"])
def test_a_document_that_is_inserted_and_deleted_by_hand(
    running: Any, documents: Any, notes: Callable[..., Any], id: Any
) -> None:
    word = notes().word()
    own = {} if id is None else {"_id": id}
    inserted = record(f"Inserted by hand {word}", f"The {word} station reports calm weather.", **own)

    documents.insert_one(inserted)

    assert running.wait()["failed"] == []
    assert running.finds(word)
    listed = running.listed()[inserted["title"]]
    assert (listed["document_id"], listed["state"], listed["chunks"]) == (str(inserted["_id"]), "indexed", 1)

    documents.delete_one({"_id": inserted["_id"]})

    running.wait()
    assert not running.finds(word)
    assert inserted["title"] not in running.listed()
    assert running.run("documents", "show", str(inserted["_id"]), code=1).stdout == ""


def test_a_record_that_is_no_document_is_a_dead_letter_until_it_is_mended(
    running: Any, documents: Any, notes: Callable[..., Any]
) -> None:
    word = notes().word()
    whole = record(f"Mended {word}", f"The {word} station reports that it was mended.")
    documents.insert_one({**whole, "text": ["not", "a", "text"]})

    # The dead letter ends the wait and is told by it; the document is listed with the reason.
    (letter,) = running.wait()["failed"]
    assert letter == {
        "document_id": whole["_id"],
        "reason": "validate: field 'text' is of type list, expected a string",
    }
    assert f"refused: {whole['_id']}: {letter['reason']}" in running.run("wait").stdout
    listed = running.listed()[whole["title"]]
    assert (listed["state"], listed["reason"], listed["chunks"]) == ("failed", letter["reason"], 0)
    assert running.json("documents", "list", "--state", "failed") == [listed]

    documents.update_one({"_id": whole["_id"]}, {"$set": {"text": whole["text"]}})

    assert running.wait()["failed"] == []
    assert running.finds(word)
    assert running.listed()[whole["title"]]["state"] == "indexed"

    # A version that is refused leaves the one before searchable, and a delete ends both.
    documents.update_one({"_id": whole["_id"]}, {"$unset": {"title": ""}})
    (letter,) = running.wait()["failed"]
    assert letter["reason"] == "validate: field 'title' is missing, expected a string"
    assert running.finds(word)
    documents.delete_one({"_id": whole["_id"]})
    assert running.wait()["failed"] == []
    assert not running.finds(word)


def test_a_database_that_is_dropped_is_gone_from_search_and_may_be_filled_again(
    running: Any, documents: Any, notes: Callable[..., Any]
) -> None:
    folder, later = notes("Notes before the drop"), notes("Notes after the drop")
    running.ingest(str(folder.folder))
    running.wait()
    (word,) = folder.words["Notes before the drop"][:1]
    assert running.finds(word)

    documents.database.client.drop_database("twin")

    assert running.wait()["failed"] == []
    assert not running.finds(word)
    assert running.listed() == {}
    assert running.json("status")["index"]["chunks"] == 0

    running.ingest(str(later.folder))
    running.ingest(str(folder.folder))
    later.words |= folder.words

    assert running.wait()["failed"] == []
    running.must_hold(later)
