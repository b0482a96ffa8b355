"""The index over both engines: what is written is found, what is replaced or deleted is gone, older writes lose."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from corpus.documents import Chunk
from corpus.index import (
    Failure,
    Filters,
    GenerationMismatch,
    QdrantIndex,
    Record,
    fuse,
    open_index,
    places,
    server_index,
)
from corpus.points import EdgePoints, IndexUnavailable, Point
from corpus.settings import load

DIMENSIONS = 8
# The client's in-memory stand-in for a server has no payload indexes and says so.
pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect")


def vector(text: str) -> list[float]:
    source = random.Random(text)
    return [source.gauss(0, 1) for _ in range(DIMENSIONS)]


def written(
    index: QdrantIndex, document_id: str, passages: list[str], version: int, *, title: str = "A title", **fields: object
) -> Record:
    """Write a document whose chunk ids are its passages', as the dataflow does; its new record."""
    text = "\n".join(passages)
    chunks, start = [], 0
    for position, passage in enumerate(passages):
        chunks.append(Chunk(position, (title,), passage, start, start + len(passage)))
        start += len(passage) + 1
    ids = [chunk_id(document_id, passage) for passage in passages]
    before = index.records([document_id]).get(document_id)
    record = Record(
        document_id=document_id,
        seen=version,
        version=version,
        title=title,
        text=text,
        places=places(ids, chunks),
        url=f"https://example.org/{document_id}",
        author=str(fields.pop("author", "Ada Lovelace")),
        **fields,  # type: ignore[arg-type]
    )
    vectors = {id: vector(passage) for id, passage in zip(ids, passages, strict=True)}
    index.replace(record, chunks, vectors, before)
    return record


def chunk_id(document_id: str, passage: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, document_id + passage))


def found(index: QdrantIndex, question: str, limit: int = 5, **filters: object) -> list[str]:
    hits = index.search(question, vector(question), Filters(**filters), limit)  # type: ignore[arg-type]
    return [hit.text for hit in hits]


@pytest.fixture(params=["edge", "server"])
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[QdrantIndex]:
    if request.param == "edge":
        opened = open_index(load({"TWIN_HOME": str(tmp_path)}), "g1", DIMENSIONS)
    else:
        from qdrant_client import QdrantClient

        opened = server_index(QdrantClient(":memory:"), "twin", "g1", DIMENSIONS)
    yield opened
    opened.close()


def test_a_document_is_found_by_its_words_and_shown_with_its_place(index: QdrantIndex) -> None:
    written(index, "a", ["the zorbital engine hums", "a quiet garden"], 5)
    written(index, "b", ["something else entirely"], 6)

    hits = index.search("zorbital", vector("unrelated"), Filters(), 3)

    assert hits[0].text == "the zorbital engine hums"
    assert (hits[0].document_id, hits[0].version, hits[0].heading_path, hits[0].position) == ("a", 5, ("A title",), 0)
    assert [hit.text for hit in index.chunks("a")] == ["the zorbital engine hums", "a quiet garden"]
    assert (index.counts().documents, index.counts().chunks) == (2, 3)


def test_a_point_that_names_no_document_is_passed_over(index: QdrantIndex) -> None:
    written(index, "a", ["the zorbital engine hums"], 5)
    strays = [Point(str(uuid.UUID(int=each)), {}, vector("zorbital")) for each in range(3)]
    index._chunks.upsert(strays)

    assert found(index, "zorbital", 3) == ["the zorbital engine hums"]
    assert [document for _, document in index.nearest(vector("zorbital"), 10)] == ["a"]


def test_an_edit_keeps_untouched_points_and_removes_the_replaced_one(index: QdrantIndex) -> None:
    written(index, "a", ["first passage", "second passage", "third passage"], 5)
    kept = [chunk_id("a", "first passage"), chunk_id("a", "third passage")]
    before = index.vectors(kept)

    written(index, "a", ["new opening", "first passage", "third passage"], 6)

    after = index.vectors(kept)
    # The client's stand-in for a server normalises a vector each time that it is written.
    assert {id: pytest.approx(vector) for id, vector in before.items()} == after
    assert [(hit.text, hit.position, hit.version) for hit in index.chunks("a")] == [
        ("new opening", 0, 6),
        ("first passage", 1, 6),
        ("third passage", 2, 6),
    ]
    assert index.counts().chunks == 3
    assert "second passage" not in found(index, "second passage", 10)


def test_a_new_title_is_found_in_the_chunks_that_were_kept(index: QdrantIndex) -> None:
    written(index, "a", ["nothing special here"], 5, title="Old name")
    written(index, "a", ["nothing special here"], 6, title="Quaternions explained")

    hits = index.search("quaternions", vector("x"), Filters(), 1)

    assert hits[0].title == "Quaternions explained"


def test_a_deleted_document_is_gone_and_its_tombstone_stays(index: QdrantIndex) -> None:
    written(index, "a", ["the zorbital engine"], 5)

    index.delete(Record(document_id="a", seen=9, deleted=True), index.records(["a"])["a"])

    assert found(index, "zorbital") == []
    assert (index.counts().documents, index.counts().chunks) == (0, 0)
    assert index.records(["a"])["a"].deleted
    assert index.records(["a"])["a"].seen == 9
    assert list(index.scan()) == []


def test_an_older_record_never_replaces_a_newer_one(index: QdrantIndex) -> None:
    written(index, "a", ["newer"], 9)
    before = index.records(["a"])["a"]

    stale = Record(document_id="a", seen=7, version=7, text="older", title="Old")
    taken = index.replace(stale, [], {}, before)

    assert not taken
    assert index.records(["a"])["a"].text == "newer"
    assert found(index, "newer") == ["newer"]


@pytest.mark.parametrize("stop_after", [0, 1, 2])
def test_a_crash_between_effects_is_finished_by_the_redelivery(
    index: QdrantIndex, stop_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(index, "a", ["first", "second"], 5)
    calls = 0

    def crashing(real: object) -> object:
        def effect(*arguments: object, **named: object) -> object:
            nonlocal calls
            calls += 1
            if calls > stop_after:
                raise ConnectionError("killed")
            return real(*arguments, **named)  # type: ignore[operator]

        return effect

    with monkeypatch.context() as patch:
        for points in (index._chunks, index._ledger):
            for name in ("upsert", "set_payload", "delete"):
                patch.setattr(points, name, crashing(getattr(points, name)))
        with pytest.raises(ConnectionError):
            written(index, "a", ["first", "changed"], 6)

    shown = {hit.text for hit in index.search("first second changed", vector("first"), Filters(), 10)}
    assert shown in ({"first", "second"}, {"first", "changed"}, {"first"})
    written(index, "a", ["first", "changed"], 6)
    assert [hit.text for hit in index.chunks("a")] == ["first", "changed"]
    assert index.counts().chunks == 2


def test_filters_narrow_a_search(index: QdrantIndex) -> None:
    old, new = datetime(2020, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=UTC)
    written(index, "a", ["a passage of ada"], 5, author="Ada  Lovelace", category="article", published_at=old)
    written(
        index, "b", ["a passage of grace"], 5, author="Grace Hopper", category="code", language="python", crawled_at=new
    )

    assert found(index, "passage", author="ada lovelace") == ["a passage of ada"]
    assert found(index, "passage", category="code") == ["a passage of grace"]
    assert found(index, "passage", language="python") == ["a passage of grace"]
    assert found(index, "passage", since=datetime(2022, 1, 1, tzinfo=UTC)) == ["a passage of grace"]
    assert found(index, "passage", until=datetime(2022, 1, 1, tzinfo=UTC)) == ["a passage of ada"]
    assert found(index, "passage", platform="nowhere") == []


def test_a_failure_is_noted_beside_what_was_indexed_and_cleared_by_a_redelivery(index: QdrantIndex) -> None:
    record = written(index, "a", ["good"], 5)
    index.fail(replace(record, seen=6, failure=Failure(6, "clean", "it is empty")), record)
    index.fail(Record(document_id="b", seen=4, failure=Failure(4, "validate", "no title")), None)

    assert index.records(["a"])["a"].failure == Failure(6, "clean", "it is empty")
    assert found(index, "good") == ["good"]
    assert index.records(["b"])["b"].version is None
    assert index.counts().documents == 1
    noted = index.records(["a"])["a"]
    assert index.touch(replace(noted, seen=7, failure=None), noted)
    assert index.records(["a"])["a"].failure is None
    assert index.records(["a"])["a"].seen == 7


def test_another_generation_is_refused(tmp_path: Path) -> None:
    settings = load({"TWIN_HOME": str(tmp_path)})
    first = open_index(settings, "g1", DIMENSIONS)
    first.close()

    with pytest.raises(GenerationMismatch, match="built as g1, the settings ask for g2"):
        open_index(settings, "g2", DIMENSIONS)


@pytest.mark.parametrize("left", [b"", b'{"id": "'])
def test_a_torn_alias_is_of_a_new_index_that_reads_the_log_anew(tmp_path: Path, left: bytes) -> None:
    settings = load({"TWIN_HOME": str(tmp_path)})
    first = open_index(settings, "g1", DIMENSIONS)
    first.close()
    files = [tmp_path / "index" / name for name in ("current.json", "current.copy.json")]
    for file in files:
        file.write_bytes(left)

    again = open_index(settings, "g1", DIMENSIONS)
    again.close()

    assert again.id != first.id


@pytest.mark.parametrize("left", [b"", b'{"id": "', None])
@pytest.mark.parametrize("name", ["current.json", "current.copy.json"])
def test_an_alias_of_which_one_file_is_torn_is_known_and_mended(tmp_path: Path, name: str, left: bytes | None) -> None:
    settings = load({"TWIN_HOME": str(tmp_path)})
    first = open_index(settings, "g1", DIMENSIONS)
    first.close()
    file = tmp_path / "index" / name
    whole = file.read_bytes()
    file.unlink()
    if left is not None:
        file.write_bytes(left)

    again = open_index(settings, "g1", DIMENSIONS)
    again.close()

    assert again.id == first.id
    assert file.read_bytes() == whole


def test_a_killed_process_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    program = textwrap.dedent(
        f"""
        import os, signal, sys
        sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path.cwd())!r}]
        from test_index import DIMENSIONS, Record, load, open_index, written
        index = open_index(load({{"TWIN_HOME": {str(tmp_path)!r}}}), "g1", DIMENSIONS)
        for number in range(50):
            written(index, f"d{{number}}", [f"passage {{number}}", f"further {{number}}"], number + 1)
        for number in range(10):
            before = index.records([f"d{{number}}"])[f"d{{number}}"]
            index.delete(Record(document_id=f"d{{number}}", seen=100, deleted=True), before)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    subprocess.run([sys.executable, "-c", program], check=False)

    index = open_index(load({"TWIN_HOME": str(tmp_path)}), "g1", DIMENSIONS)
    try:
        assert (index.counts().documents, index.counts().chunks) == (40, 80)
        assert sorted(record.document_id for record in index.scan()) == sorted(f"d{number}" for number in range(10, 50))
    finally:
        index.close()


def test_an_index_that_another_has_open_is_not_to_be_removed(tmp_path: Path) -> None:
    collection = EdgePoints(tmp_path / "chunks", DIMENSIONS, {})

    with pytest.raises(IndexUnavailable, match="another process has it open; end that first") as raised:
        EdgePoints(tmp_path / "chunks", DIMENSIONS, {})
    assert "remove" not in str(raised.value)

    collection.close()
    EdgePoints(tmp_path / "chunks", DIMENSIONS, {}).close()


def test_a_damaged_index_may_be_removed(tmp_path: Path) -> None:
    EdgePoints(tmp_path / "chunks", DIMENSIONS, {}).close()
    (tmp_path / "chunks" / "edge_config.json").write_bytes(b"\xff")

    with pytest.raises(IndexUnavailable, match=f"remove {tmp_path} and it is built anew"):
        EdgePoints(tmp_path / "chunks", DIMENSIONS, {})


def test_fusion_prefers_what_both_sides_rank_high() -> None:
    scores = fuse({"both": 0.9, "dense": 0.8, "low": 0.1}, {"both": 9.0, "words": 7.0, "low": 1.0})

    assert max(scores, key=lambda id: scores[id]) == "both"
    assert min(scores, key=lambda id: scores[id]) == "low"
    assert fuse({}, {"only": 3.0}) == {"only": 0.0}


def test_a_writer_that_compared_with_an_older_record_writes_nothing_over_it(index: QdrantIndex) -> None:
    written(index, "a", ["first", "second"], 5)
    compared = index.records(["a"])["a"]
    written(index, "a", ["first", "third"], 6)

    deleted = index.delete(Record(document_id="a", seen=7, deleted=True), compared)
    failed = index.fail(replace(compared, seen=8, failure=Failure(8, "clean", "it is empty")), compared)
    index.touch(compared, replace(compared, seen=9))

    assert (deleted, failed) == (False, False)
    assert [hit.text for hit in index.chunks("a")] == ["first", "third"]
    assert index.records(["a"])["a"].seen == 6
    assert index.counts().chunks == 2


def test_a_slow_writer_of_an_older_version_takes_no_point_from_a_newer_one(
    index: QdrantIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newer one keeps a passage that the older one removes, and comes between the older one's effects."""
    written(index, "a", ["first", "second"], 5)
    write = index._write

    def overtaken(record: Record, before: Record | None) -> bool:
        monkeypatch.setattr(index, "_write", write)
        written(index, "a", ["second", "fourth"], 7)
        return write(record, before)

    monkeypatch.setattr(index, "_write", overtaken)
    written(index, "a", ["first", "third"], 6)

    assert [hit.text for hit in index.chunks("a")] == ["second", "fourth"]
    index.sweep(index.records(["a"])["a"])
    assert index.counts().chunks == 2
    assert found(index, "second") == ["second", "fourth"]


def test_a_tombstone_is_kept_for_a_time_and_then_forgotten(index: QdrantIndex) -> None:
    written(index, "a", ["gone early"], 5)
    written(index, "b", ["gone late"], 5)
    for name, version in (("a", 9), ("b", 20)):
        index.delete(Record(document_id=name, seen=version, deleted=True), index.records([name])[name])

    assert index.forget_tombstones(20) == 1

    assert set(index.records(["a", "b"])) == {"b"}
    assert index.forget_tombstones(20) == 0
