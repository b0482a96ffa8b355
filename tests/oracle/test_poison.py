"""Malformed and hostile messages: each becomes a letter, a document or is left aside, and none stops the others.

The few that take seconds are among them with TWIN_POISON=all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from poison import HERE, Poison, poisons
from world import GENERATION, LOG, Process, World

from corpus.documents import new_document
from streaming.changes import DeadLetter, Ignored, Message
from streaming.indexing import Indexed, Outcome, Removed, Unchanged
from streaming.log import features

ALL = poisons()
TRIED = [poison for poison in ALL if not poison.heavy or os.environ.get("TWIN_POISON") == "all"]
TOGETHER = 12
MEANT = {"refused": DeadLetter, "ignored": Ignored, "indexed": Indexed}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("poison"))
    yield made
    made.close()


def message(poison: Poison, offset: int) -> Message:
    return Message("changes", 0, offset, poison.key, poison.value, poison.headers, "life")


def good(world: World, number: int) -> str:
    """Put a good document into the warehouse; its id."""
    document = new_document(
        url=f"https://example.org/good-{number}",
        category="article",
        platform="example.org",
        author_name="Ada",
        title=f"Good {number}",
        text=f"# Good\n\nThe station {number} reports amber, basin and cedar, as it did on every day before this one.",
        crawl_id="crawl",
        crawled_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    world.put(document)
    return document.id


def test_there_are_two_hundred_of_them_and_each_has_its_name() -> None:
    assert len({poison.name for poison in ALL}) == len(ALL) >= 200
    assert {poison.headers[0] for poison in ALL if poison.name.startswith("text")} == {
        ("twin.warehouse", HERE.encode())
    }


def test_each_becomes_a_letter_or_a_document_or_is_left_aside(world: World) -> None:
    process = world.process()
    wrong: dict[str, str] = {}
    for offset, poison in enumerate(TRIED):
        (outcome,) = process.indexed([message(poison, offset)])
        told = features(outcome, LOG, GENERATION)
        if poison.becomes in MEANT and not isinstance(outcome, MEANT[poison.becomes]):
            wrong[poison.name] = f"{type(outcome).__name__}: {getattr(outcome, 'reason', '')}"
        elif isinstance(outcome, DeadLetter) and not (outcome.step and outcome.reason and told):
            wrong[poison.name] = f"a letter that says nothing: {outcome.step}, {outcome.reason}"
        elif isinstance(outcome, Indexed) and not outcome.record.places:
            wrong[poison.name] = "a document without a passage"

    assert wrong == {}


def test_good_documents_before_among_and_after_them_all_come_in(world: World) -> None:
    process, ids, offset = world.process(), [], 10_000
    outcomes: list[Outcome] = []
    for start in range(0, len(TRIED), TOGETHER):
        ids += [good(world, start), good(world, start + 1)]
        first, second = (each for each in _read(process) if each.value is not None)
        bad = [message(poison, offset + number) for number, poison in enumerate(TRIED[start : start + TOGETHER])]
        half, offset = len(bad) // 2, offset + TOGETHER
        outcomes += process.apply([*bad[:half], first, *bad[half:], second])
    ids.append(good(world, len(TRIED)))
    process.catch_up()

    assert world.difference(ids) is None
    assert {type(outcome) for outcome in outcomes} <= {Indexed, DeadLetter, Ignored, Removed, Unchanged}
    assert len(outcomes) == len(TRIED) + len(ids) - 1


def _read(process: Process) -> list[Message]:
    return process.read(100)


def test_what_was_indexed_of_them_is_found_and_read_without_an_error(world: World) -> None:
    process = world.process()
    good(world, 0)
    process.catch_up()
    seen = 0
    for record in process.index.scan():
        chunks = process.index.chunks(record.document_id)
        text = process.index.records([record.document_id])[record.document_id].text
        assert [hit.text for hit in chunks] == [text[hit.start : hit.end] for hit in chunks]
        seen += len(chunks)
    assert seen == process.index.counts().chunks > 0
