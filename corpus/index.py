"""The index: chunks for retrieval, and a ledger with one record per document, both in Qdrant.

The ledger's record is the truth about a document: which version is indexed, its cleaned text and its chunks. Points
without a place in their document's record are never shown. Order of effects, so that a crash between any two of them is
finished by the redelivery of the change: points, record, removal of points left over. Two writers of one document
cannot undo each other: points are overwritten by later versions only, and a record only as its writer has read it
(docs/guarantees.md).
"""

from __future__ import annotations

import logging
import statistics
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from corpus.documents import Chunk
from corpus.generations import (
    Alias,
    Aliases,
    Generation,
    GenerationMismatch,
    ServerAliases,
    aliases_of,
    local_directory,
    reached,
    server_client,
)
from corpus.points import DENSE, SPARSE, EdgePoints, Point, Points, ServerPoints, Sparse, Stored, Where
from corpus.settings import Settings

if TYPE_CHECKING:
    from corpus.embedding import Vectors

logger = logging.getLogger(__name__)
CHUNK_FIELDS = {
    "document_id": "Keyword",
    "version": "Integer",
    "author_key": "Keyword",
    "category": "Keyword",
    "platform": "Keyword",
    "language": "Keyword",
    "moment": "Integer",
}
LEDGER_FIELDS = {"seen": "Integer", "state": "Keyword"}
INDEXED, WITHOUT_VERSION, DELETED = "indexed", "without-version", "deleted"
# Of the scores' standard deviations, found on four query sets kept apart (docs/decisions.md).
DENSE_WEIGHT, SPARSE_WEIGHT = 0.4, 0.6
CANDIDATES = 60
# Between a vector and the one that the index has of it: engines compute in single precision.
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Filters:
    """Which documents a search may answer from; None means any. Times are on `published_at` (else `crawled_at`)."""

    author: str | None = None
    category: str | None = None
    platform: str | None = None
    language: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that answers a search. `text` is `Record.text[start:end]` of that version of the document."""

    document_id: str
    chunk_id: str
    version: int
    title: str
    url: str
    author: str
    category: str
    platform: str
    language: str | None
    published_at: datetime | None
    heading_path: tuple[str, ...]
    position: int
    start: int
    end: int
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the newest version of a document is not in the index; `source_hash` as in Record, where it is known."""

    version: int
    step: str
    reason: str
    source_hash: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk stands in its document: `text[start:end]` under `heading_path`."""

    chunk_id: str
    start: int
    end: int
    heading_path: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """What the index knows of one document. `version`: source version of the indexed content, None while none is.

    `seen`: the newest source version taken notice of (the same content delivered again raises it, not `version`);
    `log`, `offset`: the life of the log and the place in it of the last message that was applied;
    `content_hash`: of the indexed content, computed; `source_hash`: the one that the source's record claims, which an
    edit by hand leaves behind; `text`: the cleaned text of `version`; `places`: its chunks in order.
    """

    document_id: str
    seen: int
    version: int | None = None
    content_hash: str = ""
    source_hash: str = ""
    deleted: bool = False
    places: tuple[Place, ...] = ()
    title: str = ""
    url: str = ""
    author: str = ""
    author_id: str = ""
    category: str = ""
    platform: str = ""
    language: str | None = None
    published_at: datetime | None = None
    crawled_at: datetime | None = None
    crawl_id: str = ""
    text: str = ""
    log: str = ""
    offset: int = -1
    failure: Failure | None = None

    @property
    def chunk_ids(self) -> tuple[str, ...]:
        return tuple(place.chunk_id for place in self.places)


@dataclass(frozen=True, slots=True)
class Counts:
    """Live documents with an indexed version, and their chunks."""

    documents: int
    chunks: int


class Index(Protocol):
    """The reading side; calls block for milliseconds, so an event loop makes them in a thread."""

    generation: str

    def search(self, question: str, vector: Sequence[float], filters: Filters, limit: int) -> list[Hit]: ...

    def records(self, document_ids: Sequence[str]) -> Mapping[str, Record]: ...

    def scan(self) -> Iterator[Record]: ...

    def chunks(self, document_id: str) -> list[Hit]: ...

    def counts(self) -> Counts: ...


class QdrantIndex:
    """One generation of the index over two collections. `id` names this very index: a new one starts with a new id."""

    def __init__(self, id: str, generation: str, chunks: Points, ledger: Points) -> None:
        from qdrant_edge import Bm25, Bm25Config

        self.id, self.generation = id, generation
        self._chunks, self._ledger = chunks, ledger
        # The engine's own weights on both sides: a server gets the very vectors that the local index has.
        self._bm25 = Bm25(Bm25Config(language="english"))

    # Reading

    def search(self, question: str, vector: Sequence[float], filters: Filters, limit: int) -> list[Hit]:
        """The best chunks by meaning and by words; scores are comparable within one answer only."""
        where = _where(filters)
        depth = max(CANDIDATES, 2 * limit)
        dense = self._chunks.nearest([float(value) for value in vector], where, depth)
        words = self._bm25.embed_query(question)
        sparse = (
            self._chunks.nearest(Sparse(list(words.indices), list(words.values)), where, depth) if words.indices else []
        )
        scores = fuse({point.id: point.score for point in dense}, {point.id: point.score for point in sparse})
        # A damaged point tells no document: nothing that is shown rests on it.
        owners = {point.id: id for point in (*dense, *sparse) if (id := owner_of(point)) is not None}
        ranked = sorted(owners, key=lambda id: (-scores[id], id))
        hits: list[Hit] = []
        # A point whose document has moved on meanwhile is passed over, so look a little further than asked.
        for start in range(0, len(ranked), limit):
            page = ranked[start : start + limit]
            records = self.records(sorted({owners[id] for id in page}))
            for id in page:
                record = records.get(owners[id])
                hit = _hit(record, id, scores[id]) if record else None
                if hit is not None:
                    hits.append(hit)
            if len(hits) >= limit:
                break
        return hits[:limit]

    def records(self, document_ids: Sequence[str], clear: bool = False) -> dict[str, Record]:
        """The ledger's records of these documents, deleted ones among them; unknown ids are left out.

        What stands in a record's place and is none, since it was damaged, is left out as well, and with `clear`
        removed: a record can be written only over the one that it was compared with.
        """
        stored = self._ledger.retrieve([ledger_point(id) for id in document_ids])
        found = {record.document_id: record for record in map(_readable, stored) if record is not None}
        if clear and len(found) < len(stored):
            damaged = [point.id for point in stored if _readable(point) is None]
            logger.warning("%d damaged records of the ledger are removed, to be written anew", len(damaged))
            self._ledger.delete(Where(ids=damaged))
        return found

    def scan(self) -> Iterator[Record]:
        """Every record but tombstones and damaged ones, without its text."""
        stored = self._ledger.scroll(Where(equals={"state": [INDEXED, WITHOUT_VERSION]}), without=("text",))
        return (record for record in map(_readable, stored) if record is not None)

    def chunks(self, document_id: str) -> list[Hit]:
        """The chunks of a document in order; their score is 0."""
        record = self.records([document_id]).get(document_id)
        places = record.places if record else ()
        return [hit for place in places if record and (hit := _hit(record, place.chunk_id, 0.0))]

    def counts(self) -> Counts:
        return Counts(self._ledger.count(Where(equals={"state": INDEXED})), self._chunks.count(Where()))

    def refused(self) -> int:
        """How many documents there are of which no version was taken."""
        return self._ledger.count(Where(equals={"state": WITHOUT_VERSION}))

    def vectors(self, chunk_ids: Sequence[str]) -> dict[str, list[float]]:
        """The dense vectors of these chunks, as far as they exist."""
        found = self._chunks.retrieve(chunk_ids, vectors=[DENSE])
        return {point.id: point.dense for point in found if point.dense is not None}

    def deviating(self, record: Record, chunks: Sequence[Chunk], vectors: Vectors) -> Iterator[str]:
        """The ids of those of the record's points that have not these vectors of meaning, or not their chunk's words.

        Points that do not exist are not among them.
        """
        # Here, for commands that compare nothing would wait for it.
        import numpy as np

        stored = {point.id: point for point in self._chunks.retrieve(record.chunk_ids, vectors=[DENSE, SPARSE])}
        for id, chunk, vector in zip(record.chunk_ids, chunks, vectors, strict=True):
            point = stored.get(id)
            if point is None:
                continue
            meant = point.dense is not None and np.allclose(point.dense, vector, atol=TOLERANCE)
            if not meant or not _same(point.sparse or Sparse([], []), self._words(record.title, chunk)):
                yield id

    def ledger_points(self, document_ids: Sequence[str] | None = None, ids: Sequence[str] = ()) -> Iterator[Stored]:
        """The ledger as it is stored, tombstones too: all of it, or these documents' records and these points."""
        if document_ids is None:
            return self._ledger.scroll(Where())
        return iter(self._ledger.retrieve(list(dict.fromkeys((*map(ledger_point, document_ids), *ids)))))

    def chunk_points(self, document_ids: Sequence[str] | None = None, ids: Sequence[str] = ()) -> Iterator[Stored]:
        """Chunks as they are stored, without vectors: all, or those that name these documents, and these points."""
        if document_ids is None:
            yield from self._chunks.scroll(Where())
            return
        found = {point.id: point for point in self._chunks.retrieve(list(ids))}
        if document_ids:
            of_documents = self._chunks.scroll(Where(equals={"document_id": list(document_ids)}))
            found |= {point.id: point for point in of_documents}
        yield from found.values()

    def begun(self, document_id: str, version: int) -> bool:
        """Whether points of the document have a later version: it is being written, or was cut short by a crash."""
        return self._chunks.count(Where(equals={"document_id": document_id}, at_least={"version": version + 1})) > 0

    def whole(self, record: Record) -> bool:
        """Whether each of the record's points is there in the record's version."""
        version = record.version or 0
        own = Where(at_least={"version": version}, at_most={"version": version}, ids=record.chunk_ids)
        return self._chunks.count(own) == len(record.places)

    def nearest(self, vector: Sequence[float], limit: int, *, exact: bool = False) -> list[tuple[str, str]]:
        """Chunk and document of the points nearest to a vector, best first: by meaning alone, and with `exact` without
        the approximation that large collections are searched with."""
        found = self._chunks.nearest([float(value) for value in vector], Where(), limit, exact=exact)
        return [(point.id, id) for point in found if (id := owner_of(point)) is not None]

    # Writing

    def replace(
        self,
        record: Record,
        chunks: Sequence[Chunk],
        vectors: Mapping[str, Sequence[float]],
        before: Record | None,
        over_later: bool = False,
    ) -> bool:
        """Make `record` the document's indexed version; False if the ledger no longer says `before`.

        `chunks` stand in the order of `record.places`; `vectors` has a dense vector for each of them. `before` is what
        the ledger said when the change was compared with it: if somebody else wrote since, compare again.
        `over_later`: replace points of later versions too, whose record was never written.
        """
        self._put(record, chunks, vectors, over_later)
        if not self._write(record, before):
            return False
        if over_later:
            owner = {"document_id": record.document_id}
            later = {"version": record.seen + 1}
            self._chunks.delete(Where(equals=owner, at_least=later, other_than=record.chunk_ids))
        return True

    def restore(self, record: Record, chunks: Sequence[Chunk], vectors: Mapping[str, Sequence[float]]) -> None:
        """Write the points of `record`, as the ledger has it, once more: somebody who came too late wrote over them."""
        self._put(record, chunks, vectors, False)

    def _put(
        self, record: Record, chunks: Sequence[Chunk], vectors: Mapping[str, Sequence[float]], over_later: bool
    ) -> None:
        if record.version is None:
            raise ValueError(f"record of {record.document_id} has no version")
        points = [
            Point(
                place.chunk_id,
                chunk_payload(record, position, self.generation),
                [float(value) for value in vectors[place.chunk_id]],
                self._words(record.title, chunk),
            )
            for position, (place, chunk) in enumerate(zip(record.places, chunks, strict=True))
        ]
        self._chunks.upsert(points, only_over=None if over_later else Where(at_most={"version": record.version}))

    def touch(self, now: Record, before: Record) -> bool:
        """The content of `before` was delivered again: take over what else `now` says, and finish what a crash left.

        False if the ledger no longer says `before`.
        """
        return self._write(now, before)

    def delete(self, tombstone: Record, before: Record | None) -> bool:
        """Remove the document; its record stays as a tombstone so that no older change can bring it back.

        False, with nothing removed, if the ledger no longer says `before`.
        """
        return self._write(tombstone, before)

    def fail(self, record: Record, before: Record | None) -> bool:
        """Write the record of a document whose newest version was refused; what was indexed before stays.

        False if the ledger no longer says `before`.
        """
        return self._write(record, before)

    def sweep(self, record: Record) -> None:
        """Remove points of the document that `record`, as the ledger has it, does not hold: what an earlier version
        left, or a writer that came too late. Those of later versions than it has seen stay: their record is being
        written."""
        owner = {"document_id": record.document_id}
        self._chunks.delete(Where(equals=owner, at_most={"version": record.seen}, other_than=record.chunk_ids))

    def remove(self, ledger_ids: Sequence[str], chunk_ids: Sequence[str]) -> None:
        """Remove points that no change of a document can reach: of `ledger_points` and `chunk_points`."""
        if ledger_ids:
            self._ledger.delete(Where(ids=ledger_ids))
        if chunk_ids:
            self._chunks.delete(Where(ids=chunk_ids))

    def forget_tombstones(self, before: int) -> int:
        """Remove the records of documents whose deletion is older than this version; how many there were."""
        old = Where(equals={"state": DELETED}, at_most={"seen": before - 1})
        count = self._ledger.count(old)
        if count:
            self._ledger.delete(old)
        return count

    def compact(self) -> bool:
        """Leave nothing of what was deleted or overwritten in the files; False where a server sees to that itself."""
        chunks, ledger = self._chunks.compact(), self._ledger.compact()
        return chunks and ledger

    def close(self) -> None:
        self._chunks.close()
        self._ledger.close()

    def _write(self, record: Record, before: Record | None) -> bool:
        payload = msgspec.to_builtins(record)
        payload["state"] = state_of(record)
        payload["generation"] = self.generation
        id = ledger_point(record.document_id)
        # Of a record that did not exist, none may exist: no version is below 0. And none follows a later one.
        seen = before.seen if before else -1
        unchanged = Where(at_least={"seen": seen}, at_most={"seen": min(seen, record.seen)})
        self._ledger.upsert([Point(id, payload)], only_over=unchanged)
        stored = self._ledger.retrieve([id], without=("text", "places"))[0].payload
        # Two workers that were handed the same change write the same.
        if (stored["seen"], stored["version"]) != (record.seen, record.version):
            return False
        self.sweep(record)
        return True

    def _words(self, title: str, chunk: Chunk) -> Sparse:
        """Title and headings are words that people search by, so they weigh beside the passage's own."""
        vector = self._bm25.embed_document("\n".join((title, *chunk.heading_path, chunk.text)))
        return Sparse(list(vector.indices), list(vector.values))


def fuse(dense: Mapping[str, float], sparse: Mapping[str, float]) -> dict[str, float]:
    """Weighted sum of standardised scores by id.

    An id that only the words found is taken to mean as little as the least similar candidate; one that only the meaning
    found shares no weighted word, so its score there is 0.
    """
    ids = list(dict.fromkeys((*dense, *sparse)))
    total = dict.fromkeys(ids, 0.0)
    for scores, weight, absent in (
        (dense, DENSE_WEIGHT, min(dense.values(), default=0.0)),
        (sparse, SPARSE_WEIGHT, 0.0),
    ):
        column = [scores.get(id, absent) for id in ids]
        mean, spread = statistics.fmean(column or [0.0]), statistics.pstdev(column or [0.0]) or 1.0
        for id, score in zip(ids, column, strict=True):
            total[id] += weight * (score - mean) / spread
    return total


def _same(words: Sparse, others: Sparse) -> bool:
    weights, wanted = (dict(zip(each.indices, each.values, strict=True)) for each in (words, others))
    return weights.keys() == wanted.keys() and all(abs(weights[word] - wanted[word]) < TOLERANCE for word in wanted)


def ledger_point(document_id: str) -> str:
    """The point id of a document's record; document ids may be of any form, point ids are UUIDs."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"document:{document_id}"))


def open_index(settings: Settings, generation: str, dimensions: int) -> QdrantIndex:
    """The live generation of the index of these settings, made if there is none.

    Raises GenerationMismatch if it was built with another model or recipe, IndexUnavailable if it cannot be reached.
    """
    live = _claimed(aliases_of(settings), generation, dimensions)
    return open_generation(settings, live)


def open_generation(settings: Settings, generation: Generation) -> QdrantIndex:
    """This generation of the index of these settings, made if it is not there. Raises IndexUnavailable."""
    if settings.qdrant_url is not None:
        with reached(settings.qdrant_url):
            return server_generation(server_client(settings), settings.topic_prefix, generation)
    place = local_directory(settings) / generation.name
    return QdrantIndex(
        generation.id,
        generation.name,
        EdgePoints(place / "chunks", generation.dimensions, CHUNK_FIELDS),
        EdgePoints(place / "documents", None, LEDGER_FIELDS),
    )


def server_index(client: Any, prefix: str, generation: str, dimensions: int) -> QdrantIndex:
    """As `open_index`, with a client of a Qdrant server; collections and aliases are named by the prefix."""
    aliases = ServerAliases(client, prefix)
    index = server_generation(client, prefix, _claimed(aliases, generation, dimensions))
    _claimed(aliases, generation, dimensions)
    return index


def server_generation(client: Any, prefix: str, generation: Generation) -> QdrantIndex:
    """This generation of the index on a Qdrant server, made if it is not there."""
    chunks = ServerPoints(client, f"{prefix}-chunks-{generation.name}", generation.dimensions, CHUNK_FIELDS)
    ledger = ServerPoints(client, f"{prefix}-documents-{generation.name}", None, LEDGER_FIELDS)
    # Kept with the ledger: collections that were removed by hand and made anew are another index.
    identity = str(uuid.uuid5(uuid.NAMESPACE_OID, "index"))
    own = {"id": generation.id or str(uuid.uuid4()), "made": 0}
    ledger.upsert([Point(identity, own)], only_over=Where(at_most={"made": -1}))
    id = str(ledger.retrieve([identity])[0].payload["id"])
    return QdrantIndex(id, generation.name, chunks, ledger)


def _claimed(aliases: Aliases, name: str, dimensions: int) -> Generation:
    first = Generation(id=str(uuid.uuid4()), name=name, dimensions=dimensions)
    live = aliases.claim(Alias(live=first)).live
    if live.name != name:
        raise GenerationMismatch(
            f"the index was built as {live.name}, the settings ask for {name} (another model or recipe)"
        )
    return msgspec.structs.replace(live, dimensions=dimensions)


def record_of(stored: Stored) -> Record:
    """A point of the ledger as a record. Raises msgspec.ValidationError if it is none."""
    return msgspec.convert(stored.payload, Record)


def state_of(record: Record) -> str:
    """What a record is looked for by."""
    return DELETED if record.deleted else INDEXED if record.version is not None else WITHOUT_VERSION


def _readable(stored: Stored) -> Record | None:
    """The record that stands in its document's place; None where something else does."""
    try:
        record = record_of(stored)
    except msgspec.ValidationError:
        return None
    return record if stored.id == ledger_point(record.document_id) else None


def owner_of(point: Stored) -> str | None:
    """The document that a chunk's point names."""
    id = point.payload.get("document_id")
    return id if isinstance(id, str) else None


def _hit(record: Record, chunk_id: str, score: float) -> Hit | None:
    """The chunk as its document's record has it; None if the document has moved on without it."""
    if record.deleted or record.version is None:
        return None
    for position, place in enumerate(record.places):
        if place.chunk_id == chunk_id:
            return Hit(
                document_id=record.document_id,
                chunk_id=chunk_id,
                version=record.version,
                title=record.title,
                url=record.url,
                author=record.author,
                category=record.category,
                platform=record.platform,
                language=record.language,
                published_at=record.published_at,
                heading_path=place.heading_path,
                position=position,
                start=place.start,
                end=place.end,
                text=record.text[place.start : place.end],
                score=score,
            )
    return None


def chunk_payload(record: Record, position: int, generation: str) -> dict[str, Any]:
    """The payload of the point of a record's chunk: everything about it but its vectors."""
    moment = record.published_at or record.crawled_at
    place = record.places[position]
    return {
        "document_id": record.document_id,
        "generation": generation,
        "position": position,
        "heading_path": list(place.heading_path),
        "text": record.text[place.start : place.end],
        "version": record.version,
        "title": record.title,
        "url": record.url,
        "author": record.author,
        "author_key": author_keys(record.author, record.author_id),
        "category": record.category,
        "platform": record.platform,
        "language": record.language,
        "published_at": record.published_at.isoformat() if record.published_at else None,
        "moment": _milliseconds(moment) if moment else None,
        "crawl_id": record.crawl_id,
    }


def author_keys(name: str, id: str) -> list[str]:
    """What an author is found by: the name without regard to case and spacing, and the id."""
    return [" ".join(name.casefold().split()), id]


def _where(filters: Filters) -> Where:
    equals: dict[str, str | list[str]] = {
        name: value for name in ("category", "platform", "language") if (value := getattr(filters, name)) is not None
    }
    if filters.author is not None:
        equals["author_key"] = " ".join(filters.author.casefold().split())
    return Where(
        equals=equals,
        at_least={"moment": _milliseconds(filters.since)} if filters.since else {},
        at_most={"moment": _milliseconds(filters.until)} if filters.until else {},
    )


def _milliseconds(moment: datetime) -> int:
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(aware.timestamp() * 1000)


def places(chunk_ids: Iterable[str], chunks: Iterable[Chunk]) -> tuple[Place, ...]:
    """Chunks with their ids as a record holds them."""
    return tuple(
        Place(chunk_id, chunk.start, chunk.end, chunk.heading_path)
        for chunk_id, chunk in zip(chunk_ids, chunks, strict=True)
    )
