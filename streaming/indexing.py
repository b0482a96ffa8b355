"""From a batch of changes to points: compare with the ledger, clean, split, embed what is new, write.

This is where a document becomes chunks, and where a delete becomes the deletion of points.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import msgspec

from corpus.categories import RECIPES, UnknownCategory, category_of, point_ids
from corpus.documents import LARGEST_MESSAGE, Chunk, Document
from corpus.index import Failure, Place, QdrantIndex, Record, places
from streaming.changes import DeadLetter, Delete, Event, Ignored, Message, Upsert, dead_letter, newest

if TYPE_CHECKING:
    from corpus.embedding import Embedder

logger = logging.getLogger(__name__)
# About a second of one machine's work.
EMBEDDED_TOGETHER = 64
# How often a document is compared anew because somebody else wrote to it, beyond once for each event of its batch.
ROUNDS = 20
# A text that every model takes: whether it is embedded tells a text's fault from the model's.
PROBE = "A plain sentence."
# What a Qdrant server answers to a payload that it does not take.
REFUSALS = (400, 413, 422)
# What a message for downstream holds besides values: names, ids, numbers; for each chunk and at all.
FRAME = 200


class Contended(RuntimeError):
    """Another writer was faster each time; whoever it is, the batch comes again."""


@dataclass(frozen=True, slots=True)
class Derived:
    """A changed document after cleaning and splitting: the record to be written and its chunks, not yet embedded."""

    change: Upsert
    record: Record
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Same:
    """A document delivered again as the ledger has it; `record` says what is new of it, `chunks` are the record's."""

    change: Upsert
    record: Record
    chunks: tuple[Chunk, ...]


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
    """Nothing to do: the change is older than the index (`stale`).

    `refused`: whether the newest that the ledger knows of the document was refused.
    """

    message: Message
    why: str
    document_id: str
    refused: bool = False


Prepared = Derived | Same | Delete | Unchanged | Ignored | DeadLetter
Outcome = Indexed | Removed | Unchanged | Ignored | DeadLetter


def index_batch(
    events: Sequence[Event],
    index: QdrantIndex,
    embedder: Embedder,
    go_on: Callable[[], None] = lambda: None,
    begins: Callable[[str], None] = lambda step: None,
) -> list[Outcome]:
    """Apply the events in order and return what became of each, in the same order.

    Every effect is acknowledged by the index when this returns, and applying a batch again changes nothing. New chunks
    of all documents are embedded together. Raises only if the index or the model fails, never for a document's content;
    and what `go_on` raises, which is called every second or so while the model is at work: nothing is written then.
    `begins` is told of each step when it comes to it: `embed`, then `write`.
    """
    outcomes: dict[int, Outcome] = {}
    pending = dict(enumerate(newest(events)))
    for _ in range(ROUNDS + len(events)):
        ids = [id for event in pending.values() if (id := _document_of(event)) is not None]
        ledger = index.records(ids, clear=True)
        prepared = {at: _prepare(event, ledger, index, embedder) for at, event in pending.items()}
        begins("embed")
        vectors = _vectors(list(prepared.values()), index, embedder, go_on)
        begins("write")
        written: set[str | None] = set()
        for at, item in prepared.items():
            # Somebody else wrote to the document meanwhile, or an earlier event did: compare with what the ledger says.
            outcome = None if _subject(item) in written else _apply(item, index, ledger, vectors)
            written |= {_subject(item)} - {None}
            if outcome is not None:
                outcomes[at] = outcome
                del pending[at]
        if not pending:
            return [outcomes[at] for at in range(len(events))]
    raise Contended(f"the index does not take {len(pending)} documents: something else writes to them all the time")


def _document_of(event: Event | Unchanged) -> str | None:
    if isinstance(event, Upsert):
        return event.document.id
    return event.document_id if isinstance(event, Delete | DeadLetter | Unchanged) else None


def _prepare(event: Event, ledger: Mapping[str, Record], index: QdrantIndex, embedder: Embedder) -> Prepared:
    """What to do about an event, given the ledger; a changed document is cleaned and split."""
    record = ledger.get(_document_of(event) or "")
    if isinstance(event, Ignored) or (isinstance(event, DeadLetter) and event.document_id is None):
        return event
    holds = isinstance(event, Upsert) and record is not None and _holds(event, record, index)
    # What is indexed is told again, also below a later refusal: a crash may have come before downstream was told.
    if record is not None and _overtaken(event, record) and not (holds and event.version == record.version):
        return Unchanged(event.message, "stale", record.document_id, record.failure is not None)
    if not isinstance(event, Upsert):
        # Also in the ledger's own version: a crash may have come between the record and the points.
        return event
    if record is not None and holds and not event.repair:
        return _same(event, record)
    return _derive(event, _seen(event.version, record), index.generation, embedder)


def _overtaken(event: Upsert | Delete | DeadLetter, record: Record) -> bool:
    """Whether the ledger already has a later state of the document.

    A snapshot's read has no version, but it stands in the log behind everything that was captured before the snapshot
    began, and every change since then follows it: so it counts unless the log's later messages were applied already.
    """
    if event.version is not None:
        return event.version < record.seen
    return event.message.log == record.log and event.message.offset < record.offset


def _holds(event: Upsert, record: Record, index: QdrantIndex) -> bool:
    """Whether the index has this very change, or what the snapshot read, and nothing that a crash left besides.

    The content of another crawl tells another time and crawl; that of a later change may stand over points which a
    version in between had written when it was cut short. Both are written anew, and nothing is embedded for it.
    """
    document = event.document
    if record.version is None or (record.content_hash, record.crawled_at, record.crawl_id) != (
        document.content_hash,
        document.crawled_at,
        document.crawl_id,
    ):
        return False
    if event.version is None:
        return index.whole(record) and not index.begun(record.document_id, record.version)
    return event.version == record.version and index.whole(record)


def _seen(version: int | None, record: Record | None) -> int:
    """The version to note; a snapshot's read comes right after what the ledger has seen, before any later change."""
    return version if version is not None else (record.seen if record is not None else 0) + 1


@dataclass(frozen=True, slots=True)
class Made:
    """What a document becomes: its cleaned text, and its chunks with their places in it."""

    text: str
    places: tuple[Place, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing can be made of a document, and at which step."""

    step: str
    reason: str


def derive(document: Document, generation: str, embedder: Embedder) -> Made | Refusal:
    """Clean and split by the category's recipe; a document that cannot be is an error as a value."""
    step = "clean"
    try:
        recipe = RECIPES[category_of(document.category)]
        text = recipe.clean(document)
        step = "split"
        chunks = tuple(recipe.split(text, document, embedder)) if text else ()
        step = "write"
        needed = _told_bytes(document, text, chunks, embedder.dimensions)
    except UnknownCategory as error:
        return Refusal("validate", str(error))
    except Exception as error:  # a recipe is open to extension: whatever it raises is about this one document
        return Refusal(step, f"{type(error).__name__}: {error}")
    if not chunks:
        return Refusal("clean", "nothing is left of the text after cleaning")
    if needed > LARGEST_MESSAGE:
        limit = f"the log takes at most {LARGEST_MESSAGE / 1e6:.0f} MB"
        return Refusal("split", f"what downstream is told of it would take {needed / 1e6:.1f} MB, {limit}")
    return Made(text, places(point_ids(document.id, generation, chunks), chunks), chunks)


def _told_bytes(document: Document, text: str, chunks: Sequence[Chunk], dimensions: int) -> int:
    """Bytes of the larger of the two messages that tell downstream of a document, before anything is embedded."""
    vector = 4 * -(-4 * dimensions // 3)  # base64 of four bytes each
    pieces = sum(len(msgspec.json.encode((chunk.heading_path, chunk.text))) + vector + FRAME for chunk in chunks)
    about = (document.author_name, document.author_id, document.platform, document.url, document.title)
    whole = len(msgspec.json.encode((*about, document.crawl_id, document.language, text)))
    # The id is a message's key as well.
    return max(whole, pieces) + 2 * len(document.id.encode()) + 2 * FRAME


def _derive(change: Upsert, version: int, generation: str, embedder: Embedder) -> Derived | DeadLetter:
    document = change.document
    made = derive(document, generation, embedder)
    if isinstance(made, Refusal):
        return _refused(change, made.step, made.reason)
    record = Record(
        document_id=document.id,
        seen=version,
        version=version,
        log=change.message.log,
        offset=change.message.offset,
        content_hash=document.content_hash,
        source_hash=change.source_hash,
        places=made.places,
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
        text=made.text,
    )
    return Derived(change, record, made.chunks)


def _refused(change: Upsert, step: str, reason: str) -> DeadLetter:
    return dead_letter(change.message, step, reason, change.document.id, change.version, change.source_hash)


def _same(change: Upsert, record: Record) -> Same:
    """The record with the delivery noted, and its chunks: downstream is told again.

    The log may be a new one, or a crash may have come between the index and the messages for downstream.
    """
    noted = replace(
        record,
        failure=None,
        source_hash=change.source_hash,
        log=change.message.log,
        offset=change.message.offset,
    )
    return Same(change, record if _overtaken(change, record) else noted, _chunks_of(record))


def _chunks_of(record: Record) -> tuple[Chunk, ...]:
    return tuple(
        Chunk(position, place.heading_path, record.text[place.start : place.end], place.start, place.end)
        for position, place in enumerate(record.places)
    )


@dataclass(frozen=True, slots=True)
class Vectors:
    """Dense vectors by chunk id; `embedded` are those that were computed now, the others were in the index.

    `refused`: why a chunk's text has none.
    """

    by_id: Mapping[str, Sequence[float]]
    embedded: frozenset[str]
    refused: Mapping[str, str]


def _vectors(
    prepared: Sequence[Prepared], index: QdrantIndex, embedder: Embedder, go_on: Callable[[], None]
) -> Vectors:
    """A vector for every chunk of these documents: the index's own, or a new one, embedded across all documents.

    An id holds the text's hash, so the vector of a point is that of its text, whichever version wrote it.
    """
    texts: dict[str, str] = {}
    trusted: list[str] = []
    for item in prepared:
        if isinstance(item, Derived | Same):
            own = {place.chunk_id: chunk.text for place, chunk in zip(item.record.places, item.chunks, strict=True)}
            texts |= own
            # A repair takes nothing for granted.
            trusted += () if item.change.repair else own
    kept = index.vectors(trusted)
    embedded, refused = _embed({id: text for id, text in texts.items() if id not in kept}, embedder, go_on)
    return Vectors({**kept, **embedded}, frozenset(embedded), refused)


def _embed(
    texts: Mapping[str, str], embedder: Embedder, go_on: Callable[[], None]
) -> tuple[dict[str, Sequence[float]], dict[str, str]]:
    """A vector for each text, or why it has none, by the same key. Raises what the model does if it takes no text."""
    ids = list(texts)
    vectors: dict[str, Sequence[float]] = {}
    refused: dict[str, str] = {}
    for start in range(0, len(ids), EMBEDDED_TOGETHER):
        go_on()
        part = ids[start : start + EMBEDDED_TOGETHER]
        try:
            vectors.update(zip(part, embedder.embed([texts[id] for id in part]), strict=True))
            continue
        except Exception as error:  # a model is open to choice: it raises whatever its library does
            logger.warning("a batch cannot be embedded, so its texts are embedded one by one: %s", error)
        for id in part:
            go_on()
            try:
                vectors[id] = embedder.embed([texts[id]])[0]
            except Exception as error:
                # Raises if it is the model that fails: then no text is to blame, and the batch comes again.
                embedder.embed([PROBE])
                refused[id] = f"{type(error).__name__}: {error}"
    return vectors, refused


def _apply(item: Prepared, index: QdrantIndex, ledger: Mapping[str, Record], vectors: Vectors) -> Outcome | None:
    """Write one document's change to the index; None if the ledger's record is no longer what it was compared with."""
    before = ledger.get(_subject(item) or "")
    if isinstance(item, Derived | Same):
        reasons = [vectors.refused[id] for id in item.record.chunk_ids if id in vectors.refused]
        item = _refused(item.change, "embed", reasons[0]) if reasons else item
    if isinstance(item, Derived):
        replaced = _replace(item, index, before, vectors)
        if not isinstance(replaced, DeadLetter):
            return replaced
        item = replaced
    if isinstance(item, Same):
        return _touch(item, index, before, vectors)
    if isinstance(item, Delete):
        tombstone = Record(
            document_id=item.document_id,
            seen=item.version,
            deleted=True,
            log=item.message.log,
            offset=item.message.offset,
        )
        removed = len(before.places) if before else 0
        return Removed(item, removed) if index.delete(tombstone, before) else None
    if isinstance(item, DeadLetter) and item.document_id is not None:
        noted = replace(item, version=_seen(item.version, before))
        return noted if _fail(item, index, before) else None
    if isinstance(item, Unchanged) and before is not None:
        # What this change wrote before it was overtaken, if it was only now.
        _restore(before, index)
        index.sweep(before)
    return item


def _subject(item: Prepared) -> str | None:
    """The document that is written to."""
    return item.record.document_id if isinstance(item, Derived | Same) else _document_of(item)


def _touch(item: Same, index: QdrantIndex, before: Record | None, vectors: Vectors) -> Outcome | None:
    change, record = item.change, item.record
    if before is None:
        raise ValueError(f"{record.document_id} is the same as no record")
    own = {id for id in record.chunk_ids if id in vectors.embedded}
    if own:
        # Points that are gone although the record has them.
        if not index.replace(record, item.chunks, vectors.by_id, before):
            return None
    elif not index.touch(record, before):
        return None
    return Indexed(
        change, record, item.chunks, vectors.by_id, embedded=len(own), reused=len(item.chunks) - len(own), removed=0
    )


def _restore(record: Record, index: QdrantIndex) -> None:
    """The points of the record as they are when nobody wrote over them."""
    if record.version is None or index.whole(record):
        return
    vectors = index.vectors(record.chunk_ids)
    if set(vectors) == set(record.chunk_ids):
        index.restore(record, _chunks_of(record), vectors)


def _fail(item: DeadLetter, index: QdrantIndex, before: Record | None) -> bool:
    """Note a failure; what was indexed before is written anew where a version in between was cut short."""
    record = _failed(item, before)
    if record.version is not None and index.begun(record.document_id, record.version):
        vectors = index.vectors(record.chunk_ids)
        if set(vectors) == set(record.chunk_ids):
            anew = replace(record, version=record.seen)
            return index.replace(anew, _chunks_of(record), vectors, before, over_later=item.version is None)
    return index.fail(record, before)


def _failed(item: DeadLetter, record: Record | None) -> Record:
    """The document's record with the failure noted; what was indexed before stays searchable."""
    seen = _seen(item.version, record)
    failure = Failure(seen, item.step, item.reason, item.source_hash)
    kept = Record(document_id=item.document_id or "", seen=seen) if record is None or record.deleted else record
    return replace(kept, seen=seen, failure=failure, log=item.message.log, offset=item.message.offset)


def _replace(item: Derived, index: QdrantIndex, before: Record | None, vectors: Vectors) -> Indexed | DeadLetter | None:
    ids = item.record.chunk_ids
    # What a crash left of a later version is overwritten: if that is still to come, it comes after the snapshot's read.
    over_later = item.change.version is None and index.begun(item.record.document_id, item.record.seen)
    try:
        if not index.replace(item.record, item.chunks, vectors.by_id, before, over_later):
            return None
    except Exception as error:
        if not _of_content(error):
            raise
        return _refused(item.change, "write", f"{type(error).__name__}: {error}")
    embedded = sum(id in vectors.embedded for id in ids)
    former = set(before.chunk_ids) if before else set()
    return Indexed(
        change=item.change,
        record=item.record,
        chunks=item.chunks,
        vectors={id: vectors.by_id[id] for id in ids},
        embedded=embedded,
        reused=len(ids) - embedded,
        removed=len(former - set(ids)),
    )


def _of_content(error: Exception) -> bool:
    """Whether a write failed for what was to be written; an index that is away or full raises other errors.

    Both clients raise TypeError or ValueError for what they cannot encode; a server answers what it does not take.
    """
    return isinstance(error, TypeError | ValueError) or getattr(error, "status_code", None) in REFUSALS
