"""Generations of the index that nobody has open: what is erased must go from them too."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import closing

from corpus.batches import batches
from corpus.index import CHUNK_FIELDS, LEDGER_FIELDS, ledger_point
from corpus.points import EdgePoints, Points, ServerPoints, Where, edge_dimensions
from corpus.settings import Settings

# Ids in one condition.
TOGETHER = 1_000


def erase_closed(settings: Settings, opened: Collection[str], document_ids: Sequence[str]) -> int:
    """Remove points and records of these documents from every generation that is not `opened`; how many there were.

    Raises IndexUnavailable.
    """
    found = 0
    for chunks, ledger in closed_generations(settings, opened):
        with closing(chunks), closing(ledger):
            found += _count(chunks, ledger, document_ids)
            for part in batches(document_ids, TOGETHER):
                chunks.delete(_of(part))
                ledger.delete(_records(part))
            # Also where nothing was found: what was deleted before may be in the files.
            chunks.compact()
            ledger.compact()
    return found


def count_closed(settings: Settings, opened: Collection[str], document_ids: Sequence[str]) -> int:
    """Points and records of these documents in every generation that is not `opened`. Raises IndexUnavailable."""
    found = 0
    for chunks, ledger in closed_generations(settings, opened):
        with closing(chunks), closing(ledger):
            found += _count(chunks, ledger, document_ids)
    return found


def closed_generations(settings: Settings, opened: Collection[str]) -> Iterator[tuple[Points, Points]]:
    """Chunks and ledger of each generation that exists and is not `opened`; the caller closes them."""
    if settings.qdrant_url is not None:
        yield from _on_server(settings, opened)
        return
    for place in sorted((settings.home / "index").glob("*/chunks")):
        if place.parent.name not in opened and (place.parent / "documents").exists():
            yield (
                EdgePoints(place, edge_dimensions(place), CHUNK_FIELDS),
                EdgePoints(place.parent / "documents", None, LEDGER_FIELDS),
            )


def _on_server(settings: Settings, opened: Collection[str]) -> Iterator[tuple[Points, Points]]:
    from qdrant_client import QdrantClient

    def client() -> QdrantClient:
        return QdrantClient(
            url=settings.qdrant_url, api_key=settings.qdrant_api_key, timeout=30, check_compatibility=False
        )

    with closing(client()) as asked:
        names = {each.name for each in asked.get_collections().collections}
    chunks, ledger = (f"{settings.topic_prefix}-{part}-" for part in ("chunks", "documents"))
    for name in sorted(names):
        generation = name.removeprefix(chunks)
        if name.startswith(chunks) and generation not in opened and ledger + generation in names:
            yield ServerPoints(client(), name, None, {}), ServerPoints(client(), ledger + generation, None, {})


def _count(chunks: Points, ledger: Points, document_ids: Sequence[str]) -> int:
    return sum(chunks.count(_of(part)) + ledger.count(_records(part)) for part in batches(document_ids, TOGETHER))


def _parts(document_ids: Sequence[str]) -> Iterator[list[str]]:
    return (list(document_ids[start : start + TOGETHER]) for start in range(0, len(document_ids), TOGETHER))


def _of(document_ids: list[str]) -> Where:
    return Where(equals={"document_id": document_ids})


def _records(document_ids: list[str]) -> Where:
    return Where(ids=[ledger_point(id) for id in document_ids])
