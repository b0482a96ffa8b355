"""Whether another generation finds what it should: questions derived from the documents, asked of both.

Each question is a sentence of a chunk, half of one, or a heading; right is the document that it was taken from.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from corpus.index import Filters, QdrantIndex, Record

if TYPE_CHECKING:
    from corpus.embedding import Embedder

QUESTIONS = 200
# Of the nearest chunks, and of the hits of a search.
NEAREST, FIRST = 10, 5
LEAST_RECALL, MOST_LOST = 0.95, 0.05
FEWEST_WORDS = 5
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]?")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and the document that should answer."""

    text: str
    document_id: str


@dataclass(frozen=True, slots=True)
class Found:
    """Shares of the questions whose document is among the first hits: of a search, and by meaning (vectors) alone."""

    search: float
    meaning: float


@dataclass(frozen=True, slots=True)
class Recall:
    """How a generation finds. `exact`: the share of the chunks truly nearest to the questions that the approximate
    search finds; `new`, `old`: what this generation and the live one find, the latter None where it cannot be asked."""

    questions: int
    exact: float
    new: Found
    old: Found | None

    def reasons(self) -> list[str]:
        """Why this generation must not go live; empty when it may."""
        found = []
        if self.exact < LEAST_RECALL:
            found.append(
                f"the approximate search finds {self.exact:.3f} of the {NEAREST} nearest chunks; "
                f"at least {LEAST_RECALL} is asked for"
            )
        if self.old is not None:
            for how, new, old in (
                ("a search", self.new.search, self.old.search),
                ("meaning alone", self.new.meaning, self.old.meaning),
            ):
                if new < old - MOST_LOST:
                    found.append(
                        f"by {how} the right document is among the first {FIRST} for {new:.3f} of the questions, "
                        f"in the live generation for {old:.3f}"
                    )
        return found


def questions(index: QdrantIndex, count: int = QUESTIONS, seed: int = 0) -> list[Question]:
    """Up to `count` questions from chunks chosen at random; the same index and seed give the same ones."""
    source = random.Random(seed)  # noqa: S311 - a sample
    chunks = sorted((r.document_id, at) for r in index.scan() if r.version is not None for at in range(len(r.places)))
    chosen = source.sample(chunks, min(count, len(chunks)))
    records = index.records(sorted({id for id, _ in chosen}))
    asked = []
    for number, (id, at) in enumerate(chosen):
        record = records.get(id)
        if record is not None and at < len(record.places):
            asked += [Question(text, id) for text in _asked(record, at, number, source)]
    return asked


def _asked(record: Record, at: int, number: int, source: random.Random) -> Iterator[str]:
    """A sentence, half of one, or the heading of a chunk, in turn."""
    place = record.places[at]
    if number % 3 == 2 and place.heading_path:
        yield " ".join(dict.fromkeys((record.title, place.heading_path[-1])))
        return
    text = record.text[place.start : place.end]
    sentences = [words for match in _SENTENCE.finditer(text) if len(words := match[0].split()) >= FEWEST_WORDS]
    if sentences:
        words = source.choice(sentences)[:40]
        half = len(words) // 2
        yield " ".join(words[half // 2 : half // 2 + max(half, 3)] if number % 3 == 1 else words)


def recall(
    asked: Sequence[Question],
    new: tuple[QdrantIndex, Embedder],
    old: tuple[QdrantIndex, Embedder] | None,
) -> Recall:
    """Ask both generations. Of no questions everything is found."""
    vectors = _vectors(asked, new[1])
    wanted = met = 0
    for vector in vectors:
        truly = {id for id, _ in new[0].nearest(vector, NEAREST, exact=True)}
        wanted += len(truly)
        met += len(truly & {id for id, _ in new[0].nearest(vector, NEAREST)})
    return Recall(
        questions=len(asked),
        exact=met / wanted if wanted else 1.0,
        new=_found(asked, vectors, new[0]),
        old=_found(asked, _vectors(asked, old[1]), old[0]) if old is not None else None,
    )


def _vectors(asked: Sequence[Question], embedder: Embedder) -> list[list[float]]:
    if not asked:
        return []
    return [[float(value) for value in row] for row in embedder.embed([question.text for question in asked])]


def _found(asked: Sequence[Question], vectors: Sequence[Sequence[float]], index: QdrantIndex) -> Found:
    searched = meant = 0
    for question, vector in zip(asked, vectors, strict=True):
        hits = index.search(question.text, vector, Filters(), FIRST)
        searched += question.document_id in {hit.document_id for hit in hits}
        meant += question.document_id in {id for _, id in index.nearest(vector, FIRST)}
    return Found(searched / len(asked), meant / len(asked)) if asked else Found(1.0, 1.0)
