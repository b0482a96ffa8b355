"""Killed at every effect of every kind of change, once and twice: what is there afterwards is what the oracle says.

An effect is a write to the index, a feature message, or the commit of the offsets. The process dies before or after it,
another one starts where the log was committed, and nobody who reads meanwhile sees a mixture of two versions.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product

import pytest
from world import Effects, Killed, World, expected_of

from corpus.documents import Document, new_document
from corpus.index import Filters

# All pairs take minutes; every SAMPLE-th is tried unless TWIN_CRASH_PAIRS=all.
SAMPLE = 1 if os.environ.get("TWIN_CRASH_PAIRS") == "all" else 29
START = datetime(2026, 1, 1, tzinfo=UTC)
Act = Callable[[World, str], None]


def section(word: str, number: int) -> str:
    plain = " ".join(random.Random(number).choices(["amber", "basin", "cedar", "delta", "ember", "fjord"], k=45))
    return f"## Section {number}\n\nThe {word} station {number} reports {plain}."


def document(name: str, *sections: str, **changes: object) -> Document:
    fields = {
        "url": f"https://example.org/{name}",
        "category": "article",
        # Of its own, so that a search can be narrowed to this document.
        "platform": name,
        "author_name": "Ada",
        "title": "Before",
        "text": "# Notes\n\n" + "\n\n".join(sections),
        "crawl_id": "crawl",
        "crawled_at": START,
    }
    return new_document(**{**fields, **changes})


ONE, TWO, THREE, CHANGED = section("one", 1), section("two", 2), section("three", 3), section("changed", 2)
OLD = (ONE, TWO, THREE)


def put(*sections: str, **changes: object) -> Act:
    return lambda world, name: world.put(document(name, *sections, **changes))


def remove(world: World, name: str) -> None:
    world.remove(document(name).id)


def twice(first: Act, second: Act) -> Act:
    def act(world: World, name: str) -> None:
        first(world, name)
        second(world, name)

    return act


def read(world: World, name: str) -> None:
    world.append_read(document(name).id)


@dataclass(frozen=True)
class Change:
    """`before`: what there is, at rest; `act`: what is then done, of which every effect is cut short.

    `then`: what the source does while the process is away, after it was killed: the redelivery is not of the same.
    """

    before: Act | None
    act: Act
    then: Act | None = None


CHANGES = {
    "new": Change(None, put(*OLD)),
    "edit": Change(put(*OLD), put(ONE, CHANGED, THREE)),
    "edit that moves": Change(put(*OLD), put(THREE, ONE, CHANGED)),
    "title only": Change(put(*OLD), put(*OLD, title="After")),
    "author and category only": Change(put(*OLD), put(*OLD, author_name="Grace", category="post")),
    "delete": Change(put(*OLD), remove),
    "re-insert": Change(twice(put(*OLD), remove), put(ONE, CHANGED)),
    "delete and re-insert at once": Change(put(*OLD), twice(remove, put(ONE, CHANGED))),
    "edit to nothing": Change(put(*OLD), put("  \n")),
    "new and nothing": Change(None, put("  \n")),
    "mended": Change(twice(put(*OLD), put("  \n")), put(ONE, CHANGED, THREE)),
    "read of what is there": Change(put(*OLD), read),
    "read of what was missed": Change(put(*OLD), lambda world, name: missed(world, name)),
    "edit, and back while away": Change(put(*OLD), put(THREE, CHANGED, ONE, title="After"), put(*OLD)),
    "edit, and another while away": Change(put(*OLD), put(THREE, CHANGED, title="After"), put(ONE, TWO)),
    "edit, and deleted while away": Change(put(*OLD), put(CHANGED, title="After"), remove),
    "edit, and refused while away": Change(put(*OLD), put(THREE, CHANGED, ONE, title="After"), put("  \n")),
    "delete, and new while away": Change(put(*OLD), remove, put(ONE, CHANGED)),
    "delete, and refused while away": Change(put(*OLD), remove, put("  \n")),
}


def missed(world: World, name: str) -> None:
    """A change that no message tells of, and a snapshot after it."""
    world.dropping = True
    world.put(document(name, ONE, CHANGED, THREE, title="After"))
    world.dropping = False
    read(world, name)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("matrix"), random.Random(5))
    yield made
    made.close()


class Reader:
    """Somebody who reads the document at any moment: it is one of the versions that there were, whole, or none."""

    def __init__(self, world: World, name: str) -> None:
        self.id, self.own = document(name).id, Filters(platform=name)
        self.index = world.index_of(Effects())
        self.allowed: list[Document] = []

    def knows(self, *documents: Document | None) -> None:
        self.allowed += [each for each in documents if each is not None]

    def looks(self) -> None:
        record = self.index.records([self.id]).get(self.id)
        chunks = self.index.chunks(self.id)
        if record is None or record.deleted or record.version is None:
            assert chunks == []
            return
        wanted = [expected_of(each) for each in self.allowed if each.content_hash == record.content_hash]
        assert wanted, f"shown is what it never was: {record}"
        assert any(
            record.text == one.text
            and [(hit.chunk_id, hit.text, hit.title) for hit in chunks]
            == [(each.id, each.payload["text"], each.payload["title"]) for each in one.passages]
            for one in wanted
        ), f"a mixture: {record}"
        points = self.index.vectors(record.chunk_ids)
        assert set(points) == set(record.chunk_ids), "a passage without its point"
        found = self.index.search("station reports amber", points[record.chunk_ids[0]], self.own, 50)
        assert {hit.chunk_id for hit in found} == {hit.chunk_id for hit in chunks}


def effects_of(world: World, name: str, change: Change) -> list[str]:
    """The effects of a change that nothing cuts short."""
    prepared(world, name, change)
    change.act(world, name)
    process = world.process()
    process.catch_up()
    must_be_equal(world, name)
    return process.effects.done


def prepared(world: World, name: str, change: Change) -> None:
    if change.before is not None:
        change.before(world, name)
        world.process().catch_up()
    world.at_rest()


def must_be_equal(world: World, name: str) -> None:
    world.at_rest()
    assert world.difference([document(name).id]) is None


def cut_short(world: World, name: str, change: Change, kills: list[tuple[int, str]]) -> None:
    """The change, killed at these effects one process after the other; then everything is delivered, and compared."""
    prepared(world, name, change)
    id = document(name).id
    reader = Reader(world, name)
    reader.knows(*(world.documents[id].former if id in world.documents else ()))
    change.act(world, name)
    for number, kill in enumerate(kills):
        if id in world.documents:
            reader.knows(*world.documents[id].former)
        process = world.process()
        process.effects.kill = kill
        process.effects.look = reader.looks
        with suppress(Killed):
            process.catch_up()
        reader.looks()
        if number == 0 and change.then is not None:
            change.then(world, name)
            if id in world.documents:
                reader.knows(*world.documents[id].former)
    world.process().catch_up()
    reader.looks()
    must_be_equal(world, name)


@pytest.mark.parametrize("kind", CHANGES)
def test_killed_at_any_effect(world: World, kind: str) -> None:
    change = CHANGES[kind]
    count = len(effects_of(world, f"{kind}-whole", change))
    assert count >= 2
    for number, moment in product(range(1, count + 1), ("before", "after")):
        cut_short(world, f"{kind}-{number}-{moment}", change, [(number, moment)])


@pytest.mark.parametrize("kind", CHANGES)
def test_killed_at_any_effect_and_at_any_of_the_redelivery(world: World, kind: str) -> None:
    change = CHANGES[kind]
    count = len(effects_of(world, f"{kind}-whole-2", change))
    # A redelivery with what came meanwhile has more effects than the change alone.
    kills = list(product(range(1, count + 1), ("before", "after")))
    again = list(product(range(1, count + 6 + 1), ("before", "after")))
    pairs = list(product(kills, again))[::SAMPLE]
    print(f"{kind}: {count} effects, {len(pairs)} pairs")
    for first, second in pairs:
        cut_short(world, f"{kind}-{first}-{second}".replace(" ", ""), change, [first, second])
