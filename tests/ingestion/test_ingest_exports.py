"""Warehouse exports through `twin ingest`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from corpus.documents import to_record

HANDBOOK = Path(__file__).parents[2].parent / "shared" / "data" / "handbook" / "articles.json"


def entry(number: int = 1, **fields: Any) -> dict[str, Any]:
    """A document in the shape of the LLM Engineer's Handbook."""
    return {
        "_id": f"id-{number}",
        "content": {
            "Title": f"Title {number}",
            "Subtitle": None,
            "Content": f"# Text {number}\n\nMore.",
            "language": "en",
        },
        "link": f"https://example.com/{number}",
        "platform": "medium",
        "author_id": "11111111-2222-3333-4444-555555555555",
        "author_full_name": "Ada",
        **fields,
    }


def export(*entries: Any, text: str | None = None) -> str:
    Path("export.json").write_text(text if text is not None else json.dumps(entries))
    return "export.json"


def test_the_handbooks_articles_go_in_as_they_are(twin: Any) -> None:
    if not HANDBOOK.exists():
        pytest.skip("the handbook's articles are not beside this project (../shared/data/handbook/articles.json)")
    entries = json.loads(HANDBOOK.read_text())

    result = twin.ingest(str(HANDBOOK))

    assert (result["seen"], result["inserted"], result["failed"]) == (76, 76, [])
    texts = {document.url: document.text for document in twin.documents()}
    assert sorted(texts.values()) == sorted(entry["content"]["Content"] for entry in entries)
    assert twin.ingest(str(HANDBOOK))["unchanged"] == 76


def test_an_entry_becomes_a_document(twin: Any) -> None:
    twin.ingest(export(entry(content={"Title": "T", "Subtitle": "S", "Content": "Text.", "language": "en"})))
    document = twin.only()
    assert (document.title, document.text, document.author_name) == ("T", "Text.", "Ada")
    assert document.author_id == "11111111-2222-3333-4444-555555555555"
    assert (document.platform, document.category, document.url) == ("medium", "article", "https://example.com/1")
    assert document.metadata == {"language": "en", "subtitle": "S"}


def test_what_is_null_is_found_elsewhere_or_unknown(twin: Any) -> None:
    content = {"Title": None, "Subtitle": None, "Content": "# Heading\n\nText.", "language": None}
    twin.ingest(export(entry(content=content, platform=None, author_id=None, author_full_name=None)))
    document = twin.only()
    assert (document.title, document.platform, document.author_name) == ("Heading", "example.com", "Unknown")
    assert document.language is None


def test_a_given_author_replaces_the_exports(twin: Any) -> None:
    twin.ingest(export(entry()), "--author", "Grace")
    assert twin.only().author_name == "Grace"
    assert twin.only().author_id != "11111111-2222-3333-4444-555555555555"


def test_our_own_records_come_back_as_they_were(twin: Any) -> None:
    twin.ingest(export(entry(1), entry(2)))
    before = twin.documents()
    records = [to_record(document) for document in before]
    Path("records.json").write_bytes(msgspec.json.encode(records))
    assert twin.ingest("records.json")["unchanged"] == 2
    twin.warehouse.delete([document.id for document in before])
    twin.ingest("records.json")
    assert [document.content_hash for document in twin.documents()] == [document.content_hash for document in before]


def test_dates_are_read_as_text_and_as_extended_json(twin: Any) -> None:
    twin.ingest(
        export(
            entry(1, published_at="2024-03-04T05:06:07Z"),
            entry(2, published_at={"$date": "2024-03-04T05:06:07Z"}),
            entry(3, published_at="lately"),
        )
    )
    moment = datetime(2024, 3, 4, 5, 6, 7, tzinfo=UTC)
    assert [document.published_at for document in twin.documents()] == [moment, moment, None]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("text", "is not a document: expected a JSON object"),
        ({}, "has no address: expected text in 'link' or 'url'"),
        (entry(9, link=None), "has no address: expected text in 'link' or 'url'"),
        (entry(9, link="no address"), "not an absolute URL: 'no address'"),
        (entry(9, link="http://[bad", platform=None), "not a valid URL"),
        (entry(9, content={"Title": "T", "Content": None}), "is empty"),
        (entry(9, content={"Title": "T", "Content": " \n"}), "is empty"),
        (entry(9, content={"Title": "T", "Content": 7}), "has no text in 'text': it is a number"),
        (entry(9, author_full_name=["Ada"]), "has no text in 'author': it is a list"),
        (
            entry(9, content={"Title": "T", "Content": "a \ud800 b"}),
            "has a lone surrogate (U+D800) in its text at character 2: it is not valid Unicode",
        ),
        (
            entry(9, content={"Title": "T", "Content": "x" * 30_000_000}),
            "is too large: 30.0 MB of text, the limit is 8.0 MB (TWIN_MAX_DOCUMENT_BYTES)",
        ),
        (entry(9, metadata={"number": 2**70}), "cannot be stored (MongoDB can only handle up to 8-byte ints)"),
        (entry(9, content={"Title": {}, "Content": "T"}), "has no text in 'title': it is an object"),
        (entry(9, category="poem"), "category 'poem' is not known"),
    ],
)
def test_a_bad_entry_is_listed_and_the_others_go_in(twin: Any, bad: Any, reason: str) -> None:
    result = twin.ingest(export(entry(1), bad, entry(2)))
    assert result["inserted"] == 2
    (failure,) = result["failed"]
    assert failure["source"].startswith("export.json[1]")
    assert failure["reason"].lower().startswith(reason.lower())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not JSON"),
        ('[{"link": ', "is not JSON"),
        ("[" * 100_000, "is not JSON that can be read: it is nested too deeply"),
        ('{"documents": []}', "is not an export: expected a JSON array of documents"),
    ],
)
def test_what_is_no_export_fails(twin: Any, text: str, reason: str) -> None:
    (failure,) = twin.ingest(export(text=text), code=1)["failed"]
    assert failure["reason"].startswith(reason)


def test_an_export_that_is_not_utf_8_fails(twin: Any) -> None:
    Path("export.json").write_bytes(b'["\xff"]')
    (failure,) = twin.ingest("export.json", code=1)["failed"]
    assert failure["reason"] == "is not valid UTF-8: byte 0xff at offset 2"


def test_a_missing_export_fails(twin: Any) -> None:
    (failure,) = twin.ingest("no-such.json", code=1)["failed"]
    assert failure["reason"] == "does not exist"


def test_an_empty_export_is_nothing_to_do(twin: Any) -> None:
    assert twin.ingest(export())["seen"] == 0


def test_two_documents_with_one_address_are_not_lost_silently(twin: Any) -> None:
    other = entry(2, link="https://EXAMPLE.com/1?utm_source=feed")
    result = twin.ingest(export(entry(1), other))
    assert (result["inserted"], twin.only().title) == (1, "Title 1")
    (failure,) = result["failed"]
    assert failure["source"].startswith("export.json[1]")
    assert failure["reason"] == ("has the same address as export.json[0] https://example.com/1, but another content")


def test_the_same_document_twice_is_no_failure(twin: Any) -> None:
    result = twin.ingest(export(entry(1), entry(1)))
    assert (result["seen"], result["inserted"], result["unchanged"], result["failed"]) == (2, 1, 1, [])
