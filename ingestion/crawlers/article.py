"""An article on the web: any address of http or https that holds HTML, Markdown, plain text or PDF."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.robotparser import RobotFileParser

from corpus.documents import Document
from ingestion.drafts import Draft, Failed, Item, Options, Unchanged
from ingestion.fetching import FetchFailed, Limits, Response, fetch, retry_after
from ingestion.formats import read_markdown, read_pdf, read_text
from ingestion.reading import Reading, Unreadable

ROBOTS_BYTES = 512_000  # RFC 9309, section 2.5
READERS: dict[str, Callable[[bytes], Reading]] = {
    "text/markdown": read_markdown,
    "text/x-markdown": read_markdown,
    "text/plain": read_text,
    "application/pdf": read_pdf,
}
ACCEPTED = "text/html, application/xhtml+xml, text/markdown, text/plain;q=0.8, */*;q=0.1"
PAGES = frozenset(("text/html", "application/xhtml+xml"))


class Disallowed(FetchFailed):
    """The site's robots.txt asks us not to."""


def accepts(source: str) -> bool:
    """Every address of http or https."""
    return re.match(r"https?://", source, re.IGNORECASE) is not None


def crawl(source: str, options: Options) -> Iterator[Item]:
    """The article at the address, if it changed since it was fetched."""
    settings = options.settings
    limits = Limits(settings.crawl_timeout, settings.max_document_bytes, settings.allow_private_addresses)
    agent = user_agent(settings.crawl_contact)
    known = _comparable(options.fetched(source), options)
    headers = {
        "User-Agent": agent,
        "Accept": ACCEPTED,
    }
    if known is not None:
        headers |= {
            header: str(known.metadata[name])
            for header, name in (("If-None-Match", "etag"), ("If-Modified-Since", "last_modified"))
            if known.metadata.get(name)
        }
    try:
        response = fetch(source, limits, headers, before=_robots(agent, limits, options.remembered))
        if response.status == 304 and known is not None:
            yield Unchanged(source, known)
            return
        _check_status(response)
        yield _draft(source, response, options)
    except FetchFailed as error:
        yield Failed(source, str(error), source, lost=True)
    except Unreadable as error:
        yield Failed(source, str(error), source)


def user_agent(contact: str | None) -> str:
    """Who we are, as a site's owner sees it."""
    try:
        name = f"llm-twin/{version('llm-twin')}"
    except PackageNotFoundError:
        name = "llm-twin"
    return f"{name} (+{contact})" if contact else name


def _comparable(known: Document | None, options: Options) -> Document | None:
    """The document that was fetched before, unless this crawl would write it under another author or category."""
    if known is None:
        return None
    same = options.author in (None, known.author_name) and options.category in (None, known.category)
    return known if same else None


def _robots(agent: str, limits: Limits, remembered: dict[str, RobotFileParser]) -> Callable[[str], None]:
    """A check of addresses against their sites' robots.txt, each read once. Source: RFC 9309."""
    small = Limits(limits.timeout, ROBOTS_BYTES, limits.allow_private_addresses)

    def rules(site: str) -> RobotFileParser:
        if site in remembered:
            return remembered[site]
        robots = RobotFileParser()
        response = fetch(f"{site}/robots.txt", small, {"User-Agent": agent})
        if response.status >= 500 or response.status == 429:
            raise FetchFailed(f"may not be fetched now: {site}/robots.txt answered HTTP {response.status}")
        # A site that has none, or does not show it, allows everything.
        robots.parse(response.body.decode("utf-8", "replace").splitlines() if response.status == 200 else [])
        remembered[site] = robots
        return robots

    def check(url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            return
        site = urlunsplit((parts.scheme, parts.netloc, "", "", ""))
        if not rules(site).can_fetch(agent, url):
            raise Disallowed(f"is not to be crawled: {site}/robots.txt disallows it")

    return check


def _check_status(response: Response) -> None:
    status = response.status
    if status in (429, 503):
        pause = retry_after(response.headers.get("retry-after"), time.time())
        when = f"in {math.ceil(pause)} s" if pause is not None else "later"
        raise FetchFailed(f"asks for patience (HTTP {status}): try again {when}")
    if status in (404, 410):
        raise FetchFailed(f"does not exist (HTTP {status})")
    if status in (401, 403):
        raise FetchFailed(f"is not open to everybody (HTTP {status})")
    if status != 200:
        raise FetchFailed(f"answered HTTP {status}")


def _draft(source: str, response: Response, options: Options) -> Draft:
    from ingestion.pages import SHORTEST_ARTICLE, read_page

    kind = response.content_type
    if not response.body.strip():
        raise Unreadable("is empty")
    if kind in PAGES or (not kind and response.body.lstrip()[:1] == b"<"):
        reading = read_page(response.body, response.url, response.charset, SHORTEST_ARTICLE)
    elif kind in READERS:
        reading = READERS[kind](response.body)
    else:
        raise Unreadable(f"is {kind or 'of no stated type'}, not an article (HTML, Markdown, plain text or PDF)")
    url = _own_address(response.url, reading.canonical_url)
    host = urlsplit(url).hostname or ""
    told = {
        "language": reading.language,
        "etag": response.headers.get("etag"),
        "last_modified": response.headers.get("last-modified"),
    }
    metadata = {**reading.metadata, "requested_url": source, **{name: value for name, value in told.items() if value}}
    return Draft(
        source=source,
        url=url,
        title=reading.title or _last_part(url),
        text=reading.text,
        category=options.category or "article",
        platform=_without_www(host),
        author=reading.author,
        published_at=reading.published_at,
        metadata=metadata,
    )


def _own_address(url: str, canonical: str | None) -> str:
    """The canonical address that the page names, if it is of the same site and not just the site's front page."""
    if canonical is None:
        return url
    try:
        own, named = urlsplit(url), urlsplit(canonical)
        same = _without_www(own.hostname or "") == _without_www(named.hostname or "") and own.port == named.port
    except ValueError:
        return url
    front = named.path in ("", "/") and own.path not in ("", "/")
    return canonical if same and named.scheme in ("http", "https") and not front else url


def _without_www(host: str) -> str:
    return host.lower().removeprefix("www.")


def _last_part(url: str) -> str:
    parts = urlsplit(url)
    return unquote(parts.path.rstrip("/").rpartition("/")[2]) or parts.netloc
