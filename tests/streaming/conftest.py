"""What tests of the change-to-feature path share: an index of their own and an embedder for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from corpus.index import QdrantIndex, open_index
from corpus.settings import load
from tests.streaming.samples import WordEmbedder


@pytest.fixture
def embedder() -> WordEmbedder:
    return WordEmbedder()


@pytest.fixture
def index(tmp_path: Path, embedder: WordEmbedder) -> Iterator[QdrantIndex]:
    opened = open_index(load({"TWIN_HOME": str(tmp_path)}), "words-1", embedder.dimensions)
    yield opened
    opened.close()
