"""The oracle: what the index, the ledger and the compacted topics must be, from the warehouse's documents alone.

Computed with the recipes and the ids of `corpus.categories`, with nothing of the index, the ledger or the dataflow.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corpus.categories import RECIPES, Category, point_ids
from corpus.documents import Document

GENERATION = "digests-1"
# Of the documents topic's messages: what a reader downstream takes for the document.
TOLD = (
    *("document_id", "category", "platform", "author", "author_id", "url", "title", "language", "published_at"),
    *("crawled_at", "crawl_id", "content_hash", "text"),
)


class DigestEmbedder:
    """Vectors that follow from the text alone, at next to no cost; it counts what it is asked to embed."""

    name, dimensions, max_tokens, special_tokens = "digests", 8, 256, 2

    def __init__(self) -> None:
        self.embedded = 0

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.embedded += len(texts)
        return np.array([vector_of(text) for text in texts], np.float32)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(self.token_spans(text)) + self.special_tokens for text in texts]

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        return [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]


@lru_cache(100_000)
def vector_of(text: str) -> tuple[float, ...]:
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
    row = np.frombuffer(digest[:8], np.uint8).astype(np.float32) - 127.5
    return tuple((row / np.linalg.norm(row)).tolist())


@dataclass(frozen=True, slots=True)
class Passage:
    """A point as it must be: `words` is what its sparse vector is made of, `payload` all of it but the version."""

    id: str
    start: int
    end: int
    heading_path: tuple[str, ...]
    payload: dict[str, Any]
    words: str


@dataclass(frozen=True, slots=True)
class Expected:
    """A document as it must be in the ledger, in the index and downstream; `told`: the documents topic's fields."""

    text: str
    passages: tuple[Passage, ...]
    told: dict[str, Any]


def expected(document: Document) -> Expected:
    """What becomes of a document that can be indexed."""
    recipe = RECIPES[Category(document.category)]
    text = recipe.clean(document)
    chunks = recipe.split(text, document, DigestEmbedder())
    if not chunks:
        raise ValueError(f"nothing of {document.id} can be indexed")
    moment = document.published_at or document.crawled_at
    shared = {
        "document_id": document.id,
        "title": document.title,
        "url": document.url,
        "author": document.author_name,
        "author_key": [" ".join(document.author_name.casefold().split()), document.author_id],
        "category": document.category,
        "platform": document.platform,
        "language": document.language,
        "published_at": document.published_at.isoformat() if document.published_at else None,
        "moment": int(moment.timestamp() * 1000),
        "crawl_id": document.crawl_id,
    }
    passages = tuple(
        Passage(
            id=id,
            start=chunk.start,
            end=chunk.end,
            heading_path=chunk.heading_path,
            payload={**shared, "position": position, "heading_path": list(chunk.heading_path), "text": chunk.text},
            words="\n".join((document.title, *chunk.heading_path, chunk.text)),
        )
        for position, (id, chunk) in enumerate(zip(point_ids(document.id, GENERATION, chunks), chunks, strict=True))
    )
    told = {
        "document_id": document.id,
        "category": document.category,
        "platform": document.platform,
        "author": document.author_name,
        "author_id": document.author_id,
        "url": document.url,
        "title": document.title,
        "language": document.language,
        "published_at": document.published_at,
        "crawled_at": document.crawled_at,
        "crawl_id": document.crawl_id,
        "content_hash": document.content_hash,
        "text": text,
    }
    return Expected(text, passages, told)
