"""What a document is: one spelling of its address, an id that follows from it, and a hash of all that readers see."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus.documents import (
    InvalidDocument,
    author_identity,
    canonical_url,
    content_hash,
    from_record,
    headings_below,
    in_milliseconds,
    new_document,
    to_record,
)


@pytest.mark.parametrize(
    ("given_url", "canonical"),
    [
        ("HTTPS://Example.ORG:443/a/b/", "https://example.org/a/b"),
        ("http://example.org/?utm_source=x&b=2&a=1#part", "http://example.org?a=1&b=2"),
        ("https://example.org:8443/é", "https://example.org:8443/%C3%A9"),
        ("http://[::1]:80/x", "http://[::1]/x"),
        ("file:///notes/a b.md", "file:///notes/a%20b.md"),
    ],
)
def test_an_address_has_one_spelling(given_url: str, canonical: str) -> None:
    assert canonical_url(given_url) == canonical
    assert canonical_url(canonical) == canonical


@pytest.mark.parametrize("url", ["", "no-scheme/path", "http://[bad", "http://host:99999/"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidDocument):
        canonical_url(url)


@given(st.text(max_size=60))
@settings(deadline=None)
def test_any_path_keeps_one_spelling(path: str) -> None:
    try:
        canonical = canonical_url("https://example.org/" + path)
    except InvalidDocument:
        return
    assert canonical_url(canonical) == canonical


def test_an_author_is_known_by_any_spelling_of_the_name() -> None:
    assert author_identity("Ada  Lovelace ") == author_identity("ada lovelace")
    assert author_identity("Ada") != author_identity("Grace")


def test_moving_text_between_two_fields_changes_the_hash() -> None:
    assert content_hash("ab", "c") != content_hash("a", "bc")
    assert content_hash("a", None) != content_hash("a", "None")


@pytest.mark.parametrize(
    ("headings", "below"),
    [
        ((), ()),
        (("Tea", "Water"), ("Water",)),
        (("Tea: the leaves", "Water"), ("the leaves", "Water")),
        (("Teapots",), ("Teapots",)),
        (("Water", "Tea"), ("Water", "Tea")),
    ],
)
def test_headings_below_a_title_do_not_say_it_again(headings: tuple[str, ...], below: tuple[str, ...]) -> None:
    assert headings_below(headings, "Tea") == below
    assert headings_below(headings, "") == headings


def test_moments_are_kept_in_utc_milliseconds() -> None:
    berlin = timezone(timedelta(hours=2))

    assert in_milliseconds(datetime(2026, 1, 1, 2, 0, 0, 123999, berlin)) == datetime(2026, 1, 1, 0, 0, 0, 123000, UTC)


def test_a_record_gives_the_document_back_and_a_hand_edit_another_hash() -> None:
    document = new_document(
        url="https://example.org/a",
        category="article",
        platform="example.org",
        author_name="Ada",
        title="T",
        text="text",
        crawl_id="c",
        crawled_at=datetime(2026, 1, 1, tzinfo=UTC),
        metadata={"language": "en"},
    )

    assert from_record(to_record(document)) == document
    assert from_record({**to_record(document), "text": "edited"}).content_hash != document.content_hash


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"title": None}, "'title' is missing"),
        ({"text": 5}, "'text' is of type int"),
        ({"published_at": "2020"}, "expected a date"),
        ({"metadata": []}, "metadata"),
        ({"_id": 5.0}, "'_id' is of type float"),
        ({"_id": True}, "'_id' is of type bool"),
    ],
)
def test_a_record_that_is_no_document_says_which_field(change: dict[str, object], reason: str) -> None:
    record = {
        "_id": "a",
        "category": "article",
        "platform": "p",
        "author_name": "A",
        "url": "u",
        "title": "t",
        "text": "x",
    }
    changed = {**record, **change, **({"metadata": [1]} if "metadata" in change else {})}

    with pytest.raises(InvalidDocument, match=reason):
        from_record(changed)
