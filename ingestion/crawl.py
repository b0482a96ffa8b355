"""From sources to the warehouse: crawl, check each document, write what changed, and tell what became of every one."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from corpus.categories import category_of
from corpus.documents import UNKNOWN_AUTHOR, Document, by_author, canonical_url, new_document
from corpus.language import natural_language
from corpus.settings import Settings, masked_text
from corpus.warehouse import Saved, Warehouse, WarehouseUnavailable, refusal
from ingestion.crawlers import crawler_of
from ingestion.drafts import Covered, Draft, Failed, Item, Options, Unchanged, reason_of

logger = logging.getLogger(__name__)
# Small enough that the first documents are on their way to the index while the rest is still being read.
BATCH = 32
BATCH_CHARACTERS = 2_000_000
LONGEST_TITLE = 500
FAILURES_RECORDED = 1_000


@dataclass(frozen=True, slots=True)
class IngestResult:
    """What became of every document: `seen` is the sum of `inserted`, `updated`, `unchanged` and `failed`.

    `deleted`: documents that a prune removed; `lost`: the failures that are a whole source.
    """

    seen: int
    inserted: int
    updated: int
    unchanged: int
    failed: tuple[Failed, ...]
    deleted: int = 0

    @property
    def lost(self) -> tuple[Failed, ...]:
        return tuple(failure for failure in self.failed if failure.lost)


def ingest(
    sources: Sequence[str],
    settings: Settings,
    warehouse: Warehouse,
    *,
    author: str | None = None,
    category: str | None = None,
    prune: bool = False,
    progress: Callable[[int, str], None] = lambda seen, source: None,
) -> IngestResult:
    """Bring the documents of `sources` into the warehouse; returns when MongoDB has acknowledged all of them.

    `prune` deletes documents that a folder or repository of `sources` no longer has. `progress` is called for each
    document with how many were seen and where the last was read. Raises WarehouseUnavailable.
    """
    run = _Run(settings, warehouse, Options(settings, author, category, warehouse.by_request), progress)
    about = {
        "_id": run.id,
        "sources": [shown(source) for source in sources],
        "author": author,
        "category": category,
        "started_at": run.started_at,
    }
    warehouse.record_crawl({**about, "state": "running", "finished_at": None})
    for source in sources:
        run.take(source)
    run.flush()
    if prune:
        run.prune()
    result = IngestResult(
        seen=run.seen,
        inserted=run.saved.inserted,
        updated=run.saved.updated,
        unchanged=run.saved.unchanged,
        failed=tuple(run.failed),
        deleted=run.deleted,
    )
    warehouse.record_crawl({**about, "state": "done", "finished_at": datetime.now(UTC), **_counts(result)})
    return result


@dataclass
class _Run:
    settings: Settings
    warehouse: Warehouse
    options: Options
    progress: Callable[[int, str], None]
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    seen: int = 0
    saved: Saved = field(default_factory=Saved)
    deleted: int = 0
    failed: list[Failed] = field(default_factory=list)
    covered: list[str] = field(default_factory=list)
    # By document id: where it was read, and its content hash.
    met: dict[str, tuple[str, str]] = field(default_factory=dict)
    batch: list[Document] = field(default_factory=list)
    # By document id, where a source does not say the author but suggests one.
    likely: dict[str, str] = field(default_factory=dict)

    def take(self, source: str) -> None:
        """Crawl one source."""
        for item in _guarded(source, self.options):
            if isinstance(item, Covered):
                self.covered.append(canonical_url(item.prefix))
                continue
            self.seen += 1
            accepted = self._accepted(item)
            if isinstance(accepted, Failed):
                self.failed.append(accepted)
            else:
                self.batch.append(accepted)
            if len(self.batch) >= BATCH or sum(len(document.text) for document in self.batch) >= BATCH_CHARACTERS:
                self.flush()
            self.progress(self.seen, item.source)

    def flush(self) -> None:
        """Write what has been gathered."""
        self.saved += self.warehouse.save(self._authored(self.batch))
        self.batch = []

    def _authored(self, batch: list[Document]) -> list[Document]:
        """A document that does not say who wrote it keeps its author until now, else gets its source's likely one."""
        unknown = [document.id for document in batch if document.author_name == UNKNOWN_AUTHOR]
        until_now = {stamp.id: stamp.author for stamp in self.warehouse.stamps(unknown)} if unknown else {}
        authors = {id: until_now.get(id) or self.likely.get(id) for id in unknown}
        return [by_author(document, name) if (name := authors.get(document.id)) else document for document in batch]

    def prune(self) -> None:
        """Delete documents below what was covered that were not met; what is there and could not be read stays."""
        unread = {_canonical(failure.url) for failure in self.failed if failure.url}
        for prefix in self.covered:
            gone = (
                id
                for id, url in self.warehouse.urls_under(prefix)
                if id not in self.met and not any(url == kept or url.startswith(f"{kept}/") for kept in unread)
            )
            self.deleted += self.warehouse.delete(list(gone))

    def _accepted(self, item: Draft | Failed | Unchanged) -> Document | Failed:
        if isinstance(item, Failed):
            return item
        document = item.document if isinstance(item, Unchanged) else self._document(item)
        if isinstance(document, Failed):
            return document
        first = self.met.setdefault(document.id, (item.source, document.content_hash))
        if first[1] != document.content_hash:
            return Failed(item.source, f"has the same address as {first[0]}, but another content", document.url)
        return document

    def _document(self, draft: Draft) -> Document | Failed:
        reason = _wrong(draft, self.settings)
        if reason is not None:
            return Failed(draft.source, reason, draft.url)
        metadata = dict(draft.metadata)
        if draft.category != "code" and not metadata.get("language"):
            language = natural_language(draft.text)
            metadata |= {"language": language} if language else {}
        try:
            document = new_document(
                url=draft.url,
                category=category_of(draft.category).value,
                platform=draft.platform,
                author_name=self.options.author or draft.author or UNKNOWN_AUTHOR,
                author_id=None if self.options.author or not draft.author else draft.author_id,
                title=" ".join(draft.title.split())[:LONGEST_TITLE] or "Untitled",
                text=draft.text,
                published_at=draft.published_at,
                metadata=metadata,
                crawl_id=self.id,
                crawled_at=self.started_at,
            )
        except (ValueError, OverflowError) as error:
            # InvalidDocument, UnknownCategory, and what the standard library says of addresses and dates.
            return Failed(draft.source, str(error), draft.url)
        if draft.likely_author:
            self.likely[document.id] = draft.likely_author
        refused = refusal(document)
        return Failed(draft.source, refused, document.url) if refused else document


def _guarded(source: str, options: Options) -> Iterator[Item]:
    """The items of a source; a fault of its crawler costs what is left of this source only."""
    try:
        yield from crawler_of(source).crawl(source, options)
    except WarehouseUnavailable:
        raise
    except Exception as error:
        logger.debug("crawling %s failed", masked_text(source), exc_info=True)
        yield Failed(source, f"cannot be crawled: {reason_of(error)}", lost=True)


def shown(text: str) -> str:
    """A source or reason fit for people and stores: without passwords, and valid Unicode whatever a file is called."""
    return masked_text(text).encode("utf-8", "backslashreplace").decode()


def _wrong(draft: Draft, settings: Settings) -> str | None:
    """Why no document can be made of this draft, or None."""
    if not draft.text.strip():
        return "is empty"
    for name, value in (
        ("text", draft.text),
        ("title", draft.title),
        ("author", draft.author or ""),
        ("url", draft.url),
    ):
        try:
            size = len(value.encode())
        except UnicodeEncodeError as error:
            surrogate = f"U+{ord(value[error.start]):04X}"
            return (
                f"has a lone surrogate ({surrogate}) in its {name} at character {error.start}: it is not valid Unicode"
            )
        if size > settings.max_document_bytes:
            limit = f"the limit is {settings.max_document_bytes / 1e6:.1f} MB (TWIN_MAX_DOCUMENT_BYTES)"
            return f"is too large: {size / 1e6:.1f} MB of {name}, {limit}"
    return None


def _canonical(url: str) -> str:
    try:
        return canonical_url(url)
    except ValueError:
        return url


def _counts(result: IngestResult) -> Mapping[str, Any]:
    return {
        "seen": result.seen,
        "inserted": result.inserted,
        "updated": result.updated,
        "unchanged": result.unchanged,
        "deleted": result.deleted,
        "failed": [
            {"source": shown(failure.source), "reason": shown(failure.reason)}
            for failure in result.failed[:FAILURES_RECORDED]
        ],
        "failures": len(result.failed),
    }
