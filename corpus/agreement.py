"""Whether the index holds what the warehouse holds: a pure comparison, for `wait`, reconcile and the sources page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from corpus.index import Record

if TYPE_CHECKING:
    from corpus.warehouse import Stamp

State = Literal["captured", "indexed", "failed"]
# An id is known by its text, so the whole number 7 and the text "7" are one: either may be what is indexed.
SHARED = "another document of the warehouse has the same id"


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Ids of documents. `behind`: the index has not followed; `leftover`: gone from the warehouse, not from the index;
    `failed`: refused, with the reason. All empty means: the index equals the warehouse.
    """

    behind: tuple[str, ...]
    leftover: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]


def state(stamp: Stamp, record: Record | None) -> State:
    """How far the index has followed this version of a document.

    A stamp's hash and crawl time together name one write: a text that came back in a later crawl is another write.
    """
    if record is None:
        return "captured"
    if record.failure is not None and record.failure.source_hash in (None, stamp.content_hash):
        return "failed"
    same = record.version is not None and record.source_hash == stamp.content_hash
    return "indexed" if same and record.crawled_at == stamp.crawled_at else "captured"


def is_of_a_document(record: Record) -> bool:
    """Whether a record was ever of a document; else a message was refused that told of none, and only named one.

    What is noted of such a message goes with its dead letter, when a person discards it or the document comes.
    """
    return record.version is not None or (record.failure is not None and record.failure.source_hash is not None)


def compare(stamps: Iterable[Stamp], records: Iterable[Record]) -> Disagreement:
    """Compare every document of the warehouse with the ledger's live records."""
    ledger = {record.document_id: record for record in records}
    behind: set[str] = set()
    failed: dict[str, str] = {}
    met: set[str] = set()
    for stamp in stamps:
        record = ledger.get(stamp.id)
        found = state(stamp, record)
        if stamp.id in met:
            failed[stamp.id] = SHARED
            if found != "captured":
                behind.discard(stamp.id)
        elif found == "captured":
            behind.add(stamp.id)
        elif found == "failed" and record is not None and record.failure is not None:
            failed[stamp.id] = f"{record.failure.step}: {record.failure.reason}"
        met.add(stamp.id)
    leftover = (id for id, record in ledger.items() if id not in met and is_of_a_document(record))
    return Disagreement(tuple(behind), tuple(leftover), tuple(failed.items()))
