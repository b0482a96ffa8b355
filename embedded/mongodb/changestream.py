"""Change streams: the history as the events, resume tokens and cursors that drivers and Debezium read.

A resume token is `82`, the position (16 hexadecimal digits), the identity of the store (16) and two digits that tell
a change (`00`) from the invalidation that follows it (`01`). Debezium reads the cluster time out of the first
eighteen digits, as in a server's own tokens. Source: MongoDB manual, "Change Streams" and "Change Events".
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bson import DatetimeMS, Timestamp
from bson.raw_bson import RawBSONDocument

from embedded.mongodb.query import CHANGE_STREAM_STAGES, Document, pipeline
from embedded.mongodb.store import Change, Store, history
from embedded.mongodb.values import RAW_CODEC, CommandFailed, unsupported

TOKEN: Final = re.compile(r"82([0-9A-Fa-f]{16})([0-9A-Fa-f]{16})(0[01])")
READ_BYTES: Final = 8 * 1024 * 1024
READ_CHANGES: Final = 500


@dataclass(slots=True)
class ChangeStream:
    """An open stream: what it watches, how its events are shaped, and how far it has been read."""

    store: Store
    db: str | None
    collection: str | None
    lookup: str
    shape: Callable[[Any], Any]
    position: int
    invalidated: bool = False

    @property
    def token(self) -> dict[str, str]:
        """The token after everything that has been read, events or not."""
        return resume_token(self.store, self.position, self.invalidated)

    def read(self, limit: int, seconds: float, ended: Callable[[], bool]) -> list[Document]:
        """The next events, waiting up to `seconds` for the first. Raises CommandFailed when its history is gone."""
        deadline = time.monotonic() + seconds
        while True:
            events = self._read(limit)
            left = deadline - time.monotonic()
            if events or self.invalidated or left <= 0 or ended():
                return events
            self.store.wait(self.position, left, ended)

    def _read(self, limit: int) -> list[Document]:
        # The position itself may be pruned: what follows it must not.
        if self.position < self.store.pruned:
            raise CommandFailed(
                286, "Resume of change stream was not possible, as the resume point may no longer be in the history."
            )
        found, seen = history(
            self.store.reader(), self.position, self.db, self.collection, min(limit, READ_CHANGES), READ_BYTES
        )
        # Pruned while we read: the next read says so, and what was read is whole only if nothing went missing.
        if self.position < self.store.pruned:
            return self._read(limit)
        events: list[Document] = []
        for change in found:
            events.extend(self.shape([self._event(change)]))
            if self._ends(change):
                self.position, self.invalidated = change.position, True
                events.extend(self.shape([self._invalidation(change)]))
                return events
        self.position = seen
        return events

    def _ends(self, change: Change) -> bool:
        if self.collection is not None:
            return change.operation in ("drop", "dropDatabase")
        return self.db is not None and change.operation == "dropDatabase"

    def _event(self, change: Change) -> dict[str, Any]:
        event = self._head(change, change.operation, invalidation=False)
        if change.operation in ("insert", "replace") or (change.operation == "update" and self.lookup != "default"):
            event["fullDocument"] = None if change.body is None else _raw(change.body)
        event["ns"] = {"db": change.db, "coll": change.collection} if change.collection else {"db": change.db}
        if change.document_key is not None:
            event["documentKey"] = _raw(change.document_key)
        if change.description is not None:
            event["updateDescription"] = _raw(change.description)
        return event

    def _invalidation(self, change: Change) -> dict[str, Any]:
        return self._head(change, "invalidate", invalidation=True)

    def _head(self, change: Change, operation: str, invalidation: bool) -> dict[str, Any]:
        return {
            "_id": resume_token(self.store, change.position, invalidation),
            "operationType": operation,
            "clusterTime": timestamp(change.position),
            "wallTime": DatetimeMS(change.wall),
        }


def _raw(body: bytes) -> RawBSONDocument:
    return RawBSONDocument(body, codec_options=RAW_CODEC)


def timestamp(position: int) -> Timestamp:
    """The cluster time of a position: seconds since 1970 and an increment."""
    return Timestamp(position >> 32, position & 0xFFFFFFFF)


def resume_token(store: Store, position: int, invalidation: bool = False) -> dict[str, str]:
    return {"_data": f"82{position:016X}{store.identity.hex().upper()}{'01' if invalidation else '00'}"}


def open_stream(store: Store, db: str | None, collection: str | None, stages: Sequence[Document]) -> ChangeStream:
    """The stream of an aggregation that begins with `$changeStream`. Raises CommandFailed.

    `db` None is the whole server, `collection` None the whole database.
    """
    options = dict(stages[0]["$changeStream"])
    lookup = options.pop("fullDocument", "default")
    if lookup not in ("default", "updateLookup", "whenAvailable", "required"):
        raise CommandFailed(2, f"Enumeration value '{lookup}' for field 'fullDocument' is not a valid value.")
    if options.pop("fullDocumentBeforeChange", "off") != "off":
        raise unsupported("fullDocumentBeforeChange")
    if options.pop("showExpandedEvents", False):
        raise unsupported("showExpandedEvents")
    if bool(options.pop("allChangesForCluster", False)) != (db is None):
        raise CommandFailed(72, "allChangesForCluster belongs to the database 'admin'")
    position = _start(store, options)
    if options:
        raise unsupported(f"the change stream option {next(iter(options))}")
    stream = ChangeStream(store, db, collection, lookup, pipeline(stages[1:], CHANGE_STREAM_STAGES), position)
    if position < store.pruned:
        stream.read(1, 0, lambda: True)
    return stream


def _start(store: Store, options: dict[str, Any]) -> int:
    """The position after which a stream begins; takes its options out of `options`."""
    given = [name for name in ("resumeAfter", "startAfter", "startAtOperationTime") if options.get(name) is not None]
    if len(given) > 1:
        raise CommandFailed(72, f"Only one of {', '.join(given)} may be given")
    values = {name: options.pop(name, None) for name in ("resumeAfter", "startAfter", "startAtOperationTime")}
    if not given:
        return store.latest
    value = values[given[0]]
    if given[0] == "startAtOperationTime":
        if not isinstance(value, Timestamp):
            raise CommandFailed(14, "startAtOperationTime must be a timestamp")
        return (value.time << 32 | value.inc) - 1
    token = value.get("_data") if isinstance(value, Mapping) else None
    parts = TOKEN.fullmatch(token) if isinstance(token, str) else None
    if parts is None:
        raise CommandFailed(260, f"{given[0]} is not a resume token of this server: {token!r}"[:200])
    position = int(parts[1], 16)
    if parts[2].lower() != store.identity.hex() or position > store.latest:
        raise CommandFailed(
            286,
            "Resume of change stream was not possible, as the resume token belongs to the history of another store.",
        )
    if parts[3] == "01" and given[0] == "resumeAfter":
        raise CommandFailed(
            260, "Attempting to resume a change stream using 'resumeAfter' is not allowed from an invalidate"
        )
    return position
