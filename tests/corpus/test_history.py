"""The document history: what was said at any time can be read again, and what is erased is in no file."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from corpus.history import History, Overtaken, Told, open_history
from corpus.settings import load

START = datetime(2026, 6, 1, tzinfo=UTC)
MARKER = "zqmarkerzq"


def told(id: str, text: str | None, minute: int, *, version: int = 1, generation: str = "g1") -> Told:
    state: dict[str, Any] | None = None
    if text is not None:
        state = {
            **dict.fromkeys(("category", "platform", "author", "author_id", "url", "crawl_id"), "x"),
            "language": None,
            "published_at": None,
            "crawled_at": (START + timedelta(minutes=minute)).isoformat(),
            "document_id": id,
            "version": version,
            "generation": generation,
            "title": f"title of {id}",
            "content_hash": f"hash of {text}",
            "text": text,
        }
    return Told(document_id=id, at=START + timedelta(minutes=minute), state=state)


def recorded(history: History, *messages: Told) -> int:
    return history.record(messages, {"topic/0": len(messages)}, history.held())


def texts(history: History, **when: Any) -> dict[str, str]:
    return {each.document_id: each.text for each in history.documents(**when)}


@pytest.fixture
def history(tmp_path: Path) -> History:
    return open_history(load({"TWIN_HOME": str(tmp_path)}))


def test_documents_are_read_as_they_were_at_any_time(history: History) -> None:
    recorded(history, told("a", "one", 1), told("b", "bee", 2), told("a", "two", 3, version=2), told("b", None, 4))
    recorded(history, told("b", "back", 5, version=3))

    at = [START + timedelta(minutes=minute) for minute in range(6)]
    assert [texts(history, as_of=moment) for moment in at] == [
        {},
        {"a": "one"},
        {"a": "one", "b": "bee"},
        {"a": "two", "b": "bee"},
        {"a": "two"},
        {"a": "two", "b": "back"},
    ]


def test_what_is_recorded_later_does_not_change_what_was_read(history: History) -> None:
    recorded(history, told("a", "one", 1))
    known = history.last()
    before = texts(history, sequence=known)

    # Of a time before, but told only now.
    recorded(history, told("late", "late", 0), told("a", "two", 2, version=2))

    assert texts(history, sequence=known) == before == {"a": "one"}
    assert texts(history, as_of=START) == {"late": "late"}


def test_what_is_told_again_is_recorded_once(history: History) -> None:
    first = [told("a", "one", 1), told("b", None, 1), told("b", "bee", 2), told("b", None, 3)]

    # An end of what was never there says nothing.
    assert recorded(history, *first) == 3
    assert recorded(history, told("a", "one", 9), told("b", None, 9)) == 0
    assert history.last() == 3


def test_documents_are_of_the_newest_recipes_once_these_made_all_of_them(history: History) -> None:
    recorded(history, told("a", "old a", 1), told("b", "old b", 1), told("a", "new a", 2, generation="g2"))

    assert texts(history) == {"a": "old a", "b": "old b"}
    assert texts(history, generation="g2") == {"a": "new a"}
    recorded(history, told("b", "new b", 3, generation="g2"))
    assert texts(history) == {"a": "new a", "b": "new b"}
    assert texts(history, generation="g1") == {"a": "old a", "b": "old b"}


def test_of_two_writers_from_the_same_state_one_is_refused_and_goes_on(history: History, tmp_path: Path) -> None:
    other = open_history(load({"TWIN_HOME": str(tmp_path)}))
    recorded(history, told("a", "one", 1))

    with pytest.raises(Overtaken):
        recorded(other, told("a", "one", 1))

    assert recorded(other, told("a", "one", 1), told("b", "bee", 2)) == 1
    history.refresh()
    assert [history.last(), history.position("topic/0"), texts(history)] == [2, 2, {"a": "one", "b": "bee"}]


def test_an_erased_document_is_in_no_file_and_the_others_stay(history: History, tmp_path: Path) -> None:
    recorded(history, told("a", "one", 1), told(MARKER, f"about {MARKER}", 2))
    recorded(history, told(MARKER, f"more {MARKER}", 3, version=2), told(MARKER, None, 4))
    recorded(history, told(MARKER, "read again afterwards", 10, version=5))
    assert MARKER.encode() in b"".join(path.read_bytes() for path in tmp_path.rglob("*.parquet"))

    found = history.erase(lambda id, read: id == MARKER and read < START + timedelta(minutes=5))

    assert (found, texts(history)) == (3, {"a": "one", MARKER: "read again afterwards"})
    kept = [path for path in (tmp_path / "history").rglob("*") if path.is_file() and b"about " in path.read_bytes()]
    assert kept == []
    assert history.erase(lambda id, read: id == MARKER) == 1
    left = [path.name for path in (tmp_path / "history").rglob("*") if path.is_file() and holds(path, MARKER)]
    assert left == []
    # Numbers are never given again.
    recorded(history, told("c", "sea", 11))
    assert history.last() == 6


def test_a_file_that_a_refused_commit_left_goes_with_an_erasure(history: History, tmp_path: Path) -> None:
    other = open_history(load({"TWIN_HOME": str(tmp_path)}))
    recorded(history, told("a", "one", 1))
    with pytest.raises(Overtaken):
        recorded(other, told(MARKER, f"about {MARKER}", 1))
    left = [path for path in (tmp_path / "history").glob("*.parquet") if holds(path, MARKER)]
    assert len(left) == 1
    assert history.count(lambda id, read: id == MARKER) == 1

    history.erase(lambda id, read: id == MARKER)

    assert not left[0].exists()
    assert (history.count(lambda id, read: id == MARKER), texts(history)) == (0, {"a": "one"})


def test_a_reader_whose_place_in_the_log_was_removed_reads_on(history: History, tmp_path: Path) -> None:
    recorded(history, told("a", "one", 1))
    late = open_history(load({"TWIN_HOME": str(tmp_path)}))
    recorded(history, told("b", "bee", 2))
    history.erase(lambda id, read: id == "a")
    recorded(history, told("c", "sea", 3))

    late.refresh()
    assert (late.last(), late.position("topic/0"), texts(late)) == (3, 1, {"b": "bee", "c": "sea"})


def test_of_an_erased_document_that_came_again_the_history_knows_since_when(history: History) -> None:
    recorded(history, told("a", "one", 1), told("b", "bee", 2), told("a", None, 3))
    recorded(history, told("a", "again", 5, version=2), told("a", "again, and more", 6, version=3))
    assert history.begun() == {"a": START + timedelta(minutes=1), "b": START + timedelta(minutes=2)}

    history.erase(lambda id, read: id == "a" and read < START + timedelta(minutes=4))

    assert history.begun() == {"a": START + timedelta(minutes=5), "b": START + timedelta(minutes=2)}


def test_the_newest_of_many_versions_is_read_with_its_own_text(history: History) -> None:
    for number in range(3):
        recorded(history, *(told(f"d{id}", f"{id} of {number}", number, version=number + 1) for id in range(20)))
    recorded(history, told("d0", None, 5))

    assert texts(history) == {f"d{id}": f"{id} of 2" for id in range(1, 20)}
    assert {id: held.version for id, held in history.held().items()} == {f"d{id}": 3 for id in range(20)}


def holds(path: Path, text: str) -> bool:
    return text.encode() in path.read_bytes()


def test_many_small_commits_are_joined_without_a_loss(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corpus.history.FILES_TOGETHER", 5)

    for number in range(12):
        recorded(history, told(f"d{number:02}", f"text {number}", number))

    assert texts(history) == {f"d{number:02}": f"text {number}" for number in range(12)}
    assert len(history._table.file_uris()) < 5
