"""The configuration of a training run: one YAML file, checked as a whole before anything is loaded."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml  # type: ignore[import-untyped]

Method = Literal["full", "lora", "qlora"]
Stage = Literal["sft", "dpo"]
Count = Annotated[int, msgspec.Meta(ge=1)]
Share = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
# Where a configuration names none: a whole model moves by smaller steps than an adapter, and DPO by smaller than SFT.
LEARNING_RATES: dict[tuple[Stage, bool], float] = {
    ("sft", False): 2e-4,
    ("sft", True): 2e-5,
    ("dpo", False): 1e-5,
    ("dpo", True): 1e-6,
}


class InvalidConfiguration(ValueError):
    """A configuration that cannot be used; the message names the file, the key's path, and what it may be."""


class Lora(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The adapter (Hu et al., 2021, LoRA): W + (alpha / rank) B A, or alpha / sqrt(rank) with `rslora`.

    `target_modules`: `all-linear` (every linear layer but the head), or their names; `dora`: direction and magnitude
    apart (Liu et al., 2024).
    """

    rank: Count = 16
    alpha: Positive = 32.0
    dropout: Share = 0.0
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = "all-linear"
    rslora: bool = False
    dora: bool = False


class Qlora(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the frozen base is held in 4 bits (Dettmers et al., 2023, QLoRA); `double_quant`: its constants too."""

    quant_type: Literal["nf4", "fp4"] = "nf4"
    double_quant: bool = True


class Dpo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Direct preference optimisation (Rafailov et al., 2023); `beta`: how near to the reference the model is held.

    `precompute_reference`: the reference's probabilities are computed once, before the first step.
    """

    beta: Positive = 0.1
    loss_type: Literal["sigmoid", "ipo", "hinge", "robust", "apo_zero", "apo_down"] = "sigmoid"
    label_smoothing: Annotated[float, msgspec.Meta(ge=0, lt=0.5)] = 0.0
    precompute_reference: bool = False


class TrainingConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One training run, SFT or DPO.

    `model`: a folder, a run's folder (its `model/`), or the name of a model that is on this machine already;
    `dataset`: the id of a dataset version, or its folder; `output`: the run's folder. Lengths are tokens. `batch_size`
    is per device; a step takes batch_size * gradient_accumulation * devices sequences. `warmup`: share of the steps.
    `precision`: what is computed in; `auto` is bf16 where the device has it. With `full` the weights themselves stay
    fp32, with an adapter the frozen base is held in this precision. `checkpoint_every`, `evaluate_every`, `log_every`:
    steps.
    """

    model: Annotated[str, msgspec.Meta(min_length=1)]
    dataset: Annotated[str, msgspec.Meta(min_length=1)]
    output: Annotated[str, msgspec.Meta(min_length=1)]
    method: Method = "lora"
    # A Jinja file, for a model that brings no chat template of its own.
    chat_template: str | None = None
    max_length: Annotated[int, msgspec.Meta(ge=8)] = 2048
    packing: bool = False
    # None: see LEARNING_RATES.
    learning_rate: Positive | None = None
    epochs: Annotated[float, msgspec.Meta(gt=0, le=10_000)] = 1.0
    max_steps: Count | None = None
    batch_size: Count = 1
    gradient_accumulation: Count = 8
    warmup: Share = 0.03
    scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    weight_decay: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    max_gradient_norm: Positive = 1.0
    gradient_checkpointing: bool = True
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    # `auto`: paged_adamw_8bit for QLoRA on a GPU, adamw_torch elsewhere.
    optimiser: Literal["auto", "adamw_torch", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "adafactor"] = (
        "auto"
    )
    log_every: Count = 10
    checkpoint_every: Count = 100
    keep: Count = 2
    # None: the validation split is not looked at.
    evaluate_every: Count | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] = 0
    lora: Lora = msgspec.field(default_factory=Lora)
    qlora: Qlora = msgspec.field(default_factory=Qlora)
    dpo: Dpo = msgspec.field(default_factory=Dpo)

    def rate(self, stage: Stage) -> float:
        """The learning rate at its highest."""
        if self.learning_rate is not None:
            return self.learning_rate
        return LEARNING_RATES[stage, self.method == "full"]


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML in which 2e-4 is a number, as everybody who writes it means, and a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        met: set[str] = set()
        for key, _ in node.value:
            if key.value in met:
                raise yaml.MarkedYAMLError(problem=f"{key.value} stands here twice", problem_mark=key.start_mark)
            met.add(key.value)
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made


_Loader.yaml_implicit_resolvers = {
    first: list(found) for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load(path: Path, overrides: Sequence[str] = ()) -> TrainingConfiguration:
    """The configuration in `path`, with `overrides` such as `lora.rank=8` in place of what the file says.

    Raises InvalidConfiguration.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InvalidConfiguration(f"{path}: there is no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfiguration(f"{path} cannot be read: {error}") from error
    values = parsed(text, str(path))
    if not isinstance(values, dict):
        raise InvalidConfiguration(f"{path}: a configuration is keys and values, such as `model: FOLDER`")
    for override in overrides:
        _override(values, override)
    return read(values, str(path))


def read(values: dict[str, Any], source: str = "configuration") -> TrainingConfiguration:
    """The configuration that plain values tell. Raises InvalidConfiguration, which names `source`."""
    unknown = list(_unknown(values, TrainingConfiguration, ""))
    if unknown:
        raise InvalidConfiguration("\n".join(f"{source}: {told}" for told in unknown))
    try:
        return msgspec.convert(values, TrainingConfiguration)
    except msgspec.ValidationError as error:
        told, _, at = str(error).partition(" - at `$")
        where = at.rstrip("`").lstrip(".")
        raise InvalidConfiguration(f"{source}: {f'{where}: ' if where else ''}{_plain(told)}") from error


def dump(configuration: TrainingConfiguration) -> str:
    """The whole configuration as YAML, every default written out; `load` reads the same again."""
    told: str = yaml.safe_dump(msgspec.to_builtins(configuration), sort_keys=False, allow_unicode=True)
    return told


def parsed(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise InvalidConfiguration(f"{source}{line}: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise InvalidConfiguration(f"{source}: {error}") from error


def _override(values: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    if not equals or not path.strip():
        raise InvalidConfiguration(f"{override!r} sets nothing: write KEY=VALUE, such as lora.rank=8")
    *sections, key = path.strip().split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise InvalidConfiguration(f"{override!r}: {section} has no keys of its own")
        values = inner
    values[key] = parsed(value, repr(override))


def _unknown(values: dict[Any, Any], kind: Any, path: str) -> Iterator[str]:
    """What is no key of this part of a configuration, and which was meant, or which there are."""
    kinds, strange = typing.get_type_hints(kind), False
    for key, value in values.items():
        if key not in kinds:
            near = difflib.get_close_matches(str(key), kinds, n=1, cutoff=0.6)
            yield f"{path}{key} is not a key" + (f": did you mean {near[0]}?" if near else "")
            strange = strange or not near
        elif isinstance(value, dict) and isinstance(kinds[key], type) and issubclass(kinds[key], msgspec.Struct):
            yield from _unknown(value, kinds[key], f"{path}{key}.")
    if strange:
        yield f"the keys{f' of {path[:-1]}' if path else ''} are {', '.join(kinds)}"


def _plain(told: str) -> str:
    """msgspec's sentence in a person's words."""
    if told.startswith("Object missing required field"):
        return f"{told.split('`')[1]} is missing: every run needs model, dataset and output"
    return told.replace("`", "").replace("Expected", "expected").replace("Invalid enum value", "there is no")
