"""Preference samples: two answers to one prompt, of which the author or a reader says which is better.

On policy the chosen answer is the author's own text and the rejected one is what the model itself answers to the same
prompt, so that training moves the model from what it does to what the author does. Of feedback, a person edited an
answer, or liked one answer to a question and not another. Pairs that would teach nothing, or only how long to be, are
left out and counted by reason.
Source: Rafailov et al., Direct Preference Optimization (2023); Singhal et al., A Long Way to Go: Investigating Length
Correlations in RLHF (2023), for why the length is watched.
"""

from __future__ import annotations

import codecs
import math
import statistics
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from difflib import SequenceMatcher
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec

from training.datasets import likeness
from training.datasets.instructions import shared
from training.datasets.passages import words
from training.datasets.ranges import Count, Share, SomeShare, fault
from training.datasets.samples import InstructionSample, Preference, PreferenceSample
from training.datasets.wordsmith import Request
from training.shares import Z, wilson

ON_POLICY_VERSION, FEEDBACK_VERSION = "on-policy-1", "feedback-1"
GRAM = 3
# Words of each text; the comparison may take their product.
COMPARED = 400

Filled = Annotated[str, msgspec.Meta(min_length=1)]


class Rules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which pairs are kept.

    `least_words`: of either answer. `alike`: from this likeness on two answers are the same to a learner; an edit may
    be nearer to its answer (`alike_edit`), since what a person changed is what there is to learn. `ratio`, `overlap`:
    two answers differ mainly in length when the longer one has more than `ratio` times the characters of the other and
    at least `overlap` of the word 3-grams of the other, so that it says the same and more.
    """

    least_words: Count = 5
    alike: SomeShare = 0.9
    alike_edit: SomeShare = 0.98
    ratio: Annotated[float, msgspec.Meta(ge=1)] = 1.5
    overlap: Share = 0.6


class Paired(NamedTuple):
    """Pairs in the order of what they were made from, and how much was left out by reason.

    `documents`: of each pair the ids of all that its two answers rest on, which may be more than the sample names.
    """

    samples: tuple[PreferenceSample, ...]
    left_out: Counter[str]
    documents: tuple[tuple[str, ...], ...]


def prompts(samples: Sequence[InstructionSample]) -> list[Request]:
    """What a model is asked so that its own answers can be rejected: the instructions alone."""
    return [
        Request(sample.document_id, ON_POLICY_VERSION, ({"role": "user", "content": sample.instruction},))
        for sample in samples
    ]


def paired(
    samples: Sequence[InstructionSample], answers: Sequence[str | None], model_name: str, rules: Rules | None = None
) -> Paired:
    """A pair of each sample with the model's answer to its instruction; None is a request at which it failed.

    `scores["likeness"]` is how alike the two are. Raises ValueError unless there is one answer for each sample.
    """
    rules = rules or Rules()
    left_out: Counter[str] = Counter()
    result = []
    for sample, answer in zip(samples, answers, strict=True):
        if answer is None:
            left_out["the model failed"] += 1
            continue
        likeness = alike(sample.answer, answer)
        if reason := _unfit(sample.answer, answer, likeness, rules.alike, rules):
            left_out[reason] += 1
            continue
        result.append(
            PreferenceSample(
                prompt=sample.instruction,
                chosen=sample.answer,
                rejected=answer.strip(),
                method="on-policy",
                document_id=sample.document_id,
                version=sample.version,
                start=sample.start,
                end=sample.end,
                author=sample.author,
                category=sample.category,
                language=sample.language,
                generator=model_name,
                prompt_version=ON_POLICY_VERSION,
                family=sample.family,
                scores={"likeness": round(likeness, 4)},
            )
        )
    return Paired(tuple(result), left_out, tuple((pair.document_id,) for pair in result))


def alike(one: str, other: str) -> float:
    """How alike two texts are, from 0 to 1: the share of their words that stand in both in the same order.

    Twice the matching words over all words, without regard to case and punctuation; the same whichever comes first.
    Source: Ratcliff and Metzener, Pattern Matching: The Gestalt Approach (1988).
    """
    # A model that repeats itself would take minutes: what two texts share shows in their beginnings.
    first, second = sorted((words(one)[:COMPARED], words(other)[:COMPARED]))
    if not first and not second:
        return float(_plain(one) == _plain(other))
    return SequenceMatcher(None, first, second, autojunk=False).ratio()


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _unfit(chosen: str, rejected: str, likeness: float, most_alike: float, rules: Rules) -> str:
    """Why a pair teaches nothing; "" if it does."""
    if _plain(chosen) == _plain(rejected):
        return "equal"
    if min(len(words(chosen)), len(words(rejected))) < rules.least_words:
        return "too short"
    if likeness >= most_alike:
        return "too alike"
    shorter, longer = sorted((chosen.strip(), rejected.strip()), key=len)
    mainly_length = len(longer) > rules.ratio * len(shorter) and shared(shorter, longer, GRAM) >= rules.overlap
    return "differing mainly in length" if mainly_length else ""


class Cited(msgspec.Struct, frozen=True):
    """A passage that an answer rested on, as the app's citations name it."""

    document_id: Filled
    version: int = 0
    start: int = 0
    end: int = 0


class Feedback(msgspec.Struct, frozen=True, kw_only=True):
    """What a person thought of an answer: one line of JSON. Fields that are not named here are passed over.

    `at`: ISO 8601 with an offset; `author`: whose twin answered; `model`: what answered; `edited`: with the verdict
    `edit`, the answer as it should have been; `person`: who says so. A `feedback_id` that comes again replaces what it
    said before.
    """

    feedback_id: Filled
    at: Annotated[datetime, msgspec.Meta(tz=True)]
    author: Filled
    question: Filled
    answer: Filled
    model: Filled
    verdict: Literal["up", "down", "edit"]
    edited: str | None = None
    citations: tuple[Cited, ...] = ()
    person: str = ""
    category: str = "article"
    language: str | None = None


class NotFeedback(ValueError):
    """A file that is no feedback; the message names the line and the field, and says what is expected."""


def read_feedback(path: Path) -> list[Feedback]:
    """The feedback in a file of JSON lines, oldest first; of lines with one id the last. Raises NotFeedback."""
    try:
        lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    except OSError as error:
        raise NotFeedback(f"{path} cannot be read ({error.strerror}): name a file of JSON lines") from error
    found: dict[str, Feedback] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line, type=Feedback)
        except msgspec.ValidationError as error:
            wrong = fault(error)
            known = "; a verdict is up, down or edit" if wrong.startswith("verdict: ") else ""
            raise NotFeedback(f"{path}, line {number}: {wrong}{known}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise NotFeedback(f"{path}, line {number}: not a JSON object in one line of UTF-8 ({error})") from error
        if row.verdict == "edit" and not (row.edited or "").strip():
            raise NotFeedback(f"{path}, line {number}: edited: the verdict `edit` needs the edited answer")
        found.pop(row.feedback_id, None)
        found[row.feedback_id] = row
    return sorted(found.values(), key=lambda row: row.at)


def preferred(feedback: Sequence[Feedback], rules: Rules | None = None) -> Paired:
    """The pairs that people's feedback makes.

    An edit is better than the answer it was made from. Of one author and question, each answer with a thumb up is
    better than one with a thumb down, each used about as often as the others; an answer about which people disagree is
    neither.
    """
    rules = rules or Rules()
    left_out: Counter[str] = Counter()
    made: list[PreferenceSample] = []
    documents: list[tuple[str, ...]] = []

    def pair(chosen: str, rejected: str, of: Feedback, most_alike: float, rows: Iterable[Feedback]) -> None:
        likeness = alike(chosen, rejected)
        if reason := _unfit(chosen, rejected, likeness, most_alike, rules):
            left_out[reason] += 1
        else:
            made.append(_of_feedback(chosen, rejected, of, likeness))
            documents.append(tuple(dict.fromkeys(cited.document_id for row in rows for cited in row.citations)))

    thumbs: defaultdict[tuple[str, str], list[Feedback]] = defaultdict(list)
    for row in feedback:
        if row.verdict == "edit":
            pair(row.edited or "", row.answer, row, rules.alike_edit, [row])
        else:
            thumbs[row.author, _plain(row.question)].append(row)
    for rows in thumbs.values():
        said: defaultdict[str, set[str]] = defaultdict(set)
        for row in rows:
            said[_plain(row.answer)].add(row.verdict)
        agreed = [row for row in rows if len(said[_plain(row.answer)]) == 1]
        left_out["people disagree"] += len(rows) - len(agreed)
        ups, downs = (
            list({_plain(row.answer): row for row in agreed if row.verdict == verdict}.values())
            for verdict in ("up", "down")
        )
        if not ups or not downs:
            left_out["a thumb without its opposite"] += len(agreed)
            continue
        for at in range(max(len(ups), len(downs))):
            up, down = ups[at % len(ups)], downs[at % len(downs)]
            # Who else said so of one of the two may have seen other citations below it.
            both = {_plain(up.answer), _plain(down.answer)}
            rows_of_both = [down, *(row for row in agreed if _plain(row.answer) in both)]
            pair(up.answer, down.answer, down, rules.alike, rows_of_both)
    return Paired(tuple(made), +left_out, tuple(documents))


def _of_feedback(chosen: str, rejected: str, of: Feedback, likeness: float) -> PreferenceSample:
    method: Preference = "feedback"
    cited = of.citations[0] if of.citations else None
    return PreferenceSample(
        prompt=of.question.strip(),
        chosen=chosen.strip(),
        rejected=rejected.strip(),
        method=method,
        document_id=cited.document_id if cited else "",
        version=cited.version if cited else 0,
        start=cited.start if cited else 0,
        end=cited.end if cited else 0,
        author=of.author,
        category=of.category,
        language=of.language,
        generator=of.model,
        prompt_version=FEEDBACK_VERSION,
        scores={"likeness": round(likeness, 4)},
    )


class LengthBias(msgspec.Struct, frozen=True, kw_only=True):
    """How much pairs prefer the longer answer, in words.

    `longer`: the share of pairs of unlike length whose longer answer is chosen, 0.5 where there are none, with its
    interval of 95 % (Wilson); `ratio`: geometric mean of chosen over rejected, with its interval: 1 is no preference.
    """

    pairs: int
    chosen_longer: int
    chosen_shorter: int
    longer: float
    longer_interval: tuple[float, float]
    ratio: float
    ratio_interval: tuple[float, float]


def length_bias(samples: Sequence[PreferenceSample]) -> LengthBias:
    """The length bias of pairs. Raises ValueError for no pairs."""
    if not samples:
        raise ValueError("of no pairs there is no length bias: build preference samples first")
    counts = [[max(1, len(likeness.words(text))) for text in (pair.chosen, pair.rejected)] for pair in samples]
    logs = [math.log(chosen / rejected) for chosen, rejected in counts]
    longer, shorter = sum(value > 0 for value in logs), sum(value < 0 for value in logs)
    mean = statistics.fmean(logs)
    margin = Z * statistics.stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else math.inf
    return LengthBias(
        pairs=len(logs),
        chosen_longer=longer,
        chosen_shorter=shorter,
        longer=longer / (longer + shorter) if longer + shorter else 0.5,
        longer_interval=wilson(longer, longer + shorter),
        ratio=math.exp(mean),
        ratio_interval=(math.exp(mean - margin), math.exp(min(mean + margin, 700.0))),
    )
