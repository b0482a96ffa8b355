"""The shape of a language model: its numbers, and every weight that follows from them. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

SHAPES = Path(__file__).parent / "shapes"
# The linear layers of a transformer block, as all four families name them.
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Role = Literal["embedding", "head", "linear", "vector"]


class UnknownShape(ValueError):
    """A model whose memory cannot be told; the message says why."""


@dataclass(frozen=True, slots=True)
class Family:
    """What the models of one architecture have in common; `norms`: RMS norms in a layer, without those of queries and
    keys; `full_every`: of layers with a window, each so manieth sees everything (0: none does); `scores`: attention
    writes its scores, a number for each two tokens and head, because no fused kernel of torch caps them.

    The rest is what a configuration means that leaves a number out (transformers, `configuration_*.py`).
    """

    norms: int = 2
    query_bias: bool = False
    query_norm: bool = False
    tied: bool = False
    kv_heads: int | None = None
    head_dim: int | None = None
    window: int | None = None
    full_every: int = 0
    scores: bool = False


FAMILIES: Mapping[str, Family] = {
    "llama": Family(),
    "mistral": Family(kv_heads=8, window=4096),
    "qwen2": Family(kv_heads=32, query_bias=True),
    "qwen3": Family(kv_heads=32, head_dim=128, query_norm=True),
    "gemma2": Family(norms=4, kv_heads=4, head_dim=256, tied=True, window=4096, full_every=2, scores=True),
    "gemma3_text": Family(norms=4, kv_heads=4, head_dim=256, tied=True, query_norm=True, window=4096, full_every=6),
}


@dataclass(frozen=True, slots=True)
class Weight:
    """`count` equal tensors of a model; a vector has one column. A linear layer has `rows` outputs."""

    name: str
    role: Role
    rows: int
    columns: int
    count: int

    @property
    def numbers(self) -> int:
        """The parameters in all of them."""
        return self.rows * self.columns * self.count


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's numbers. `window`: how many tokens back `windowed` of the layers see; the others see all."""

    name: str
    family: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    window: int | None = None
    windowed: int = 0
    attention_bias: bool = False
    mlp_bias: bool = False

    @property
    def queries(self) -> int:
        """The width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """The width of all key heads together, which is that of the values."""
        return self.kv_heads * self.head_dim

    def linear(self) -> dict[str, tuple[int, int]]:
        """The linear layers of a block: outputs and inputs, by name."""
        return {
            "q_proj": (self.queries, self.hidden),
            "k_proj": (self.keys, self.hidden),
            "v_proj": (self.keys, self.hidden),
            "o_proj": (self.hidden, self.queries),
            "gate_proj": (self.intermediate, self.hidden),
            "up_proj": (self.intermediate, self.hidden),
            "down_proj": (self.hidden, self.intermediate),
        }

    def weights(self) -> Iterator[Weight]:
        """Every tensor of the model, equal ones together."""
        family = FAMILIES[self.family]
        yield Weight("embed_tokens", "embedding", self.vocabulary, self.hidden, 1)
        for name, (rows, columns) in self.linear().items():
            yield Weight(name, "linear", rows, columns, self.layers)
        for name in self._biased(family):
            yield Weight(f"{name}.bias", "vector", self.linear()[name][0], 1, self.layers)
        yield Weight("layer norms", "vector", self.hidden, 1, family.norms * self.layers)
        if family.query_norm:
            yield Weight("query and key norms", "vector", self.head_dim, 1, 2 * self.layers)
        yield Weight("norm", "vector", self.hidden, 1, 1)
        if not self.tied:
            yield Weight("lm_head", "head", self.vocabulary, self.hidden, 1)

    @property
    def parameters(self) -> int:
        """All parameters; an embedding that is the head too counts once."""
        return sum(weight.numbers for weight in self.weights())

    def attended(self, length: int) -> float:
        """How many tokens a token of a sequence of this length attends to, on average over tokens and layers."""
        everything = (length + 1) / 2
        if self.window is None or self.window >= length:
            return everything
        near = (self.window * (self.window + 1) / 2 + (length - self.window) * self.window) / length
        return (self.windowed * near + (self.layers - self.windowed) * everything) / self.layers

    def _biased(self, family: Family) -> tuple[str, ...]:
        attention = LINEAR[:4] if self.attention_bias else LINEAR[:3] if family.query_bias else ()
        return attention + (LINEAR[4:] if self.mlp_bias else ())


def read_shape(values: Mapping[str, Any], name: str) -> Shape:
    """The shape that a transformers configuration (`config.json`) tells. Raises UnknownShape."""
    kind = values.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        known = ", ".join(FAMILIES)
        raise UnknownShape(f"{name} is of the architecture {kind}: only the memory of {known} can be told beforehand")

    def number(key: str, default: int | None = None) -> int:
        found = values.get(key)
        found = default if found is None else found
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise UnknownShape(f"{name}: {key} of its config.json is {values.get(key)!r}, no number of a shape")
        return found

    hidden, layers, heads = number("hidden_size"), number("num_hidden_layers"), number("num_attention_heads")
    window, windowed = _windows(values, family, layers)
    return Shape(
        name=name,
        family=str(kind),
        hidden=hidden,
        intermediate=number("intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=number("num_key_value_heads", family.kv_heads or heads),
        head_dim=number("head_dim", family.head_dim or hidden // heads),
        vocabulary=number("vocab_size"),
        tied=bool(values.get("tie_word_embeddings", family.tied)),
        window=window,
        windowed=windowed,
        attention_bias=bool(values.get("attention_bias", False)),
        mlp_bias=bool(values.get("mlp_bias", False)),
    )


def shape_of(model: str) -> Shape:
    """The shape of a model: a folder with a `config.json`, a run's folder, a name in `training/planning/shapes`, or a
    model of the hub's cache on this machine. Raises UnknownShape.
    """
    for place in (Path(model) / "config.json", Path(model) / "model" / "config.json"):
        if place.is_file():
            return read_shape(_read(place), model)
    for known in known_shapes():
        if model.casefold() in known.names:
            return read_shape(known.configuration, model)
    if (cached := _cached(model)) is not None:
        return read_shape(_read(cached), model)
    raise UnknownShape(f"the shape of {model} is not known: it is no model's folder, nor in training/planning/shapes")


@dataclass(frozen=True, slots=True)
class Known:
    """A published model's shape: its names (the file's, and the hub's), its published number of parameters, and the
    transformers configuration."""

    names: frozenset[str]
    hub: tuple[str, ...]
    parameters: int
    configuration: dict[str, Any]


def known_shapes() -> list[Known]:
    """The shapes in `training/planning/shapes`."""
    found = []
    for path in sorted(SHAPES.glob("*.json")):
        values = _read(path)
        hub = tuple(values["hub"])
        names = frozenset(name.casefold() for name in (path.stem, *hub))
        found.append(Known(names, hub, values["parameters"], values["configuration"]))
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnknownShape(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UnknownShape(f"{path} is no model's configuration")
    return values


def _cached(model: str) -> Path | None:
    """The `config.json` of a model in the hub's cache; nothing is asked of the hub."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _windows(values: Mapping[str, Any], family: Family, layers: int) -> tuple[int | None, int]:
    """The window, and how many layers have it."""
    window = values.get("sliding_window", family.window)
    # Qwen names a window that it does not use.
    if not isinstance(window, int) or values.get("use_sliding_window") is False:
        return None, 0
    kinds = values.get("layer_types")
    if isinstance(kinds, list):
        windowed = kinds.count("sliding_attention")
    elif family.full_every:
        windowed = layers - layers // family.full_every
    else:
        windowed = layers
    return (window, windowed) if windowed else (None, 0)
