"""Seeded random operations and faults: at every rest the index, the ledger and the topics are what the oracle says.

`make soak` does the same for 100,000 operations, and then with real processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import qdrant_edge
from soak import Soak
from world import LOG, Killed, World

from corpus.points import Where


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_whatever_happens_the_index_equals_the_warehouse(tmp_path: Path, seed: int) -> None:
    soak = Soak(tmp_path, seed, names=25)

    soak.run(400)

    assert soak.counts["settled"] >= 3
    soak.world.close()


def test_points_of_a_document_that_nobody_knows_any_more_are_found(tmp_path: Path) -> None:
    soak = Soak(tmp_path, 4, names=10)
    new = soak.written("new")
    soak.put(new)
    effects = soak.process.effects
    effects.kill = (1, "after")
    with pytest.raises(Killed):
        soak.process.apply(soak.process.read(1))
    assert effects.done == ["upsert chunks"]

    # Neither the change nor the deletion is ever read again.
    soak.world.remove(new.id)
    soak.world.lose_log()
    soak.restart()
    soak.world.snapshot(lambda: None)
    soak.settle()

    assert soak.counts["reconciled"] == 1
    assert soak.world.difference() is None
    soak.world.close()


@pytest.fixture
def settled(tmp_path: Path) -> Iterator[World]:
    soak = Soak(tmp_path, 4, names=10)
    for _ in range(40):
        soak.change()
    soak.settle()
    yield soak.world
    soak.world.close()


def _some(world: World) -> str:
    return next(id for id, held in sorted(world.documents.items()) if held.document is not None)


def _chunk(world: World) -> str:
    return world.records()[_some(world)].chunk_ids[0]


def _without_a_point(world: World) -> None:
    world._index._chunks.delete(Where(ids=[_chunk(world)]))


def _with_another_payload(world: World) -> None:
    world._index._chunks.set_payload(Where(ids=[_chunk(world)]), {"title": "Of somebody else"})


def _with_a_foreign_point(world: World) -> None:
    shard = world._index._chunks._shard
    (point,) = shard.retrieve([_chunk(world)], True, True)
    copied = qdrant_edge.Point("00000000-0000-4000-8000-000000000000", dict(point.vector), dict(point.payload))
    shard.update(qdrant_edge.UpdateOperation.upsert_points([copied]))


def _without_a_record(world: World) -> None:
    world._index._ledger.delete(Where(equals={"document_id": _some(world)}))


def _with_an_older_message(world: World) -> None:
    key = _some(world).encode()
    message = world.topics[LOG.documents][key] or b""
    world.topics[LOG.documents][key] = message.replace(b'"title":"', b'"title":"Formerly ')


def _with_a_message_of_a_deleted_document(world: World) -> None:
    gone = min(world.known - set(world.documents))
    world.topics[LOG.chunks][gone.encode()] = b"{}"


@pytest.mark.parametrize(
    "spoilt",
    [
        _without_a_point,
        _with_another_payload,
        _with_a_foreign_point,
        _without_a_record,
        _with_an_older_message,
        _with_a_message_of_a_deleted_document,
    ],
)
def test_the_oracle_sees_what_is_wrong(settled: World, spoilt: Callable[[World], None]) -> None:
    assert settled.difference() is None

    spoilt(settled)

    assert settled.difference() is not None


def test_a_seed_tells_the_same_story_again(tmp_path: Path) -> None:
    first, second = (Soak(tmp_path / name, 9, names=10) for name in ("first", "second"))
    for soak in (first, second):
        soak.run(60)
        soak.world.close()

    assert first.counts == second.counts
    assert first.world.log == second.world.log
