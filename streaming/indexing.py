"""From a batch of changes to points: compare with the ledger, clean, split, embed what is new, write.

This is where a document becomes chunks, and where a delete becomes the deletion of points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from corpus.categories import RECIPES, UnknownCategory, category_of, point_ids
from corpus.documents import Chunk
from corpus.index import Failure, QdrantIndex, Record, places
from streaming.changes import DeadLetter, Delete, Event, Ignored, Message, Upsert, newest

if TYPE_CHECKING:
    from corpus.embedding import Embedder

# About a second of one machine's work.
EMBEDDED_TOGETHER = 64


@dataclass(frozen=True, slots=True)
class Derived:
    """A changed document after cleaning and splitting: the record to be written and its chunks, not yet embedded."""

    change: Upsert
    record: Record
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Same:
    """A document delivered again with the content that the ledger's `record` has."""

    change: Upsert
    record: Record


@dataclass(frozen=True, slots=True)
class Indexed:
    """A document is searchable as `record` says. `vectors`: one for each of its chunks, the kept ones' among them."""

    change: Upsert
    record: Record
    chunks: tuple[Chunk, ...]
    vectors: Mapping[str, Sequence[float]] = field(repr=False)
    embedded: int
    reused: int
    removed: int


@dataclass(frozen=True, slots=True)
class Removed:
    """A document and its points are gone; `removed` counts the chunks that it had."""

    change: Delete
    removed: int


@dataclass(frozen=True, slots=True)
class Unchanged:
    """Nothing to do: the change is older than the index (`stale`), or holds what the index holds (`same`)."""

    message: Message
    why: str


Prepared = Derived | Same | Delete | Unchanged | Ignored | DeadLetter
Outcome = Indexed | Removed | Unchanged | Ignored | DeadLetter


def index_batch(
    events: Sequence[Event], index: QdrantIndex, embedder: Embedder, go_on: Callable[[], None] = lambda: None
) -> list[Outcome]:
    """Apply the events in order and return what became of each, in the same order.

    Every effect is acknowledged by the index when this returns, and applying a batch again changes nothing. New chunks
    of all documents are embedded together. Raises only if the index or the model fails, never for a document's content;
    and what `go_on` raises, which is called every second or so while the model is at work: nothing is written then.
    """
    events = newest(events)
    ledger = index.records([id for event in events if (id := _document_of(event)) is not None])
    prepared = [_prepare(event, ledger, index.generation, embedder) for event in events]
    vectors = _embed([item for item in prepared if isinstance(item, Derived)], ledger, embedder, go_on)
    return [_apply(item, index, ledger, vectors) for item in prepared]


def _document_of(event: Event) -> str | None:
    if isinstance(event, Upsert):
        return event.document.id
    return event.document_id if isinstance(event, Delete | DeadLetter) else None


def _prepare(event: Event, ledger: Mapping[str, Record], generation: str, embedder: Embedder) -> Prepared:
    """What to do about an event, given the ledger; a changed document is cleaned and split."""
    record = ledger.get(_document_of(event) or "")
    if isinstance(event, Ignored) or (isinstance(event, DeadLetter) and event.document_id is None):
        return event
    if record is not None and _overtaken(event, record):
        return Unchanged(event.message, "stale")
    if not isinstance(event, Upsert):
        # Also in the ledger's own version: a crash may have come between the record and the points.
        return event
    if record is not None and record.version is not None and record.content_hash == event.document.content_hash:
        return Same(event, record)
    return _derive(event, _seen(event.version, record), generation, embedder)


def _overtaken(event: Upsert | Delete | DeadLetter, record: Record) -> bool:
    """Whether the ledger already has a later state of the document.

    A snapshot's read has no version, but it stands in the log behind everything that was captured before the snapshot
    began, and every change since then follows it: so it counts unless the log's later messages were applied already.
    """
    if event.version is not None:
        return event.version < record.seen
    return event.message.log == record.log and event.message.offset < record.offset


def _seen(version: int | None, record: Record | None) -> int:
    """The version to note; a snapshot's read comes right after what the ledger has seen, before any later change."""
    return version if version is not None else (record.seen if record is not None else 0) + 1


def _derive(change: Upsert, version: int, generation: str, embedder: Embedder) -> Derived | DeadLetter:
    """Clean and split by the category's recipe; a document that cannot be is an error as a value."""
    document = change.document
    step = "clean"
    try:
        recipe = RECIPES[category_of(document.category)]
        text = recipe.clean(document)
        step = "split"
        chunks = tuple(recipe.split(text, document, embedder)) if text else ()
    except UnknownCategory as error:
        return _refused(change, "validate", str(error))
    except Exception as error:  # a recipe is open to extension: whatever it raises is about this one document
        return _refused(change, step, f"{type(error).__name__}: {error}")
    if not chunks:
        return _refused(change, "clean", "nothing is left of the text after cleaning")
    record = Record(
        document_id=document.id,
        seen=version,
        version=version,
        log=change.message.log,
        offset=change.message.offset,
        content_hash=document.content_hash,
        source_hash=change.source_hash,
        places=places(point_ids(document.id, generation, chunks), chunks),
        title=document.title,
        url=document.url,
        author=document.author_name,
        author_id=document.author_id,
        category=document.category,
        platform=document.platform,
        language=document.language,
        published_at=document.published_at,
        crawled_at=document.crawled_at,
        crawl_id=document.crawl_id,
        text=text,
    )
    return Derived(change, record, chunks)


def _refused(change: Upsert, step: str, reason: str) -> DeadLetter:
    return DeadLetter(change.message, step, reason, change.document.id, change.version, change.source_hash)


def _embed(
    derived: Sequence[Derived], ledger: Mapping[str, Record], embedder: Embedder, go_on: Callable[[], None]
) -> dict[str, Sequence[float]]:
    """A vector for every chunk that its document did not have, across all documents."""
    texts: dict[str, str] = {}
    for item in derived:
        before = ledger.get(item.record.document_id)
        known = set(before.chunk_ids) if before else set()
        for place, chunk in zip(item.record.places, item.chunks, strict=True):
            if place.chunk_id not in known:
                texts[place.chunk_id] = chunk.text
    ids = list(texts)
    vectors: dict[str, Sequence[float]] = {}
    for start in range(0, len(ids), EMBEDDED_TOGETHER):
        go_on()
        part = ids[start : start + EMBEDDED_TOGETHER]
        vectors.update(zip(part, embedder.embed([texts[id] for id in part]), strict=True))
    return vectors


def _apply(
    item: Prepared, index: QdrantIndex, ledger: Mapping[str, Record], vectors: Mapping[str, Sequence[float]]
) -> Outcome:
    """Write one document's change to the index."""
    if isinstance(item, Derived):
        return _replace(item, index, ledger.get(item.record.document_id), vectors)
    if isinstance(item, Same):
        return _same(item, index)
    if isinstance(item, Delete):
        before = ledger.get(item.document_id)
        index.delete(
            Record(
                document_id=item.document_id,
                seen=item.version,
                deleted=True,
                log=item.message.log,
                offset=item.message.offset,
            ),
            before,
        )
        return Removed(item, len(before.places) if before else 0)
    if isinstance(item, DeadLetter) and item.document_id is not None:
        index.fail(_failed(item, ledger.get(item.document_id)))
    return item


def _same(item: Same, index: QdrantIndex) -> Indexed | Unchanged:
    """Note the delivery. After a snapshot the log may be a new one, so downstream is told of the document again."""
    change, record = item.change, item.record
    message = change.message
    now = replace(
        record,
        seen=record.seen if change.version is None else change.version,
        failure=None,
        source_hash=change.source_hash,
        crawled_at=change.document.crawled_at,
        log=message.log,
        offset=message.offset,
    )
    index.touch(record, now)
    if change.version is not None:
        return Unchanged(message, "same")
    chunks = tuple(
        Chunk(position, place.heading_path, record.text[place.start : place.end], place.start, place.end)
        for position, place in enumerate(record.places)
    )
    return Indexed(change, now, chunks, index.vectors(record.chunk_ids), embedded=0, reused=len(chunks), removed=0)


def _failed(item: DeadLetter, record: Record | None) -> Record:
    """The document's record with the failure noted; what was indexed before stays searchable."""
    seen = _seen(item.version, record)
    failure = Failure(seen, item.step, item.reason, item.source_hash)
    kept = Record(document_id=item.document_id or "", seen=seen) if record is None or record.deleted else record
    return replace(kept, seen=seen, failure=failure, log=item.message.log, offset=item.message.offset)


def _replace(
    item: Derived, index: QdrantIndex, before: Record | None, vectors: Mapping[str, Sequence[float]]
) -> Indexed:
    ids = item.record.chunk_ids
    own = {id: vectors[id] for id in ids if id in vectors}
    kept = [id for id in ids if id not in own]
    index.replace(item.record, item.chunks, own, before)
    former = set(before.chunk_ids) if before else set()
    return Indexed(
        change=item.change,
        record=item.record,
        chunks=item.chunks,
        vectors={**index.vectors(kept), **own},
        embedded=len(own),
        reused=len(kept),
        removed=len(former - set(ids)),
    )
