"""Samples: the values that datasets are made of, each with the passage that it rests on. No I/O here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

Method = Literal["backtranslation", "question", "code"]
Split = Literal["train", "validation", "test"]
# `on-policy`: the rejected text is a model's own answer; `feedback`: a person preferred one text to another.
Preference = Literal["on-policy", "feedback"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class InstructionSample(msgspec.Struct, frozen=True, kw_only=True):
    """What an author is asked and answers.

    `answer` rests on `text[start:end]` (characters) of this version of the document's cleaned text: it is that passage
    itself, or was made from it; `generator`: `templates` or the name of the language model that wrote the instruction
    or the answer; `prompt_version`: the templates or the prompt that it wrote by; `family`: the document family, which
    is never divided between splits; `scores`: by gate, from 0 to 1.
    """

    instruction: str
    answer: str
    method: Method
    document_id: str
    version: int
    start: int
    end: int
    author: str
    category: str
    language: str | None
    generator: str
    prompt_version: str
    family: str = ""
    scores: Mapping[str, float] = {}


class PreferenceSample(msgspec.Struct, frozen=True, kw_only=True):
    """Two answers to one prompt, of which `chosen` is the better.

    Of an on-policy sample `chosen` is the author's own `text[start:end]` (characters) of this version of the document,
    and `generator` the model that gave `rejected`; of feedback, `generator` is who or what answered first.
    """

    prompt: str
    chosen: str
    rejected: str
    method: Preference
    document_id: str
    version: int
    start: int
    end: int
    author: str
    category: str
    language: str | None
    generator: str
    prompt_version: str
    family: str = ""
    scores: Mapping[str, float] = {}


Sample = InstructionSample | PreferenceSample


def asked(sample: Sample) -> str:
    """What the author is asked."""
    return sample.instruction if isinstance(sample, InstructionSample) else sample.prompt


def answered(sample: Sample) -> str:
    """The author's answer, as a model should learn it."""
    return sample.answer if isinstance(sample, InstructionSample) else sample.chosen
