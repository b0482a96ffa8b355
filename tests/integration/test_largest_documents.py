"""Documents of the largest size that MongoDB takes pass through every topic, or become a letter that says why."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import encode
from confluent_kafka import Consumer, KafkaError, TopicPartition
from pymongo import MongoClient

from corpus.documents import LARGEST_MESSAGE, new_document, to_record

pytestmark = pytest.mark.integration
LARGEST_RECORD = 16 * 1024 * 1024


def record(title: str, category: str, text: str, **fields: Any) -> dict[str, Any]:
    """A record written by hand, with as much of the text as MongoDB takes."""
    made = new_document(
        url=f"https://example.org/{title}",
        category=category,
        platform="web",
        author_name="Test Author",
        title=title,
        text="",
        crawl_id="by hand",
        crawled_at=datetime.now(UTC),
    )
    found = {**to_record(made), **fields}
    return {**found, "text": text[: LARGEST_RECORD - len(encode(found))]}


def long_words(letters: int) -> str:
    """Sentences of few words, so that the model has little to do."""
    source = random.Random(7)
    words = ("".join(source.choices("abcdefghiklmnoprstuvwy", k=4_000)) for _ in range(letters // 4_000))
    return ". ".join(word.capitalize() for word in words)


def newest(bootstrap: str, topic: str) -> dict[str, bytes | None]:
    """The newest value by key, read as a downstream team would."""
    reader = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "test-largest",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "fetch.message.max.bytes": LARGEST_MESSAGE,
            "receive.message.max.bytes": 2 * LARGEST_MESSAGE,
            "log_level": 0,
        }
    )
    partitions = reader.list_topics(topic, timeout=10).topics[topic].partitions
    reader.assign([TopicPartition(topic, number, 0) for number in partitions])
    values: dict[str, bytes | None] = {}
    ends: set[int | None] = set()
    while len(ends) < len(partitions):
        message = reader.poll(60)
        assert message is not None, f"{topic} does not come to its end"
        error = message.error()
        if error is None:
            values[bytes(message.key() or b"").decode()] = message.value()
        else:
            assert error.code() == KafkaError._PARTITION_EOF, error
            ends.add(message.partition())
    reader.close()
    return values


@pytest.mark.parametrize("log", ["one machine", pytest.param("kafka", marks=pytest.mark.long)])
def test_the_largest_records_are_told_of_whole_or_are_letters_and_stop_nothing(
    homes: Callable[..., Any],
    notes: Callable[..., Any],
    promised: Callable[[str, Any], None],
    request: pytest.FixtureRequest,
    log: str,
) -> None:
    settings = request.getfixturevalue("cluster").settings if log == "kafka" else {}
    twin, folder = homes(**settings), notes("Notes after the largest")
    twin.up()
    told = json.loads((twin.home / "addresses.json").read_text())
    bootstrap = settings.get("TWIN_KAFKA_BOOTSTRAP_SERVERS") or told["kafka_bootstrap_servers"]
    prose = long_words(LARGEST_RECORD)
    records = {"whole": record("whole", "article", prose), "refused": record("refused", "unknown", prose)}
    if log == "one machine":
        # Every character takes seven bytes in the change that tells of it: Connect would need a heap for that.
        worst = "def f():\n" + "\x00" * LARGEST_RECORD
        records["worst"] = record("worst", "code", worst)
        records["worst and refused"] = record("worst-and-refused", "unknown", worst)
    with MongoClient[dict[str, Any]](told["mongodb_uri"]) as client:
        collection = client["twin"]["documents"]
        for each in records.values():
            collection.insert_one(each)
        # An update tells the whole document as well, and MongoDB adds what was changed.
        collection.update_one({"_id": records["refused"]["_id"]}, {"$set": {"text": records["refused"]["text"][1:]}})
    ids = {name: each["_id"] for name, each in records.items()}
    twin.ingest(str(folder.folder))

    failed = {each["document_id"]: each["reason"] for each in twin.wait()["failed"]}

    refused = {name for name in ids if name.endswith("refused")}
    assert set(failed) == {ids[name] for name in refused}
    assert twin.finds(folder.words["Notes after the largest"][0])
    documents, chunks, letters = (
        newest(bootstrap, f"twin.{name}") for name in ("features.documents", "features.chunks", "dead-letters")
    )
    assert set(documents) == set(chunks)
    assert set(documents) & set(ids.values()) == {ids[name] for name in ids.keys() - refused}
    for values in (documents, chunks, letters):
        assert max(len(value or b"") for value in values.values()) < LARGEST_MESSAGE
    document, whole = (json.loads(values[ids["whole"]] or b"") for values in (documents, chunks))
    promised("features.documents", document)
    promised("features.chunks", {**whole, "chunks": whole["chunks"][::100]})
    assert len(document["text"]) > 0.99 * LARGEST_RECORD
    assert sum(len(chunk["text"]) for chunk in whole["chunks"]) > 0.99 * LARGEST_RECORD
    reasons = {id: json.loads(value or b"") for id, value in letters.items()}
    for letter in reasons.values():
        promised("dead-letters", letter)
    assert len(reasons[ids["refused"]]["value"]) > LARGEST_RECORD
    if "worst and refused" in ids:
        assert reasons[ids["worst and refused"]]["value"] is None
        assert reasons[ids["worst and refused"]]["reason"].endswith("is too large for a letter)")
