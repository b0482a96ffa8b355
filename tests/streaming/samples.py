"""Documents, changes and an embedder for tests of the change-to-feature path."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from corpus.documents import Document, new_document, to_record
from streaming.changes import Event, Message, decode, delete_envelope, upsert_envelope

HERE = "11111111-2222-4333-8444-555555555555"
WORDS = (
    *("amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "harbor", "inlet", "jetty", "kelp"),
    *("lagoon", "meadow", "nectar", "orchard", "prairie"),
)


class WordEmbedder:
    """An embedder whose vectors follow from the text alone; it counts what it is asked to embed."""

    name, dimensions, max_tokens, special_tokens = "words", 16, 256, 2

    def __init__(self) -> None:
        self.embedded: list[str] = []

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.embedded += texts
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) for text in texts]
        rows = np.array([np.random.default_rng(seed).normal(size=self.dimensions) for seed in seeds], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(self.token_spans(text)) + self.special_tokens for text in texts]

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        return [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]


class BagEmbedder(WordEmbedder):
    """Vectors of hashed words: texts that share words are near. Two names give two sets of vectors."""

    dimensions = 128

    def __init__(self, name: str = "bag") -> None:
        super().__init__()
        self.name = name

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.embedded += texts
        rows = np.zeros((len(texts), self.dimensions), np.float32)
        for row, text in enumerate(texts):
            for word in re.findall(r"\w+", text.casefold()):
                rows[row, int.from_bytes(hashlib.sha256(f"{self.name} {word}".encode()).digest()[:4]) % 128] += 1
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def story(number: int, sections: int = 3) -> str:
    """An article in words of its own, two sections of which share nothing."""
    source = random.Random(f"story {number}")
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    parts = [f"# Story {number}"]
    for section in range(sections):
        words = ["".join(source.choices(syllables, k=3)) for _ in range(20)]
        sentences = (" ".join(source.choices(words, k=9)).capitalize() + "." for _ in range(6))
        parts.append(f"## Part {section} {words[0]}\n\n{' '.join(sentences)}")
    return "\n\n".join(parts)


def document(name: str, text: str, category: str = "article", **fields: str) -> Document:
    return new_document(
        url=f"https://example.org/{name}",
        category=category,
        platform="example.org",
        author_name="Ada",
        title=fields.get("title", f"About {name}"),
        text=text,
        crawl_id="crawl",
        crawled_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def article(uniques: Sequence[str], seed: int = 1) -> str:
    """A section for each unique word, long enough to be a passage of its own."""
    source = random.Random(seed)
    sections = (
        f"## Section {number}\n\nThe {unique} station reports {' '.join(source.choices(WORDS, k=60))}.\n"
        for number, unique in enumerate(uniques, 1)
    )
    return "# Notes\n\n" + "\n".join(sections)


def upserted(one: Document, version: int) -> Event:
    return decode(Message("changes", 0, version, **upsert_envelope(to_record(one), version, "twin", HERE)), HERE)


def read(one: Document, offset: int, log: str = "life-1") -> Event:
    """A snapshot's read, as Debezium sends one."""
    envelope = dict(upsert_envelope(to_record(one), 0, "twin", HERE))
    envelope["value"] = envelope["value"].replace(b'"op":"u"', b'"op":"r"').replace(b'"ord":0', b'"ord":-1')
    return decode(Message("changes", 0, offset, log=log, **envelope), HERE)


def deleted(one: Document, version: int) -> Event:
    return decode(Message("changes", 0, version, **delete_envelope(one.id, version, "twin", HERE)), HERE)
