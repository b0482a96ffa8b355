"""What downstream teams read: whole states keyed by the document's id, tombstones, and letters with their message."""

from __future__ import annotations

import base64

import msgspec
import numpy as np

from corpus.documents import Chunk
from corpus.index import Record, places
from streaming.changes import DeadLetter, Delete, Ignored, Message, Upsert
from streaming.indexing import Indexed, Removed, Unchanged
from streaming.log import Log, features, message_of

LOG = Log(
    bootstrap="",
    changes="changes",
    documents="documents",
    chunks="chunks",
    dead_letters="letters",
    index_id="",
    epoch=lambda: "",
)
MESSAGE = Message("changes", 2, 7, b"key", b"value", (("h", b"1"), ("none", None)))


def test_an_indexed_document_is_told_whole_with_its_vectors() -> None:
    chunks = (Chunk(0, ("T",), "first", 0, 5), Chunk(1, ("T", "S"), "second", 6, 12))
    record = Record(document_id="d", seen=9, version=9, text="first\nsecond", places=places(["c1", "c2"], chunks))
    vectors = {"c1": [0.25, -1.0], "c2": np.array([0.5, 2.0], np.float32)}
    change = Upsert(MESSAGE, 9, None, "", None)  # type: ignore[arg-type]
    outcome = Indexed(change, record, chunks, vectors, 2, 0, 0)  # type: ignore[arg-type]

    (topic, key, document), (chunk_topic, chunk_key, told) = features(outcome, LOG, "g1")

    assert (topic, key, chunk_topic, chunk_key) == ("documents", b"d", "chunks", b"d")
    assert msgspec.json.decode(document or b"")["text"] == "first\nsecond"
    decoded = msgspec.json.decode(told or b"")
    assert (decoded["generation"], decoded["version"]) == ("g1", 9)
    assert [(chunk["chunk_id"], chunk["position"], chunk["heading_path"]) for chunk in decoded["chunks"]] == [
        ("c1", 0, ["T"]),
        ("c2", 1, ["T", "S"]),
    ]
    embedding = np.frombuffer(base64.b64decode(decoded["chunks"][0]["embedding"]), "<f4")
    assert embedding.tolist() == [0.25, -1.0]


def test_a_deletion_is_a_tombstone_in_both_topics() -> None:
    outcome = Removed(Delete(MESSAGE, 9, "d", None), 3)

    assert features(outcome, LOG, "g1") == [("documents", b"d", None), ("chunks", b"d", None)]


def test_a_dead_letter_holds_its_message_byte_for_byte() -> None:
    ((topic, key, told),) = features(DeadLetter(MESSAGE, "decode", "it is odd", "d", 4), LOG, "g1")

    letter = msgspec.json.decode(told or b"")
    assert (topic, key) == ("letters", b"d")
    assert (letter["step"], letter["reason"], letter["partition"], letter["offset"]) == ("decode", "it is odd", 2, 7)
    assert base64.b64decode(letter["value"]) == b"value"
    assert letter["headers"] == [["h", base64.b64encode(b"1").decode()], ["none", None]]


def test_what_changes_nothing_tells_nothing_and_still_counts_as_read() -> None:
    for outcome in (Ignored(MESSAGE, "tombstone"), Unchanged(MESSAGE, "stale", "a")):
        assert features(outcome, LOG, "g1") == []
        assert message_of(outcome) == MESSAGE
