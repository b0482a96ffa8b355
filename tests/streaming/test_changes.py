"""Debezium's envelope becomes a change, whatever comes: every kind of message has one meaning, and none raises."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus.documents import new_document, source_version, to_record
from streaming.changes import (
    WAREHOUSE_HEADER,
    DeadLetter,
    Delete,
    Ignored,
    Message,
    Upsert,
    decode,
    delete_envelope,
    newest,
    upsert_envelope,
)

HERE = "0b7c4a2e-1111-4222-8333-444455556666"
DOCUMENT = new_document(
    url="https://example.org/a",
    category="article",
    platform="example.org",
    author_name="Ada",
    title="On engines",
    text="Text with “quotes”, \U0001d5ef and\nlines",
    crawl_id="crawl",
    crawled_at=datetime(2026, 5, 4, 3, 2, 1, 123000, tzinfo=UTC),
    published_at=datetime(2020, 1, 2, tzinfo=UTC),
    metadata={"language": "en"},
)
SOURCE = {"ts_ms": 1_700_000_000_000, "ord": 7, "wallTime": 1_700_000_000_456, "db": "twin", "collection": "documents"}


def key(document_id: Any = DOCUMENT.id) -> bytes:
    return json.dumps({"id": json.dumps(document_id)}).encode()


def after() -> str:
    record = to_record(DOCUMENT)
    dates = {name: {"$date": int(record[name].timestamp() * 1000)} for name in ("published_at", "crawled_at")}
    return json.dumps({**record, **dates})


def message(envelope: Any, **fields: Any) -> Message:
    value = None if envelope is None else msgspec.json.encode(envelope)
    return Message(**{"topic": "t", "partition": 0, "offset": 3, "key": key(), "value": value, **fields})


@pytest.mark.parametrize("operation", ["r", "c", "u"])
def test_reads_creates_and_updates_are_upserts_of_the_whole_document(operation: str) -> None:
    event = decode(message({"op": operation, "after": after(), "source": SOURCE}), HERE)

    assert isinstance(event, Upsert)
    assert event.document == DOCUMENT
    assert event.version == (None if operation == "r" else source_version(1_700_000_000_000, 7))
    assert event.source_hash == DOCUMENT.content_hash
    assert event.committed_at == datetime(2023, 11, 14, 22, 13, 20, 456000, tzinfo=UTC)


def test_a_snapshots_read_has_no_place_in_the_sources_history() -> None:
    sent = {"ts_ms": 1_700_000_000_000, "ord": -1, "snapshot": "true", "wallTime": None}

    event = decode(message({"op": "r", "after": after(), "source": sent}), HERE)

    assert isinstance(event, Upsert)
    assert (event.version, event.committed_at) == (None, None)


def test_a_delete_names_its_document_by_the_key() -> None:
    event = decode(message({"op": "d", "after": None, "source": SOURCE}), HERE)

    assert isinstance(event, Delete)
    assert (event.document_id, event.version) == (DOCUMENT.id, source_version(1_700_000_000_000, 7))


def test_an_object_id_keeps_one_spelling() -> None:
    spelled = json.dumps({"id": json.dumps({"$oid": "65f000000000000000000001"})}).encode()

    event = decode(message({"op": "d", "source": SOURCE}, key=spelled), HERE)

    assert isinstance(event, Delete)
    assert event.document_id == "65f000000000000000000001"


def test_a_tombstone_changes_nothing() -> None:
    assert decode(message(None), HERE) == Ignored(message(None), "tombstone")


def test_an_update_of_a_document_that_is_already_gone_changes_nothing() -> None:
    event = decode(message({"op": "u", "after": None, "source": SOURCE}), HERE)

    assert isinstance(event, Ignored)


@pytest.mark.parametrize("header", [b"another", b'"another"'])
def test_another_warehouse_in_the_same_log_is_passed_over(header: bytes) -> None:
    foreign = message({"op": "c", "after": after(), "source": SOURCE}, headers=((WAREHOUSE_HEADER, header),))
    own = message({"op": "c", "after": after(), "source": SOURCE}, headers=((WAREHOUSE_HEADER, f'"{HERE}"'.encode()),))

    assert decode(foreign, HERE) == Ignored(foreign, "foreign")
    assert isinstance(decode(own, HERE), Upsert)


@pytest.mark.parametrize(
    ("fields", "step", "reason"),
    [
        ({"value": b"\xff\xfe"}, "decode", "not a change"),
        ({"value": b"[]"}, "decode", "not a change"),
        ({"value": b'{"op": "c"}'}, "decode", "source"),
        ({"key": None}, "decode", "key"),
        ({"key": b"{}"}, "decode", "key"),
        ({"value": msgspec.json.encode({"op": "x", "source": SOURCE})}, "decode", "operation 'x'"),
        ({"value": msgspec.json.encode({"op": "c", "after": "{", "source": SOURCE})}, "decode", "extended JSON"),
        (
            {"value": msgspec.json.encode({"op": "c", "after": '{"_id": {"$oid": "zz"}}', "source": SOURCE})},
            "decode",
            "extended JSON",
        ),
        (
            {"value": msgspec.json.encode({"op": "c", "after": '{"_id": "a", "title": 3}', "source": SOURCE})},
            "validate",
            "category",
        ),
    ],
)
def test_what_is_no_change_is_a_dead_letter_with_its_reason(fields: dict[str, Any], step: str, reason: str) -> None:
    event = decode(message({"op": "c", "after": after(), "source": SOURCE}, **fields), HERE)

    assert isinstance(event, DeadLetter)
    assert event.step == step
    assert reason in event.reason


@given(st.binary(max_size=300), st.none() | st.binary(max_size=60))
@settings(deadline=None)
def test_no_bytes_make_it_raise(value: bytes, key: bytes | None) -> None:
    assert isinstance(decode(Message("t", 0, 0, key, value), HERE), DeadLetter | Ignored | Delete | Upsert)


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner))
)
@settings(deadline=None)
def test_no_json_makes_it_raise(value: Any) -> None:
    encoded = json.dumps({"op": "u", "after": json.dumps(value), "source": SOURCE}).encode()

    assert isinstance(decode(Message("t", 0, 0, key(), encoded), HERE), DeadLetter | Ignored | Upsert)


def test_a_repair_reads_as_debezium_would_have_told_it() -> None:
    version = source_version(1_700_000_123_000, 45)
    upsert = decode(Message("t", 0, 0, **upsert_envelope(to_record(DOCUMENT), version, "twin", HERE)), HERE)
    delete = decode(Message("t", 0, 0, **delete_envelope(DOCUMENT.id, version, "twin", HERE)), HERE)

    assert isinstance(upsert, Upsert)
    assert (upsert.document, upsert.version, upsert.message.key) == (DOCUMENT, version, delete.message.key)
    assert isinstance(delete, Delete)
    assert (delete.document_id, delete.version) == (DOCUMENT.id, version)


def test_of_several_changes_to_one_document_in_a_batch_the_last_counts() -> None:
    first, last = (decode(message({"op": "u", "after": after(), "source": SOURCE}, offset=n), HERE) for n in (1, 3))
    letter = DeadLetter(message(None, offset=2), "decode", "?")

    assert newest([first, letter, last]) == [Ignored(first.message, "superseded"), letter, last]


def test_versions_order_as_the_source_does_within_the_bits_that_every_part_keeps() -> None:
    moments = [(1, 2), (1, 3), (2, 1), (2**40, 5), (2**42 - 1, 2**40)]

    versions = [source_version(*moment) for moment in moments]

    assert versions == sorted(set(versions))
    assert versions[-1] < 2**53


def test_a_time_beyond_what_a_version_can_hold_is_a_letter() -> None:
    """The index compares versions as 64-bit floats: beyond 53 bits it could not tell two of them apart."""
    late = {"op": "u", "source": {"ts_ms": 2**42, "ord": 1}, "after": "{}"}

    event = decode(Message("changes", 0, 1, b'{"id": "\\"a\\""}', json.dumps(late).encode()), "here")

    assert isinstance(event, DeadLetter)
    assert event.version is None
    assert "ts_ms" in event.reason


def test_what_no_parser_foresees_is_a_letter_too() -> None:
    deep = Message("t", 0, 1, key(), b'{"op":"u","more":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}")
    code = json.dumps({**json.loads(after()), "text": {"$code": "f()"}})

    letters = [decode(deep, HERE), decode(message({"op": "u", "after": code, "source": SOURCE}), HERE)]

    assert [letter.step for letter in letters if isinstance(letter, DeadLetter)] == ["decode", "validate"]


@pytest.mark.parametrize(
    "hostile",
    [
        message(None, value=b'{"x":' + b"[" * 200_000),
        message({"op": "u", "source": SOURCE, "after": "[" * 200_000}),
        message({"op": "u", "source": SOURCE, "after": after()}, key=b'{"id":"\\"\\\\ud800\\""}'),
        message({"op": "u", "source": SOURCE, "after": after()}, key=key("another")),
        message(
            {"op": "u", "source": SOURCE, "after": json.dumps({**to_record(DOCUMENT), "text": "\ud800"}, default=str)}
        ),
        message({"op": "u", "source": SOURCE, "after": '{"_id": {"$oid": "' + "z" * 1_000_000 + '"}}'}),
    ],
    ids=["deep envelope", "deep document", "a key that is no text", "a key of another", "half a character", "long"],
)
def test_a_hostile_message_is_a_letter_whose_reason_can_be_written_anywhere(hostile: Message) -> None:
    letter = decode(hostile, HERE)

    assert isinstance(letter, DeadLetter)
    assert 0 < len(letter.reason.encode()) < 3_000
    assert (letter.document_id or "").encode() in (b"", b"another", DOCUMENT.id.encode())


def test_a_claimed_hash_that_is_no_text_is_kept_as_one() -> None:
    record = {**to_record(DOCUMENT), "crawled_at": None, "published_at": None, "content_hash": "\ud800"}

    event = decode(message({"op": "u", "source": SOURCE, "after": json.dumps(record)}), HERE)

    assert isinstance(event, Upsert)
    assert event.source_hash == "\N{REPLACEMENT CHARACTER}"


def test_a_replayed_read_has_the_version_that_was_noted_when_it_failed_and_a_change_its_own() -> None:
    replayed = (("twin.version", b"77"),)
    read = {"op": "r", "source": {**SOURCE, "ord": -1}, "after": after()}

    for envelope, version in ((read, 77), ({**read, "op": "u", "source": SOURCE}, source_version(SOURCE["ts_ms"], 7))):
        event = decode(message(envelope, headers=replayed), HERE)
        assert isinstance(event, Upsert)
        assert event.version == version
    garbage = decode(message(None, value=b"{", headers=replayed), HERE)
    assert isinstance(garbage, DeadLetter)
    assert garbage.version == 77
    for strange in (b"-1", b"x", b"9" * 30, None):
        event = decode(message(read, headers=(("twin.version", strange),)), HERE)
        assert isinstance(event, Upsert)
        assert event.version is None
