"""Points in Qdrant, behind one seam: Qdrant Edge in this process, or a Qdrant server by address.

Both engines name their filters alike, so a filter is built once from whichever engine's names are at hand. What a write
depends on is compared by the engine itself as it writes (`only_over`), never read first and written after.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

PAGE = 256
DENSE, SPARSE = "dense", "sparse"


class IndexUnavailable(ConnectionError):
    """The index cannot be opened or reached; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Sparse:
    """Weights by term: `indices` are hashes of stemmed words."""

    indices: list[int]
    values: list[float]


@dataclass(frozen=True, slots=True)
class Point:
    """A point to write: `dense` of the collection's dimensions, or a payload alone."""

    id: str
    payload: Mapping[str, Any]
    dense: list[float] | None = None
    sparse: Sparse | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A point as read: `score` is 0 unless it answers a query, a vector None where it is not or nobody asked for it."""

    id: str
    payload: dict[str, Any]
    score: float = 0.0
    dense: list[float] | None = None
    sparse: Sparse | None = None


@dataclass(frozen=True, slots=True)
class Where:
    """A condition: every `equals` holds (a list: one of them), every bound holds, the point is one of any `ids`, and
    none of `other_than`."""

    equals: Mapping[str, str | list[str]] = field(default_factory=dict)
    at_least: Mapping[str, int] = field(default_factory=dict)
    at_most: Mapping[str, int] = field(default_factory=dict)
    ids: Sequence[str] = ()
    other_than: Sequence[str] = ()


class Points(Protocol):
    """One collection. Every write is acknowledged (in the engine's write-ahead log) when the call returns."""

    def upsert(self, points: Sequence[Point], only_over: Where | None = None) -> None:
        """Write points; one that exists already is overwritten only if `only_over` holds of it as it is then."""
        ...

    def set_payload(self, where: Where, payload: Mapping[str, Any]) -> None:
        """Replace these fields of the payload of the points for which the condition holds then."""
        ...

    def delete(self, where: Where) -> None: ...

    def retrieve(self, ids: Sequence[str], without: Sequence[str] = (), vectors: Sequence[str] = ()) -> list[Stored]:
        """Those of these points that exist, with the `vectors` named (DENSE, SPARSE)."""
        ...

    def scroll(self, where: Where, without: Sequence[str] = ()) -> Iterator[Stored]: ...

    def nearest(self, vector: list[float] | Sparse, where: Where, limit: int, *, exact: bool = False) -> list[Stored]:
        """The points nearest to a dense vector (cosine), or with the highest weights for a sparse one.

        With `exact` every point is compared; without, a large collection is searched by its graph.
        """
        ...

    def count(self, where: Where) -> int: ...

    def compact(self) -> bool:
        """Leave nothing of deleted and overwritten points in the files; False where that is a server's own affair."""
        ...

    def close(self) -> None: ...


class EdgePoints:
    """A collection as a Qdrant Edge shard in `directory`; one process at a time may have it open.

    The engine keeps deleted payloads in its pages and its write-ahead log, also after it has optimised them. So
    `compact` writes the collection anew beside its place: reads go on meanwhile, writes wait.
    """

    def __init__(self, directory: Path, dimensions: int | None, indexed: Mapping[str, str]) -> None:
        import qdrant_edge

        self._names = qdrant_edge
        self._directory, self._dimensions, self._indexed = directory, dimensions, indexed
        self._unfinished, self._former = _beside(directory)
        self._writing, self._using = threading.Lock(), _Shared()
        try:
            tidy(directory)
            if not directory.exists():
                # Made beside its place and moved there when complete: a crash leaves no half collection.
                self._make().close()
                self._unfinished.rename(directory)
            self._shard = qdrant_edge.EdgeShard.load(str(directory))
        except OSError as error:
            raise IndexUnavailable(f"the index in {directory} cannot be opened: {error}") from error
        except Exception as error:  # the engine's errors have no common class below Exception
            held = "WouldBlock" in str(error)
            remedy = (
                "another process has it open; end that first"
                if held
                else f"remove {directory.parent} and it is built anew"
            )
            raise IndexUnavailable(f"the index in {directory} cannot be opened ({error}): {remedy}") from error

    def _make(self) -> Any:
        """An empty shard beside the collection's place."""
        names = self._names
        self._unfinished.mkdir(parents=True)
        size = self._dimensions
        dense = {DENSE: names.EdgeVectorParams(size=size, distance=names.Distance.Cosine)} if size else None
        shard = names.EdgeShard.create(
            str(self._unfinished),
            names.EdgeConfig(
                vectors=dense,
                sparse_vectors={SPARSE: names.EdgeSparseVectorParams(modifier=names.Modifier.Idf)},
            ),
        )
        for name, kind in self._indexed.items():
            shard.update(names.UpdateOperation.create_field_index(name, getattr(names.PayloadSchemaType, kind)))
        shard.flush()
        return shard

    def upsert(self, points: Sequence[Point], only_over: Where | None = None) -> None:
        names = self._names
        condition = _filter(names, only_over) if only_over else None
        for start in range(0, len(points), PAGE):
            rows = [
                names.Point(point.id, self._vectors(point), dict(point.payload))
                for point in points[start : start + PAGE]
            ]
            self._update(names.UpdateOperation.upsert_points(rows, condition=condition))

    def set_payload(self, where: Where, payload: Mapping[str, Any]) -> None:
        self._update(self._names.UpdateOperation.set_payload_by_filter(_filter(self._names, where), dict(payload)))

    def delete(self, where: Where) -> None:
        self._update(self._names.UpdateOperation.delete_points_by_filter(_filter(self._names, where)))

    def retrieve(self, ids: Sequence[str], without: Sequence[str] = (), vectors: Sequence[str] = ()) -> list[Stored]:
        if not ids:
            return []
        with self._using.shared():
            records = self._shard.retrieve(_own_ids(ids), self._payload(without), list(vectors) or False)
        return [_stored(record, 0.0) for record in records]

    def scroll(self, where: Where, without: Sequence[str] = ()) -> Iterator[Stored]:
        for records in self._pages(filter=_filter(self._names, where), with_payload=self._payload(without)):
            yield from (_stored(record, 0.0) for record in records)

    def _pages(self, **wanted: Any) -> Iterator[list[Any]]:
        offset: Any = None
        while True:
            with self._using.shared():
                records, offset = self._shard.scroll(self._names.ScrollRequest(offset=offset, limit=PAGE, **wanted))
            yield records
            if offset is None:
                return

    def nearest(self, vector: list[float] | Sparse, where: Where, limit: int, *, exact: bool = False) -> list[Stored]:
        names = self._names
        query = (
            names.Query.Nearest(names.SparseVector(vector.indices, vector.values), using=SPARSE)
            if isinstance(vector, Sparse)
            else names.Query.Nearest(vector, using=DENSE)
        )
        request = names.QueryRequest(
            limit=limit,
            query=query,
            filter=_filter(names, where),
            with_payload=["document_id"],
            params=names.SearchParams(exact=True) if exact else None,
        )
        with self._using.shared():
            return [_stored(point, point.score) for point in self._shard.query(request)]

    def count(self, where: Where) -> int:
        with self._using.shared():
            return int(self._shard.count(self._names.CountRequest(exact=True, filter=_filter(self._names, where))))

    def compact(self) -> bool:
        with self._writing:
            try:
                tidy(self._directory)
                self._copy()
                with self._using.alone():
                    self._shard.close()
                    try:
                        self._directory.rename(self._former)
                        self._unfinished.rename(self._directory)
                    finally:
                        tidy(self._directory)
                        self._shard = self._names.EdgeShard.load(str(self._directory))
            except Exception as error:  # as above
                raise IndexUnavailable(f"the index in {self._directory} cannot be written anew: {error}") from error
        return True

    def _copy(self) -> None:
        """Every point, beside the collection's place."""
        names, anew = self._names, self._make()
        for records in self._pages(with_payload=True, with_vector=True):
            points = [names.Point(record.id, record.vector or {}, record.payload or {}) for record in records]
            if points:
                anew.update(names.UpdateOperation.upsert_points(points))
        anew.flush()
        anew.close()

    def close(self) -> None:
        with self._writing, self._using.alone():
            self._shard.flush()
            self._shard.close()

    def _update(self, operation: Any) -> None:
        with self._writing, self._using.shared():
            self._shard.update(operation)

    def _vectors(self, point: Point) -> dict[str, Any]:
        vectors: dict[str, Any] = {}
        if point.dense is not None:
            vectors[DENSE] = point.dense
        if point.sparse is not None:
            vectors[SPARSE] = self._names.SparseVector(point.sparse.indices, point.sparse.values)
        return vectors

    def _payload(self, without: Sequence[str]) -> Any:
        return self._names.PayloadSelector.Exclude(list(without)) if without else True


def _beside(directory: Path) -> tuple[Path, Path]:
    """Where a collection is written anew, and where the former one is until that is done."""
    return directory.with_name(directory.name + ".new"), directory.with_name(directory.name + ".old")


def tidy(directory: Path) -> None:
    """Finish what a crash left of a collection that was written anew: the whole one stays. Raises OSError."""
    unfinished, former = _beside(directory)
    if former.exists() and not directory.exists():
        former.rename(directory)
    for left in (unfinished, former):
        if left.exists():
            shutil.rmtree(left)


def edge_dimensions(directory: Path) -> int | None:
    """The dimensions of the dense vectors of a shard on disk; None if it has none. Raises IndexUnavailable."""
    try:
        vectors = json.loads((directory / "edge_config.json").read_bytes())["vectors"]
        return int(vectors[DENSE]["size"]) if DENSE in vectors else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IndexUnavailable(f"the index in {directory} cannot be read: {error}") from error


class ServerPoints:
    """A collection of a Qdrant server; `client` is a `qdrant_client.QdrantClient`."""

    def __init__(self, client: Any, collection: str, dimensions: int | None, indexed: Mapping[str, str]) -> None:
        from qdrant_client import models

        self._client, self._collection, self._names = client, collection, models
        if not client.collection_exists(collection):
            client.create_collection(
                collection,
                vectors_config={DENSE: models.VectorParams(size=dimensions, distance=models.Distance.COSINE)}
                if dimensions
                else {},
                sparse_vectors_config={SPARSE: models.SparseVectorParams(modifier=models.Modifier.IDF)},
            )
        # Asked for every time: a server that died between two of them is completed, one that has them answers at once.
        for name, kind in indexed.items():
            client.create_payload_index(collection, name, getattr(models.PayloadSchemaType, kind.upper()), wait=True)

    def upsert(self, points: Sequence[Point], only_over: Where | None = None) -> None:
        condition = _filter(self._names, only_over) if only_over else None
        for start in range(0, len(points), PAGE):
            rows = [
                self._names.PointStruct(id=point.id, vector=self._vectors(point), payload=dict(point.payload))
                for point in points[start : start + PAGE]
            ]
            self._client.upsert(self._collection, rows, update_filter=condition, wait=True)

    def set_payload(self, where: Where, payload: Mapping[str, Any]) -> None:
        self._client.set_payload(self._collection, dict(payload), points=_filter(self._names, where), wait=True)

    def delete(self, where: Where) -> None:
        selector = self._names.FilterSelector(filter=_filter(self._names, where))
        self._client.delete(self._collection, selector, wait=True)

    def retrieve(self, ids: Sequence[str], without: Sequence[str] = (), vectors: Sequence[str] = ()) -> list[Stored]:
        if not ids:
            return []
        records = self._client.retrieve(
            self._collection,
            _own_ids(ids),
            with_payload=self._payload(without),
            with_vectors=list(vectors) or False,
        )
        return [_stored(record, 0.0) for record in records]

    def scroll(self, where: Where, without: Sequence[str] = ()) -> Iterator[Stored]:
        offset: Any = None
        while True:
            records, offset = self._client.scroll(
                self._collection,
                _filter(self._names, where),
                limit=PAGE,
                offset=offset,
                with_payload=self._payload(without),
            )
            yield from (_stored(record, 0.0) for record in records)
            if offset is None:
                return

    def nearest(self, vector: list[float] | Sparse, where: Where, limit: int, *, exact: bool = False) -> list[Stored]:
        sparse = isinstance(vector, Sparse)
        query = (
            self._names.SparseVector(indices=vector.indices, values=vector.values)
            if isinstance(vector, Sparse)
            else vector
        )
        answer = self._client.query_points(
            self._collection,
            query=query,
            using=SPARSE if sparse else DENSE,
            query_filter=_filter(self._names, where),
            limit=limit,
            with_payload=["document_id"],
            search_params=self._names.SearchParams(exact=True) if exact else None,
        )
        return [_stored(point, point.score) for point in answer.points]

    def count(self, where: Where) -> int:
        return int(self._client.count(self._collection, _filter(self._names, where), exact=True).count)

    def compact(self) -> bool:
        return False

    def close(self) -> None:
        self._client.close()

    def _vectors(self, point: Point) -> dict[str, Any]:
        vectors: dict[str, Any] = {}
        if point.dense is not None:
            vectors[DENSE] = point.dense
        if point.sparse is not None:
            vectors[SPARSE] = self._names.SparseVector(indices=point.sparse.indices, values=point.sparse.values)
        return vectors

    def _payload(self, without: Sequence[str]) -> Any:
        return self._names.PayloadSelectorExclude(exclude=list(without)) if without else True


class _Shared:
    """Many use something at once; who wants it alone waits until nobody does, and nobody begins meanwhile."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._users, self._taken = 0, False

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._taken)
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._taken)
            self._taken = True
            self._changed.wait_for(lambda: not self._users)
        try:
            yield
        finally:
            with self._changed:
                self._taken = False
                self._changed.notify_all()


def _filter(names: ModuleType, where: Where) -> Any:
    """The condition in an engine's own names (`qdrant_edge` or `qdrant_client.models`)."""
    bounds = getattr(names, "RangeFloat", None) or names.Range
    conditions: list[Any] = []
    for key, value in where.equals.items():
        match = names.MatchAny(any=value) if isinstance(value, list) else names.MatchValue(value=value)
        conditions.append(names.FieldCondition(key=key, match=match))
    conditions += [names.FieldCondition(key=key, range=bounds(gte=value)) for key, value in where.at_least.items()]
    conditions += [names.FieldCondition(key=key, range=bounds(lte=value)) for key, value in where.at_most.items()]
    if where.ids:
        conditions.append(_has_id(names, where.ids))
    return names.Filter(must=conditions, must_not=[_has_id(names, where.other_than)] if where.other_than else None)


def _has_id(names: ModuleType, ids: Sequence[str]) -> Any:
    """The one condition that the two engines spell differently."""
    own = _own_ids(ids)
    return names.HasIdCondition(set(own)) if hasattr(names, "EdgeShard") else names.HasIdCondition(has_id=own)


def _own_ids(ids: Sequence[str]) -> list[Any]:
    """Ids as the engines have them: ours are UUIDs, a point of somebody else's may have a number."""
    return [int(id) if id.isdecimal() else id for id in ids]


def _stored(point: Any, score: float) -> Stored:
    vectors = point.vector if isinstance(point.vector, dict) else {}
    words = vectors.get(SPARSE)
    sparse = Sparse(list(words.indices), list(words.values)) if words is not None else None
    return Stored(str(point.id), dict(point.payload or {}), float(score), vectors.get(DENSE), sparse)
