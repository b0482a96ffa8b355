"""Index and warehouse compared: one state for each document, and nothing that differs is overlooked."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from corpus.agreement import compare, state
from corpus.index import Failure, Record
from corpus.warehouse import Stamp

THEN, LATER = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
STAMP = Stamp(
    id="a", content_hash="h1", crawled_at=THEN, title="T", url="u", author="A", category="article", platform="p"
)
RECORD = Record(document_id="a", seen=5, version=5, content_hash="h1", source_hash="h1", crawled_at=THEN)


def test_what_the_index_has_of_this_very_write_is_indexed() -> None:
    assert state(STAMP, RECORD) == "indexed"


def test_a_document_the_index_does_not_know_is_captured() -> None:
    assert state(STAMP, None) == "captured"
    assert state(STAMP, Record(document_id="a", seen=1)) == "captured"


def test_a_text_that_came_back_in_a_later_crawl_is_another_write() -> None:
    assert state(replace(STAMP, crawled_at=LATER), RECORD) == "captured"
    assert state(replace(STAMP, content_hash="h2"), RECORD) == "captured"


def test_a_failure_counts_for_the_version_it_names_and_for_any_where_it_names_none() -> None:
    failed = replace(RECORD, failure=Failure(6, "clean", "it is empty", "h2"))

    assert state(replace(STAMP, content_hash="h2"), failed) == "failed"
    assert state(STAMP, failed) == "indexed"
    assert state(STAMP, replace(failed, failure=Failure(6, "decode", "?", None))) == "failed"


def test_every_difference_is_named_once() -> None:
    stamps = [STAMP, replace(STAMP, id="b"), replace(STAMP, id="c", content_hash="h3")]
    records = [
        RECORD,
        replace(RECORD, document_id="c", failure=Failure(7, "split", "it is odd", "h3")),
        replace(RECORD, document_id="gone"),
        Record(document_id="refused", seen=3, failure=Failure(3, "validate", "no title", "h4")),
        Record(document_id="nonsense", seen=3, failure=Failure(3, "decode", "it is no change", None)),
    ]

    found = compare(stamps, records)

    assert (found.behind, found.leftover, found.failed) == (("b",), ("gone", "refused"), (("c", "split: it is odd"),))
    assert compare([STAMP], [RECORD]) == replace(found, behind=(), leftover=(), failed=())


def test_of_two_documents_with_one_id_either_may_be_indexed_and_the_id_is_named() -> None:
    other = replace(STAMP, content_hash="h2")
    for stamps in ((STAMP, other), (other, STAMP)):
        found = compare(stamps, [RECORD])
        assert (found.behind, found.leftover, [id for id, _ in found.failed]) == ((), (), ["a"])

    missed = compare((STAMP, other), [replace(RECORD, source_hash="h3")])
    assert (missed.behind, [id for id, _ in missed.failed]) == (("a",), ["a"])
