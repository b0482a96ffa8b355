"""Whether the index is what the warehouse and the recipes say: every document, every record and every point compared.

What differs is compared again after everything that was acknowledged before has been applied; only what differs in the
same way then is a fault. A repair sends the document's present state into the dataflow again.
"""

from __future__ import annotations

import hashlib
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from corpus.agreement import followed
from corpus.batches import batches
from corpus.documents import ORDER_BITS, Document, from_record
from corpus.index import Failure, QdrantIndex, Record, chunk_payload, ledger_point, owner_of, record_of, state_of
from streaming.indexing import Refusal, derive

if TYPE_CHECKING:
    from corpus.embedding import Embedder
    from corpus.points import Stored
    from corpus.warehouse import Stamp, Warehouse

Kind = Literal["missing", "orphaned", "stale", "wrong_generation", "duplicate"]
KINDS: tuple[Kind, ...] = ("missing", "orphaned", "stale", "wrong_generation", "duplicate")
# A document that is being edited all the time differs each time in another way; after this many looks it is in flight.
LOOKS = 5
# Documents that are compared together when only some are.
BATCH = 500
NAMED = 1000
# A record may be a little ahead of its warehouse: snapshots count on from it, and clusters have several clocks.
AHEAD = 3_600_000 << ORDER_BITS
SEEN = b"+"
COPY = "a copy of a chunk under a wrong id"


class NotApplied(Exception):
    """Changes could not be followed to the index in time; the message says what is behind."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is not as it should be.

    `document_id`: None where the point does not even tell; `point_id`: of a chunk or a record in Qdrant, None where the
    document as a whole is meant; `ledger`: the point is of the ledger; `reachable`: a change of the document mends it;
    `seen_as`: the versions it was seen with, the same at two looks.
    """

    kind: Kind
    what: str
    document_id: str | None = None
    point_id: str | None = None
    ledger: bool = False
    reachable: bool = True
    seen_as: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What a verification found.

    `documents`: of the warehouse, `chunks`: points, that were compared; then how many faults of each kind; `repaired`:
    how many of them are no more; `in_flight`: documents that were changed during each look, and so are not judged;
    `unsettled`: None, or why changes under way could not be waited for, in which case faults may be some of them;
    `faults`: the first NAMED; `seconds`: how long it took, `finished_at`: when.
    """

    documents: int
    chunks: int
    missing: int
    orphaned: int
    stale: int
    wrong_generation: int
    duplicate: int
    repaired: int
    in_flight: int
    unsettled: str | None
    generation: str
    faults: tuple[Fault, ...]
    seconds: float
    finished_at: datetime

    @property
    def found(self) -> int:
        """How many faults were found, repaired ones among them."""
        return sum(getattr(self, kind) for kind in KINDS)


def summary(report: Report) -> dict[str, Any]:
    """A report as `twin status` shows it, without its list of faults."""
    told: dict[str, Any] = msgspec.to_builtins(report)
    return {"found": report.found, **{name: value for name, value in told.items() if name != "faults"}}


def described(report: Report) -> dict[str, Any]:
    """A report as `twin verify --json` shows it."""
    named = [
        {"kind": fault.kind, "what": fault.what, "document_id": fault.document_id, "point_id": fault.point_id}
        for fault in report.faults
    ]
    return {**summary(report), "faults": named}


@dataclass
class Compared:
    """What was compared: documents of the warehouse, and points of chunks by the document that they are of."""

    documents: int = 0
    chunks: Counter[str | None] = field(default_factory=Counter)

    def again(self, ids: Collection[str | None], compared: Compared) -> None:
        """These documents were looked at again: their points are what was seen of them now."""
        for id in ids:
            del self.chunks[id]
        self.chunks.update(compared.chunks)


@dataclass
class Verification:
    """One verification of an index. `settle` returns when all that was acknowledged before is applied, or raises
    NotApplied; `send` publishes the present state of documents to the dataflow as repairs."""

    warehouse: Warehouse
    index: QdrantIndex
    embedder: Embedder
    settle: Callable[[], None]
    send: Callable[[Collection[str]], object]

    def run(self, *, repair: bool = False, since: datetime | None = None, sample: int | None = None) -> Report:
        """Compare everything, or the documents read `since`, or `sample` documents chosen at random; these are cleaned,
        split and embedded anew as well. Raises what warehouse, index and log raise when they are away."""
        start = time.monotonic()
        chosen = self._chosen(since, sample)
        compared = Compared()
        found = self._look(chosen, sample is not None, compared)
        unsettled: str | None = None
        in_flight: set[str] = set()
        for _ in range(LOOKS):
            if not found:
                break
            try:
                self.settle()
            except NotApplied as error:
                unsettled = str(error)
                break
            now = Compared()
            again = self._look_again(found, sample is not None, now)
            compared.again({fault.document_id for fault in found}, now)
            unchanged = set(found) & set(again)
            found, in_flight = again, {fault.document_id or "" for fault in again if fault not in unchanged}
            if not in_flight:
                break
        confirmed = [fault for fault in found if fault.document_id not in in_flight]
        repaired = self._repair(confirmed, sample is not None) if repair and confirmed else 0
        kinds = Counter(fault.kind for fault in confirmed)
        return Report(
            documents=compared.documents,
            chunks=compared.chunks.total(),
            **{kind: kinds[kind] for kind in KINDS},
            repaired=repaired,
            in_flight=len(in_flight),
            unsettled=unsettled,
            generation=self.index.generation,
            faults=tuple(confirmed[:NAMED]),
            seconds=round(time.monotonic() - start, 3),
            finished_at=datetime.now(UTC),
        )

    def _chosen(self, since: datetime | None, sample: int | None) -> list[str] | None:
        """The ids to compare; None for all."""
        if since is None and sample is None:
            return None
        ids = [stamp.id for stamp in self.warehouse.stamps() if since is None or stamp.crawled_at >= since]
        if sample is not None:
            return random.sample(ids, min(sample, len(ids)))
        # Those that were deleted meanwhile are known to the index only.
        known = [record.document_id for record in self.index.scan() if _read_since(record, since)]
        return list(dict.fromkeys((*ids, *known)))

    def _look(self, chosen: Sequence[str] | None, derived: bool, compared: Compared) -> list[Fault]:
        if chosen is None:
            return compare(
                self.index.ledger_points(),
                self.index.chunk_points(),
                self.warehouse.stamps(),
                self.index.generation,
                self.warehouse.now(),
                compared,
            )
        return [fault for part in batches(chosen, BATCH) for fault in self._look_at(part, (), (), derived, compared)]

    def _look_again(self, faults: Collection[Fault], derived: bool, compared: Compared) -> list[Fault]:
        """The same documents and points, after what was under way has arrived."""
        ids = list(dict.fromkeys(fault.document_id for fault in faults if fault.document_id is not None))
        found: dict[Fault, None] = {}
        strays = [fault for fault in faults if fault.point_id is not None]
        for part in batches(ids, BATCH):
            own = set(part)
            mine = [fault for fault in strays if fault.document_id in own]
            found |= dict.fromkeys(self._look_at(part, *_points_of(mine), derived, compared))
        ownerless = [fault for fault in strays if fault.document_id is None]
        if ownerless:
            found |= dict.fromkeys(self._look_at((), *_points_of(ownerless), derived, compared))
        return list(found)

    def _look_at(
        self,
        ids: Sequence[str],
        ledger_ids: Sequence[str],
        chunk_ids: Sequence[str],
        derived: bool,
        compared: Compared,
    ) -> list[Fault]:
        found = compare(
            self.index.ledger_points(ids, ledger_ids),
            self.index.chunk_points(ids, chunk_ids),
            self.warehouse.stamps(ids),
            self.index.generation,
            self.warehouse.now(),
            compared,
        )
        return [*found, *self._derived_anew(ids)] if derived else found

    def _derived_anew(self, ids: Sequence[str]) -> Iterator[Fault]:
        """Documents that are indexed as something else than the recipe makes of them, or refused without a cause."""
        records = self.index.records(ids)
        for raw in self.warehouse.raw_records(ids):
            record = records.get(str(raw["_id"]))
            if record is None or record.deleted or (record.version is None and record.failure is None):
                continue
            try:
                document = from_record(raw)
            except (ValueError, OverflowError):
                # It is refused; where it is not, the comparison of versions says so.
                continue
            failure = record.failure
            what = self._deviation(document, record) if failure is None else self._acceptance(document, failure)
            if what is not None:
                yield Fault("stale", what, record.document_id, seen_as=f"{document.content_hash}/{record.seen}")

    def _deviation(self, document: Document, record: Record) -> str | None:
        made = derive(document, self.index.generation, self.embedder)
        if isinstance(made, Refusal):
            return f"it is indexed and would be refused: {made.step}: {made.reason}"
        if (made.text, made.places) != (record.text, record.places):
            return "its text or its chunks are not what the recipe makes of it"
        if document.content_hash != record.content_hash:
            return "its title, author or another field is not the warehouse's"
        wanted = self.embedder.embed([chunk.text for chunk in made.chunks])
        id = next(self.index.deviating(record, made.chunks, wanted), None)
        return f"the vectors of chunk {id} are not those of its text" if id is not None else None

    def _acceptance(self, document: Document, failure: Failure) -> str | None:
        """That a refused document would be indexed. What the model, or a message about it, was refused for is not the
        document's to tell."""
        if failure.source_hash != document.content_hash or failure.step == "embed":
            return None
        if isinstance(derive(document, self.index.generation, self.embedder), Refusal):
            return None
        return f"it is refused ({failure.step}: {failure.reason}) and would be indexed"

    def _repair(self, faults: Sequence[Fault], derived: bool) -> int:
        """Send the documents again; what no change of a document can reach is removed. How many faults are no more."""
        beyond = [fault for fault in faults if not fault.reachable]
        self.index.remove(*_points_of(beyond))
        # In the order of their ids, so that two repairs of the same faults do the same.
        self.send(sorted({fault.document_id for fault in faults if fault.document_id is not None}))
        try:
            self.settle()
        except NotApplied:
            return 0
        again = self._look_again(faults, derived, Compared())
        left = Counter((fault.kind, fault.document_id, fault.point_id) for fault in again)
        return sum((fault.kind, fault.document_id, fault.point_id) not in left for fault in faults)


def compare(
    records: Iterable[Stored],
    points: Iterable[Stored],
    stamps: Iterable[Stamp],
    generation: str,
    now: int,
    compared: Compared,
) -> list[Fault]:
    """What differs between a ledger's records, the points of chunks, and the documents of the warehouse.

    One pass over each, in this order. Held in memory: about 200 bytes a chunk and 1.3 kB a document. `now` is the
    newest version of the warehouse: what claims to be later cannot be overwritten; into `compared` goes what there was.
    """
    ledger = _Ledger(generation, now)
    found = [fault for stored in records if (fault := ledger.take(stored)) is not None]
    for stored in points:
        owner, fault = ledger.check(stored)
        compared.chunks[owner] += 1
        if fault is not None:
            found.append(fault)
    found += ledger.without_point()
    copies = ledger.copies([fault.point_id for fault in found if fault.kind == "orphaned" and not fault.ledger])
    found = [replace(fault, kind="duplicate", what=COPY) if fault.point_id in copies else fault for fault in found]
    suspects = {fault.document_id for fault in found}
    stamped: dict[str, Stamp] = {}

    def noted() -> Iterator[Stamp]:
        for stamp in stamps:
            compared.documents += 1
            if stamp.id in suspects:
                stamped[stamp.id] = stamp
            yield stamp

    documents = followed(noted(), ledger.live)
    stamped |= documents.behind
    found += [
        Fault("stale", "the index has another version", id)
        if id in ledger.live
        else Fault("missing", "the index does not have this document", id)
        for id in documents.behind
    ]
    found += [Fault("orphaned", "the warehouse does not have this document", id) for id in documents.leftover]
    found += ledger.in_the_way(found)
    return [replace(fault, seen_as=ledger.seen_as(fault, stamped)) for fault in found]


class _Ledger:
    """What the ledger's records promise: taken in one by one, then held against the points."""

    def __init__(self, generation: str, now: int) -> None:
        self._generation, self._now = generation, now
        self.live: dict[str, Record] = {}
        self._documents: list[str] = []
        # By point id: a fingerprint of its payload, the number of its document, and SEEN once the point was there.
        self._expected: dict[bytes, bytes] = {}
        self._stray: dict[str, bytes] = {}
        self._ahead: set[str] = set()

    def take(self, stored: Stored) -> Fault | None:
        """Note a record; what is wrong with it."""
        payload, id = stored.payload, stored.payload.get("document_id")
        if "made" in payload:
            # The index' own identity on a server.
            return None
        if not isinstance(id, str):
            return Fault("orphaned", "a record of no document", None, stored.id, ledger=True, reachable=False)
        if stored.id != ledger_point(id):
            return Fault("duplicate", "a record under a wrong id", id, stored.id, ledger=True, reachable=False)
        try:
            record = record_of(stored)
            promised = [
                (_key(place.chunk_id), _fingerprint(chunk_payload(record, position, self._generation)))
                for position, place in enumerate(record.places)
            ]
        except (msgspec.ValidationError, ValueError, TypeError) as error:
            return Fault("stale", f"its record cannot be read: {error}", id, stored.id, ledger=True, reachable=False)
        number = len(self._documents).to_bytes(4)
        self._documents.append(id)
        self._expected.update((key, fingerprint + number) for key, fingerprint in promised)
        if not record.deleted:
            # Only what the rest of the comparison asks: every record is held here at once.
            self.live[id] = Record(
                id,
                record.seen,
                record.version,
                source_hash=record.source_hash,
                crawled_at=record.crawled_at,
                failure=record.failure,
            )
        if record.seen > self._now + AHEAD:
            return _of_the_future(id)
        if record.seen > self._now:
            self._ahead.add(id)
        if payload.get("generation") != self._generation:
            return Fault("wrong_generation", _made_as("the record", payload), id, stored.id, ledger=True)
        if payload.get("state") != state_of(record):
            return Fault("stale", "its record is filed under another state", id, stored.id, ledger=True)
        if record.version is not None and not record.deleted and not record.places:
            # What nothing is left of is refused.
            return Fault("stale", "its record has no chunks", id, stored.id, ledger=True)
        return None

    def check(self, stored: Stored) -> tuple[str | None, Fault | None]:
        """The document of a chunk's point, None where nothing tells it, and what is wrong with the point."""
        payload, key = stored.payload, _key(stored.id)
        fingerprint = _fingerprint(payload)
        expected = self._expected.get(key)
        if expected is not None:
            # Whatever its payload says, it is the point of this document.
            id: str | None = self._documents[int.from_bytes(expected[8:12])]
            self._expected[key] = expected[:12] + SEEN
            if expected[:8] == fingerprint:
                return id, None
        else:
            id = owner_of(stored)
        version = payload.get("version")
        # No condition on numbers holds of a truth value, which Python takes for one.
        reachable = type(version) is int and version <= self._now and id is not None
        if payload.get("generation") != self._generation:
            told = _made_as("the chunk", payload)
            return id, Fault("wrong_generation", told, id, stored.id, reachable=reachable)
        if expected is not None:
            told = "the chunk's payload is not what its record says"
            return id, Fault("stale", told, id, stored.id, reachable=reachable)
        self._stray[stored.id] = fingerprint
        return id, Fault("orphaned", "a chunk that no record has", id, stored.id, reachable=reachable)

    def without_point(self) -> list[Fault]:
        """The chunks that records have and the index has not; to be asked after all points were checked."""
        return [
            Fault("missing", "a chunk of this document", self._documents[int.from_bytes(value[8:])], _id(key))
            for key, value in self._expected.items()
            if len(value) == 12
        ]

    def copies(self, ids: Collection[str | None]) -> set[str]:
        """Those of the points without a record that have a recorded chunk's payload to the letter."""
        if not ids:
            return set()
        promised = {value[:8] for value in self._expected.values()}
        return {id for id, fingerprint in self._stray.items() if fingerprint in promised}

    def in_the_way(self, faults: Iterable[Fault]) -> list[Fault]:
        """The records that are a little ahead of the warehouse and whose documents have faults: they would hold off
        what mends those. Without a fault such a record is as it should be."""
        return [_of_the_future(id) for id in sorted(self._ahead & {fault.document_id for fault in faults})]

    def seen_as(self, fault: Fault, stamped: Mapping[str, Stamp]) -> str:
        """Which versions the comparison was of: with others at the next look it is another fault."""
        stamp, record = stamped.get(fault.document_id or ""), self.live.get(fault.document_id or "")
        told = f"{stamp.content_hash} {stamp.crawled_at}" if stamp else ""
        return f"{told} {record.seen if record else ''}"


def _of_the_future(id: str) -> Fault:
    return Fault("stale", "its record is of the future", id, ledger_point(id), ledger=True, reachable=False)


def _read_since(record: Record, since: datetime | None) -> bool:
    return since is None or (record.crawled_at is not None and record.crawled_at >= since)


def _key(point_id: str) -> bytes:
    """A point's id in as few bytes as it takes; a stranger's may be a number."""
    try:
        return uuid.UUID(point_id).bytes
    except ValueError:
        return point_id.encode()


def _id(key: bytes) -> str:
    return str(uuid.UUID(bytes=key)) if len(key) == 16 else key.decode()


def _fingerprint(payload: Mapping[str, Any]) -> bytes:
    """Eight bytes that differ where two payloads do."""
    return hashlib.blake2b(msgspec.json.encode(payload, order="deterministic"), digest_size=8).digest()


def _made_as(what: str, payload: Mapping[str, Any]) -> str:
    return f"{what} was made as {str(payload.get('generation'))[:100]}"


def _points_of(faults: Iterable[Fault]) -> tuple[list[str], list[str]]:
    """The points of the ledger and of chunks that these faults name."""
    named = [(fault.ledger, fault.point_id) for fault in faults if fault.point_id is not None]
    return [id for ledger, id in named if ledger], [id for ledger, id in named if not ledger]
