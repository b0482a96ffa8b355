"""Malformed and hostile messages in the real log, and documents in the real MongoDB: good documents still come in."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from poison import HERE, hostile_texts, poisons
from pymongo import MongoClient

from corpus.documents import new_document, to_record
from streaming.clients import producer

pytestmark = pytest.mark.integration
# All of them together are megabytes, minutes of the real model; tests/oracle/test_poison.py has every one.
LARGEST = 30_000


def addresses(twin: Any) -> dict[str, Any]:
    return json.loads((twin.home / "addresses.json").read_text())


def settled(twin: Any) -> dict[str, Any]:
    """What `twin wait` answers; that documents were refused is an answer too."""
    return json.loads(twin.run("wait", "--timeout", "180", "--json", code=None).stdout)


def must_be_found(twin: Any, notes: Any, title: str) -> None:
    assert twin.listed()[title]["state"] == "indexed"
    assert [word for word in notes.words[title] if not is_found(twin, word)] == []


def is_found(twin: Any, word: str) -> bool:
    """Whether a search finds the word; hostile texts may well stand before it."""
    hits = twin.asked("/api/search", {"question": f"the {word} station", "limit": 30})
    return any(word in hit["text"] for hit in hits)


def test_poisoned_messages_in_the_log_stop_nothing(running: Any, notes: Callable[..., Any]) -> None:
    before = notes("Before the poison")
    running.ingest(str(before.folder))
    settled(running)
    with MongoClient[dict[str, Any]](addresses(running)["mongodb_uri"]) as client:
        identity = str(client["twin"]["warehouse"].find_one({})["_id"])
    lost: list[str] = []
    outlet = producer(addresses(running)["kafka_bootstrap_servers"])
    for poison in poisons():
        if poison.heavy:
            continue
        headers = [(name, identity.encode() if value == HERE.encode() else value) for name, value in poison.headers]
        outlet.produce(
            "twin.twin.documents",
            poison.value,
            poison.key,
            headers=headers,
            on_delivery=lambda error, _, name=poison.name: lost.append(name) if error else None,
        )
        outlet.flush()
    assert lost == []

    after = notes("After the poison")
    running.ingest(str(after.folder))
    answer = settled(running)

    # None of them is in the warehouse: what was indexed of them is found by comparing, and removed.
    assert answer["failed"] == []
    must_be_found(running, before, "Before the poison")
    must_be_found(running, after, "After the poison")
    status = running.json("status")
    assert status["index"]["documents"] == status["warehouse"]["documents"] == 2
    assert running.parts()["app"]["restarts"] == 0


def test_hostile_documents_in_the_warehouse_stop_nothing(running: Any, notes: Callable[..., Any]) -> None:
    texts = [(name, text) for name, text, _ in hostile_texts() if len(text) <= LARGEST]
    with MongoClient[dict[str, Any]](addresses(running)["mongodb_uri"]) as client:
        documents = client["twin"]["documents"]
        for name, text in texts:
            made = new_document(
                url=f"https://example.org/{name.replace(' ', '-')}",
                category="article",
                platform="web",
                author_name="Test Author",
                title=f"Hostile {name}",
                text=text,
                crawl_id="by hand",
                crawled_at=datetime.now(UTC),
            )
            documents.insert_one(to_record(made))
        documents.insert_one({"_id": "of other types", "text": 5, "title": [], "metadata": "none"})
        documents.insert_one({"_id": "of sixteen megabytes", "text": "x", "blob": "y" * (15 << 20)})

    after = notes("After the hostile")
    running.ingest(str(after.folder))
    settled(running)

    must_be_found(running, after, "After the hostile")
    states = {title: document["state"] for title, document in running.listed().items()}
    assert {states[f"Hostile {name}"] for name, _ in texts} == {"indexed", "failed"}
    assert states["Hostile nul"] == states["Hostile bidi"] == "indexed"
    assert states["Hostile spaces"] == "failed"
    assert running.parts()["app"]["restarts"] == 0
