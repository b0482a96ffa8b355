"""The commands: what each one asked of the server does with the store, and what it answers.

Source: MongoDB manual, "Database Commands".
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, count, islice
from typing import Any, Final

from bson import DatetimeMS, Int64, ObjectId, Regex

from embedded.mongodb import REPLICA_SET
from embedded.mongodb import store as storage
from embedded.mongodb.changestream import ChangeStream, open_stream, timestamp
from embedded.mongodb.query import (
    Document,
    equalities,
    matcher,
    pipeline,
    projector,
    reach,
    sorter,
)
from embedded.mongodb.store import Collection, Store, Version, Writer
from embedded.mongodb.update import difference, is_replacement, updated
from embedded.mongodb.values import MAX_DOCUMENT_BYTES, MISSING, CommandFailed, identity, is_number, unsupported
from embedded.mongodb.wire import MAX_MESSAGE_BYTES

VERSION: Final = "7.0.0"
FIRST_BATCH: Final = 101
CURSOR_SECONDS: Final = 10 * 60
SESSION_MINUTES: Final = 30
Reply = dict[str, Any]


@dataclass(slots=True)
class Cursor:
    """An open result: a change stream, or documents still to come; `session` is the one that it ends with."""

    id: int
    namespace: str
    source: Iterator[Document] | ChangeStream
    batch: int
    session: bytes | None
    killed: bool = False
    used: float = field(default_factory=time.monotonic)
    turn: threading.Lock = field(default_factory=threading.Lock)


class Server:
    """What lives between commands: the store, the open cursors and the server's own address (`host:port`)."""

    def __init__(self, store: Store, address: str) -> None:
        self.store = store
        self.address = address
        self.started = time.time()
        self.stopping = False
        self.connections = count(1)
        self._cursors: dict[int, Cursor] = {}
        self._ids = count(int(time.time() * 1000) << 16)
        self._lock = threading.Lock()

    def answer(self, command: Mapping[str, Any]) -> Reply:
        """The reply to one command, errors included; never raises for what a client sent."""
        try:
            reply = {**self._run(command), "ok": 1.0}
        except CommandFailed as failure:
            reply = {"ok": 0.0, **failure.reply()}
        return {**reply, **self.clock()}

    def clock(self) -> Reply:
        """The fields by which clients follow the order of writes."""
        now = timestamp(self.store.latest)
        signature = {"hash": bytes(20), "keyId": Int64(0)}
        return {"operationTime": now, "$clusterTime": {"clusterTime": now, "signature": signature}}

    def _run(self, command: Mapping[str, Any]) -> Reply:
        name = next(iter(command), "")
        if command.get("startTransaction") or command.get("autocommit") is False:
            raise unsupported("a transaction")
        collation = command.get("collation")
        if isinstance(collation, Mapping) and collation.get("locale") != "simple":
            raise unsupported("a collation other than 'simple'")
        if command.get("let"):
            raise unsupported("let")
        concern = command.get("readConcern")
        if isinstance(concern, Mapping) and concern.get("level") == "snapshot":
            raise unsupported("the read concern 'snapshot'")
        if name in WRITES:
            return _write(self, command, WRITES[name])
        if name in COMMANDS:
            return COMMANDS[name](self, command)
        if name in REFUSED:
            raise unsupported(f"the command {name}")
        raise CommandFailed(59, f"no such command: '{name}'")

    def open(self, namespace: str, source: Iterator[Document] | ChangeStream, command: Mapping[str, Any]) -> Cursor:
        options = command.get("cursor")
        size = options.get("batchSize") if isinstance(options, Mapping) else command.get("batchSize")
        size = FIRST_BATCH if size is None else size
        if not is_number(size) or size < 0:
            raise CommandFailed(2, "batchSize must be a number of 0 or more")
        now = time.monotonic()
        with self._lock:
            # Clients that vanished leave their cursors; a stream is kept alive by its own getMore.
            for old in [cursor for cursor in self._cursors.values() if now - cursor.used > CURSOR_SECONDS]:
                del self._cursors[old.id]
            cursor = Cursor(next(self._ids), namespace, source, int(size), _session(command))
            self._cursors[cursor.id] = cursor
        return cursor

    def cursor(self, number: Any) -> Cursor:
        with self._lock:
            found = self._cursors.get(number)
        if found is None:
            raise CommandFailed(43, f"cursor id {number} not found")
        found.used = time.monotonic()
        return found

    def close(self, wanted: Callable[[Cursor], bool]) -> list[int]:
        """Ends the cursors that `wanted` picks, also those that wait; gives their ids."""
        with self._lock:
            ended = [cursor for cursor in self._cursors.values() if wanted(cursor)]
            for cursor in ended:
                cursor.killed = True
                del self._cursors[cursor.id]
        if ended:
            with self.store.changed:
                self.store.changed.notify_all()
        return [cursor.id for cursor in ended]

    def stop(self) -> None:
        """Lets every waiting stream return."""
        self.stopping = True
        with self.store.changed:
            self.store.changed.notify_all()


def _session(command: Mapping[str, Any]) -> bytes | None:
    session = command.get("lsid")
    return bytes(session["id"]) if isinstance(session, Mapping) and "id" in session else None


DATABASE_NAME: Final = re.compile(r'[^/\\. "$*<>:|?\0]{1,63}')


def _database(command: Mapping[str, Any]) -> str:
    name = command.get("$db", "test")
    if not isinstance(name, str) or not DATABASE_NAME.fullmatch(name):
        raise CommandFailed(73, f"Invalid database name: {name!r}")
    return name


def _names(command: Mapping[str, Any]) -> tuple[str, str]:
    """The database and the collection that a command is about. Raises CommandFailed."""
    db, name = _database(command), command[next(iter(command))]
    if not isinstance(name, str):
        raise CommandFailed(2, f"collection name has invalid type {type(name).__name__}")
    if not name or "$" in name or "\0" in name or name.startswith(".") or name.endswith("."):
        raise CommandFailed(73, f"Invalid collection name: {name!r}")
    return db, name


def _found(server: Server, command: Mapping[str, Any]) -> Collection | None:
    return storage.collection(server.store.reader(), *_names(command))


# --- greeting and state ---


def hello(server: Server, command: Mapping[str, Any]) -> Reply:
    now = timestamp(server.store.latest)
    moment = DatetimeMS(server.store.latest_wall)
    optime = {"ts": now, "t": Int64(1)}
    return {
        "helloOk": True,
        "isWritablePrimary": True,
        "ismaster": True,
        "secondary": False,
        "setName": REPLICA_SET,
        "setVersion": 1,
        "electionId": ObjectId("7fffffff0000000000000001"),
        "hosts": [server.address],
        "primary": server.address,
        "me": server.address,
        "lastWrite": {
            "opTime": optime,
            "lastWriteDate": moment,
            "majorityOpTime": optime,
            "majorityWriteDate": moment,
        },
        "maxBsonObjectSize": MAX_DOCUMENT_BYTES,
        "maxMessageSizeBytes": MAX_MESSAGE_BYTES,
        "maxWriteBatchSize": 100_000,
        "localTime": DatetimeMS(int(time.time() * 1000)),
        "logicalSessionTimeoutMinutes": SESSION_MINUTES,
        "connectionId": next(server.connections),
        "minWireVersion": 0,
        "maxWireVersion": 21,
        "readOnly": False,
    }


def build_info(server: Server, command: Mapping[str, Any]) -> Reply:
    return {
        "version": VERSION,
        "versionArray": [*map(int, VERSION.split(".")), 0],
        "gitVersion": "embedded",
        "modules": [],
        "bits": 64,
        "debug": False,
        "maxBsonObjectSize": MAX_DOCUMENT_BYTES,
        "storageEngines": ["sqlite"],
    }


def server_status(server: Server, command: Mapping[str, Any]) -> Reply:
    uptime = time.time() - server.started
    return {
        "host": server.address,
        "version": VERSION,
        "process": "embedded-mongodb",
        "uptime": uptime,
        "uptimeMillis": Int64(int(uptime * 1000)),
        "localTime": DatetimeMS(int(time.time() * 1000)),
        "repl": {"setName": REPLICA_SET, "isWritablePrimary": True, "hosts": [server.address], "me": server.address},
        "storageEngine": {"name": "sqlite"},
    }


def replica_set_status(server: Server, command: Mapping[str, Any]) -> Reply:
    optime = {"ts": timestamp(server.store.latest), "t": Int64(1)}
    member = {"_id": 0, "name": server.address, "health": 1.0, "state": 1, "stateStr": "PRIMARY", "optime": optime}
    return {"set": REPLICA_SET, "myState": 1, "term": Int64(1), "members": [{**member, "self": True}]}


def nothing(server: Server, command: Mapping[str, Any]) -> Reply:
    return {}


def connection_status(server: Server, command: Mapping[str, Any]) -> Reply:
    return {"authInfo": {"authenticatedUsers": [], "authenticatedUserRoles": []}}


def end_sessions(server: Server, command: Mapping[str, Any]) -> Reply:
    ended = {bytes(session["id"]) for session in command["endSessions"]}
    server.close(lambda cursor: cursor.session in ended)
    with server.store.writing() as writer:
        writer.forget(ended)
    return {}


def forget_versions(server: Server, command: Mapping[str, Any]) -> Reply:
    """A command of our own: removes former versions of all documents from the history and from the file.

    `n` counts those of the documents `ids` that it found; with `countOnly` none is removed.
    """
    found = storage.superseded(server.store.reader(), *_names(command), command["ids"])
    if not command.get("countOnly"):
        server.store.forget()
    return {"n": found}


# --- databases, collections, indexes ---


def list_databases(server: Server, command: Mapping[str, Any]) -> Reply:
    connection = server.store.reader()
    test = matcher(command.get("filter") or {})
    names_only = bool(command.get("nameOnly"))
    listed: list[Reply] = []
    for name in storage.databases(connection):
        entry: Reply = {"name": name}
        if not names_only:
            size = storage.size(connection, name)
            entry |= {"sizeOnDisk": Int64(size), "empty": size == 0}
        if test(entry):
            listed.append(entry)
    if names_only:
        return {"databases": listed}
    return {"databases": listed, "totalSize": Int64(sum(entry["sizeOnDisk"] for entry in listed))}


def list_collections(server: Server, command: Mapping[str, Any]) -> Reply:
    db = _database(command)
    test = matcher(command.get("filter") or {})
    listed: list[Reply] = []
    for found in storage.collections(server.store.reader(), db):
        entry: Reply = {"name": found.name, "type": "collection"}
        if not command.get("nameOnly"):
            entry |= {"options": {}, "info": {"readOnly": False, "uuid": found.uuid}, "idIndex": ID_INDEX}
        if test(entry):
            listed.append(entry)
    return _first(server, f"{db}.$cmd.listCollections", iter(listed), command)


def create(writer: Writer, command: Mapping[str, Any]) -> Reply:
    db, name = _names(command)
    for option in CREATE_OPTIONS & set(command):
        raise unsupported(f"create with {option}")
    if storage.collection(writer.connection, db, name) is not None:
        raise CommandFailed(48, f"Collection {db}.{name} already exists.")
    writer.create(db, name)
    return {}


CREATE_OPTIONS: Final = {
    "capped",
    "timeseries",
    "viewOn",
    "validator",
    "clusteredIndex",
    "expireAfterSeconds",
    "encryptedFields",
    "changeStreamPreAndPostImages",
}


def drop(writer: Writer, command: Mapping[str, Any]) -> Reply:
    db, name = _names(command)
    target = storage.collection(writer.connection, db, name)
    if target is None:
        return {}
    writer.drop(target)
    return {"ns": target.namespace, "nIndexesWas": len(target.indexes) + 1}


def drop_database(writer: Writer, command: Mapping[str, Any]) -> Reply:
    db = _database(command)
    if db not in storage.databases(writer.connection):
        return {}
    writer.drop_database(db)
    return {"dropped": db}


ID_INDEX: Final = {"v": 2, "key": {"_id": 1}, "name": "_id_"}


def list_indexes(server: Server, command: Mapping[str, Any]) -> Reply:
    target = _found(server, command)
    if target is None:
        raise CommandFailed(26, f"ns does not exist: {'.'.join(_names(command))}")
    listed: list[Document] = [ID_INDEX, *(index.specification for index in target.indexes)]
    return _first(server, target.namespace, iter(listed), command)


def create_indexes(writer: Writer, command: Mapping[str, Any]) -> Reply:
    db, name = _names(command)
    existed = storage.collection(writer.connection, db, name) is not None
    target = writer.create(db, name)
    before = len(target.indexes) + 1
    for given in command["indexes"]:
        specification = {"v": 2, **given}
        for option in set(specification) - INDEX_OPTIONS:
            raise unsupported(f"an index with {option}")
        if any(direction not in (1, -1) for direction in specification["key"].values()):
            raise unsupported(f"an index of the kind {list(specification['key'].values())}")
        if specification["key"] in ({"_id": 1}, {"_id": -1}):
            continue
        specification.pop("background", None)
        same = [index for index in target.indexes if index.name == specification["name"]]
        if not same:
            writer.create_index(target, specification)
            target = writer.create(db, name)
        elif dict(same[0].specification) != specification:
            raise CommandFailed(85, f"An index named {specification['name']} exists with other options")
    return {
        "numIndexesBefore": before,
        "numIndexesAfter": len(target.indexes) + 1,
        "createdCollectionAutomatically": not existed,
    }


INDEX_OPTIONS: Final = {"v", "key", "name", "unique", "sparse", "background"}


def drop_indexes(writer: Writer, command: Mapping[str, Any]) -> Reply:
    db, name = _names(command)
    target = storage.collection(writer.connection, db, name)
    if target is None:
        raise CommandFailed(26, f"ns not found {db}.{name}")
    wanted = command["index"]
    chosen = [
        index
        for index in target.indexes
        if wanted in ("*", index.name, index.specification["key"])
        or (isinstance(wanted, list) and index.name in wanted)
    ]
    if not chosen and wanted != "*":
        raise CommandFailed(27, f"index not found with name [{wanted}]")
    for index in chosen:
        writer.drop_index(index)
    return {"nIndexesWas": len(target.indexes) + 1}


# --- reading ---


def find(server: Server, command: Mapping[str, Any]) -> Reply:
    db, name = _names(command)
    for option in ("tailable", "awaitData", "returnKey", "showRecordId", "min", "max"):
        if command.get(option):
            raise unsupported(f"find with {option}")
    query = command.get("filter") or {}
    skip, limit = _whole(command, "skip"), _whole(command, "limit")
    documents = _matching(server, command, query, command.get("sort") or {})
    if skip or limit:
        documents = islice(documents, skip, skip + limit if limit else None)
    if command.get("projection"):
        documents = map(projector(command["projection"]), documents)
    return _first(server, f"{db}.{name}", documents, command, single=bool(command.get("singleBatch")))


def _whole(command: Mapping[str, Any], name: str) -> int:
    value = command.get(name) or 0
    if not is_number(value) or value < 0 or value != int(value):
        raise CommandFailed(2, f"{name} must be a whole number of 0 or more, found {value!r}")
    return int(value)


def _matching(server: Server, command: Mapping[str, Any], query: Document, order: Document) -> Iterator[Document]:
    test = matcher(query)
    target = _found(server, command)
    if target is None:
        sorter(order)
        return iter(())
    versions = _ordered(server.store, target, query, test, order)
    return (version.raw() for version in versions)


def _ordered(
    store: Store, target: Collection, query: Document, test: Callable[[Document], bool], order: Document
) -> Iterator[Version]:
    found = storage.scan(store.reader, target, query)
    if not query and not order:
        return found
    matching = (version for version in found if test(version.decoded()))
    if not order:
        return matching
    parts = sorter(order)
    # Only the keys are held while sorting; a document that has changed since is looked at again.
    rows = [
        ([key(document) for key, _ in parts], version.id) for version, document in _decoded(found) if test(document)
    ]
    for position, (_, descending) in reversed(list(enumerate(parts))):
        rows.sort(key=lambda row: row[0][position], reverse=descending)
    versions = storage.fetch(store.reader, target, (row for _, row in rows))
    return (version for version in versions if not query or test(version.decoded()))


def _decoded(versions: Iterable[Version]) -> Iterator[tuple[Version, dict[str, Any]]]:
    return ((version, version.decoded()) for version in versions)


def aggregate(server: Server, command: Mapping[str, Any]) -> Reply:
    stages = command.get("pipeline")
    if not isinstance(stages, list) or not all(isinstance(stage, Mapping) and len(stage) == 1 for stage in stages):
        raise CommandFailed(14, "'pipeline' must be an array of documents with one stage each")
    if command.get("explain"):
        raise unsupported("explain")
    if stages and "$changeStream" in stages[0]:
        return _watch(server, command, stages)
    db, name = _names(command)
    run = pipeline(stages)
    query = stages[0]["$match"] if stages and "$match" in stages[0] else {}
    return _first(server, f"{db}.{name}", iter(run(_matching(server, command, query, {}))), command)


def _watch(server: Server, command: Mapping[str, Any], stages: list[Document]) -> Reply:
    db, name = _database(command), command["aggregate"]
    collection = None if name == 1 else _names(command)[1]
    everything = db == "admin" and bool(stages[0]["$changeStream"].get("allChangesForCluster"))
    stream = open_stream(server.store, None if everything else db, collection, stages)
    cursor = server.open(f"{db}.{'$cmd.aggregate' if collection is None else collection}", stream, command)
    return _batch(server, cursor, "firstBatch", cursor.batch, 0.0)


def get_more(server: Server, command: Mapping[str, Any]) -> Reply:
    cursor = server.cursor(command["getMore"])
    if not cursor.turn.acquire(blocking=False):
        raise CommandFailed(2, f"cursor id {cursor.id} is in use")
    try:
        wait = command.get("maxTimeMS", 1000) / 1000
        return _batch(server, cursor, "nextBatch", _whole(command, "batchSize"), wait)
    finally:
        cursor.turn.release()


def _first(
    server: Server, namespace: str, documents: Iterator[Document], command: Mapping[str, Any], single: bool = False
) -> Reply:
    cursor = server.open(namespace, documents, command)
    reply = _batch(server, cursor, "firstBatch", cursor.batch, 0.0)
    if single:
        server.close(lambda other: other is cursor)
        reply["cursor"]["id"] = Int64(0)
    return reply


def _batch(server: Server, cursor: Cursor, name: str, size: int, wait: float) -> Reply:
    """The next documents of a cursor, up to `size` (0: as many as fit; none in a first batch)."""
    source = cursor.source
    limit = size or (0 if name == "firstBatch" else 1_000_000)
    reply: Reply = {"id": Int64(cursor.id), "ns": cursor.namespace}
    ended = False
    try:
        if isinstance(source, ChangeStream):
            reply[name] = source.read(limit, wait, lambda: cursor.killed or server.stopping) if limit else []
            reply["postBatchResumeToken"] = source.token
            ended = source.invalidated
        else:
            reply[name], ended = _take(cursor, source, limit)
    except CommandFailed:
        server.close(lambda other: other is cursor)
        raise
    if cursor.killed:
        raise CommandFailed(43, f"cursor id {cursor.id} was killed")
    if ended:
        server.close(lambda other: other is cursor)
        reply["id"] = Int64(0)
    cursor.used = time.monotonic()
    return {"cursor": reply}


def _take(cursor: Cursor, source: Iterator[Document], limit: int) -> tuple[list[Document], bool]:
    batch: list[Document] = []
    spent = 0
    for document in islice(source, limit):
        spent += _size(document)
        if batch and spent > MAX_DOCUMENT_BYTES:
            cursor.source = chain([document], source)
            return batch, False
        batch.append(document)
    if len(batch) < limit:
        return batch, True
    # One look ahead saves the client a getMore that would be empty.
    following = next(source, None) if limit else None
    if limit and following is None:
        return batch, True
    cursor.source = source if following is None else chain([following], source)
    return batch, False


def _size(document: Document) -> int:
    raw = getattr(document, "raw", None)
    return len(raw) if raw is not None else len(repr(document))


def kill_cursors(server: Server, command: Mapping[str, Any]) -> Reply:
    asked = list(command["cursors"])
    killed = server.close(lambda cursor: cursor.id in asked)
    return {
        "cursorsKilled": [Int64(number) for number in killed],
        "cursorsNotFound": [Int64(number) for number in asked if number not in killed],
        "cursorsAlive": [],
        "cursorsUnknown": [],
    }


def count_documents(server: Server, command: Mapping[str, Any]) -> Reply:
    query = command.get("query") or {}
    skip, limit = _whole(command, "skip"), _whole(command, "limit")
    if not query:
        target = _found(server, command)
        total = storage.count(server.store.reader(), target) if target else 0
    else:
        total = sum(1 for _ in _matching(server, command, query, {}))
    left = max(total - skip, 0)
    return {"n": min(left, limit) if limit else left}


def distinct(server: Server, command: Mapping[str, Any]) -> Reply:
    path = str(command["key"]).split(".")
    values: dict[bytes, Any] = {}
    for document in _matching(server, command, command.get("query") or {}, {}):
        for value in reach(document, path):
            for item in value if isinstance(value, list) else [value]:
                if item is not MISSING:
                    values.setdefault(identity(item), item)
    return {"values": list(values.values())}


# --- writing ---


def _write(server: Server, command: Mapping[str, Any], apply: Callable[[Writer, Mapping[str, Any]], Reply]) -> Reply:
    """Runs a write as one transaction; a retried one is answered as it was the first time."""
    concern = command.get("writeConcern")
    concern = concern if isinstance(concern, Mapping) else {}
    session, number = _session(command), command.get("txnNumber")
    with server.store.writing(durable=bool(concern.get("j"))) as writer:
        reply = writer.remembered(session, number) if session is not None and number is not None else None
        if reply is None:
            reply = apply(writer, command)
            if session is not None and number is not None:
                writer.remember(session, number, reply)
    nodes = concern.get("w", 1)
    if is_number(nodes) and nodes > 1:
        failure = CommandFailed(100, "Not enough data-bearing nodes").reply()
        reply = {**reply, "writeConcernError": failure}
    return reply


def _statements(command: Mapping[str, Any], name: str, apply: Callable[[int, Mapping[str, Any]], None]) -> list[Reply]:
    """Applies each statement of a write and collects their errors; an ordered write stops at the first."""
    statements = command.get(name)
    if not isinstance(statements, list) or not statements:
        raise CommandFailed(72, f"Write batch sizes must be between 1 and 100000: '{name}' has none")
    if len(statements) > 100_000:
        raise CommandFailed(72, f"Write batch sizes must be between 1 and 100000: '{name}' has {len(statements)}")
    errors: list[Reply] = []
    for index, statement in enumerate(statements):
        try:
            apply(index, statement)
        except CommandFailed as failure:
            errors.append({"index": index, **failure.reply()})
            if command.get("ordered", True):
                break
    return errors


def insert(writer: Writer, command: Mapping[str, Any]) -> Reply:
    target = writer.create(*_names(command))
    done = 0

    def apply(_: int, document: Mapping[str, Any]) -> None:
        nonlocal done
        writer.insert(target, _identified(document))
        done += 1

    errors = _statements(command, "documents", apply)
    return {"n": done, **({"writeErrors": errors} if errors else {})}


def _identified(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with its `_id` first, made if there is none. Raises CommandFailed for a type that cannot be one."""
    number = document["_id"] if "_id" in document else ObjectId()
    if isinstance(number, list | Regex):
        raise CommandFailed(2, f"can't use a {'array' if isinstance(number, list) else 'regex'} for _id")
    return {"_id": number, **{name: value for name, value in document.items() if name != "_id"}}


def update(writer: Writer, command: Mapping[str, Any]) -> Reply:
    db, name = _names(command)
    matched = modified = 0
    upserted: list[Reply] = []

    def apply(index: int, statement: Mapping[str, Any]) -> None:
        nonlocal matched, modified
        _refuse(statement, ("arrayFilters", "collation", "sort"), "an update")
        query, change = statement["q"], statement["u"]
        replacement = is_replacement(change)
        if replacement and statement.get("multi"):
            raise CommandFailed(9, "multi update is not supported for replacement-style update")
        target = storage.collection(writer.connection, db, name)
        test = matcher(query)
        found = _versions(writer, target, query, test)
        chosen = list(found) if statement.get("multi") else list(islice(found, 1))
        for version in chosen:
            matched += 1
            modified += _apply(writer, version, change, replacement) is not None
        if not chosen and statement.get("upsert"):
            document = _upsert(writer, db, name, query, change, replacement)
            matched += 1
            upserted.append({"index": index, "_id": document["_id"]})

    errors = _statements(command, "updates", apply)
    reply: Reply = {"n": matched, "nModified": modified}
    return {**reply, **({"upserted": upserted} if upserted else {}), **({"writeErrors": errors} if errors else {})}


def _refuse(statement: Mapping[str, Any], options: Iterable[str], what: str) -> None:
    for option in options:
        if statement.get(option):
            raise unsupported(f"{what} with {option}")


def _versions(
    writer: Writer, target: Collection | None, query: Document, test: Callable[[Document], bool]
) -> Iterator[Version]:
    if target is None:
        return
    for version in storage.scan(lambda: writer.connection, target, query):
        if not query or test(version.decoded()):
            yield version


def _apply(writer: Writer, version: Version, change: Mapping[str, Any], replacement: bool) -> dict[str, Any] | None:
    """The new document, or None when the change changes nothing."""
    before = version.decoded()
    if replacement:
        if "_id" in change and identity(change["_id"]) != identity(before["_id"]):
            raise CommandFailed(
                66, "After applying the update, the (immutable) field '_id' was found to have been altered"
            )
        after = {"_id": before["_id"], **{name: value for name, value in change.items() if name != "_id"}}
    else:
        after = updated(before, change, inserting=False)
    description = None if replacement else difference(before, after)
    return after if writer.change(version, after, "replace" if replacement else "update", description) else None


def _upsert(
    writer: Writer, db: str, name: str, query: Document, change: Mapping[str, Any], replacement: bool
) -> dict[str, Any]:
    fixed = equalities(query)
    if replacement:
        document = {**({"_id": fixed["_id"]} if "_id" in fixed else {}), **change}
        if "_id" in fixed and identity(document["_id"]) != identity(fixed["_id"]):
            raise CommandFailed(66, "The _id field cannot be changed from the one of the query")
    else:
        document = updated(updated({}, {"$set": fixed} if fixed else {}, inserting=True), change, inserting=True)
        if "_id" in fixed and identity(document.get("_id")) != identity(fixed["_id"]):
            raise CommandFailed(66, "Performing an update on the path '_id' would modify the immutable field '_id'")
    document = _identified(document)
    writer.insert(writer.create(db, name), document)
    return document


def delete(writer: Writer, command: Mapping[str, Any]) -> Reply:
    target = storage.collection(writer.connection, *_names(command))
    done = 0

    def apply(_: int, statement: Mapping[str, Any]) -> None:
        nonlocal done
        _refuse(statement, ("collation",), "a delete")
        query = statement["q"]
        found = _versions(writer, target, query, matcher(query))
        for version in list(islice(found, 1)) if statement.get("limit") else list(found):
            writer.delete(version)
            done += 1

    errors = _statements(command, "deletes", apply)
    return {"n": done, **({"writeErrors": errors} if errors else {})}


def find_and_modify(writer: Writer, command: Mapping[str, Any]) -> Reply:
    db, name = _names(command)
    _refuse(command, ("arrayFilters",), "findAndModify")
    query, change, remove = command.get("query") or {}, command.get("update"), bool(command.get("remove"))
    if remove == (change is not None):
        raise CommandFailed(9, "findAndModify needs either an update or remove=true")
    replacement = change is not None and is_replacement(change)
    project = projector(command["fields"]) if command.get("fields") else dict
    target = storage.collection(writer.connection, db, name)
    found = list(_versions(writer, target, query, matcher(query)))
    for key, descending in reversed(sorter(command.get("sort") or {})):
        found.sort(key=lambda version: key(version.decoded()), reverse=descending)
    result: Reply = {"n": 0} if remove else {"n": 0, "updatedExisting": False}
    value: Document | None = None
    if found:
        version = found[0]
        result["n"] = 1
        value = before = version.decoded()
        if remove:
            writer.delete(version)
        else:
            result["updatedExisting"] = True
            after = _apply(writer, version, change or {}, replacement)
            value = (after or before) if command.get("new") else before
    elif change is not None and command.get("upsert"):
        document = _upsert(writer, db, name, query, change, replacement)
        result |= {"n": 1, "upserted": document["_id"]}
        value = document if command.get("new") else None
    return {"lastErrorObject": result, "value": None if value is None else project(value)}


COMMANDS: Final[dict[str, Callable[[Server, Mapping[str, Any]], Reply]]] = {
    "hello": hello,
    "isMaster": hello,
    "ismaster": hello,
    "ping": nothing,
    "buildInfo": build_info,
    "buildinfo": build_info,
    "serverStatus": server_status,
    "replSetGetStatus": replica_set_status,
    "connectionStatus": connection_status,
    "startSession": nothing,
    "refreshSessions": nothing,
    "endSessions": end_sessions,
    "forgetVersions": forget_versions,
    "killSessions": nothing,
    "listDatabases": list_databases,
    "listCollections": list_collections,
    "listIndexes": list_indexes,
    "find": find,
    "aggregate": aggregate,
    "getMore": get_more,
    "killCursors": kill_cursors,
    "count": count_documents,
    "distinct": distinct,
}
WRITES: Final[dict[str, Callable[[Writer, Mapping[str, Any]], Reply]]] = {
    "insert": insert,
    "update": update,
    "delete": delete,
    "findAndModify": find_and_modify,
    "findandmodify": find_and_modify,
    "create": create,
    "drop": drop,
    "dropDatabase": drop_database,
    "createIndexes": create_indexes,
    "dropIndexes": drop_indexes,
}
REFUSED: Final = {
    "abortTransaction",
    "bulkWrite",
    "collMod",
    "collStats",
    "commitTransaction",
    "compact",
    "convertToCapped",
    "createUser",
    "dbStats",
    "explain",
    "mapReduce",
    "renameCollection",
    "saslStart",
    "saslContinue",
    "authenticate",
    "validate",
}
