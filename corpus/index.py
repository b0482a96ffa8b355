"""CONTRACT DRAFT (the owner of the index replaces this file): what the rest of the program may use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


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
    """Why the newest version of a document is not in the index."""

    version: int
    step: str
    reason: str


@dataclass(frozen=True, slots=True)
class Record:
    """What the index knows of one document (the ledger). `version` is None while none of its versions was indexed."""

    document_id: str
    version: int | None
    seen: int
    content_hash: str
    deleted: bool
    chunk_ids: tuple[str, ...]
    title: str
    url: str
    author: str
    category: str
    platform: str
    language: str | None
    published_at: datetime | None
    crawled_at: datetime | None
    text: str
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class Counts:
    documents: int
    chunks: int


class Index(Protocol):
    """The reading side; all calls block for milliseconds, so call them from a thread."""

    generation: str

    def search(self, question: str, vector: Sequence[float], filters: Filters, limit: int) -> list[Hit]: ...

    def records(self, document_ids: Sequence[str]) -> Mapping[str, Record]: ...

    def scan(self) -> Iterator[Record]:
        """Every record, without its text."""
        ...

    def chunks(self, document_id: str) -> list[Hit]:
        """The chunks of a document by position; score is 0."""
        ...

    def counts(self) -> Counts: ...
