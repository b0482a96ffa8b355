"""How fast documents are cleaned, split and embedded, beside the same model run in other ways in the same process."""

import json
import random
import resource
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from corpus.categories import RECIPES, Category
from corpus.documents import Chunk, new_document
from corpus.embedding import Embedder, OnnxEmbedder, build_graph, load_embedder, minilm_directory
from corpus.settings import Settings

pytestmark = pytest.mark.benchmark
HANDBOOK = Path(__file__).parents[3] / "shared/data/handbook/articles.json"
SAMPLE = 200
THREADS = 2


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def embedder(home: Path) -> Embedder:
    return load_embedder(Settings(home=home, embedding_threads=THREADS))


@pytest.fixture(scope="module")
def chunks(embedder: Embedder) -> list[Chunk]:
    """All chunks of the real articles; prints what cleaning and splitting took."""
    if not HANDBOOK.exists():
        pytest.skip("the export of real articles is not here")
    documents = [
        new_document(
            url=record["link"],
            category=Category.ARTICLE,
            platform=record["platform"],
            author_name=record["author_full_name"],
            title=record["content"]["Title"],
            text=record["content"]["Content"],
            crawl_id="benchmark",
            crawled_at=datetime(2024, 1, 1, tzinfo=UTC),
        )
        for record in json.loads(HANDBOOK.read_bytes())
    ]
    recipe = RECIPES[Category.ARTICLE]
    start = time.perf_counter()
    texts = [recipe.clean(document) for document in documents]
    cleaned = time.perf_counter()
    parts = [recipe.split(text, document, embedder) for text, document in zip(texts, documents, strict=True)]
    split = time.perf_counter()
    print(
        f"\n{len(documents)} articles, {sum(len(document.text) for document in documents):,} characters: cleaned in "
        f"{cleaned - start:.2f} s to {sum(map(len, texts)):,}, split in {split - cleaned:.2f} s to "
        f"{sum(map(len, parts)):,} chunks"
    )
    return [chunk for part in parts for chunk in part]


def test_all_chunks_of_the_articles(chunks: list[Chunk], embedder: Embedder) -> None:
    texts = [chunk.text for chunk in chunks]
    tokens = sum(embedder.count_tokens(texts))
    start = time.perf_counter()
    vectors = embedder.embed(texts)
    taken = time.perf_counter() - start
    print(
        f"\n{embedder.name}, {THREADS} threads: {len(texts):,} chunks, {tokens:,} tokens in {taken:.1f} s: "
        f"{len(texts) / taken:.1f} chunks/s, {tokens / taken:,.0f} tokens/s; "
        f"peak memory of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB"
    )
    assert vectors.shape == (len(texts), embedder.dimensions)


def test_ways_to_run_the_model(chunks: list[Chunk], embedder: Embedder, home: Path) -> None:
    texts = [chunk.text for chunk in random.Random(4).sample(chunks, SAMPLE)]
    tokens = sum(embedder.count_tokens(texts))
    settings = Settings(home=home, embedding_threads=THREADS, embedding_model="minilm-l6")
    exact = load_embedder(settings)
    assert isinstance(exact, OnnxEmbedder)
    plain = build_graph(minilm_directory() / "model.safetensors", int8=False, fused=False)
    ways: dict[str, Embedder] = {
        "baseline: fp32, standard operators": OnnxEmbedder("plain", plain, exact._tokenizer, THREADS),
        "fp32, fused": exact,
        "int8, fused (default)": embedder,
    }
    try:
        import sentence_transformers  # noqa: F401
    except ImportError:
        print("\nsentence-transformers is not installed (extra torch): no line for it")
    else:
        name = f"sentence-transformers:{minilm_directory()}"
        ways["sentence-transformers, fp32"] = load_embedder(
            Settings(home=home, embedding_threads=THREADS, embedding_model=name)
        )
    expected = exact.embed(texts)
    print(f"\n{SAMPLE} chunks, {tokens / SAMPLE:.0f} tokens each, {THREADS} threads, a text each:")
    for way, model in ways.items():
        start = time.perf_counter()
        vectors = model.embed(texts)
        taken = time.perf_counter() - start
        likeness = (vectors * expected).sum(axis=1)
        print(
            f"  {way:36} {SAMPLE / taken:6.1f} chunks/s {tokens / taken:8,.0f} tokens/s   cosine to fp32: mean "
            f"{likeness.mean():.4f}, 1st percentile {np.percentile(likeness, 1):.4f}, least {likeness.min():.4f}"
        )
        assert likeness.min() > 0.9


def test_a_question(embedder: Embedder) -> None:
    taken = []
    for number in range(200):
        start = time.perf_counter()
        embedder.embed([f"What does a feature pipeline do, {number}?"])
        taken.append(time.perf_counter() - start)
    median, late = np.percentile(taken, [50, 95]) * 1000
    print(f"\na question: p50 {median:.1f} ms, p95 {late:.1f} ms")
