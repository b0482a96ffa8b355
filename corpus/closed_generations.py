"""Generations of the index that nobody has open: what is erased must go from them too."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from corpus.batches import batches
from corpus.generations import REMOVED, local_directory, server_client
from corpus.index import CHUNK_FIELDS, LEDGER_FIELDS, ledger_point
from corpus.points import EdgePoints, IndexUnavailable, Points, ServerPoints, Where, edge_dimensions, tidy
from corpus.settings import Settings

# Ids in one condition.
TOGETHER = 1_000
Condition = Callable[[list[str]], Where]


def erase_closed(settings: Settings, opened: Collection[str], document_ids: Sequence[str]) -> int:
    """Remove points and records of these documents from every generation that is not `opened`; how many there were.

    What a crash left of generations that were being removed goes as a whole. Raises IndexUnavailable.
    """
    for place in _half_removed(settings):
        try:
            shutil.rmtree(place)
        except OSError as error:
            raise IndexUnavailable(f"{place} cannot be removed: {error}") from error
    found = 0
    for points, of in closed_collections(settings, opened):
        with closing(points):
            found += _count(points, of, document_ids)
            for part in batches(document_ids, TOGETHER):
                points.delete(of(part))
            # Also where nothing was found: what was deleted before may be in the files.
            points.compact()
    return found


def count_closed(settings: Settings, opened: Collection[str], document_ids: Sequence[str]) -> int:
    """Points and records of these documents in every generation that is not `opened`. Raises IndexUnavailable.

    A generation that was being removed counts as one: nobody can tell what is left in it.
    """
    found = len(_half_removed(settings))
    for points, of in closed_collections(settings, opened):
        with closing(points):
            found += _count(points, of, document_ids)
    return found


def closed_collections(settings: Settings, opened: Collection[str]) -> Iterator[tuple[Points, Condition]]:
    """The collections of every generation that is not `opened`, whether it is whole or not, and the condition for what
    they have of documents; the caller closes them."""
    if settings.qdrant_url is not None:
        yield from _on_server(settings, opened)
        return
    gone = set(_half_removed(settings))
    for place in sorted(local_directory(settings).glob("*/")):
        if place.name in opened or place in gone:
            continue
        for name, (of, fields) in COLLECTIONS.items():
            directory = place / name
            try:
                # A crash may have left none under its own name.
                tidy(directory)
            except OSError as error:
                raise IndexUnavailable(f"the index in {directory} cannot be opened: {error}") from error
            if directory.exists():
                yield EdgePoints(directory, edge_dimensions(directory), fields), of


def _half_removed(settings: Settings) -> list[Path]:
    """What is left of generations whose removal a crash broke off."""
    return [] if settings.qdrant_url is not None else sorted(local_directory(settings).glob(f"*{REMOVED}"))


def _on_server(settings: Settings, opened: Collection[str]) -> Iterator[tuple[Points, Condition]]:
    with closing(server_client(settings)) as asked:
        names = sorted(each.name for each in asked.get_collections().collections)
    for part, (of, _) in COLLECTIONS.items():
        prefix = f"{settings.topic_prefix}-{part}-"
        for name in names:
            if name.startswith(prefix) and name.removeprefix(prefix) not in opened:
                yield ServerPoints(server_client(settings), name, None, {}), of


def _count(points: Points, of: Condition, document_ids: Sequence[str]) -> int:
    return sum(points.count(of(part)) for part in batches(document_ids, TOGETHER))


def _of(document_ids: list[str]) -> Where:
    return Where(equals={"document_id": document_ids})


def _records(document_ids: list[str]) -> Where:
    return Where(ids=[ledger_point(id) for id in document_ids])


COLLECTIONS: Mapping[str, tuple[Condition, Mapping[str, str]]] = {
    "chunks": (_of, CHUNK_FIELDS),
    "documents": (_records, LEDGER_FIELDS),
}
