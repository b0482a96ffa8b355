"""Whether the index holds what the warehouse holds: a pure comparison, for `wait`, reconcile and the sources page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


@dataclass(frozen=True, slots=True)
class Followed:
    """How far the index has followed: `behind`, the stamps that it does not have; `failed`, ids of refused documents;
    `shared`, ids that several documents have; `leftover`, ids that it has and the warehouse has not."""

    behind: dict[str, Stamp]
    failed: list[str]
    shared: set[str]
    leftover: list[str]


def followed(stamps: Iterable[Stamp], live: Mapping[str, Record]) -> Followed:
    """Hold every document of the warehouse against the ledger's live records, by id. Of documents that share an id it
    is enough that one is indexed."""
    behind: dict[str, Stamp] = {}
    failed: list[str] = []
    met: set[str] = set()
    shared: set[str] = set()
    for stamp in stamps:
        found = state(stamp, live.get(stamp.id))
        if stamp.id in met:
            shared.add(stamp.id)
            if found != "captured":
                behind.pop(stamp.id, None)
        elif found == "captured":
            behind[stamp.id] = stamp
        elif found == "failed":
            failed.append(stamp.id)
        met.add(stamp.id)
    leftover = [id for id, record in live.items() if id not in met and is_of_a_document(record)]
    return Followed(behind, failed, shared, leftover)


def compare(stamps: Iterable[Stamp], records: Iterable[Record]) -> Disagreement:
    """Compare every document of the warehouse with the ledger's live records."""
    ledger = {record.document_id: record for record in records}
    found = followed(stamps, ledger)
    failed: dict[str, str] = {}
    for id in found.failed:
        if (failure := ledger[id].failure) is not None:
            failed[id] = f"{failure.step}: {failure.reason}"
    failed |= dict.fromkeys(sorted(found.shared), SHARED)
    return Disagreement(tuple(found.behind), tuple(found.leftover), tuple(failed.items()))
