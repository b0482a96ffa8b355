"""A collection that is written anew has nothing of what was deleted in its files, and all else as it was."""

from __future__ import annotations

import random
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from corpus.closed_generations import count_closed, erase_closed
from corpus.index import CHUNK_FIELDS, LEDGER_FIELDS, ledger_point
from corpus.points import DENSE, EdgePoints, IndexUnavailable, Point, Sparse, Where
from corpus.settings import Settings

MARKER = "zqmarkerzq"
DIMENSIONS = 8


def points(count: int, document: str, text: str) -> list[Point]:
    source = random.Random(document)
    return [
        Point(
            str(uuid.UUID(int=source.getrandbits(128))),
            {"document_id": document, "text": f"{text} {number}", "version": number},
            [source.gauss(0, 1) for _ in range(DIMENSIONS)],
            Sparse([number, 10_000], [0.5, 0.25]),
        )
        for number in range(count)
    ]


def opened(directory: Path) -> EdgePoints:
    return EdgePoints(directory, DIMENSIONS, CHUNK_FIELDS)


def marked(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and MARKER.encode() in path.read_bytes()]


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[EdgePoints]:
    """600 points that stay, 300 that were deleted, and one that was overwritten."""
    with closing(opened(tmp_path / "chunks")) as found:
        found.upsert([*points(600, "kept", "plain"), *points(300, "gone", MARKER)])
        first = points(1, "kept", MARKER)
        found.upsert(first)
        found.upsert(points(1, "kept", "plain"))
        found.delete(Where(equals={"document_id": "gone"}))
        yield found


def everything(of: EdgePoints) -> dict[str, object]:
    ids = [point.id for point in of.scroll(Where())]
    return {point.id: (point.payload, point.dense) for point in of.retrieve(ids, vectors=[DENSE])}


def test_what_was_deleted_or_overwritten_is_in_no_file_and_the_rest_is_as_it_was(
    collection: EdgePoints, tmp_path: Path
) -> None:
    before = everything(collection)
    nearest = [point.id for point in collection.nearest([1.0] * DIMENSIONS, Where(), 10)]
    words = [point.id for point in collection.nearest(Sparse([5], [1.0]), Where(), 1)]
    assert marked(tmp_path) != []

    assert collection.compact()

    assert marked(tmp_path) == []
    assert (len(before), everything(collection)) == (600, before)
    assert [point.id for point in collection.nearest([1.0] * DIMENSIONS, Where(), 10)] == nearest
    assert [point.id for point in collection.nearest(Sparse([5], [1.0]), Where(), 1)] == words
    assert collection.count(Where(equals={"document_id": "kept"}, at_most={"version": 9})) == 10
    assert [path.name for path in tmp_path.iterdir()] == ["chunks"]


def test_reads_go_on_and_no_write_is_lost_meanwhile(collection: EdgePoints) -> None:
    failed: list[BaseException] = []
    written: list[str] = []
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            assert len(list(collection.scroll(Where(equals={"document_id": "kept"})))) == 600
            assert len(collection.nearest([1.0] * DIMENSIONS, Where(), 5)) == 5

    def write() -> None:
        while not ended.is_set():
            (point,) = points(1, f"new {len(written)}", "plain")
            collection.upsert([point])
            written.append(point.id)

    def kept(work: object) -> None:
        try:
            work()  # type: ignore[operator]
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=kept, args=(work,)) for work in (read, read, write)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        collection.compact()
    ended.set()
    for thread in threads:
        thread.join()

    assert failed == []
    assert len(collection.retrieve(written)) == len(written) > 0


@pytest.mark.parametrize("crashed", ["while it is copied", "between the two renames", "before the former is removed"])
def test_a_crash_leaves_one_whole_collection(tmp_path: Path, crashed: str) -> None:
    place, former, anew = (tmp_path / name for name in ("chunks", "chunks.old", "chunks.new"))
    whole = {"while it is copied": place, "between the two renames": former, "before the former is removed": place}
    beside = {"while it is copied": anew, "between the two renames": anew, "before the former is removed": former}
    for directory, count in ((whole[crashed], 5), (beside[crashed], 3)):
        with closing(opened(tmp_path / "made")) as made:
            made.upsert(points(count, "kept", "plain"))
        (tmp_path / "made").rename(directory)

    with closing(opened(place)) as found:
        assert found.count(Where()) == 5

    assert [path.name for path in tmp_path.iterdir()] == ["chunks"]


def test_a_disk_that_takes_no_copy_leaves_the_collection_in_use(
    collection: EdgePoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(collection, "_make", full)
        with pytest.raises(IndexUnavailable, match="no space left"):
            collection.compact()

    assert collection.count(Where()) == 600
    assert collection.compact()
    assert marked(tmp_path) == []


def test_generations_that_nobody_has_open_are_erased_too(tmp_path: Path) -> None:
    settings, ids = Settings(home=tmp_path), ["gone"]
    for generation in ("open", "closed"):
        closed_generation(tmp_path, generation)

    assert count_closed(settings, {"open"}, ids) == 4
    assert erase_closed(settings, {"open"}, ids) == 4

    assert count_closed(settings, {"open"}, ids) == 0
    assert {path.relative_to(tmp_path / "index").parts[0] for path in marked(tmp_path)} == {"open"}
    with closing(opened(tmp_path / "index" / "closed" / "chunks")) as chunks:
        assert chunks.count(Where()) == 10


def closed_generation(home: Path, generation: str = "closed") -> None:
    """A generation that nobody has open, with ten chunks that stay, three and a record that are to go."""
    place = home / "index" / generation
    with closing(opened(place / "chunks")) as chunks:
        chunks.upsert([*points(10, "kept", "plain"), *points(3, "gone", MARKER)])
    with closing(EdgePoints(place / "documents", None, LEDGER_FIELDS)) as ledger:
        ledger.upsert([Point(ledger_point("gone"), {"text": MARKER, "seen": 1, "state": "indexed"})])


@pytest.mark.parametrize("part", ["chunks", "documents"])
def test_a_closed_generation_whose_compaction_was_killed_is_counted_and_erased(tmp_path: Path, part: str) -> None:
    settings, ids = Settings(home=tmp_path), ["gone"]
    closed_generation(tmp_path)
    place = tmp_path / "index" / "closed" / part
    # As it is between the two renames.
    shutil.copytree(place, place.with_name(f"{part}.new"))
    place.rename(place.with_name(f"{part}.old"))

    assert count_closed(settings, (), ids) == 4
    place.rename(place.with_name(f"{part}.old"))
    assert erase_closed(settings, (), ids) == 4

    assert (count_closed(settings, (), ids), marked(tmp_path)) == (0, [])
    with closing(opened(tmp_path / "index" / "closed" / "chunks")) as chunks:
        assert chunks.count(Where()) == 10


@pytest.mark.parametrize("part", ["chunks", "documents"])
def test_one_collection_of_a_generation_is_erased_without_the_other(tmp_path: Path, part: str) -> None:
    settings, ids = Settings(home=tmp_path), ["gone"]
    closed_generation(tmp_path)
    shutil.rmtree(tmp_path / "index" / "closed" / part)

    assert count_closed(settings, (), ids) == erase_closed(settings, (), ids) == (1 if part == "chunks" else 3)

    assert (count_closed(settings, (), ids), marked(tmp_path)) == (0, [])
    assert not (tmp_path / "index" / "closed" / part).exists()


def test_what_is_left_of_a_removed_generation_goes(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    closed_generation(tmp_path, "former.removed")
    shutil.rmtree(tmp_path / "index" / "former.removed" / "documents")
    (tmp_path / "index" / "former.removed" / "chunks" / "edge_config.json").unlink()

    assert count_closed(settings, (), ["gone"]) == 1
    erase_closed(settings, (), ["gone"])

    assert (count_closed(settings, (), ["gone"]), marked(tmp_path)) == (0, [])
