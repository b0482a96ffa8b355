"""Figures: what an evaluation says of a model, as values. Evaluations write them, the release gate reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec

from corpus.files import replace_file

EVALUATION = "evaluation.json"
# What a server reads beside the weights: the tokenizer, its chat template, how it writes.
SERVED = ("*.json", "*.jinja", "chat_template*", "*.model", "*.txt", "*.tiktoken")
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
# Of fewer nothing is called better or worse, and nothing is released, unless rules say other.
ENOUGH_SAMPLES, ENOUGH_FAMILIES = 20, 5
DIGITS = 12
BLOCK = 1 << 20


class UnreadableFigures(ValueError):
    """An evaluation, or the model that it is of, cannot be read; the message says what to do."""


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of a model: its value, with the interval that holds it with 95 % confidence; over `n` samples.

    `families`: how many document families the samples are of, None where it was not noted.

    `name`: `perplexity`, `bits_per_byte`, `style_author`, `style_sentence_length`, `style_vocabulary`,
    `style_punctuation`, `groundedness`, `correctness`, `win_rate` or `general`; `better`: which way is.
    """

    name: str
    better: Literal["lower", "higher"]
    value: float
    low: float
    high: float
    n: int
    families: int | None = None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """The model's figure minus that of the other, on the same samples, with the interval (95 %) of this difference.

    `families` as of a metric.
    """

    name: str
    difference: float
    low: float
    high: float
    n: int
    families: int | None = None


class SideBySide(msgspec.Struct, frozen=True, kw_only=True):
    """One question and what was answered: by the author, by the model and by the one it was held against."""

    question: str
    author: str
    model: str
    against: str | None = None


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """`evaluation.json`: what was found of `model`, and of it compared with `against`, if there was another.

    `model`, `against`: as `model_name` names their folders, `files`, `against_files`: `served_digest` of these, so a
    figure is of these models and no others; `dataset`: id of the version that the held-out samples are of,
    `generation`: its own; `trained_on`: the datasets of which it was made sure that the model did not learn a test
    document; `questions`: how many it was asked; `metrics`, `comparisons`: by their names; `notes`: what was left out
    or is to be known, by the name of the figure or of what was left out.
    """

    model: str
    against: str | None
    dataset: str
    generation: str
    created_at: datetime
    seed: int
    metrics: dict[str, Metric]
    comparisons: dict[str, Comparison] = {}
    samples: tuple[SideBySide, ...] = ()
    notes: dict[str, str] = {}
    files: str = ""
    against_files: str = ""
    trained_on: tuple[str, ...] = ()
    questions: int | None = None


def write_evaluation(folder: Path, evaluation: Evaluation) -> Path:
    """Write `evaluation.json` into the folder; its path. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / EVALUATION
    replace_file(path, msgspec.json.format(msgspec.json.encode(evaluation), indent=1), lasting=True)
    return path


def read_evaluation(path: Path) -> Evaluation:
    """The evaluation in this file, or in the folder's `evaluation.json`. Raises UnreadableFigures."""
    file = path / EVALUATION if path.is_dir() else path
    try:
        return msgspec.json.decode(file.read_bytes(), type=Evaluation)
    except FileNotFoundError as error:
        raise UnreadableFigures(f"there is no evaluation at {file}: run `twin evaluate`") from error
    except (OSError, msgspec.DecodeError) as error:
        raise UnreadableFigures(f"{file} is no evaluation ({error}): run `twin evaluate` again") from error


def model_folder(path: Path) -> Path:
    """The folder with the model's `config.json`: this one, or a run's `model`. Raises UnreadableFigures."""
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return folder.resolve()
    raise UnreadableFigures(f"there is no model at {path}: name a folder with a config.json, or that of a finished run")


def model_name(path: Path) -> str:
    """`<name>@<first digits of the SHA-256 of its weights>`: the name is the folder's, or the run's that made it.

    Raises UnreadableFigures where there is no model or no weights.
    """
    folder = model_folder(path)
    made_by_run = folder.name == "model" and (folder.parent / "run.json").is_file()
    return f"{folder.parent.name if made_by_run else folder.name}@{weights_digest(folder)[:DIGITS]}"


def weights_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of the weight files, in order of their names."""
    files = _weights(folder)
    if not files:
        raise UnreadableFigures(f"there are no weights ({' or '.join(WEIGHTS)}) in {folder}: train or copy it again")
    total = hashlib.sha256()
    for file in files:
        total.update(file.name.encode() + b"\0")
        with file.open("rb") as opened:
            while block := opened.read(BLOCK):
                total.update(block)
    return total.hexdigest()


def served_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of the files beside the weights that a server reads."""
    files = {path for pattern in SERVED for path in folder.glob(pattern) if path.is_file()}
    total = hashlib.sha256()
    for path in sorted(files):
        content = path.read_bytes()
        total.update(f"{path.name}\0{len(content)}\0".encode() + content)
    return total.hexdigest()


def _weights(folder: Path) -> Sequence[Path]:
    return sorted(path for pattern in WEIGHTS for path in folder.glob(pattern))
