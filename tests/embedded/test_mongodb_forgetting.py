"""The embedded MongoDB forgets former versions: no file of it has them, and its streams end where they would have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from embedded.mongodb.changestream import open_stream
from embedded.mongodb.commands import Server
from embedded.mongodb.store import Store

MARKER = "zqmarkerzq"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path)
    yield opened
    opened.release()
    opened.close()


@pytest.fixture
def server(store: Store) -> Server:
    return Server(store, "127.0.0.1:1")


def asked(server: Server, command: dict[str, Any]) -> dict[str, Any]:
    reply = server.answer({**command, "$db": "twin"})
    assert reply["ok"] == 1.0, reply
    return reply


def put(server: Server, id: str, text: str) -> None:
    statement = {"q": {"_id": id}, "u": {"_id": id, "text": text}, "upsert": True}
    asked(server, {"update": "documents", "updates": [statement]})


def remove(server: Server, id: str) -> None:
    asked(server, {"delete": "documents", "deletes": [{"q": {"_id": id}, "limit": 1}]})


def texts(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if MARKER.encode() in path.read_bytes()]


def test_former_versions_and_deleted_documents_are_in_no_file(server: Server, tmp_path: Path) -> None:
    for number in range(200):
        put(server, f"kept {number}", "plain " * 100)
    for number in range(5):
        put(server, "gone", f"{MARKER} {number} " * 200)
        put(server, "edited", f"{MARKER} {number} " * 200)
    put(server, "edited", "plain")
    # The answer of such a write is kept for when it is asked again.
    write = {"findAndModify": "documents", "query": {"_id": "gone"}, "update": {"$set": {"a": 1}}, "txnNumber": 1}
    asked(server, {**write, "lsid": {"id": b"session"}})
    remove(server, "gone")
    assert texts(tmp_path) != []
    count = {"forgetVersions": "documents", "ids": ["gone", "edited"], "countOnly": True}
    # Of the one all but the deletion, of the other all but the newest.
    assert asked(server, count)["n"] == 6 + 5

    asked(server, {"forgetVersions": "documents", "ids": ["gone", "edited"]})

    assert texts(tmp_path) == []
    assert asked(server, count)["n"] == 0
    found = asked(server, {"find": "documents", "filter": {}, "batchSize": 1000})["cursor"]["firstBatch"]
    assert len(found) == 201
    assert [each["text"] for each in found if each["_id"] == "edited"] == ["plain"]
    put(server, "edited", "and goes on")
    assert asked(server, {"count": "documents", "query": {"text": "and goes on"}})["n"] == 1


def test_a_stream_that_has_not_read_so_far_ends_where_it_would_have_ended(server: Server, store: Store) -> None:
    put(server, "edited", "first")
    behind = open_stream(store, "twin", "documents", [{"$changeStream": {"fullDocument": "updateLookup"}}])
    put(server, "edited", "second")
    put(server, "gone", "text")
    put(server, "edited", "third")
    remove(server, "gone")

    store.forget()

    events = behind.read(10, 0, lambda: True)
    assert [(event["operationType"], dict(event["documentKey"])["_id"]) for event in events] == [
        ("replace", "edited"),
        ("delete", "gone"),
    ]
    assert dict(events[0]["fullDocument"])["text"] == "third"
    put(server, "edited", "fourth")
    assert [dict(event["fullDocument"])["text"] for event in behind.read(10, 0, lambda: True)] == ["fourth"]


def test_a_token_of_a_change_that_was_forgotten_still_resumes(server: Server, store: Store) -> None:
    stream = open_stream(store, "twin", "documents", [{"$changeStream": {}}])
    put(server, "edited", "first")
    token = stream.read(1, 0, lambda: True)[0]["_id"]
    put(server, "edited", "second")
    put(server, "edited", "third")

    store.forget()

    resumed = open_stream(store, "twin", "documents", [{"$changeStream": {"resumeAfter": token}}])
    assert [dict(event["fullDocument"])["text"] for event in resumed.read(10, 0, lambda: True)] == ["third"]


def test_what_was_dropped_is_forgotten_too(server: Server, tmp_path: Path) -> None:
    put(server, "gone", MARKER * 50)
    asked(server, {"drop": "documents"})
    assert texts(tmp_path) != []

    asked(server, {"forgetVersions": "documents", "ids": []})

    assert texts(tmp_path) == []
