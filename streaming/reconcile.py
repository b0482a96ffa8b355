"""Changes that never arrived: found by comparing warehouse and ledger, repaired at the front of the dataflow.

A log that lost its messages, or a resume token that its source no longer knows, leaves deletions untold.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from corpus.agreement import Disagreement, compare
from corpus.batches import batches
from corpus.index import QdrantIndex, Record, owner_of
from streaming.changes import REPAIR_HEADER, delete_envelope, upsert_envelope
from streaming.clients import LogFailed, noting, producer

if TYPE_CHECKING:
    from corpus.warehouse import Warehouse

# Documents that are read from the warehouse at once.
TOGETHER = 100


@dataclass(frozen=True, slots=True)
class Repaired:
    """How many changes were sent into the dataflow again."""

    upserts: int
    deletes: int


def disagreement(warehouse: Warehouse, index: QdrantIndex) -> Disagreement:
    """Where the index differs from the warehouse now; changes on their way are among it."""
    # Stamps first: a document deleted between the two reads is then leftover in neither.
    stamps = list(warehouse.stamps())
    return compare(stamps, index.scan())


def missed(warehouse: Warehouse, index: QdrantIndex) -> tuple[Disagreement, list[str]]:
    """As `disagreement`, and the documents of stray points: those that no record holds."""
    stamps = list(warehouse.stamps())
    records = list(index.scan())
    return compare(stamps, records), strays(records, index, warehouse.now())


def strays(records: Iterable[Record], index: QdrantIndex, now: int) -> list[str]:
    """Documents of points that none of the ledger's records holds and that a change of the document, later than `now`,
    removes.

    A crash leaves them of a document of which nothing was recorded yet; if the log is lost and the document deleted
    before the change is read again, neither ledger nor warehouse knows of it. The points are read only where there are
    more than the records hold.
    """
    held = {id for record in records for id in record.chunk_ids}
    if index.counts().chunks <= len(held):
        return []
    found = {
        owner_of(point)
        for point in index.chunk_points()
        if point.id not in held and type(version := point.payload.get("version")) is int and version <= now
    }
    return sorted(id for id in found if id is not None)


def reenter(
    warehouse: Warehouse, bootstrap: str, topic: str, database: str, ids: Iterable[str], *, repair: bool = False
) -> Repaired:
    """Publish the present state of these documents to the changes topic, as capture would have.

    Safe for changes that are on their way after all: the version is the warehouse's clock before its state is read, so
    a later change has a later version, and the same content again embeds nothing. With `repair` the dataflow takes
    nothing for granted that the index has of them. Raises LogFailed.
    """
    identity = warehouse.identity()
    headers = [(REPAIR_HEADER, b"1")] if repair else []
    failed: list[str] = []
    outlet = producer(bootstrap)
    upserts = deletes = 0
    for part in batches(ids, TOGETHER):
        version = warehouse.now()
        present = {str(record["_id"]): record for record in warehouse.raw_records(part)}
        for id in part:
            if id in present:
                envelope = upsert_envelope(present[id], version, database, identity, headers)
                upserts += 1
            else:
                envelope = delete_envelope(id, version, database, identity, headers)
                deletes += 1
            outlet.produce(topic, on_delivery=noting(failed), **envelope)
            outlet.poll(0)
        # A part at a time: documents are large, and all of them may have to be sent.
        outlet.flush()
        if failed:
            raise LogFailed(f"the log did not take {len(failed)} repairs: {failed[0]}")
    return Repaired(upserts, deletes)
