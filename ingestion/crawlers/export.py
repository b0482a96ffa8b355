"""A warehouse export: a JSON array of documents, in the shape of the LLM Engineer's Handbook or in our records' own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ingestion.drafts import Draft, Failed, Item, Options, reason_of
from ingestion.formats import first_heading
from ingestion.reading import Unreadable, decode, moment


def accepts(source: str) -> bool:
    """A path that ends in .json."""
    return source.lower().endswith(".json") and "://" not in source


def crawl(source: str, options: Options) -> Iterator[Item]:
    """Every document of the array; one that is not a document fails alone."""
    path = Path(source).expanduser()
    try:
        entries = json.loads(decode(path.read_bytes()))
    except FileNotFoundError:
        yield Failed(source, "does not exist", lost=True)
        return
    except OSError as error:
        yield Failed(source, f"cannot be read: {reason_of(error)}", lost=True)
        return
    except Unreadable as error:
        yield Failed(source, str(error))
        return
    except (ValueError, RecursionError) as error:
        yield Failed(source, f"is not JSON that can be read: {reason_of(error)}")
        return
    if not isinstance(entries, list):
        yield Failed(source, "is not an export: expected a JSON array of documents")
        return
    for position, entry in enumerate(entries):
        yield _draft(entry, f"{source}[{position}]", options)


def _draft(entry: object, source: str, options: Options) -> Draft | Failed:
    if not isinstance(entry, Mapping):
        return Failed(source, "is not a document: expected a JSON object")
    url = entry.get("link") or entry.get("url")
    if not isinstance(url, str):
        return Failed(source, "has no address: expected text in 'link' or 'url'")
    source = f"{source} {url}"
    if entry.get("text") is None and not isinstance(entry.get("content"), Mapping):
        return Failed(source, "has no text: expected it in 'text', or in 'Content' of an object 'content'", url)
    fields = _handbook(entry) if isinstance(entry.get("content"), Mapping) else _record(entry)
    wrong = [name for name, value in fields.items() if value is not None and not isinstance(value, str)]
    if wrong:
        return Failed(source, f"has no text in {wrong[0]!r}: it is {_kind(fields[wrong[0]])}", url)
    text = fields["text"] or ""
    metadata = entry.get("metadata")
    known = dict(metadata) if isinstance(metadata, Mapping) else {}
    known |= {name: fields[name] for name in ("language", "subtitle") if fields.get(name)}
    return Draft(
        source=source,
        url=url,
        title=fields["title"] or first_heading(text) or url,
        text=text,
        category=options.category or fields["category"] or "article",
        platform=fields["platform"] or _host(url) or "export",
        author=fields["author"],
        author_id=fields["author_id"],
        published_at=moment(_plain_date(entry.get("published_at"))),
        metadata=known,
    )


def _handbook(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The peers' shape: `{_id, content: {Title, Subtitle, Content, language?}, link, platform, author_id, ...}`."""
    content = entry["content"]
    return {
        "title": content.get("Title"),
        "subtitle": content.get("Subtitle"),
        "text": content.get("Content"),
        "language": content.get("language"),
        "category": entry.get("category"),
        "platform": entry.get("platform"),
        "author": entry.get("author_full_name"),
        "author_id": entry.get("author_id"),
    }


def _record(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Our own shape: `corpus.documents.to_record` as JSON."""
    return {
        "title": entry.get("title"),
        "text": entry.get("text"),
        "category": entry.get("category"),
        "platform": entry.get("platform"),
        "author": entry.get("author_name"),
        "author_id": entry.get("author_id"),
    }


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        # The document will be refused for its address, with the others unharmed.
        return None


def _kind(value: object) -> str:
    """What JSON calls a value that is no text."""
    if isinstance(value, bool):
        return "true or false"
    return "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else "a number"


def _plain_date(value: object) -> object:
    """Dates as text, or as MongoDB's extended JSON writes them."""
    return value.get("$date") if isinstance(value, Mapping) else value
