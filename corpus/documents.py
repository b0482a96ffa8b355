"""Documents and chunks: the values that every pipeline passes on. No I/O here."""

from __future__ import annotations

import hashlib
import re
import unicodedata
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

import msgspec

# Parameters that say where a reader came from, never which text they read.
TRACKING_PARAMETERS = re.compile(r"^(utm_.*|fbclid|gclid|mc_cid|mc_eid|ref_src|source)$")
ORDER_BITS = 11
UNKNOWN_AUTHOR = "Unknown"
# The header by which every record of capture names its warehouse: one log may serve several.
WAREHOUSE_HEADER = "twin.warehouse"
# The largest request that Kafka takes by default is 104,857,600 bytes.
LARGEST_MESSAGE = 100_000_000
# A document is a string within a string of JSON in its change event: escaped twice, the worst character (NUL) takes
# seven bytes, prose 1.1. So much for MongoDB's largest record, 16 MiB, of nothing else, before compression: what then
# goes to the broker is a fraction.
LARGEST_CHANGE = 120_000_000
# Of any other type two ids could read alike. By name, since this module does without MongoDB's types.
ID_TYPES = frozenset({"str", "int", "Int64", "ObjectId"})
DEFAULT_PORTS = {"http": 80, "https": 443}


class InvalidDocument(ValueError):
    """A record that cannot be a document; the message says which field and why."""


@dataclass(frozen=True, slots=True)
class Document:
    """One thing that an author wrote, as it was crawled.

    `id`: UUIDv5 of the canonical `url`; `category`: a key of `corpus.categories.RECIPES`; `text`: as crawled, Markdown
    where the source has structure; `content_hash`: `content_hash` of everything a reader or the index can see;
    `metadata`: what only some platforms know (`language`, `path`, `commit`, `etag`, ...).
    """

    id: str
    category: str
    platform: str
    author_id: str
    author_name: str
    url: str
    title: str
    text: str
    published_at: datetime | None
    crawled_at: datetime
    crawl_id: str
    content_hash: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def language(self) -> str | None:
        """Natural language of prose (`en`) or programming language of code (`python`), when known."""
        value = self.metadata.get("language")
        return str(value) if value else None


def headings_below(heading_path: Sequence[str], title: str) -> tuple[str, ...]:
    """The headings above a passage as they stand below the document's title: a first one does not say it again.

    For "Making tea", `("Making tea", "Water")` is `("Water",)` and `("Making tea: water",)` is `("water",)`.
    """
    headings = tuple(heading_path)
    if not headings or not title or not headings[0].startswith(title):
        return headings
    rest = headings[0].removeprefix(title)
    if rest[:1].isalnum():
        return headings
    more = rest.strip(" :,;.–—-")
    return (more, *headings[1:]) if more else headings[1:]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage of a cleaned text: `text` is exactly `cleaned[start:end]`.

    `position`: 0-based order in the document; `heading_path`: headings above the passage, outermost first;
    `start`, `end`: offsets in characters.
    """

    position: int
    heading_path: tuple[str, ...]
    text: str
    start: int
    end: int


def new_document(
    *,
    url: str,
    category: str,
    platform: str,
    author_name: str,
    title: str,
    text: str,
    crawl_id: str,
    crawled_at: datetime,
    published_at: datetime | None = None,
    author_id: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Document:
    """A document whose id, author id and content hash follow from its fields."""
    canonical = canonical_url(url)
    author = author_id or author_identity(author_name)
    known = dict(metadata or {})
    return Document(
        id=document_identity(canonical),
        category=category,
        platform=platform,
        author_id=author,
        author_name=author_name,
        url=canonical,
        title=title,
        text=text,
        published_at=in_milliseconds(published_at) if published_at else None,
        crawled_at=in_milliseconds(crawled_at),
        crawl_id=crawl_id,
        content_hash=content_hash(
            category, platform, author, author_name, canonical, title, text, published_at, known.get("language")
        ),
        metadata=known,
    )


def by_author(document: Document, name: str) -> Document:
    """The same document under another author."""
    return new_document(
        url=document.url,
        category=document.category,
        platform=document.platform,
        author_name=name,
        title=document.title,
        text=document.text,
        crawl_id=document.crawl_id,
        crawled_at=document.crawled_at,
        published_at=document.published_at,
        metadata=document.metadata,
    )


def canonical_url(url: str) -> str:
    """The one spelling of an address: lower-case host, no default port, fragment, tracking parameters or final slash.

    Source: RFC 3986, section 6.2 (syntax-based and scheme-based normalisation).
    """
    try:
        parts = urlsplit(url.strip())
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError as error:
        raise InvalidDocument(f"not a valid URL: {url[:200]!r} ({error})") from error
    if not parts.scheme:
        raise InvalidDocument(f"not an absolute URL: {url[:200]!r}")
    scheme = parts.scheme.lower()
    netloc = f"[{host}]" if ":" in host else host
    if port and port != DEFAULT_PORTS.get(scheme):
        netloc += f":{port}"
    path = quote(unquote(parts.path, errors="surrogateescape"), safe="/:@!$&'()*+,;=~-._", errors="surrogateescape")
    if path.endswith("/") and scheme in DEFAULT_PORTS:
        path = path.rstrip("/")
    kept = [
        (name, value)
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
        if not TRACKING_PARAMETERS.match(name)
    ]
    return urlunsplit((scheme, netloc, path, urlencode(sorted(kept)), ""))


def document_identity(url: str) -> str:
    """UUIDv5 of a canonical URL: the same document keeps its id wherever and whenever it is crawled."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, url))


def author_identity(name: str) -> str:
    """UUIDv5 of an author's name, without regard to case, spacing or Unicode form."""
    plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"author:{plain}"))


def content_hash(*fields: Any) -> str:
    """SHA-256 over the fields in order, in hexadecimal; fields are framed, so text moved between two changes it."""
    plain = [in_milliseconds(value).isoformat() if isinstance(value, datetime) else value for value in fields]
    return hashlib.sha256(msgspec.json.encode(plain)).hexdigest()


def source_version(milliseconds: int, increment: int) -> int:
    """The one number that orders the changes of a document: when its source wrote it, and the order within that time.

    It stays within the 53 bits that every part keeps exactly until the year 2109; two writes may share a version only
    within one millisecond of more than 2,000 writes. Source: Debezium's `source.ts_ms` (MongoDB's wall time) and
    `source.ord` (the increment of its cluster time).
    """
    return (milliseconds << ORDER_BITS) + min(increment, (1 << ORDER_BITS) - 1)


def in_milliseconds(moment: datetime) -> datetime:
    """The moment in UTC at the resolution that MongoDB keeps (milliseconds)."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    aware = aware.astimezone(UTC)
    return aware.replace(microsecond=aware.microsecond // 1000 * 1000)


def to_record(document: Document) -> dict[str, Any]:
    """The document as its MongoDB record (`_id` first, dates as datetimes)."""
    return {
        "_id": document.id,
        "category": document.category,
        "platform": document.platform,
        "author_id": document.author_id,
        "author_name": document.author_name,
        "url": document.url,
        "title": document.title,
        "text": document.text,
        "published_at": document.published_at,
        "crawled_at": document.crawled_at,
        "crawl_id": document.crawl_id,
        "content_hash": document.content_hash,
        "metadata": dict(document.metadata),
    }


def from_record(record: Mapping[str, Any]) -> Document:
    """The document of a MongoDB record, or of the `after` image of a change once its dates are datetimes.

    Raises InvalidDocument naming the first field that is missing or of the wrong type. The content hash is computed
    anew: a record may have been edited by hand.
    """
    for name in ("category", "platform", "author_name", "url", "title", "text"):
        if not isinstance(record.get(name), str):
            found = "missing" if record.get(name) is None else f"of type {type(record[name]).__name__}"
            raise InvalidDocument(f"field {name!r} is {found}, expected a string")
    if "_id" not in record:
        raise InvalidDocument("field '_id' is missing")
    if (kind := type(record["_id"]).__name__) not in ID_TYPES:
        raise InvalidDocument(f"field '_id' is of type {kind}, expected a string, a whole number or an ObjectId")
    for name in ("published_at", "crawled_at"):
        if record.get(name) is not None and not isinstance(record[name], datetime):
            raise InvalidDocument(f"field {name!r} is of type {type(record[name]).__name__}, expected a date")
    metadata = record.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise InvalidDocument(f"field 'metadata' is of type {type(metadata).__name__}, expected an object")
    author = str(record.get("author_id") or author_identity(record["author_name"]))
    published = record.get("published_at")
    return Document(
        id=str(record["_id"]),
        category=record["category"],
        platform=record["platform"],
        author_id=author,
        author_name=record["author_name"],
        url=record["url"],
        title=record["title"],
        text=record["text"],
        published_at=in_milliseconds(published) if published else None,
        crawled_at=in_milliseconds(record.get("crawled_at") or datetime.fromtimestamp(0, UTC)),
        crawl_id=str(record.get("crawl_id") or ""),
        content_hash=content_hash(
            record["category"],
            record["platform"],
            author,
            record["author_name"],
            record["url"],
            record["title"],
            record["text"],
            published,
            metadata.get("language"),
        ),
        metadata=dict(metadata),
    )
