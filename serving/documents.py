"""The documents as people and programs see them: what the warehouse has of each, and how far the index has followed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from corpus.agreement import State, state
from corpus.index import Index, Record
from serving.parts import Warehouse

if TYPE_CHECKING:
    from corpus.warehouse import Stamp


@dataclass(frozen=True, slots=True)
class Listed:
    """One document of the list. `state`: indexed, captured (the index is behind) or failed (`reason` says why)."""

    document_id: str
    url: str
    title: str
    author: str
    category: str
    platform: str
    version: int | None
    state: State
    chunks: int
    crawled_at: datetime | None
    published_at: datetime | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ShownChunk:
    chunk_id: str
    position: int
    heading_path: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Shown:
    """One document with its cleaned text and its chunks, as far as it is indexed.

    `metadata`: what only some platforms know, as the warehouse has it.
    """

    document_id: str
    url: str
    title: str
    author: str
    category: str
    platform: str
    version: int | None
    state: State
    language: str | None
    published_at: datetime | None
    crawled_at: datetime | None
    metadata: Mapping[str, Any]
    reason: str | None
    text: str
    chunks: tuple[ShownChunk, ...]


def listing(stamps: Iterable[Stamp], records: Mapping[str, Record]) -> Iterator[Listed]:
    """Every document of the warehouse with its state; the order is that of `stamps`."""
    for stamp in stamps:
        record = records.get(stamp.id)
        live = record if record is not None and not record.deleted else None
        found = state(stamp, live)
        yield Listed(
            document_id=stamp.id,
            url=stamp.url,
            title=stamp.title,
            author=stamp.author,
            category=stamp.category,
            platform=stamp.platform,
            version=live.version if live else None,
            state=found,
            chunks=len(live.chunk_ids) if live else 0,
            crawled_at=stamp.crawled_at,
            published_at=live.published_at if live else None,
            reason=_reason(live) if found == "failed" else None,
        )


def shown(index: Index, warehouse: Warehouse, document_id: str) -> Shown | None:
    """One document as indexed, or as the warehouse names it while the index has none of it; None if both have none."""
    record = index.records([document_id]).get(document_id)
    record = None if record is not None and record.deleted else record
    live = record if record is not None and record.version is not None else None
    stamp = next(iter(warehouse.stamps([document_id])), None)
    about = stamp if stamp is not None else live
    if about is None:
        return None
    found = state(stamp, record) if stamp else "indexed"
    return Shown(
        document_id=document_id,
        url=about.url,
        title=about.title,
        author=about.author,
        category=about.category,
        platform=about.platform,
        version=live.version if live else None,
        state=found,
        language=live.language if live else None,
        published_at=live.published_at if live else None,
        crawled_at=about.crawled_at,
        metadata=_metadata(warehouse, document_id) if stamp else {},
        reason=_reason(record) if found == "failed" else None,
        text=live.text if live else "",
        chunks=tuple(shown_chunks(live)) if live else (),
    )


def _metadata(warehouse: Warehouse, document_id: str) -> Mapping[str, Any]:
    """In values of JSON: others may have written what JSON does not know."""
    return dict(msgspec.to_builtins(warehouse.metadata(document_id), str_keys=True, enc_hook=str))


def _reason(record: Record | None) -> str | None:
    failure = record.failure if record else None
    return f"{failure.step}: {failure.reason}" if failure else None


def shown_chunks(record: Record) -> Iterator[ShownChunk]:
    """The chunks of a record in order, cut from its text."""
    for position, place in enumerate(record.places):
        yield ShownChunk(place.chunk_id, position, place.heading_path, record.text[place.start : place.end])


def matching(
    documents: Iterable[Listed],
    *,
    words: str | None = None,
    author: str | None = None,
    category: str | None = None,
    platform: str | None = None,
    state: State | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Sequence[Listed]:
    """The documents that satisfy every given condition; `words` must all occur in title, author or address.

    Times are on `published_at` (else `crawled_at`), as those of a search.
    """
    wanted = (words or "").casefold().split()

    def fits(each: Listed) -> bool:
        moment = each.published_at or each.crawled_at
        within = f"{each.title} {each.author} {each.url}".casefold() if wanted else ""
        return (
            (author is None or each.author.casefold() == author.casefold())
            and (category is None or each.category == category)
            and (platform is None or each.platform == platform)
            and (state is None or each.state == state)
            and (since is None or (moment is not None and moment >= since))
            and (until is None or (moment is not None and moment <= until))
            and all(word in within for word in wanted)
        )

    return [each for each in documents if fits(each)]
