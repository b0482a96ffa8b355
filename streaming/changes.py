"""What a message of the documents topic means: a pure, total function from Debezium's envelope to a change.

Source: Debezium documentation, MongoDB connector, "Data change events".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from bson import json_util

from corpus.documents import ORDER_BITS, WAREHOUSE_HEADER, Document, from_record, source_version
from corpus.embedding import encodable

# The header of a change that `twin verify --repair` sends again.
REPAIR_HEADER = "twin.repair"
UPSERTS = {"r": "snapshot", "c": "create", "u": "update"}
OPERATIONS = {**UPSERTS, "d": "delete"}
# On a message that was replayed from a dead letter: the letter's id, how often it had failed, the version noted then.
LETTER_HEADER, ATTEMPTS_HEADER, VERSION_HEADER = "twin.letter", "twin.attempts", "twin.version"
LONGEST_REASON = 1000
# Dates as aware datetimes, numbers as Python's own, whichever of the two forms of extended JSON a sender writes.
JSON_OPTIONS = json_util.JSONOptions(tz_aware=True, json_mode=json_util.JSONMode.RELAXED)


@dataclass(frozen=True, slots=True)
class Message:
    """A record of the log as it was received; `value` is None for a tombstone.

    `log` names the life of the log that `offset` belongs to: one that lost its messages counts from 0 again.
    `times`: nanoseconds since the epoch at which it came to a step (`logged`, `received`, ...), for its trace.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    log: str = ""
    times: dict[str, int] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Upsert:
    """A document is as given.

    `version` is None for a snapshot's read, which has no place in the source's history: Debezium stamps it with the
    time at which it was sent, and a change committed between the reading and the sending would seem older.
    `source_hash`: the content hash that its record claims (a record edited by hand still has the former one);
    `committed_at`: when its source committed it, None for a snapshot's read; `repair`: the index is known to be wrong
    about this document, so nothing that it holds of it is taken for granted.
    """

    message: Message
    version: int | None
    document: Document
    source_hash: str
    committed_at: datetime | None
    repair: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    """A document is gone."""

    message: Message
    version: int
    document_id: str
    committed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Ignored:
    """A message that changes no document; `why` is one of a few fixed words, for the metrics."""

    message: Message
    why: str


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a message comes from, as far as it tells: None for what it does not.

    `committed_at`: when the source committed it; for a snapshot's read and a repair, when that was sent.
    """

    document_id: str | None
    operation: str | None
    version: int | None
    committed_at: datetime | None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that cannot be applied: the message itself, the step that refused it and why.

    `document_id` and `version` are None where the message does not even tell them.
    """

    message: Message
    step: str
    reason: str
    document_id: str | None = None
    version: int | None = None
    source_hash: str | None = None


Change = Upsert | Delete
Event = Upsert | Delete | Ignored | DeadLetter


# Until the year 2109, so that a version stays within the 53 bits that the index compares exactly.
Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=2 ** (53 - ORDER_BITS) - 2)]


class _Source(msgspec.Struct):
    ts_ms: Milliseconds
    ord: int | None = 0
    snapshot: str | bool | None = None
    wallTime: Milliseconds | None = None  # noqa: N815 - the name in Debezium's envelope


class _Envelope(msgspec.Struct):
    op: str
    source: _Source
    after: str | None = None


_ENVELOPE = msgspec.json.Decoder(_Envelope)
_KEY = msgspec.json.Decoder(dict[str, Any])


def decode(message: Message, warehouse: str) -> Event:
    """The change that a message tells of, for the warehouse of this id. Never raises."""
    sender = dict(message.headers).get(WAREHOUSE_HEADER)
    if sender is not None and _warehouse_name(sender) != warehouse:
        # One log may serve several homes, one after the other.
        return Ignored(message, "foreign")
    if message.value is None:
        return Ignored(message, "tombstone")
    try:
        document_id = document_of_key(message.key)
    except Exception as error:  # as below
        return dead_letter(message, "decode", f"the key is not a document's: {error}")
    # What had no version when it failed is replayed as of that time: whatever came since is newer.
    noted = _noted_version(message)
    try:
        envelope = _ENVELOPE.decode(message.value)
    except Exception as error:  # beside its own errors the parser raises RecursionError
        return dead_letter(message, "decode", f"the value is not a change of Debezium's: {error}", document_id, noted)
    version = _version(envelope)
    if envelope.op == "d" and version is not None:
        return Delete(message, version, document_id, _committed_at(envelope))
    version = noted if version is None else version
    if envelope.op not in UPSERTS:
        return dead_letter(message, "decode", f"operation {envelope.op[:20]!r} is not known", document_id, version)
    if envelope.after is None:
        # An update whose document was deleted before it could be looked up: the delete follows.
        return Ignored(message, "superseded")
    try:
        record = json_util.loads(envelope.after, json_options=JSON_OPTIONS)
    except Exception as error:  # extended JSON holds a stranger's bytes, and its parser's errors have no common class
        return dead_letter(
            message, "decode", f"the document is not MongoDB's extended JSON: {error}", document_id, version
        )
    if not isinstance(record, dict):
        return dead_letter(message, "decode", "the document is not an object", document_id, version)
    source_hash = encodable(str(record.get("content_hash")))
    try:
        document = from_record(record)
    except Exception as error:  # beside InvalidDocument: a lone surrogate, a text of MongoDB's type for code
        return dead_letter(message, "validate", str(error), document_id, version, source_hash)
    if document.id != document_id:
        # Applied under the one and remembered under the other it could never be removed again.
        return dead_letter(message, "validate", "field '_id' is not the key's", document_id, version, source_hash)
    repair = REPAIR_HEADER in dict(message.headers)
    return Upsert(message, version, document, source_hash, _committed_at(envelope), repair)


def origin(message: Message) -> Origin:
    """What the key and the envelope's head say, without the document. Never raises."""
    try:
        document_id = document_of_key(message.key)
    except Exception:  # as in `decode`
        document_id = None
    try:
        envelope = _ENVELOPE.decode(message.value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Origin(document_id, None, None, None)
    moment = envelope.source.wallTime or envelope.source.ts_ms
    committed_at = datetime.fromtimestamp(moment / 1000, UTC)
    return Origin(document_id, OPERATIONS.get(envelope.op), _version(envelope), committed_at)


def dead_letter(
    message: Message,
    step: str,
    reason: str,
    document_id: str | None = None,
    version: int | None = None,
    source_hash: str | None = None,
) -> DeadLetter:
    """A dead letter whose reason can be written anywhere: an error may repeat megabytes, or what is no Unicode."""
    told = encodable(reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]}…")
    return DeadLetter(message, step, told, document_id, version, source_hash)


def newest(events: Sequence[Event]) -> list[Event]:
    """The events in order, but of several changes to one document only the last; the earlier ones become Ignored.

    A batch is applied as a whole, so what a document was in between is seen by nobody. A deletion counts all the same:
    what comes after it may be refused, and nothing of the former document may stay then; and what stands before a
    change that is refused counts, for it stays.
    """
    kept: list[Event] = []
    changed: set[str | None] = set()
    deleted: set[str | None] = set()
    for event in reversed(events):
        if isinstance(event, DeadLetter):
            changed.discard(event.document_id)
            deleted.discard(event.document_id)
        elif isinstance(event, Upsert | Delete):
            subject, later = _subject(event), deleted if isinstance(event, Delete) else changed
            kept.append(Ignored(event.message, "superseded") if subject in later else event)
            changed.add(subject)
            later.add(subject)
            continue
        kept.append(event)
    return kept[::-1]


def _subject(event: Change) -> str:
    return event.document.id if isinstance(event, Upsert) else event.document_id


def document_of_key(key: bytes | None) -> str:
    """The `_id` within Debezium's key `{"id": "<extended JSON>"}`, as a string."""
    if key is None:
        raise ValueError("there is none")
    found = str(json_util.loads(_KEY.decode(key)["id"], json_options=JSON_OPTIONS))
    # A lone surrogate is no text that could be kept anywhere.
    found.encode()
    return found


def _version(envelope: _Envelope) -> int | None:
    """When the source wrote it; None for a snapshot's read."""
    order = envelope.source.ord
    if envelope.op == "r" or order is None or order < 0:
        return None
    return source_version(envelope.source.ts_ms, order)


def _noted_version(message: Message) -> int | None:
    """The version that was noted for a replayed message when it failed; None for any other message."""
    told = dict(message.headers).get(VERSION_HEADER) or b""
    return int(told) if told.isdigit() and len(told) <= 15 else None


def _committed_at(envelope: _Envelope) -> datetime | None:
    """When the source committed it; None for a snapshot's read, and for a repair, whose commit is long ago."""
    moment = envelope.source.wallTime
    return datetime.fromtimestamp(moment / 1000, UTC) if moment else None


def _warehouse_name(header: bytes) -> str:
    """The header as Connect's JSON converter writes it (quoted) or as plain text."""
    return header.decode("utf-8", "replace").strip('"')


Headers = Sequence[tuple[str, bytes]]


def delete_envelope(
    document_id: str, version: int, database: str, warehouse: str, headers: Headers = ()
) -> Mapping[str, Any]:
    """Key, value and headers of a deletion that was missed, in the form that Debezium gives one."""
    return _envelope(document_id, version, database, warehouse, "d", None, headers)


def upsert_envelope(
    record: Mapping[str, Any], version: int, database: str, warehouse: str, headers: Headers = ()
) -> Mapping[str, Any]:
    """Key, value and headers of a document that was missed, in the form that Debezium gives an update."""
    after = json_util.dumps(record, json_options=JSON_OPTIONS)
    return _envelope(record["_id"], version, database, warehouse, "u", after, headers)


def _envelope(
    document_id: Any, version: int, database: str, warehouse: str, operation: str, after: str | None, headers: Headers
) -> Mapping[str, Any]:
    milliseconds, order = version >> ORDER_BITS, version & (2**ORDER_BITS - 1)
    source = {"ts_ms": milliseconds, "ord": order, "db": database, "collection": "documents"}
    return {
        "key": msgspec.json.encode({"id": json_util.dumps(document_id, json_options=JSON_OPTIONS)}),
        "value": msgspec.json.encode({"before": None, "after": after, "op": operation, "source": source}),
        "headers": [(WAREHOUSE_HEADER, warehouse.encode()), *headers],
    }
