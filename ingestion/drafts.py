"""What a crawler hands over, as values: a document that cannot be read is one of them and never stops the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from corpus.documents import Document
from corpus.settings import Settings


@dataclass(frozen=True, slots=True)
class Draft:
    """A document as a platform tells of it. `source`: where it was read, for people; `author` None: not told.

    `likely_author`: for a document that had no author until now; it may change from crawl to crawl.
    """

    source: str
    url: str
    title: str
    text: str
    category: str
    platform: str
    author: str | None = None
    likely_author: str | None = None
    author_id: str | None = None
    published_at: datetime | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed:
    """A document that could not be read. `reason` completes "SOURCE ...".

    `url`: of the document, or of the folder that holds those which could not be read: they are not gone, so a prune
    keeps them. `lost`: the whole source could not be reached.
    """

    source: str
    reason: str
    url: str | None = None
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The source says that this document of the warehouse is as it was."""

    source: str
    document: Document


@dataclass(frozen=True, slots=True)
class Covered:
    """Everything whose URL starts with this prefix has been handed over: what was not is no longer there."""

    prefix: str


def reason_of(error: Exception) -> str:
    """What an error of a system or of a library says, as a person would say it; it completes "cannot be read: ..."."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    said = getattr(error, "strerror", None) or str(error)
    return (said or "no reason is given")[:200]


Item = Draft | Failed | Unchanged | Covered


@dataclass(frozen=True, slots=True)
class Options:
    """How to crawl.

    `author` and `category` replace what a source says; `fetched` finds what came from an address before; `remembered`:
    what a crawler keeps from one source to the next.
    """

    settings: Settings
    author: str | None = None
    category: str | None = None
    fetched: Callable[[str], Document | None] = lambda url: None
    remembered: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Crawler:
    """A platform: which sources it takes, and how it reads one; whatever a source is like, `crawl` raises nothing."""

    name: str
    accepts: Callable[[str], bool]
    crawl: Callable[[str, Options], Iterator[Item]]
