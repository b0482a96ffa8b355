"""Passages are wide enough to be understood, never overlap, and are the document's text letter for letter."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus.index import Filters, Hit, Place, Record
from serving.retrieval import InvalidQuestion, checked_question, filters_from, moment, passages, widened


def hit(record: Record, start: int, end: int, score: float = 1.0) -> Hit:
    about = (record.title, record.url, record.author, record.category, record.platform, None, None, ())
    return Hit(
        record.document_id, f"c{start}", record.version or 0, *about, 0, start, end, record.text[start:end], score
    )


def record(text: str, id: str = "d") -> Record:
    places = (Place("first", 0, 5, ("A",)), Place("second", 5, len(text), ("B",)))
    return Record(document_id=id, seen=1, version=1, text=text, places=places)


@given(st.integers(0, 60), st.integers(1, 40), st.integers(1, 50), st.sampled_from([" ", "\n\n", "\n"]))
@settings(deadline=None)
def test_widening_keeps_the_hit_and_stays_near_the_words_asked_for(
    start: int, length: int, words: int, gap: str
) -> None:
    text = gap.join(f"w{number}" for number in range(60))
    start = min(start * 3, len(text) - 1)
    end = min(len(text), start + length)
    begin, finish = widened(text, start, end, words)
    assert 0 <= begin <= start < end <= finish <= len(text)
    assert len(text[begin:finish].split()) <= max(words, len(text[start:end].split())) + 2


def test_a_short_document_is_given_whole() -> None:
    text = "One two.\n\nThree four.\n\nFive six."
    assert widened(text, 10, 21, 300) == (0, len(text))


def test_hits_of_one_region_make_one_passage_numbered_from_one() -> None:
    text = "\n\n".join(f"Paragraph {number} " + "word " * 200 for number in range(20))
    known = record(text)
    far = text.index("Paragraph 15")
    near = [hit(known, 0, 40, 3.0), hit(known, far, far + 40, 2.0), hit(known, 60, 90, 1.0)]
    found = passages(near, {"d": known})
    assert [(each.n, each.score) for each in found] == [(1, 3.0), (2, 2.0)]
    assert found[0].end <= found[1].start
    assert all(each.text == text[each.start : each.end] for each in found)


def test_a_hit_whose_document_has_moved_on_is_left_out() -> None:
    before, after = record("The old text of it."), record("A new text of it, longer.")
    deleted = Record(document_id="d", seen=2, deleted=True)
    assert passages([hit(before, 4, 12)], {"d": after}) == []
    assert passages([hit(before, 4, 12)], {"d": deleted}) == []
    assert passages([hit(before, 4, 12)], {}) == []


def test_a_place_in_a_passage_names_its_own_chunk() -> None:
    known = record("Head. And the tail of it.")
    passage = passages([hit(known, 0, 5)], {"d": known})[0]
    assert passage.place_of(2).chunk_id == "first"
    assert passage.place_of(12).heading_path == ("B",)


def test_dates_name_the_first_and_the_last_instant_of_what_they_say() -> None:
    assert moment("2024", "since") == datetime(2024, 1, 1, tzinfo=UTC)
    assert moment("2024-02", "until", last=True) == datetime(2024, 2, 29, 23, 59, 59, 999000, UTC)
    assert moment("2024-12-31", "until", last=True) == datetime(2024, 12, 31, 23, 59, 59, 999000, UTC)
    assert moment("2024-05-01T10:00:00+02:00", "since").astimezone(UTC).hour == 8


@pytest.mark.parametrize("text", ["yesterday", "2024-13", "2024-02-30", "0000", "9999", "２０２４-1"])
def test_what_is_no_date_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidQuestion, match="since is"):
        moment(text, "since")


def test_empty_filters_mean_any() -> None:
    assert filters_from(author="", since="") == Filters()


def test_a_category_that_there_is_not_is_refused_and_the_known_ones_named() -> None:
    with pytest.raises(InvalidQuestion, match="'artcle' is not known: choose one of article"):
        filters_from(category="artcle")


def test_a_question_is_trimmed_and_bounded() -> None:
    assert checked_question("  why?\n", 10) == "why?"
    with pytest.raises(InvalidQuestion, match="empty"):
        checked_question(" \n ", 10)
    with pytest.raises(InvalidQuestion, match="100,000 characters, at most 4,000"):
        checked_question("x" * 100_000, 4_000)
