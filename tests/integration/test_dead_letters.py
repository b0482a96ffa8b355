"""What is refused is kept, seen, replayed and discarded, resolves by itself, and holds nothing up meanwhile."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.request import ProxyHandler, build_opener

import pytest
from pymongo import MongoClient

from corpus.documents import new_document, to_record
from streaming.changes import upsert_envelope
from streaming.clients import producer

pytestmark = pytest.mark.integration
TOPIC = "twin.twin.documents"
STRANGE = "twin.twin.documents/0/"


@pytest.fixture
def documents(running: Any) -> Iterator[Any]:
    """The collection of the running home, as any MongoDB client sees it."""
    with MongoClient[dict[str, Any]](addresses(running)["mongodb_uri"]) as client:
        yield client["twin"]["documents"]


def addresses(twin: Any) -> dict[str, str]:
    found: dict[str, str] = json.loads((twin.home / "addresses.json").read_text())
    return found


def letters(twin: Any, *filters: str) -> dict[str, dict[str, Any]]:
    return {letter["letter_id"]: letter for letter in twin.json("dead-letters", "list", *filters)}


def metric(twin: Any, line: str) -> bool:
    """Whether the app's metrics have this line."""
    address = addresses(twin)["app_url"]
    with build_opener(ProxyHandler({})).open(f"{address}/metrics", timeout=60) as answer:
        return line in answer.read().decode().splitlines()


def refused(title: str, word: str) -> tuple[dict[str, Any], str]:
    """A record that is no document, and the text that mends it."""
    made = new_document(
        url=f"https://example.org/{title.replace(' ', '-')}",
        category="article",
        platform="web",
        author_name="Test Author",
        title=title,
        text=f"The {word} station reports that it was mended.",
        crawl_id="by hand",
        crawled_at=datetime.now(UTC),
    )
    return {**to_record(made), "text": ["no", "text"]}, made.text


def test_letters_from_their_failure_to_their_end(
    running: Any, documents: Any, folder: Any, notes: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    assert running.run("dead-letters", "list").stdout == "no open dead letters\n"
    word = notes().word()
    record, text = refused(f"Refused {word}", word)
    documents.insert_one(record)
    outlet = producer(addresses(running)["kafka_bootstrap_servers"])
    outlet.produce(TOPIC, b"{ this is no change", b"no key either", partition=0, headers=[("from", b"a stranger")])
    outlet.flush()

    # What comes behind them in every partition is searchable all the same.
    folder.add(*(f"Behind {number}" for number in range(8)), sections=2)
    running.ingest(str(folder.folder))
    assert [letter["document_id"] for letter in running.wait()["failed"]] == [record["_id"]]
    assert [title for title in folder.words if running.listed()[title]["state"] != "indexed"] == []
    eventually(lambda: len(letters(running)) == 2, "both letters")

    found = letters(running)
    (strange,) = (id for id in found if id.startswith(STRANGE))
    letter = found[record["_id"]]
    assert (letter["step"], letter["attempts"], letter["document_id"]) == ("validate", 1, record["_id"])
    assert letter["reason"] == "field 'text' is of type list, expected a string"
    assert (found[strange]["step"], found[strange]["document_id"]) == ("decode", None)
    assert set(letters(running, "--step", "decode")) == {strange}
    assert set(letters(running, "--document", record["_id"], "--reason", "TEXT", "--since", "2020-01-01")) == {
        record["_id"]
    }
    whole = running.json("dead-letters", "show", strange)
    assert base64.b64decode(whole["value"]) == b"{ this is no change"
    assert whole["headers"] == [["from", base64.b64encode(b"a stranger").decode()]]
    assert "{ this is no change" in running.run("dead-letters", "show", strange).stdout
    assert "2 dead letters" in running.run("status").stdout
    assert metric(running, 'twin_dead_letters_open{step="decode"} 1.0')

    # Replayed, neither is better than before: they fail again, and say how often.
    running.run("dead-letters", "replay", "no such letter", code=1)
    assert set(running.json("dead-letters", "replay", "--all")["replayed"]) == set(found)
    eventually(lambda: [each["attempts"] for each in letters(running).values()] == [2, 2], "the second attempts")
    assert set(letters(running)) == set(found)

    running.run("dead-letters", "discard", strange)
    assert set(letters(running)) == {record["_id"]}
    assert running.run("dead-letters", "show", strange, code=1).stdout == ""

    # Mended at its source, the document's letter is gone without anybody's doing.
    documents.update_one({"_id": record["_id"]}, {"$set": {"text": text}})
    assert running.wait()["failed"] == []
    assert running.finds(word)
    eventually(lambda: letters(running) == {}, "the end of the letter")
    assert metric(running, 'twin_stream_total{what="letters_resolved"} 1.0')
    assert metric(running, 'twin_stream_total{what="letters_discarded"} 1.0')


def test_a_message_that_fails_no_more_is_indexed_by_its_replay(
    running: Any, documents: Any, notes: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    """A letter as an older program would have left it, which could not read what this one can."""
    word = notes().word()
    record, text = refused(f"Replayed {word}", word)
    whole = {**record, "text": text}
    # Behind capture's back, so that nothing but the replay can bring the document in.
    message = upsert_envelope(whole, 5, "twin", "")
    letter = {
        "letter_id": whole["_id"],
        "document_id": whole["_id"],
        "version": None,
        "step": "clean",
        "attempts": 3,
        "reason": "it could not be read then",
        "generation": "older",
        "failed_at": "2026-01-01T00:00:00Z",
        "topic": TOPIC,
        "partition": 0,
        "offset": 0,
        "headers": [],
        **{name: base64.b64encode(message[name]).decode() for name in ("key", "value")},
    }
    outlet = producer(addresses(running)["kafka_bootstrap_servers"])
    outlet.produce("twin.dead-letters", json.dumps(letter).encode(), whole["_id"].encode())
    outlet.flush()
    assert letters(running)[whole["_id"]]["attempts"] == 3

    assert running.json("dead-letters", "replay", "--step", "clean")["replayed"] == [whole["_id"]]

    eventually(lambda: letters(running) == {}, "the end of the letter")
    assert metric(running, 'twin_stream_total{what="letters_replayed"} 1.0')
    # Its source does not have it: what a replay brought in is subject to the next comparison like all else.
    running.wait()
    assert not running.finds(word)


def test_a_document_that_is_deleted_ends_its_letter(
    running: Any, documents: Any, notes: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    word = notes().word()
    record, _ = refused(f"Deleted {word}", word)
    documents.insert_one(record)
    running.wait()
    eventually(lambda: set(letters(running)) == {record["_id"]}, "the letter")

    documents.delete_one({"_id": record["_id"]})

    assert running.wait()["failed"] == []
    eventually(lambda: letters(running) == {}, "the end of the letter")


def test_a_log_that_is_lost_loses_no_letter_of_a_document_that_is_still_refused(
    running: Any, documents: Any, notes: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    word = notes().word()
    record, text = refused(f"Lost {word}", word)
    documents.insert_one(record)
    running.wait()
    running.run("dead-letters", "replay", record["_id"])
    eventually(lambda: [each["attempts"] for each in letters(running).values()] == [2], "the second attempt")

    running.kill("log")

    # Capture takes a snapshot into the new log, and there the document is refused for the first time.
    assert [letter["document_id"] for letter in running.wait()["failed"]] == [record["_id"]]
    assert [(id, each["attempts"]) for id, each in letters(running).items()] == [(record["_id"], 1)]
    running.run("dead-letters", "replay", "--all")
    eventually(lambda: [each["attempts"] for each in letters(running).values()] == [2], "its second attempt there")

    documents.update_one({"_id": record["_id"]}, {"$set": {"text": text}})

    assert running.wait()["failed"] == []
    assert running.finds(word)
    eventually(lambda: letters(running) == {}, "the end of the letter")


def test_a_crash_around_the_mending_leaves_no_letter_behind(
    running: Any, documents: Any, notes: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    word = notes().word()
    made = [refused(f"Crash {number} {word}", word) for number in range(12)]
    documents.insert_many([record for record, _ in made])
    running.wait()
    eventually(lambda: len(letters(running)) == len(made), "the letters")

    for number, (record, text) in enumerate(made):
        documents.update_one({"_id": record["_id"]}, {"$set": {"text": text}})
        if number == len(made) // 2:
            running.kill("app")

    assert running.wait()["failed"] == []
    eventually(lambda: letters(running) == {}, "the end of the letters")
