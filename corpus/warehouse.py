"""The warehouse: every document as it was crawled, in MongoDB. The one place that reads and writes its collections.

Collections of the database: `documents`, `authors`, `crawls` (one record a run), `watermarks` (marks that `twin wait`
follows through the log), `erasures` (what was erased, as ids alone), `warehouse` (the identity of this very
warehouse); `datasets` and `models` (what was built, by which recipe and from which documents), `lineages` (the
documents of datasets, in pieces), `written` (what language models wrote for datasets, which a rebuild takes from here)
and `feedback` (what people said of answers).
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import msgspec

from corpus.batches import batches
from corpus.documents import Document, author_identity, from_record, in_milliseconds, source_version, to_record
from corpus.settings import Settings, without_password

if TYPE_CHECKING:
    from pymongo import MongoClient
    from pymongo.collection import Collection

T = TypeVar("T")
BuiltKind = Literal["datasets", "models"]
TextKind = Literal["written", "feedback"]
# What a data set was made from: too much for one record where documents are many.
LINEAGE = ("documents", "document_ids")
# Documents in a piece of a lineage: about 3 MB. So many ids are asked for at once as well.
PIECE = 10_000
BATCH = 200
BATCH_BYTES = 8_000_000
ATTEMPTS = 3
NO_SUCH_COMMAND = 59
# MongoDB refuses records above 16 MiB; a change event carries the record and its envelope.
LARGEST_RECORD = 15_000_000
# Levels of nesting; the record itself is the first of MongoDB's 100.
DEEPEST = 99
MARKS_KEPT = timedelta(hours=1)
STAMP_FIELDS = ("content_hash", "crawled_at", "title", "url", "author_name", "category", "platform")
# The form of our own ids, which is the text of no other type of id.
OWN_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
# Others may write ids of these types, whose text does not tell the value.
ODD_TYPES = ("double", "object", "binData", "bool", "date", "null", "timestamp", "decimal")
WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,18}", re.ASCII)
EPOCH = datetime.fromtimestamp(0, UTC)


class WarehouseUnavailable(ConnectionError):
    """MongoDB cannot be reached or does not answer; the message says what to do."""


class AlreadyBuilt(RuntimeError):
    """There is a data set or a model with this id; the message names it."""


class BuiltMeanwhile(RuntimeError):
    """The record of a data set or a model is another than the one that was read; the message names it."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """A document without its text.

    `content_hash` and `crawled_at` are as the record claims them: together they name one write.
    """

    id: str
    content_hash: str
    crawled_at: datetime
    title: str
    url: str
    author: str
    category: str
    platform: str


@dataclass(frozen=True, slots=True)
class Named:
    """The authors that the record of a data set names: those asked for, and of how many samples each is."""

    asked_for: tuple[str, ...] = ()
    samples: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Saved:
    """What became of documents that were saved."""

    inserted: int = 0
    updated: int = 0
    unchanged: int = 0

    def __add__(self, other: Saved) -> Saved:
        return Saved(self.inserted + other.inserted, self.updated + other.updated, self.unchanged + other.unchanged)


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """That documents must go, as `erasures` keeps it: ids, and no word of what they held.

    `state`: open until all was done once, then done, or left where something was; `found`: how many there were by
    place, the most of all attempts; `rewritten`, `renewed`: whether the files of the index were written anew, and the
    log started anew; `postdated`: ids of documents that claimed to have been read later than `erased_at`, and when.
    """

    id: str
    document_ids: tuple[str, ...]
    author_ids: tuple[str, ...]
    erased_at: datetime
    state: str = "open"
    found: dict[str, int] = {}
    rewritten: bool = False
    renewed: bool = False
    postdated: tuple[tuple[str, datetime], ...] = ()


def connect(settings: Settings, *, timeout: float = 30.0) -> Warehouse:
    """The warehouse of these settings; a server that is away is waited for up to `timeout` seconds at every call.

    Raises WarehouseUnavailable.
    """
    from pymongo import MongoClient
    from pymongo.errors import PyMongoError

    if settings.mongodb_uri is None:
        raise WarehouseUnavailable("there is no warehouse: run `twin up`, or set TWIN_MONGODB_URI to your MongoDB")
    shown = without_password(settings.mongodb_uri)
    try:
        client: MongoClient[dict[str, Any]] = MongoClient(
            settings.mongodb_uri,
            tz_aware=True,
            retryWrites=True,
            w="majority",
            serverSelectionTimeoutMS=int(timeout * 1000),
            appname="llm-twin",
        )
    except (PyMongoError, ValueError) as error:
        raise WarehouseUnavailable(f"TWIN_MONGODB_URI ({shown}) cannot be used ({type(error).__name__})") from error
    return Warehouse(client, settings.database, shown)


class Warehouse:
    """An open warehouse. Every method blocks, and raises WarehouseUnavailable when MongoDB does not answer."""

    def __init__(self, client: MongoClient[dict[str, Any]], database: str, address: str) -> None:
        self._client, self._address = client, address
        self._database = client[database]
        self._documents: Collection[dict[str, Any]] = self._database["documents"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    # Reading

    def identity(self) -> str:
        """The UUID of this very warehouse, made once: a database that was emptied and filled again has another."""
        from pymongo import ReturnDocument

        record = self._asked(
            lambda: self._database["warehouse"].find_one_and_update(
                {"_id": "identity"},
                {"$setOnInsert": {"uuid": str(uuid.uuid4())}},
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )
        )
        return str((record or {})["uuid"])

    def now(self) -> int:
        """The version of now: a write that is acknowledged later has a version that is not smaller.

        Source: MongoDB's `hello`, `lastWrite`.
        """
        hello = self._asked(lambda: self._client.admin.command("hello"))
        last = hello.get("lastWrite") or {}
        if "opTime" not in last:
            raise WarehouseUnavailable(
                f"MongoDB at {self._address} is no replica set, so it tells no changes: start it with --replSet"
            )
        return source_version(int(last["lastWriteDate"].timestamp() * 1000), last["opTime"]["ts"].inc)

    def count(self) -> int:
        """Documents in the warehouse."""
        return int(self._asked(lambda: self._documents.count_documents({})))

    def get(self, id: str) -> Document | None:
        """The document, or None. Raises InvalidDocument if somebody else wrote a record that is none."""
        record = next(self.raw_records([id]), None)
        return from_record(record) if record is not None else None

    def by_request(self, url: str) -> Document | None:
        """The document that was fetched from this address, which may be another than the document's own."""
        self._asked(lambda: self._documents.create_index("metadata.requested_url", sparse=True))
        record = self._asked(lambda: self._documents.find_one({"metadata.requested_url": url}))
        return from_record(record) if record is not None else None

    def raw_records(self, ids: Iterable[str]) -> Iterator[dict[str, Any]]:
        """The records with these ids as they are stored; ids that are not there are left out."""
        yield from self._having(ids)

    def metadata(self, id: str) -> Mapping[str, Any]:
        """What a record has as metadata, without its text; {} where there is none, or what somebody wrote is none."""
        record = next(self._having([id], {"metadata": 1}), {})
        found = record.get("metadata")
        return found if isinstance(found, Mapping) else {}

    def stamps(self, ids: Iterable[str] | None = None) -> Iterator[Stamp]:
        """Every document, or those with these ids, without texts. The order is not defined."""
        fields = dict.fromkeys(STAMP_FIELDS, 1)
        yield from map(_stamp, self._found({}, fields) if ids is None else self._having(ids, fields))

    def urls_under(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Id and URL of the documents whose URL starts with `prefix`."""
        beyond = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        for record in self._found({"url": {"$gte": prefix, "$lt": beyond}}, {"url": 1}):
            yield str(record["_id"]), record["url"]

    def bylines(self) -> Iterator[tuple[str, str, str]]:
        """Id, author's id and author's name of every document; the name is empty where there is none."""
        for record in self._found({}, {"author_id": 1, "author_name": 1}):
            told = record.get("author_name")
            name = told if isinstance(told, str) else ""
            yield str(record["_id"]), str(record.get("author_id") or author_identity(name)), name

    def authors(self) -> dict[str, str]:
        """The names of the authors by their ids."""
        return {str(record["_id"]): str(record.get("name")) for record in self._found_in("authors")}

    def addresses(self, ids: Iterable[str]) -> set[str]:
        """Where these documents are and were read."""
        found: set[str] = set()
        for record in self._having(ids, {"url": 1, "metadata": 1}):
            metadata = record.get("metadata")
            told = metadata.get("requested_url") if isinstance(metadata, Mapping) else None
            found |= {address for address in (record.get("url"), told) if isinstance(address, str) and address}
        return found

    def crawls(self) -> list[dict[str, Any]]:
        """The record of every crawl."""
        return list(self._found_in("crawls"))

    def built_from(self, ids: Sequence[str]) -> dict[str, list[str]]:
        """Ids of the data sets and models that name one of these documents as what they were made from."""
        found: dict[str, set[str]] = {"datasets": set(), "models": set()}

        def named(name: str, condition: Mapping[str, Any], field: str = "_id") -> set[str]:
            return {str(each[field]) for each in self._database[name].find(condition, {field: 1})}

        for part in batches(ids, PIECE):
            naming = {"document_ids": {"$in": part}}
            for name, known in found.items():
                known |= self._asked(partial(named, name, naming))
            # Pieces of a build that was killed before its record was written are no data set.
            of = sorted(self._asked(partial(named, "lineages", naming, "dataset")))
            found["datasets"] |= self._asked(partial(named, "datasets", {"_id": {"$in": of}}))
        return {name: sorted(known) for name, known in found.items()}

    def built(self, kind: BuiltKind, id: str | None = None) -> list[dict[str, Any]]:
        """The records of data sets or models, or that with this id, newest first."""
        found = self._found_in(kind, {} if id is None else {"_id": id})
        return _newest_first(self._with_lineage(record) if kind == "datasets" else record for record in found)

    def datasets(self) -> list[dict[str, Any]]:
        """The records of data sets, newest first, with the number of their documents (`document_count`) in place of
        these."""
        found = list(self._found_in("datasets", fields={"documents": 0}))
        for record in found:
            # An older program kept the lineage in the record.
            record.setdefault("document_count", len(record.pop("document_ids", ())))
            record.pop("pieces", None)
        return _newest_first(found)

    def written(self, model: str) -> dict[str, dict[str, Any]]:
        """All that this language model wrote for datasets, by the keys of its requests."""
        return {str(record.pop("_id")): record for record in self._found_in("written", {"model": model})}

    def feedback(self) -> list[dict[str, Any]]:
        """What people said of answers, by its id."""
        return sorted(self._found_in("feedback"), key=lambda record: str(record["_id"]))

    def count_told(self, ids: Sequence[str]) -> int:
        """How many texts language models wrote from these documents, and people about answers that rest on them."""
        return sum(
            int(self._asked(partial(self._database[name].count_documents, condition)))
            for name, condition in _told_of(ids).items()
        )

    def told_of(self, ids: Sequence[str]) -> Iterator[tuple[TextKind, dict[str, Any]]]:
        """What `count_told` counts, each with the collection that it is of; what models wrote has when it was kept."""
        for name, condition in _told_of(ids).items():
            for record in self._found_in(name, condition):
                yield name, record

    def named_by_datasets(self) -> dict[str, Named]:
        """Whom the record of each data set names, by its id."""
        found = {}
        with self._translated():
            for record in self._database["datasets"].find({}, {"recipe.authors": 1, "statistics.author": 1}):
                recipe, statistics = record.get("recipe") or {}, record.get("statistics") or {}
                found[str(record["_id"])] = Named(tuple(recipe.get("authors") or ()), statistics.get("author") or {})
        return found

    def erasures(self, condition: Mapping[str, Any]) -> list[Erasure]:
        """The erasures for which this holds, oldest first."""
        found = [
            msgspec.convert({**each, "id": each["_id"]}, Erasure) for each in self._found_in("erasures", condition)
        ]
        return sorted(found, key=lambda erasure: erasure.erased_at)

    def former_versions(self, ids: Sequence[str], *, forget: bool = False) -> int | None:
        """How many former versions of these documents the history still has; with `forget` it loses those of all.

        None where the server keeps its history as it likes, which is any but the embedded one.
        """
        from pymongo.errors import OperationFailure

        command = {"forgetVersions": "documents", "ids": _stored_ids(ids), "countOnly": not forget}
        try:
            return int(self._asked(lambda: self._database.command(command))["n"])
        except WarehouseUnavailable as error:
            if isinstance(error.__cause__, OperationFailure) and error.__cause__.code == NO_SUCH_COMMAND:
                return None
            raise

    # Writing

    def save(self, documents: Iterable[Document]) -> Saved:
        """Write the documents whose content hash is new, and their authors; returns when a majority has acknowledged.

        A document that did not change is not written at all. Of two with one id the later stays.
        """
        total = Saved()
        for part in _batches(documents):
            total += self._save(part)
        return total

    def delete(self, ids: Iterable[str]) -> int:
        """Delete the documents; how many there were."""
        wanted = set(ids)

        def deleted(condition: Mapping[str, Any]) -> int:
            return int(self._asked(partial(self._documents.delete_many, condition)).deleted_count)

        found = sum(deleted({"_id": {"$in": _stored_ids(part)}}) for part in batches(sorted(wanted), BATCH))
        if found < len(wanted):
            found += sum(map(deleted, self._odd(wanted)))
        return found

    def mark(self, token: str) -> None:
        """Write a mark that capture will carry into the log behind every change acknowledged before; old ones go."""
        now = datetime.now(UTC)
        marks = self._database["watermarks"]
        self._asked(lambda: marks.replace_one({"_id": token}, {"_id": token, "at": now}, upsert=True))
        self._asked(lambda: marks.delete_many({"at": {"$lt": now - MARKS_KEPT}}))

    def record_crawl(self, crawl: Mapping[str, Any]) -> None:
        """Write the record of a crawl, or its newer state; `_id` is the crawl's id."""
        self._asked(lambda: self._database["crawls"].replace_one({"_id": crawl["_id"]}, dict(crawl), upsert=True))

    def record_erasure(self, erasure: Erasure) -> None:
        """Write the record of an erasure, or its newer state; it is on the disk when this returns."""
        from pymongo import WriteConcern

        record = {**msgspec.structs.asdict(erasure), "_id": erasure.id}
        del record["id"]
        kept = self._database.get_collection("erasures", write_concern=WriteConcern("majority", j=True))
        self._asked(lambda: kept.replace_one({"_id": erasure.id}, record, upsert=True))

    def record_built(self, kind: BuiltKind, record: Mapping[str, Any]) -> None:
        """Write the record of a data set or a model, or its newer state; `_id` is its id, `document_ids` what it was
        made from.

        The lineage of a data set goes before it, in pieces: one that is there is whole, however many documents it has.
        """
        id = record["_id"]
        if kind != "datasets":
            self._asked(lambda: self._database[kind].replace_one({"_id": id}, dict(record), upsert=True))
            return
        former = self._asked(lambda: self._database["datasets"].find_one({"_id": id}, {"pieces": 1})) or {}
        plain = self._without_lineage(record)
        self._asked(lambda: self._database["datasets"].replace_one({"_id": id}, plain, upsert=True))
        surplus = [_piece_id(id, number) for number in range(plain["pieces"], former.get("pieces", 0))]
        if surplus:
            self._asked(lambda: self._database["lineages"].delete_many({"_id": {"$in": surplus}}))

    def add_built(self, kind: BuiltKind, record: Mapping[str, Any]) -> None:
        """Write the record of a new data set or model. Raises AlreadyBuilt where there is one with its id."""
        from pymongo.errors import DuplicateKeyError

        # Told apart by this when a broken connection leaves open whether the first attempt arrived.
        claimed = {**record, "claim": uuid.uuid4().hex}

        def add() -> str:
            try:
                self._database[kind].insert_one(dict(claimed))
            except DuplicateKeyError:
                found = self._database[kind].find_one({"_id": record["_id"]}, {"claim": 1}) or {}
                return str(found.get("claim"))
            return str(claimed["claim"])

        if self._asked(add) != claimed["claim"]:
            raise AlreadyBuilt(f"there is a record of {record['_id']} in {kind} already: take another id")

    def replace_built(self, kind: BuiltKind, record: Mapping[str, Any], *, decisions: int) -> None:
        """Write the newer state of a record that had so many decisions. Raises BuiltMeanwhile if it has others now."""
        claimed = {**record, "claim": uuid.uuid4().hex}
        condition = {"_id": record["_id"], "decisions": {"$size": decisions}}

        def replace() -> bool:
            if self._database[kind].replace_one(condition, dict(claimed)).matched_count:
                return True
            found = self._database[kind].find_one({"_id": record["_id"]}, {"claim": 1}) or {}
            return bool(found.get("claim") == claimed["claim"])

        if not self._asked(replace):
            raise BuiltMeanwhile(f"the record of {record['_id']} in {kind} has changed meanwhile: read it again")

    def record_told(self, name: Literal["written", "feedback"], records: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep what language models wrote, by the keys of their requests, or what people said, by the ids of that."""
        from pymongo import UpdateOne

        # The first time counts: a file of feedback is taken in again with every dataset that is built with it.
        now = datetime.now(UTC)
        writes = [
            UpdateOne(
                {"_id": key},
                {
                    "$set": {name: value for name, value in record.items() if name not in ("_id", "kept_at")},
                    "$setOnInsert": {"kept_at": record.get("kept_at", now)},
                },
                upsert=True,
            )
            for key, record in records.items()
        ]
        for part in batches(writes, BATCH):
            self._asked(partial(self._database[name].bulk_write, part, ordered=False))

    def keep_written(self, key: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """Keep what a language model wrote to this request, unless something is kept already; what is kept now."""
        from pymongo import ReturnDocument

        first = {"kept_at": datetime.now(UTC), **record}
        kept = self._asked(
            lambda: self._database["written"].find_one_and_update(
                {"_id": key}, {"$setOnInsert": first}, upsert=True, return_document=ReturnDocument.AFTER
            )
        )
        return dict(kept or first)

    def delete_told(self, ids: Sequence[str]) -> int:
        """Delete what `count_told` counts; how many texts."""
        return sum(
            int(self._asked(partial(self._database[name].delete_many, condition)).deleted_count)
            for name, condition in _told_of(ids).items()
        )

    def delete_texts(self, kind: TextKind, keys: Sequence[str]) -> int:
        """Delete what a language model wrote, or a person said, by its key; how many there were."""
        condition = {"_id": {"$in": list(keys)}}
        return int(self._asked(partial(self._database[kind].delete_many, condition)).deleted_count)

    def rename_authors(self, dataset: str, named: Named) -> None:
        """Let the record of a data set name these authors; the rest of it stays."""
        change: dict[str, Any] = {}
        if named.asked_for:
            change["recipe.authors"] = list(named.asked_for)
        if named.samples:
            change["statistics.author"] = dict(named.samples)
        self._asked(lambda: self._database["datasets"].update_one({"_id": dataset}, {"$set": change}))

    def delete_authors(self, ids: Sequence[str]) -> int:
        """Delete the records of those of these authors who have no document left; how many there were."""
        gone = [
            id for id in ids if self._asked(partial(self._documents.find_one, {"author_id": id}, {"_id": 1})) is None
        ]
        return int(self._asked(lambda: self._database["authors"].delete_many({"_id": {"$in": gone}})).deleted_count)

    def _without_lineage(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The record as it is stored, once the pieces of its lineage are."""
        lists = {name: record[name] for name in LINEAGE if name in record}
        pieces = -(-max(map(len, lists.values()), default=0) // PIECE)
        lineages = self._database["lineages"]
        for number in range(pieces):
            part = {name: list(rows[number * PIECE : (number + 1) * PIECE]) for name, rows in lists.items()}
            piece = {"_id": _piece_id(record["_id"], number), "dataset": record["_id"], **part}
            self._asked(partial(lineages.replace_one, {"_id": piece["_id"]}, piece, upsert=True))
        plain = {name: value for name, value in record.items() if name not in LINEAGE}
        return {**plain, "pieces": pieces, "document_count": len(lists.get("document_ids", ()))}

    def _with_lineage(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The record as it was given, its lineage put together again; one of an older program has it already."""
        whole = {name: value for name, value in record.items() if name not in ("pieces", "document_count")}
        if "pieces" not in record:
            return whole
        wanted = [_piece_id(record["_id"], number) for number in range(record["pieces"])]
        found = {piece["_id"]: piece for piece in self._found_in("lineages", {"_id": {"$in": wanted}})}
        missing = [id for id in wanted if id not in found]
        if missing:
            raise WarehouseUnavailable(
                f"the collection lineages at {self._address} lacks {missing[0]}, so nobody could tell which documents "
                f"{record['_id']} is made of: put it back from a backup"
            )
        for name in LINEAGE:
            whole[name] = [row for id in wanted for row in found[id].get(name, ())]
        return whole

    def _save(self, documents: Sequence[Document]) -> Saved:
        from pymongo import ReplaceOne, UpdateOne

        latest = {document.id: document for document in documents}
        condition = {"_id": {"$in": list(latest)}}
        found = self._asked(lambda: list(self._documents.find(condition, {"content_hash": 1})))
        stored = {record["_id"]: record.get("content_hash") for record in found}
        changed = [document for document in latest.values() if stored.get(document.id) != document.content_hash]
        if changed:
            authors = {document.author_id: document.author_name for document in changed}
            names = [UpdateOne({"_id": id}, {"$set": {"name": name}}, upsert=True) for id, name in authors.items()]
            writes = [ReplaceOne({"_id": document.id}, to_record(document), upsert=True) for document in changed]
            self._asked(lambda: self._database["authors"].bulk_write(names, ordered=False))
            self._asked(lambda: self._documents.bulk_write(writes, ordered=False))
        updated = sum(document.id in stored for document in changed)
        return Saved(len(changed) - updated, updated, len(documents) - len(changed))

    def _having(self, ids: Iterable[str], fields: Mapping[str, int] | None = None) -> Iterator[dict[str, Any]]:
        """The records with these ids, whatever the type of the id."""
        missing: set[str] = set()
        for part in batches(ids, BATCH):
            missing.update(part)
            for record in self._found({"_id": {"$in": _stored_ids(part)}}, fields):
                missing.discard(str(record["_id"]))
                yield record
        for condition in self._odd(missing):
            yield from self._found(condition, fields)

    def _odd(self, ids: set[str]) -> Iterator[dict[str, Any]]:
        """Conditions for the records with these ids whose value cannot be made from its text; for our own ids nobody is
        asked, since all the records may be read for it."""
        wanted = {id for id in ids if not OWN_ID.fullmatch(id)}
        if not wanted:
            return
        records = self._found({"_id": {"$type": list(ODD_TYPES)}}, {"_id": 1})
        odd = [record["_id"] for record in records if str(record["_id"]) in wanted]
        for part in batches(odd, BATCH):
            yield {"_id": {"$in": part}}

    def _found(self, condition: Mapping[str, Any], fields: Mapping[str, int] | None = None) -> Iterator[dict[str, Any]]:
        with self._translated():
            yield from self._documents.find(condition, fields)

    def _found_in(
        self, collection: str, condition: Mapping[str, Any] | None = None, fields: Mapping[str, int] | None = None
    ) -> Iterator[dict[str, Any]]:
        with self._translated():
            yield from self._database[collection].find(condition or {}, fields)

    def _asked(self, call: Callable[[], T]) -> T:
        """The call's result; asked again when the connection broke, since every call here may be repeated."""
        from pymongo.errors import AutoReconnect, ServerSelectionTimeoutError

        with self._translated():
            for _ in range(ATTEMPTS - 1):
                try:
                    return call()
                except ServerSelectionTimeoutError:
                    raise
                except AutoReconnect:
                    time.sleep(0.1)
            return call()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        from pymongo.errors import ConnectionFailure, PyMongoError

        try:
            yield
        except ConnectionFailure as error:
            raise WarehouseUnavailable(
                f"MongoDB at {self._address} does not answer: see `twin status`, or check TWIN_MONGODB_URI"
            ) from error
        except PyMongoError as error:
            told = (getattr(error, "details", None) or {}).get("errmsg") or str(error)
            raise WarehouseUnavailable(f"MongoDB at {self._address} refused: {told[:300]}") from error


def _newest_first(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(records, key=lambda record: (str(record.get("created_at")), str(record["_id"])), reverse=True)


def _piece_id(dataset: str, number: int) -> str:
    return f"{dataset}:{number}"


def _told_of(ids: Sequence[str]) -> dict[TextKind, dict[str, Any]]:
    """By collection, the condition for what was written from these documents or said about them."""
    wanted = {"$in": list(ids)}
    return {"written": {"document_id": wanted}, "feedback": {"citations.document_id": wanted}}


def refusal(document: Document) -> str | None:
    """Why MongoDB cannot hold this document, or None."""
    import bson

    if _is_deeper(document.metadata, DEEPEST):
        return f"cannot be stored (its metadata is nested too deeply: MongoDB holds {DEEPEST} levels)"
    try:
        size = len(bson.encode(to_record(document)))
    except (bson.errors.BSONError, OverflowError, UnicodeEncodeError) as error:
        return f"cannot be stored ({str(error)[:200]})"
    return (
        f"takes {size / 1e6:.1f} MB as a record, MongoDB holds {LARGEST_RECORD / 1e6:.0f} MB"
        if size > LARGEST_RECORD
        else None
    )


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether values are nested more than `levels` deep."""
    found = [value]
    for _ in range(levels + 1):
        nested = [each.values() if isinstance(each, Mapping) else each for each in found if _is_nesting(each)]
        found = [inner for each in nested for inner in each]
    return bool(found)


def _is_nesting(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple)


def _stamp(record: Mapping[str, Any]) -> Stamp:
    """Of any record, even one that somebody else wrote: what is not there is read as the dataflow reads it."""
    crawled = record.get("crawled_at")
    return Stamp(
        id=str(record["_id"]),
        content_hash=str(record.get("content_hash")),
        crawled_at=in_milliseconds(crawled if isinstance(crawled, datetime) else EPOCH),
        title=str(record.get("title") or ""),
        url=str(record.get("url") or ""),
        author=str(record.get("author_name") or ""),
        category=str(record.get("category") or ""),
        platform=str(record.get("platform") or ""),
    )


def _stored_ids(ids: Sequence[str]) -> list[Any]:
    """Records that others wrote may have ObjectIds or numbers, which the rest of the system knows by their digits."""
    from bson import ObjectId

    # BSON's have 64 bits.
    numbers = [int(id) for id in ids if WHOLE_NUMBER.fullmatch(id) and -(2**63) <= int(id) < 2**63]
    return [*ids, *numbers, *(ObjectId(id) for id in ids if ObjectId.is_valid(id))]


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if len(batch) >= BATCH or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
