"""The recall gate: questions come from the documents; a generation that finds worse than the live one is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from corpus.generations import Generation
from corpus.index import QdrantIndex, open_generation
from corpus.settings import load
from streaming.indexing import index_batch
from streaming.recall import Found, Recall, questions, recall
from tests.streaming.samples import BagEmbedder, WordEmbedder, document, story, upserted


def built(home: Path, name: str, embedder: BagEmbedder | WordEmbedder, documents: int = 20) -> QdrantIndex:
    generation = Generation(id=name, name=name, dimensions=embedder.dimensions)
    index = open_generation(load({"TWIN_HOME": str(home)}), generation)
    events = [upserted(document(f"d{number}", story(number)), number + 1) for number in range(documents)]
    index_batch(events, index, embedder)  # type: ignore[arg-type]
    return index


class Backwards(QdrantIndex):
    """An index whose approximate search finds what is far away."""

    def nearest(self, vector: Sequence[float], limit: int, *, exact: bool = False) -> list[tuple[str, str]]:
        found = super().nearest(vector, 1000, exact=True)
        return found[:limit] if exact else found[-limit:]


def test_questions_are_words_of_the_documents_that_should_answer_them(tmp_path: Path) -> None:
    index = built(tmp_path, "g1", BagEmbedder())

    asked = questions(index, 30)

    records = index.records([question.document_id for question in asked])
    texts = {id: " ".join(f"{record.title} {record.text}".split()) for id, record in records.items()}
    assert len(asked) == 30
    assert asked == questions(index, 30)
    kinds = [question.text in texts[question.document_id] for question in asked]
    assert sum(kinds) >= 20
    index.close()


def test_a_generation_that_finds_as_well_may_serve(tmp_path: Path) -> None:
    old, new = built(tmp_path, "g1", BagEmbedder("one")), built(tmp_path, "g2", BagEmbedder("two"))

    measured = recall(questions(new), (new, BagEmbedder("two")), (old, BagEmbedder("one")))  # type: ignore[arg-type]

    assert measured.reasons() == []
    assert measured.exact == 1.0
    assert measured.new.search > 0.9
    old.close()
    new.close()


def test_random_vectors_are_refused_although_the_words_still_find(tmp_path: Path) -> None:
    old, new = built(tmp_path, "g1", BagEmbedder()), built(tmp_path, "g2", WordEmbedder())

    measured = recall(questions(new), (new, WordEmbedder()), (old, BagEmbedder()))  # type: ignore[arg-type]

    assert any("by meaning alone" in reason for reason in measured.reasons())
    old.close()
    new.close()


def test_an_approximate_search_that_misses_the_nearest_is_refused(tmp_path: Path) -> None:
    index = built(tmp_path, "g1", BagEmbedder())
    worse = Backwards(index.id, index.generation, index._chunks, index._ledger)

    measured = recall(questions(index), (worse, BagEmbedder()), None)  # type: ignore[arg-type]

    assert any("approximate search finds" in reason for reason in measured.reasons())
    index.close()


def test_nothing_to_ask_is_nothing_against_it(tmp_path: Path) -> None:
    index = built(tmp_path, "g1", BagEmbedder(), documents=0)

    measured = recall(questions(index), (index, BagEmbedder()), (index, BagEmbedder()))  # type: ignore[arg-type]

    assert (measured.questions, measured.reasons()) == (0, [])
    index.close()


@pytest.mark.parametrize(("new", "refused"), [(0.85, False), (0.84, True)])
def test_a_twentieth_of_the_questions_may_be_lost_and_no_more(new: float, refused: bool) -> None:
    measured = Recall(100, 1.0, Found(new, 1.0), Found(0.9, 1.0))

    assert bool(measured.reasons()) == refused
