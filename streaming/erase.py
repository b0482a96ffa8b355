"""Erasing documents for good: from the warehouse, the index, the log and the files that their engines keep.

What is to go is written down first, as ids alone, so an erasure that a crash broke off is finished by whoever finds it
(docs/guarantees.md has the order). Every step may be done again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import msgspec
from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as LogMessage
from confluent_kafka.admin import AdminClient, ConfigResource  # type: ignore[attr-defined]

from corpus.batches import batches
from corpus.closed_generations import count_closed, erase_closed
from corpus.documents import author_identity, canonical_url
from corpus.index import QdrantIndex, author_keys
from corpus.warehouse import Erasure, Warehouse
from streaming import built
from streaming.built import ERASED
from streaming.changes import document_of_key
from streaming.clients import LogFailed, consumer, noting, partitions_of, producer

if TYPE_CHECKING:
    from corpus.history import History
    from corpus.settings import Settings
    from streaming.log import Log

SCHEMA_VERSION = ("schema-version", b"1")
# Ids in one question to the index.
TOGETHER = 1_000
# Files that the receipt names.
SHOWN = 5
PATIENCE = 30.0
# Characters of an id from which it is found without quotes; ours have 36, ObjectIds 24.
LONG_ID = 16
COMPACTION = ("cleanup.policy", "max.compaction.lag.ms", "min.cleanable.dirty.ratio", "delete.retention.ms")
# What is being done, by the step before it.
DOING = {
    "": "the records of crawls",
    "names": "the documents in the warehouse",
    "documents": "their authors",
    "authors": "waiting for the index to follow",
    "applied": "the index is written anew",
    "index": "the generations that are not in use",
    "generations": "tombstones for the log",
    "tombstones": "the warehouse's history",
    "history": "former versions in the document history",
    "versions": "datasets, and what models and people wrote for them",
    "datasets": "the log is started anew",
    "log": "telling downstream",
    "events": "the logs of the parts",
    "files": "every place is looked at",
}
# Few messages in memory at a time, however large they are.
READING = {"enable.partition.eof": True, "queued.max.messages.kbytes": 16_000, "log_level": 0}


class NothingToErase(LookupError):
    """Nobody knows the documents, the author or the erasure; the message says which."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """What would go: documents by id, with title and address where the warehouse has them, and authors by id.

    `unknown`: ids that were asked for, or are of the author, by which nothing is found.
    """

    documents: Mapping[str, Mapping[str, str]]
    authors: Mapping[str, str]
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reach:
    """What an erasure works on. `indexes`: every generation that this process has open.

    `settle`: returns when all that was acknowledged is applied, or raises NotApplied; `renew`: start the log anew if it
    is one in memory, and say whether it was; `events`: the topic that tells downstream; `history`: the document history
    with all that the topics told until now.
    """

    settings: Settings
    warehouse: Warehouse
    indexes: tuple[QdrantIndex, ...]
    log: Log
    events: str
    settle: Callable[[], None]
    renew: Callable[[], bool]
    history: Callable[[], History]


@dataclass(frozen=True, slots=True)
class Place:
    """One line of the receipt. `left` is None where it cannot be known from here."""

    place: str
    found: int
    left: int | None
    check: str


def choose(
    warehouse: Warehouse,
    index: QdrantIndex,
    ids: Sequence[str],
    author: str | None,
    former: Collection[tuple[str, str, str]] = (),
) -> Chosen:
    """The documents of these ids and of this author (a name or an id), also those that are deleted already.

    `former`: id, author's id and author's name of every document that the history holds.
    """
    wanted = set(ids)
    bylines = [*warehouse.bylines(), *former]
    authors: dict[str, str] = {}
    if author is not None and _plain(author):
        known = [*bylines, *(("", id, name) for id, name in warehouse.authors().items())]
        authors = {id: name for _, id, name in known if {author, _plain(author)} & set(author_keys(name, id))}
        wanted |= {document for document, id, _ in bylines if id in authors}
    stamps = {stamp.id: {"title": stamp.title, "url": stamp.url} for stamp in warehouse.stamps(sorted(wanted))}
    authors |= {id: name for document, id, name in bylines if document in wanted}
    gone = sorted(wanted - set(stamps))
    recorded = {id for part in batches(gone, TOGETHER) for id in index.records(part)} | {id for id, _, _ in former}
    recorded |= (
        {id for erasure in warehouse.erasures({}) for id in erasure.document_ids if id in gone} if gone else set()
    )
    documents = {**stamps, **{id: {} for id in gone if id in recorded}}
    return Chosen(documents, authors, tuple(sorted(wanted - set(documents))))


def begin(warehouse: Warehouse, id: str, chosen: Chosen, now: datetime) -> Erasure:
    """Write down that these documents must go. From here on a crash is made up for."""
    stamps = warehouse.stamps(chosen.documents)
    erasure = Erasure(
        id=id,
        document_ids=tuple(sorted(chosen.documents)),
        author_ids=tuple(sorted(chosen.authors)),
        erased_at=now,
        # A document that claims to be of the future is meant as well.
        postdated=tuple((stamp.id, stamp.crawled_at) for stamp in stamps if stamp.crawled_at > now),
    )
    warehouse.record_erasure(erasure)
    return erasure


def finish(reach: Reach, erasure: Erasure, went_on: Callable[[str], None] = lambda step: None) -> dict[str, Any]:
    """Do all that an open erasure asks for, look at every place anew, and give the receipt.

    `went_on` is called after each step with its name. Raises NotApplied, LogFailed, WarehouseUnavailable or
    IndexUnavailable; the erasure stays open then. One that left something is gone on with by command only.
    """
    if erasure.state != "done":
        erasure = _carry_out(reach, erasure, went_on)
    kinds = _kinds(reach.warehouse, erasure)
    anew = built.ingested_again(reach.history(), erasure.document_ids)
    stale = built.resting(reach.warehouse, anew, erasure.document_ids)
    places = [
        *_warehouse_places(reach, erasure, kinds, anew),
        *_index_places(reach, erasure, kinds),
        *_log_places(reach, erasure, kinds),
        *_history_places(reach, erasure),
        *_file_places(reach, erasure, kinds, stale["datasets"]),
        _elsewhere(stale["datasets"]),
    ]
    left = sum(place.left or 0 for place in places)
    reach.warehouse.record_erasure(msgspec.structs.replace(erasure, state="left" if left else "done"))
    return {
        "erasure_id": erasure.id,
        "erased_at": erasure.erased_at.isoformat(),
        "checked_at": datetime.now(UTC).isoformat(),
        "documents": list(erasure.document_ids),
        "authors": list(erasure.author_ids),
        "ingested_again": kinds.again,
        "places": [msgspec.to_builtins(each) for each in places],
        "stale": stale,
        "left": left,
    }


def _carry_out(reach: Reach, erasure: Erasure, went_on: Callable[[str], None]) -> Erasure:
    ids = erasure.document_ids

    def noted(found: Mapping[str, int], **known: bool) -> Erasure:
        most = erasure.found | {name: max(number, erasure.found.get(name, 0)) for name, number in found.items()}
        now = msgspec.structs.replace(erasure, found=most, **known)
        reach.warehouse.record_erasure(now)
        return now

    erasure = noted(_unname(reach, erasure))
    went_on("names")
    reach.warehouse.delete(_kinds(reach.warehouse, erasure).former)
    went_on("documents")
    erasure = noted({"authors": reach.warehouse.delete_authors(erasure.author_ids)})
    went_on("authors")
    reach.settle()
    went_on("applied")
    # Each of them, also behind one that is a server's.
    rewritten = not [index for index in reach.indexes if not index.compact()]
    went_on("index")
    closed = erase_closed(reach.settings, _opened(reach), ids)
    erasure = noted({"generations": closed}, rewritten=rewritten)
    went_on("generations")
    erasure = noted(_bury(reach, erasure))
    went_on("tombstones")
    erasure = noted({"history": reach.warehouse.former_versions(ids, forget=True) or 0})
    went_on("history")
    erasure = noted({"versions": reach.history().erase(_meant(erasure))})
    went_on("versions")
    # Once more: what was built or said since the names were taken out.
    leaving = _leaving(reach.warehouse, erasure)
    erasure = noted(built.forget_authors(reach.warehouse, lambda name: author_identity(name) in leaving))
    anew = built.ingested_again(reach.history(), ids)
    told = built.delete_texts(reach.warehouse, anew, ids)
    stale = built.resting(reach.warehouse, anew, ids)["datasets"]
    erasure = noted({**built.delete_datasets(reach.settings, reach.warehouse, stale), "told": told})
    went_on("datasets")
    renewed = reach.renew()
    if renewed:
        reach.settle()
    went_on("log")
    tell(reach.log.bootstrap, reach.events, [erasure])
    went_on("events")
    erasure = noted({"logs": _empty(reach.settings.log_directory)}, renewed=renewed)
    went_on("files")
    return erasure


def _meant(erasure: Erasure) -> Callable[[str, datetime], bool]:
    """Whether a version of a document, known by id and when it was read, is what was to be erased."""
    ids, postdated = set(erasure.document_ids), set(erasure.postdated)
    return lambda id, read: id in ids and (read <= erasure.erased_at or (id, read) in postdated)


def _opened(reach: Reach) -> set[str]:
    return {index.generation for index in reach.indexes}


def tell(bootstrap: str, topic: str, erasures: Iterable[Erasure]) -> None:
    """Tell downstream which documents were erased for good. Raises LogFailed."""
    _produce(
        bootstrap,
        (
            (
                topic,
                id.encode(),
                msgspec.json.encode(
                    {"document_id": id, "erasure_id": erasure.id, "erased_at": erasure.erased_at.isoformat()}
                ),
            )
            for erasure in erasures
            for id in erasure.document_ids
        ),
    )


# The warehouse


@dataclass(frozen=True, slots=True)
class _Kinds:
    """Documents of an erasure by what the warehouse has of them: `former` are there still, `again` were read after the
    erasure was asked for and are new documents of the same address, `gone` are there no more."""

    former: list[str]
    again: list[str]
    gone: list[str]


def _kinds(warehouse: Warehouse, erasure: Erasure) -> _Kinds:
    read = {stamp.id: stamp.crawled_at for stamp in warehouse.stamps(erasure.document_ids)}
    meant = _meant(erasure)
    former = {id for id, moment in read.items() if meant(id, moment)}
    return _Kinds(
        former=sorted(former),
        again=sorted(set(read) - former),
        gone=[id for id in erasure.document_ids if id not in read],
    )


def _unname(reach: Reach, erasure: Erasure) -> dict[str, int]:
    """Take documents and authors out of the records of crawls, which know them by address and name alone, and authors
    who leave out of those of datasets; what is there of the documents is counted, as long as it is."""
    former = _kinds(reach.warehouse, erasure).former
    leaving = _leaving(reach.warehouse, erasure, former)
    named = [*reach.warehouse.authors().items(), *((author, name) for _, author, name in reach.warehouse.bylines())]
    names = {_plain(name) for id, name in named if id in leaving and _plain(name)}
    addresses = reach.warehouse.addresses(former)

    def naming() -> list[dict[str, Any]]:
        """The records as they should be, of those that are not."""
        pairs = ((crawl, without_names(crawl, addresses, names)) for crawl in reach.warehouse.crawls())
        return [unnamed for crawl, unnamed in pairs if unnamed != crawl]

    crawls = naming()
    for crawl in crawls:
        reach.warehouse.record_crawl(crawl)
    return {
        "documents": len(former),
        "crawls": len(crawls),
        "crawls_left": len(naming()),
        **built.forget_authors(reach.warehouse, lambda name: _plain(name) in names or author_identity(name) in leaving),
        "chunks": _chunks(reach, former),
        "texts": _texts(reach, former),
    }


def _leaving(warehouse: Warehouse, erasure: Erasure, former: Collection[str] = ()) -> set[str]:
    """Ids of the erasure's authors who have no document but the former ones."""
    going = set(former)
    return set(erasure.author_ids) - {author for document, author, _ in warehouse.bylines() if document not in going}


def _plain(name: str) -> str:
    return " ".join(name.casefold().split())


def without_names(crawl: Mapping[str, Any], addresses: Collection[str], authors: Collection[str]) -> dict[str, Any]:
    """A crawl's record without these addresses, in whatever form it was given them, and without these plain names."""
    places = {*addresses, *(unquote(urlsplit(each).path) for each in addresses if each.startswith("file:"))}

    def named(text: str) -> bool:
        return text in places or any(place in text or place.endswith(f"/{text}") for place in places) or _is_at(text)

    def _is_at(text: str) -> bool:
        try:
            return "://" in text and canonical_url(text) in places
        except ValueError:
            return False

    def without(value: Any) -> Any:
        if isinstance(value, str):
            return ERASED if value and named(value) else value
        if isinstance(value, Mapping):
            return {key: without(each) for key, each in value.items()}
        return [without(each) for each in value] if isinstance(value, list) else value

    author = crawl.get("author")
    gone = isinstance(author, str) and _plain(author) in authors
    kept = {name: without(value) if name in ("sources", "failed") else value for name, value in crawl.items()}
    return {**kept, "author": ERASED} if gone else kept


# The log


@dataclass
class _Topic:
    """What a topic has of the documents: how many values, and by key whose value no tombstone follows."""

    values: int = 0
    open: set[bytes] = field(default_factory=set)


def _topics(log: Log) -> dict[str, tuple[str, Callable[[LogMessage], str | None]]]:
    """The topics that hold what was in documents, and how the document of a message is told."""
    return {
        "changes": (log.changes, _changed),
        "feature_documents": (log.documents, _keyed),
        "feature_chunks": (log.chunks, _keyed),
        "dead_letters": (log.dead_letters, _letter_of),
    }


def _changed(message: LogMessage) -> str | None:
    try:
        return document_of_key(_bytes(message.key()))
    except Exception:  # a stranger's key may be anything, and its parsers' errors have no common class
        return None


def _keyed(message: LogMessage) -> str | None:
    return (_bytes(message.key()) or b"").decode("utf-8", "replace")


def _letter_of(message: LogMessage) -> str | None:
    """The document of a dead letter, whose key may be the place of its message instead."""
    try:
        return str(msgspec.json.decode(_bytes(message.value()) or b"")["document_id"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return _keyed(message)


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


def read_of(bootstrap: str, topic: str, owner: Callable[[LogMessage], str | None], ids: Collection[str]) -> _Topic:
    """What a topic has of these documents, read from its beginning to its end. Raises LogFailed."""
    found = _Topic()
    reader = consumer(bootstrap, "twin-erase", **READING)
    try:
        partitions = partitions_of(reader, topic)
        reader.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
        ended: set[int] = set()
        while len(ended) < len(partitions):
            message = reader.poll(PATIENCE)
            if message is None:
                raise LogFailed(f"topic {topic} does not come to its end")
            error = message.error()
            if error is not None:
                if error.code() != KafkaError._PARTITION_EOF:
                    raise LogFailed(f"topic {topic} cannot be read: {error.str()}")
                ended.add(message.partition() or 0)
                continue
            key = _bytes(message.key()) or b""
            found.open.discard(key)
            if message.value() is not None and owner(message) in ids:
                found.values += 1
                found.open.add(key)
    except KafkaException as error:
        raise LogFailed(f"topic {topic} cannot be read: {error.args[0].str()}") from error
    finally:
        reader.close()
    return found


def _bury(reach: Reach, erasure: Erasure) -> dict[str, int]:
    """Write tombstones for dead letters of the documents, and for changes that a repair sent after the deletion."""
    gone = set(_kinds(reach.warehouse, erasure).gone)
    found: dict[str, int] = {}
    for name, (topic, owner) in _topics(reach.log).items():
        read = read_of(reach.log.bootstrap, topic, owner, gone)
        found[name] = read.values
        if name in ("changes", "dead_letters"):
            # What has no key is in no compacted topic.
            _produce(reach.log.bootstrap, ((topic, key, None) for key in read.open if key))
    return found


def _produce(bootstrap: str, messages: Iterable[tuple[str, bytes, bytes | None]]) -> None:
    failed: list[str] = []
    outlet = producer(bootstrap)
    for number, (topic, key, value) in enumerate(messages, 1):
        outlet.produce(topic, value, key, headers=[SCHEMA_VERSION], on_delivery=noting(failed))
        outlet.poll(0)
        if number % TOGETHER == 0:
            outlet.flush()
    outlet.flush()
    if failed:
        raise LogFailed(f"the log did not take {len(failed)} messages: {failed[0]}")


# Files


def _empty(directory: Path) -> int:
    """Empty the logs of the parts, which may print what they cannot read; how many were not empty."""
    files = [path for path in directory.glob("*") if path.is_file() and path.stat().st_size]
    for path in files:
        # Each is appended to by its part, wherever its end is.
        with path.open("r+b") as file:
            file.truncate(0)
    return len(files)


def _names(content: bytes, ids: Collection[str]) -> bool:
    """Whether a text names one of the documents: an id that no other text has by chance, or a short one in quotes."""
    # What quotes a text that has quotes puts backslashes before them.
    plain = content.replace(b"\\", b"")
    forms = (((id,) if len(id) >= LONG_ID else (f"'{id}'", f'"{id}"')) for id in ids if id)
    return any(form.encode() in plain for each in forms for form in each)


class _Said(msgspec.Struct):
    """What capture says of itself, as far as a record may be quoted in it."""

    reason: str | None = None


def _said(capture: Path) -> bytes:
    """What the files of capture have of documents: the others hold a position alone, as times and as a token that has
    no text of any."""
    file = capture / "status.json"
    return (msgspec.json.decode(file.read_bytes(), type=_Said).reason or "").encode() if file.is_file() else b""


# The last look


def _warehouse_places(reach: Reach, erasure: Erasure, kinds: _Kinds, anew: built.Anew) -> Iterator[Place]:
    found = erasure.found
    yield Place(
        "warehouse: documents", found["documents"], len(kinds.former), "counted by id, but those ingested again since"
    )
    authored = {author for _, author, _ in reach.warehouse.bylines()}
    idle = set(erasure.author_ids) & set(reach.warehouse.authors()) - authored
    yield Place("warehouse: authors", found["authors"], len(idle), "those who have no document left, counted by id")
    check = "sources, failures and author compared with the documents, before these were deleted"
    yield Place("warehouse: crawls", found["crawls"], found["crawls_left"], check)
    versions = reach.warehouse.former_versions(kinds.gone)
    check = (
        "former versions counted by id; the file was written anew and its write-ahead log emptied"
        if versions is not None
        else "not checked: MongoDB's oplog keeps deleted documents for its own retention (`rs.printReplicationInfo()`)"
    )
    yield Place("warehouse: history", found["history"], versions, check)
    leaving = _leaving(reach.warehouse, erasure)
    named, said = built.naming_authors(reach.warehouse, lambda name: author_identity(name) in leaving)
    check = "the authors that records of datasets name, compared with those who have no document left"
    yield Place("warehouse: datasets", found.get("named", 0), len(named), check)
    check = (
        "what language models wrote for datasets and people said of answers, counted by document and by author who has "
        "none left; feedback that cites no document is not known to rest on these, and goes with its author alone"
    )
    texts = built.count_texts(reach.warehouse, anew, erasure.document_ids) + len(said)
    yield Place("warehouse: written and feedback", found["told"] + found.get("said", 0), texts, check)


def _index_places(reach: Reach, erasure: Erasure, kinds: _Kinds) -> Iterator[Place]:
    found = erasure.found
    closed = count_closed(reach.settings, _opened(reach), erasure.document_ids)
    files = (
        "the collections were written anew"
        if erasure.rewritten
        else "the server takes them out of its files by itself (its optimizer vacuums)"
    )
    yield Place("index: chunks", found["chunks"], _chunks(reach, kinds.gone), f"counted by document; {files}")
    yield Place("index: texts", found["texts"], _texts(reach, kinds.gone), f"records, but no tombstones; {files}")
    yield Place(
        "index: closed generations",
        found["generations"],
        closed,
        f"chunks and records counted by document in every generation that is not in use; {files}",
    )


def _chunks(reach: Reach, ids: Sequence[str]) -> int:
    return sum(1 for index in reach.indexes for part in batches(ids, TOGETHER) for _ in index.chunk_points(part))


def _texts(reach: Reach, ids: Sequence[str]) -> int:
    records = (
        record for index in reach.indexes for part in batches(ids, TOGETHER) for record in index.records(part).values()
    )
    return sum(not record.deleted for record in records)


def _log_places(reach: Reach, erasure: Erasure, kinds: _Kinds) -> Iterator[Place]:
    for name, (topic, owner) in _topics(reach.log).items():
        read = read_of(reach.log.bootstrap, topic, owner, set(kinds.gone))
        left, check = len(read.open), "read from the beginning, values that no tombstone follows counted by document"
        if erasure.renewed:
            check += "; the log was started anew and holds nothing of before"
        else:
            settings = _settings_of(reach.log.bootstrap, topic)
            told = ", ".join(f"{name}={value}" for name, value in settings.items())
            check += f"; the broker removes what a tombstone follows by compaction ({told})"
            if "compact" not in settings.get("cleanup.policy", "compact"):
                left, check = (
                    read.values,
                    f"read from the beginning: it is not compacted, so nothing ends them ({told})",
                )
        yield Place(f"log: {topic}", erasure.found[name], left, check)


def _history_places(reach: Reach, erasure: Erasure) -> Iterator[Place]:
    left = reach.history().count(_meant(erasure))
    check = "versions counted by document in the history of this home; its files were written anew"
    yield Place("history: versions", erasure.found["versions"], left, check)


def _file_places(reach: Reach, erasure: Erasure, kinds: _Kinds, stale: Sequence[str]) -> Iterator[Place]:
    files = (path for path in reach.settings.log_directory.glob("*") if path.is_file())
    logs = sum(_names(path.read_bytes(), kinds.gone) for path in files)
    capture = int(_names(_said(reach.settings.home / "capture"), kinds.gone))
    check = "the datasets that were built from the documents; their records say what they were"
    folders = built.dataset_folders(reach.settings, reach.warehouse, stale)
    yield Place("files: datasets", erasure.found["datasets"], len(folders), check)
    quoting, unread = built.evaluations(reach.settings.home, stale)
    check = "known by the dataset that they are of"
    if unread:
        more = f" and {len(unread) - SHOWN} more" if len(unread) > SHOWN else ""
        check += (
            f"; {', '.join(map(str, unread[:SHOWN]))}{more} cannot be read, so nobody knows what is quoted there: mend "
            "or remove it, with the report beside it, and then `twin erase --resume`"
        )
    yield Place("files: evaluations", erasure.found["evaluations"], len(quoting) + len(unread), check)
    yield Place("files: logs", erasure.found["logs"], logs, "emptied, then read for the ids")
    yield Place("files: capture", 0, capture, "the reason in its status, read for the ids; the rest is a position")


def _elsewhere(stale: Sequence[str]) -> Place:
    """What was copied to where nobody here can look, which only what was built can have been."""
    check = (
        "not checked: exports of the datasets under `stale`, evaluations of models on them that lie outside of the "
        "home, and what an MLflow server or a hub was given of them: delete it there"
        if stale
        else "no dataset was built from the documents, so there can be no copies"
    )
    return Place("elsewhere: copies", 0, None if stale else 0, check)


def _settings_of(bootstrap: str, topic: str) -> dict[str, str]:
    """The settings by which a broker compacts a topic, as far as it tells them. Raises LogFailed."""
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 3})
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    try:
        told = admin.describe_configs([resource], request_timeout=10)[resource].result()
    except KafkaException as error:
        raise LogFailed(f"the settings of topic {topic} cannot be read: {error.args[0].str()}") from error
    return {name: str(told[name].value) for name in COMPACTION if name in told}
