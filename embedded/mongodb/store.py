"""Documents, indexes and the history of changes in one SQLite file.

A write and its entry in the history are one SQLite transaction, and there is one writer at a time: the order of the
history is the order of the writes. The position of a change is its cluster time as one number
(`seconds << 32 | increment`), strictly increasing, also over restarts and clocks that are set back.

Durability: the file is in WAL mode. A killed process loses no acknowledged write. With `synchronous=NORMAL` a power
failure can lose the writes of the last moments (never corrupt the file); a write that asks for the journal
(`writeConcern: {j: true}`) is flushed to the disk before it is acknowledged.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bson import Binary, decode, encode
from bson.raw_bson import RawBSONDocument

from embedded.mongodb.query import candidates, reach
from embedded.mongodb.values import CODEC, MAX_DOCUMENT_BYTES, MISSING, RAW_CODEC, CommandFailed, identity

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS collections (
    id INTEGER PRIMARY KEY AUTOINCREMENT, db TEXT NOT NULL, name TEXT NOT NULL, uuid BLOB NOT NULL, UNIQUE (db, name)
);
CREATE TABLE IF NOT EXISTS indexes (
    id INTEGER PRIMARY KEY AUTOINCREMENT, collection INTEGER NOT NULL, name TEXT NOT NULL, specification BLOB NOT NULL,
    UNIQUE (collection, name)
);
-- `changed` is the position of the change that made this version.
CREATE TABLE IF NOT EXISTS documents (
    id INTEGER PRIMARY KEY, collection INTEGER NOT NULL, key BLOB NOT NULL, changed INTEGER NOT NULL,
    body BLOB NOT NULL,
    UNIQUE (collection, key)
);
-- In the order of insertion: without it each few rows of a scan would be found by sorting the whole collection.
CREATE INDEX IF NOT EXISTS documents_in_order ON documents (collection, id);
CREATE TABLE IF NOT EXISTS entries (
    indexed INTEGER NOT NULL, key BLOB NOT NULL, document INTEGER NOT NULL, PRIMARY KEY (indexed, key, document)
) WITHOUT ROWID;
-- `body` is null while the version that the change made is still the document's, so nothing is kept twice.
CREATE TABLE IF NOT EXISTS changes (
    position INTEGER PRIMARY KEY, wall INTEGER NOT NULL, db TEXT NOT NULL, collection TEXT NOT NULL,
    operation TEXT NOT NULL, document INTEGER, document_key BLOB, description BLOB, body BLOB
);
CREATE TABLE IF NOT EXISTS retries (
    session BLOB PRIMARY KEY, number INTEGER NOT NULL, used INTEGER NOT NULL, reply BLOB NOT NULL
) WITHOUT ROWID;
"""
SESSION_SECONDS: Final = 30 * 60
SCAN_ROWS: Final = 100
CHECKPOINT_ATTEMPTS: Final = 200
# Of the history: all but the newest change of each document, and what a dropped collection left of its documents.
SUPERSEDED: Final = """document_key IS NOT NULL AND (
    position NOT IN (SELECT max(position) FROM changes GROUP BY db, collection, document_key) OR body IS NOT NULL
)"""


class StoreInUse(RuntimeError):
    """Another process has the directory open."""


class StoreClosed(RuntimeError):
    """The store was closed while a command waited for its turn."""


@dataclass(frozen=True, slots=True)
class Index:
    """A secondary index; `fields` are dotted paths, `sparse` skips documents that have none of them."""

    id: int
    name: str
    fields: tuple[str, ...]
    unique: bool
    sparse: bool
    specification: Mapping[str, Any]

    def keys(self, document: Mapping[str, Any]) -> set[bytes]:
        """The index keys of a document: one per combination of array elements, as MongoDB's multikey indexes."""
        columns = []
        for field in self.fields:
            values = list(reach(document, field.split("."))) or [MISSING]
            items = [item for value in values for item in (value if isinstance(value, list) and value else [value])]
            columns.append(items + [value for value in values if isinstance(value, list)])
        if self.sparse and all(value is MISSING for column in columns for value in column):
            return set()
        keys = {b""}
        for column in columns:
            parts = {identity(value) for value in column}
            keys = {key + len(part).to_bytes(4) + part for key in keys for part in parts}
        return keys


@dataclass(frozen=True, slots=True)
class Collection:
    id: int
    db: str
    name: str
    uuid: Binary
    indexes: tuple[Index, ...]

    @property
    def namespace(self) -> str:
        return f"{self.db}.{self.name}"


@dataclass(frozen=True, slots=True)
class Version:
    """A document as it is stored: its collection, its row, the position of its last change and the BSON of it."""

    collection: Collection
    id: int
    changed: int
    body: bytes

    def decoded(self) -> dict[str, Any]:
        return decode(self.body, codec_options=CODEC)

    def raw(self) -> RawBSONDocument:
        return RawBSONDocument(self.body, codec_options=RAW_CODEC)


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of the history. `operation`: insert, update, replace, delete, drop or dropDatabase; `wall`: ms."""

    position: int
    wall: int
    db: str
    collection: str
    operation: str
    document_key: bytes | None
    description: bytes | None
    body: bytes | None


class Store:
    """The file, its one writer, and a reading connection for each thread that asks."""

    def __init__(self, directory: Path, history: int = 200_000, history_bytes: int = 1 << 30) -> None:
        """Opens or makes the file in `directory`. Raises StoreInUse, OSError or sqlite3.Error.

        `history`: how many changes are kept for streams that resume; `history_bytes`: how many bytes of superseded
        versions at most.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self._lock_file = os.open(directory / "mongodb.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock_file)
            raise StoreInUse(f"{directory} is in use by another embedded MongoDB") from error
        self._path = directory / "mongodb.sqlite"
        self._history = history
        self._history_bytes = history_bytes
        self._local = threading.local()
        self._turn = threading.Lock()
        self._closed = False
        self.changed = threading.Condition()
        self._connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        for pragma in ("page_size=8192", "journal_mode=WAL", "synchronous=NORMAL", "wal_autocheckpoint=2000"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.executescript(SCHEMA)
        now = int(time.time())
        self._connection.executemany(
            "INSERT OR IGNORE INTO meta VALUES (?, ?)",
            [("store", os.urandom(8)), ("clock", now << 32 | 1), ("pruned", now << 32)],
        )
        self._connection.execute("DELETE FROM retries WHERE used < ?", (now - SESSION_SECONDS,))
        meta = dict(self._connection.execute("SELECT name, value FROM meta"))
        self.identity: bytes = meta["store"]
        self.pruned: int = meta["pruned"]
        last, wall, self._count, self._bytes = self._connection.execute(
            "SELECT coalesce(max(position), 0), coalesce(max(wall), 0), count(*), coalesce(sum(length(body)), 0)"
            " FROM changes"
        ).fetchone()
        self.latest: int = max(last, meta["clock"])
        self.latest_wall: int = max(wall, (self.latest >> 32) * 1000)

    def close(self) -> None:
        """Waits for the write that is going on, then closes the file for writing."""
        with self._turn:
            self._closed = True
            self._connection.close()
            os.close(self._lock_file)

    def reader(self) -> sqlite3.Connection:
        """This thread's reading connection; it sees every write that was acknowledged."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self._path, isolation_level=None, timeout=30)
            connection.execute("PRAGMA query_only=1")
            self._local.connection = connection
        return connection

    def release(self) -> None:
        """Closes this thread's reading connection."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is not None:
            self._local.connection = None
            connection.close()

    @contextmanager
    def writing(self, durable: bool = False) -> Iterator[Writer]:
        """One transaction: committed at the end, rolled back on an exception. `durable` flushes it to the disk.

        Raises StoreClosed, and sqlite3.Error when the disk is full.
        """
        with self._turn:
            if self._closed:
                raise StoreClosed
            # SQLite takes this setting only between transactions.
            self._connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._connection.execute("BEGIN IMMEDIATE")
            writer = Writer(self._connection, self.latest, self.latest_wall)
            try:
                yield writer
                pruned, count, size = self._prune(writer)
                self._connection.execute("COMMIT")
            except BaseException:
                # A commit that fails for a full disk has rolled back already.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            self._count, self._bytes, self.pruned = count, size, pruned
            with self.changed:
                self.latest, self.latest_wall = writer.position, writer.wall
                self.changed.notify_all()

    def forget(self) -> None:
        """Remove every version but the newest from the history, and all that was ever deleted from the file itself.

        A stream that has not read so far is told of each document's newest change alone, so it ends where it would have
        ended. The file is written anew: deleted rows stay in its free pages and in its write-ahead log otherwise.
        Raises StoreClosed, and sqlite3.Error when the disk is full or readers do not come to an end.
        """
        with self._turn:
            if self._closed:
                raise StoreClosed
            self._connection.execute(f"DELETE FROM changes WHERE {SUPERSEDED}")  # noqa: S608 - our own condition
            told = self._connection.execute("SELECT session, reply FROM retries").fetchall()
            # The answer of a findAndModify holds the document.
            holding = [(session,) for session, reply in told if decode(reply, codec_options=CODEC).get("value")]
            self._connection.executemany("DELETE FROM retries WHERE session = ?", holding)
            self._count, self._bytes = self._connection.execute(
                "SELECT count(*), coalesce(sum(length(body)), 0) FROM changes"
            ).fetchone()
            self._connection.execute("VACUUM")
            for _ in range(CHECKPOINT_ATTEMPTS):
                busy, _, _ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                if not busy:
                    return
                time.sleep(0.05)
            raise sqlite3.OperationalError("the write-ahead log is being read all the time and cannot be emptied")

    def wait(self, position: int, timeout: float, ended: Callable[[], bool]) -> None:
        """Returns once there is a change after `position`, `ended()` holds or `timeout` seconds have passed."""
        with self.changed:
            self.changed.wait_for(lambda: self.latest > position or ended(), timeout)

    def _prune(self, writer: Writer) -> tuple[int, int, int]:
        count, size = self._count + writer.logged, self._bytes + writer.superseded
        if count <= self._history + self._history // 20 and size <= self._history_bytes:
            return self.pruned, count, size
        cutoff = self.pruned
        for position, length in self._connection.execute(
            "SELECT position, coalesce(length(body), 0) FROM changes WHERE position < ? ORDER BY position",
            (writer.position,),
        ):
            if count <= self._history and size <= self._history_bytes * 0.9:
                break
            cutoff, count, size = position, count - 1, size - length
        self._connection.execute("DELETE FROM changes WHERE position <= ?", (cutoff,))
        self._connection.execute("UPDATE meta SET value = ? WHERE name = 'pruned'", (cutoff,))
        return cutoff, count, size


class Writer:
    """The writes of one transaction. `position` and `wall` are those of its last change."""

    def __init__(self, connection: sqlite3.Connection, position: int, wall: int) -> None:
        self.connection = connection
        self.position = position
        self.wall = wall
        self.logged = 0
        self.superseded = 0

    def create(self, db: str, name: str) -> Collection:
        """The collection, made if it is not there."""
        found = collection(self.connection, db, name)
        if found is not None:
            return found
        uuid = Binary(os.urandom(16), 4)
        (row,) = self.connection.execute(
            "INSERT INTO collections (db, name, uuid) VALUES (?, ?, ?) RETURNING id", (db, name, bytes(uuid))
        ).fetchone()
        return Collection(row, db, name, uuid, ())

    def insert(self, target: Collection, document: Mapping[str, Any]) -> None:
        """Adds a document that has its `_id`. Raises CommandFailed (duplicate key, too large)."""
        body = encoded(document, 10334)
        key = identity(document["_id"])
        if self.connection.execute(
            "SELECT 1 FROM documents WHERE collection = ? AND key = ?", (target.id, key)
        ).fetchone():
            raise duplicate(target, "_id_", {"_id": document["_id"]})
        keys = self._checked_keys(target, document, None)
        self._tick()
        row = self.connection.execute(
            "INSERT INTO documents (collection, key, changed, body) VALUES (?, ?, ?, ?)",
            (target.id, key, self.position, body),
        ).lastrowid
        self._log(target, "insert", row, document["_id"])
        self._enter(keys, row)

    def change(
        self,
        version: Version,
        document: Mapping[str, Any],
        operation: str,
        description: Mapping[str, Any] | None,
    ) -> bool:
        """Puts a new version of a document in place; False when it is the same, bit by bit. Raises CommandFailed."""
        body = encoded(document, 17419)
        if body == version.body:
            return False
        target = version.collection
        keys = self._checked_keys(target, document, version.id)
        self._remove_entries(version)
        self._supersede(version)
        self._tick()
        self.connection.execute(
            "UPDATE documents SET body = ?, changed = ? WHERE id = ?", (body, self.position, version.id)
        )
        self._log(target, operation, version.id, document["_id"], description)
        self._enter(keys, version.id)
        return True

    def delete(self, version: Version) -> None:
        self._remove_entries(version)
        self._supersede(version)
        self._tick()
        self._log(version.collection, "delete", None, version.raw()["_id"])
        self.connection.execute("DELETE FROM documents WHERE id = ?", (version.id,))

    def drop(self, target: Collection) -> None:
        """Removes a collection with its documents and indexes; the history keeps what it had."""
        kept = "documents.id = changes.document AND documents.changed = changes.position AND documents.collection = ?"
        (size,) = self.connection.execute(
            f"SELECT coalesce(sum(length(documents.body)), 0) FROM changes, documents WHERE {kept}",  # noqa: S608
            (target.id,),
        ).fetchone()
        self.superseded += size
        self.connection.execute(
            f"UPDATE changes SET body = documents.body FROM documents WHERE {kept}",  # noqa: S608
            (target.id,),
        )
        for index in target.indexes:
            self.drop_index(index)
        self.connection.execute("DELETE FROM documents WHERE collection = ?", (target.id,))
        self.connection.execute("DELETE FROM collections WHERE id = ?", (target.id,))
        self._tick()
        self._record(target.db, target.name, "drop")

    def drop_database(self, db: str) -> None:
        for target in collections(self.connection, db):
            self.drop(target)
        self._tick()
        self._record(db, "", "dropDatabase")

    def create_index(self, target: Collection, specification: Mapping[str, Any]) -> None:
        """Adds a secondary index over what is there. Raises CommandFailed when a unique one finds duplicates."""
        row = self.connection.execute(
            "INSERT INTO indexes (collection, name, specification) VALUES (?, ?, ?)",
            (target.id, specification["name"], encode(specification, codec_options=CODEC)),
        ).lastrowid
        (index,) = (index for index in indexes(self.connection, target.id) if index.id == row)
        for version in scan(lambda: self.connection, target, {}):
            document = version.decoded()
            for key in index.keys(document):
                if index.unique and self._holder(index, key) is not None:
                    raise duplicate(target, index.name, {name: document.get(name) for name in index.fields})
                self._enter([(index.id, key)], version.id)

    def drop_index(self, index: Index) -> None:
        self.connection.execute("DELETE FROM entries WHERE indexed = ?", (index.id,))
        self.connection.execute("DELETE FROM indexes WHERE id = ?", (index.id,))

    def remembered(self, session: bytes, number: int) -> dict[str, Any] | None:
        """The reply that a retryable write with this number was given before, or None when it is new.

        Raises CommandFailed when the session has used a later number.
        """
        row = self.connection.execute("SELECT number, reply FROM retries WHERE session = ?", (session,)).fetchone()
        if row is None or number > row[0]:
            return None
        if number < row[0]:
            raise CommandFailed(
                225,
                f"Retryable write with txnNumber {number} is prohibited: a later one, {row[0]}, has already started",
            )
        return decode(row[1], codec_options=CODEC)

    def remember(self, session: bytes, number: int, reply: Mapping[str, Any]) -> None:
        self.connection.execute(
            "INSERT OR REPLACE INTO retries VALUES (?, ?, ?, ?)",
            (session, number, int(time.time()), encode(reply, codec_options=CODEC)),
        )

    def forget(self, sessions: Iterable[bytes]) -> None:
        self.connection.executemany("DELETE FROM retries WHERE session = ?", [(session,) for session in sessions])

    def _checked_keys(
        self, target: Collection, document: Mapping[str, Any], own: int | None
    ) -> list[tuple[int, bytes]]:
        keys = []
        for index in target.indexes:
            for key in index.keys(document):
                if index.unique and self._holder(index, key) not in (None, own):
                    raise duplicate(target, index.name, {name: document.get(name) for name in index.fields})
                keys.append((index.id, key))
        return keys

    def _holder(self, index: Index, key: bytes) -> int | None:
        row = self.connection.execute(
            "SELECT document FROM entries WHERE indexed = ? AND key = ?", (index.id, key)
        ).fetchone()
        return row and int(row[0])

    def _enter(self, keys: Iterable[tuple[int, bytes]], row: int | None) -> None:
        self.connection.executemany(
            "INSERT OR IGNORE INTO entries VALUES (?, ?, ?)", [(index, key, row) for index, key in keys]
        )

    def _remove_entries(self, version: Version) -> None:
        if version.collection.indexes:
            document = version.decoded()
            self.connection.executemany(
                "DELETE FROM entries WHERE indexed = ? AND key = ? AND document = ?",
                [(index.id, key, version.id) for index in version.collection.indexes for key in index.keys(document)],
            )

    def _supersede(self, version: Version) -> None:
        done = self.connection.execute(
            "UPDATE changes SET body = ? WHERE position = ?", (version.body, version.changed)
        )
        self.superseded += len(version.body) if done.rowcount else 0

    def _tick(self) -> None:
        now = time.time()
        # A clock that was set back must not take the history back.
        self.position = max(self.position + 1, int(now) << 32 | 1)
        self.wall = max(self.wall, int(now * 1000))

    def _log(
        self,
        target: Collection,
        operation: str,
        row: int | None,
        document_id: Any,
        description: Mapping[str, Any] | None = None,
    ) -> None:
        key = encode({"_id": document_id}, codec_options=CODEC)
        told = None if description is None else encode(description, codec_options=CODEC)
        self._record(target.db, target.name, operation, row, key, told)

    def _record(
        self,
        db: str,
        name: str,
        operation: str,
        row: int | None = None,
        key: bytes | None = None,
        description: bytes | None = None,
    ) -> None:
        self.logged += 1
        self.connection.execute(
            "INSERT INTO changes (position, wall, db, collection, operation, document, document_key, description)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (self.position, self.wall, db, name, operation, row, key, description),
        )


def encoded(document: Mapping[str, Any], too_large: int) -> bytes:
    """The BSON of a document. Raises CommandFailed with the code `too_large` over 16 MB."""
    body = encode(document, codec_options=CODEC)
    if len(body) > MAX_DOCUMENT_BYTES:
        what = "object to insert too large" if too_large == 10334 else "Resulting document after update is too large"
        raise CommandFailed(too_large, f"{what}. size in bytes: {len(body)}, max size: {MAX_DOCUMENT_BYTES}")
    return body


def duplicate(target: Collection, index: str, values: Mapping[str, Any]) -> CommandFailed:
    shown = ", ".join(f"{name}: {value!r}" for name, value in values.items())
    return CommandFailed(
        11000,
        f"E11000 duplicate key error collection: {target.namespace} index: {index} dup key: {{ {shown} }}",
        keyPattern=dict.fromkeys(values, 1),
        keyValue=dict(values),
    )


# --- reading, from whichever connection ---


def databases(connection: sqlite3.Connection) -> list[str]:
    return [name for (name,) in connection.execute("SELECT DISTINCT db FROM collections ORDER BY db")]


def collections(connection: sqlite3.Connection, db: str) -> list[Collection]:
    names = [name for (name,) in connection.execute("SELECT name FROM collections WHERE db = ? ORDER BY name", (db,))]
    return [found for name in names if (found := collection(connection, db, name)) is not None]


def collection(connection: sqlite3.Connection, db: str, name: str) -> Collection | None:
    row = connection.execute("SELECT id, uuid FROM collections WHERE db = ? AND name = ?", (db, name)).fetchone()
    if row is None:
        return None
    return Collection(row[0], db, name, Binary(row[1], 4), tuple(indexes(connection, row[0])))


def indexes(connection: sqlite3.Connection, target: int) -> Iterator[Index]:
    rows = connection.execute("SELECT id, name, specification FROM indexes WHERE collection = ? ORDER BY id", (target,))
    for row, name, specification in rows.fetchall():
        told = decode(specification, codec_options=CODEC)
        yield Index(row, name, tuple(told["key"]), bool(told.get("unique")), bool(told.get("sparse")), told)


def count(connection: sqlite3.Connection, target: Collection) -> int:
    (number,) = connection.execute("SELECT count(*) FROM documents WHERE collection = ?", (target.id,)).fetchone()
    return int(number)


def size(connection: sqlite3.Connection, db: str) -> int:
    """Bytes of the documents of a database."""
    (total,) = connection.execute(
        "SELECT coalesce(sum(length(body)), 0) FROM documents JOIN collections c ON c.id = collection WHERE c.db = ?",
        (db,),
    ).fetchone()
    return int(total)


def scan(connect: Callable[[], sqlite3.Connection], target: Collection, query: Mapping[str, Any]) -> Iterator[Version]:
    """The versions that could match `query`, in the order of insertion: by `_id` or an index where it fixes one.

    It reads a few rows at a time and holds no lock between them: a document that stays is seen exactly once, one
    that changes meanwhile in either version.
    """
    if (values := candidates(query, "_id")) is not None:
        for key in dict.fromkeys(map(identity, values)):
            row = connect().execute(
                "SELECT id, changed, body FROM documents WHERE collection = ? AND key = ?", (target.id, key)
            )
            if (found := row.fetchone()) is not None:
                yield Version(target, *found)
        return
    for index in target.indexes:
        if len(index.fields) == 1 and (values := candidates(query, index.fields[0])) is not None:
            parts = {identity(value) for value in values}
            rows: set[tuple[int]] = set()
            for part in parts:
                rows.update(
                    connect().execute(
                        "SELECT document FROM entries WHERE indexed = ? AND key = ?",
                        (index.id, len(part).to_bytes(4) + part),
                    )
                )
            yield from fetch(connect, target, (row for (row,) in sorted(rows)))
            return
    after = -1
    while True:
        found = connect().execute(
            "SELECT id, changed, body FROM documents WHERE collection = ? AND id > ? ORDER BY id LIMIT ?",
            (target.id, after, SCAN_ROWS),
        )
        batch = found.fetchall()
        for fields in batch:
            yield Version(target, *fields)
        if len(batch) < SCAN_ROWS:
            return
        after = batch[-1][0]


def fetch(connect: Callable[[], sqlite3.Connection], target: Collection, rows: Iterable[int]) -> Iterator[Version]:
    """The versions in these rows, leaving out those that are gone."""
    for row in rows:
        found = connect().execute("SELECT id, changed, body FROM documents WHERE id = ?", (row,)).fetchone()
        if found is not None:
            yield Version(target, *found)


def superseded(connection: sqlite3.Connection, db: str, name: str, ids: Iterable[Any]) -> int:
    """How many former versions of these documents the history still has."""
    keys = {encode({"_id": id}, codec_options=CODEC) for id in ids}
    rows = connection.execute(
        f"SELECT document_key FROM changes WHERE db = ? AND collection = ? AND {SUPERSEDED}",  # noqa: S608
        (db, name),
    )
    return sum(key in keys for (key,) in rows.fetchall())


def history(
    connection: sqlite3.Connection, after: int, db: str | None, name: str | None, limit: int, limit_bytes: int
) -> tuple[list[Change], int]:
    """Changes after a position, oldest first, and the position up to which they are all; None leaves a name open.

    A change of a document carries the version that it made. At least one is given, whatever its size.
    """
    rows = connection.execute(
        "SELECT c.position, c.wall, c.db, c.collection, c.operation, c.document_key, c.description,"
        " coalesce(c.body, d.body) FROM changes c"
        " LEFT JOIN documents d ON d.id = c.document AND d.changed = c.position"
        " WHERE c.position > ? ORDER BY c.position",
        (after,),
    )
    found: list[Change] = []
    spent = 0
    seen = after
    for row in rows:
        change = Change(*row)
        wanted = db is None or (change.db == db and (name is None or change.collection in (name, "")))
        if wanted:
            spent += len(change.body or b"") + 500
            if found and spent > limit_bytes:
                break
            found.append(change)
        seen = change.position
        if len(found) >= limit:
            break
    rows.close()
    return found, seen
