"""What is good and what is wrong with any dataset: `twin dataset check` without its command line. No I/O here.

Faults are counted over all samples, unlike in `training.datasets.gates`, where a sample falls at the first gate only.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import msgspec
import numpy as np

from corpus.terminal import printable
from training.datasets import gates, wording
from training.datasets.families import families
from training.datasets.gates import Context, Finding, Judged, Thresholds, taught
from training.datasets.likeness import (
    SHINGLE,
    Embed,
    closest,
    containment,
    counterparts,
    normalised,
    remembering,
    shingles,
    words,
)
from training.datasets.loading import Loaded
from training.datasets.preferences import Rules, length_bias
from training.datasets.privacy import hidden
from training.datasets.samples import SPLITS, PreferenceSample, Sample, answered, asked

EXAMPLES = 3
# Questions are short: of a run of five words one changed word would leave nothing.
QUESTION_SHINGLE = 2
# A language takes 4 ms to tell; so many answers are looked at where none is declared, evenly over the dataset.
LANGUAGES_LOOKED_AT = 200
# Words that chosen and rejected share, from which there is hardly anything to learn from the pair.
ALIKE = 0.8
# Of an edit there is to learn what the person changed, as `preferences.Rules` has it.
ALIKE_EDIT = Rules().alike_edit
_BUCKETS = (("none", 0.0), ("under 10%", 0.1), ("10 to 50%", 0.5), ("50 to 90%", 0.9), ("90% and more", math.inf))


class Example(msgspec.Struct, frozen=True):
    """One sample, shortened and without personal data and secrets; `at` counts from 0 within its split; `reason` is ""
    where what was counted says it all."""

    split: str
    at: int
    question: str
    answer: str
    reason: str


class Found(msgspec.Struct, frozen=True):
    """How many samples, which share of all that were looked at, and up to three of them."""

    count: int
    share: float
    examples: list[Example]


class Overlap(msgspec.Struct, frozen=True, kw_only=True):
    """What of split `of`, with `samples` samples, occurs in split `within` too. The near ones include the same ones.

    `same_meaning`: answers, None without an embedding model; `families`: document families on both sides, None where
    the samples name no documents.
    """

    of: str
    within: str
    samples: int
    same_questions: int
    near_questions: int
    same_answers: int
    near_answers: int
    same_meaning: int | None
    families: int | None
    examples: list[Example]


class Pairs(msgspec.Struct, frozen=True, kw_only=True):
    """Chosen and rejected side by side, by their words; lengths as `LengthBias` has them."""

    pairs: int
    alike: Found
    chosen_longer: int
    chosen_shorter: int
    longer_chosen: float
    longer_chosen_interval: tuple[float, float]
    length_ratio: float
    length_ratio_interval: tuple[float, float]


class CheckReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was found in a dataset. None means not looked at, and `not_looked_at` says why."""

    source: str
    kind: str
    columns: dict[str, str]
    samples: dict[str, int]
    skipped: int
    documents: int
    ungrounded: Found | None
    # By the share of the answer's runs of five words that the author's texts have.
    grounding: dict[str, int] | None
    repeated: dict[str, Found]
    overlaps: list[Overlap]
    generic: Found
    boilerplate: Found
    length: Found
    # Least, median and most words of a question and of an answer.
    question_words: tuple[int, float, int]
    answer_words: tuple[int, float, int]
    # Of so many answers as the counts add up to; `?` where the text is too short or mixed.
    languages: dict[str, int]
    privacy: Found
    # Samples by what was met in them first.
    exposed: dict[str, int]
    contaminated: Found | None
    pairs: Pairs | None
    not_looked_at: list[str]


class _Places:
    """All samples in one row, and where each stands in its dataset."""

    def __init__(self, loaded: Loaded) -> None:
        self.samples = [sample for part in loaded.splits.values() for sample in part]
        self.where = [(split, at) for split, part in loaded.splits.items() for at in range(len(part))]

    def example(self, index: int, reason: str) -> Example:
        sample = self.samples[index]
        answer = answered(sample)
        if isinstance(sample, PreferenceSample):
            answer = f"{_short(answer, 60)} | rejected: {_short(sample.rejected, 60)}"
        return Example(*self.where[index], _short(asked(sample), 90), _short(answer, 140), reason)

    def found(self, reasons: Mapping[int, str], of: int | None = None) -> Found:
        total = len(self.samples) if of is None else of
        examples = [self.example(index, reasons[index]) for index in _spread(sorted(reasons), EXAMPLES)]
        return Found(len(reasons), len(reasons) / total if total else 0.0, examples)

    def by_split(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for index, (split, _) in enumerate(self.where):
            found.setdefault(split, []).append(index)
        return found


def check(
    loaded: Loaded,
    documents: Mapping[str, str] | None = None,
    embed: Embed | None = None,
    evaluation_sets: Mapping[str, Sequence[str]] | None = None,
    thresholds: Thresholds | None = None,
) -> CheckReport:
    """Look at everything. `documents`: the author's texts by id; `embed`: texts to float32 vectors of length 1;
    `evaluation_sets`: texts by the name of the set."""
    places = _Places(loaded)
    samples = places.samples
    limits = thresholds or Thresholds()
    every = range(len(samples))
    context = Context(embed=remembering(embed), thresholds=limits, evaluation_sets=evaluation_sets or {})
    repeated, left_out = _repeated(places, context)
    # What people preferred need stand in no text of the author's.
    grounded = [index for index in every if samples[index].method != "feedback"]
    ungrounded, grounding = _grounding(places, grounded, documents) if documents and grounded else (None, None)
    if not documents:
        left_out.append("whether answers rest on the author's texts: no documents were given")
    elif preferred := len(samples) - len(grounded):
        left_out.append(f"whether answers rest on the author's texts: the {preferred:,} that people preferred need not")
    if len(loaded.splits) == 1:
        left_out.append("what splits share: there is one")
    contaminated = None
    if evaluation_sets:
        contaminated = places.found(_reasons(gates.decontamination(samples, every, context)))
    else:
        left_out.append("words of evaluation sets: none is registered")
    private = _reasons(gates.privacy(samples, every, context))
    return CheckReport(
        source=loaded.source,
        kind=loaded.kind,
        columns=dict(loaded.columns),
        samples={split: len(part) for split, part in loaded.splits.items()},
        skipped=loaded.skipped,
        documents=len(documents or {}),
        ungrounded=ungrounded,
        grounding=grounding,
        repeated=repeated,
        overlaps=list(_overlaps(places, context, _families(samples, documents or {}))),
        generic=places.found(
            {
                index: f"“{match[0]}”"
                for index in every
                # What a description of code says is no pointing.
                if not gates.is_code(samples[index]) and (match := wording.GENERIC.search(asked(samples[index])))
            }
        ),
        boilerplate=places.found(_reasons(gates.boilerplate(samples, every, context))),
        length=places.found(_reasons(gates.length(samples, every, context))),
        question_words=_spread_of([len(words(asked(sample))) for sample in samples]),
        answer_words=_spread_of([len(words(answered(sample))) for sample in samples]),
        languages=_languages(samples, limits),
        privacy=places.found(private),
        exposed=dict(Counter(reason.partition(" (")[0] for reason in private.values()).most_common()),
        contaminated=contaminated,
        pairs=_pairs(places) if loaded.kind == "preferences" else None,
        not_looked_at=left_out,
    )


def _reasons(judged: Judged) -> dict[int, str]:
    return {finding.at: finding.reason for finding in judged.findings}


def _repeated(places: _Places, context: Context) -> tuple[dict[str, Found], list[str]]:
    """Samples that repeat another of their split, each by the first way that finds it."""
    found: dict[str, Found] = {}
    left_out = []
    remaining = places.by_split()
    for name, judge in (
        ("exact", gates.exact_duplicates),
        ("near", gates.near_duplicates),
        ("semantic", gates.semantic_duplicates),
    ):
        if name == "semantic" and context.embed is None:
            left_out.append("duplicates by meaning: no embedding model")
            continue
        findings: list[Finding] = []
        for split, indices in remaining.items():
            fallen = judge(places.samples, indices, context).findings
            remaining[split] = sorted(set(indices) - {finding.at for finding in fallen})
            findings += fallen
        reasons = {}
        for finding in findings:
            if finding.other is not None:
                split, at = places.where[finding.other]
                reasons[finding.at] = f"{finding.reason} as {split} {at}"
        found[name] = places.found(reasons)
    return found, left_out


def _grounding(places: _Places, at: Sequence[int], documents: Mapping[str, str]) -> tuple[Found, dict[str, int]]:
    """Of the samples with these indices, answers that share no run of five words (shorter ones: not all of theirs) with
    any text of the author, and how much the others share."""
    own = [words(answered(places.samples[index])) for index in at]
    sizes = {min(SHINGLE, len(found)) for found in own if found}
    texts = [words(text) for text in documents.values()]
    known = {size: np.unique(np.concatenate([shingles(text, size) for text in texts])) for size in sizes}
    reasons, shares = {}, []
    for index, found in zip(at, own, strict=True):
        size = min(SHINGLE, len(found))
        shares.append(containment(shingles(found, size), known[size]) if found else 0.0)
        if not shares[-1]:
            reasons[index] = ""
    grounding = dict.fromkeys((name for name, _ in _BUCKETS), 0)
    for share in shares:
        grounding[next(name for name, most in _BUCKETS if share == most == 0 or share < most)] += 1
    return places.found(reasons, len(at)), grounding


def _overlaps(places: _Places, context: Context, families: Mapping[str, str]) -> Iterator[Overlap]:
    """Every two splits, the smaller purpose held against the larger: test against train, and so on."""
    splits = places.by_split()
    order = [split for split in SPLITS if split in splits]
    for within, of in combinations(order, 2):
        ours, theirs = splits[of], splits[within]
        questions, answers = (
            _occurring(places, ours, theirs, asked, QUESTION_SHINGLE, context.thresholds.near),
            _occurring(places, ours, theirs, answered, SHINGLE, context.thresholds.near),
        )
        same_meaning = None
        if context.embed is not None:
            vectors = [context.embed([answered(places.samples[index]) for index in part]) for part in (ours, theirs)]
            same_meaning = int((closest(*vectors) >= context.thresholds.meaning).sum())
        sides = [{_family(places.samples[index], families) for index in part} - {""} for part in (ours, theirs)]
        reasons = {
            index: f"the same question as {within} {places.where[other][1]}" for index, other in questions[0].items()
        } or {index: f"the same answer as {within} {places.where[other][1]}" for index, other in answers[0].items()}
        yield Overlap(
            of=of,
            within=within,
            samples=len(ours),
            same_questions=len(questions[0]),
            near_questions=len(questions[0].keys() | questions[1]),
            same_answers=len(answers[0]),
            near_answers=len(answers[0].keys() | answers[1]),
            same_meaning=same_meaning,
            families=len(sides[0] & sides[1]) if any(sides) else None,
            examples=places.found(reasons).examples,
        )


def _occurring(
    places: _Places, ours: Sequence[int], theirs: Sequence[int], part: Callable[[Sample], str], size: int, least: float
) -> tuple[dict[int, int], dict[int, int]]:
    """Our samples of which this part is the same as one of theirs, and those of which it is nearly the same."""
    texts = [part(places.samples[index]) for index in ours], [part(places.samples[index]) for index in theirs]
    first: dict[str, int] = {}
    for index, text in zip(theirs, texts[1], strict=True):
        first.setdefault(normalised(text), index)
    same = {
        index: first[plain] for index, text in zip(ours, texts[0], strict=True) if (plain := normalised(text)) in first
    }
    runs = [[shingles(text, size) for text in side] for side in texts]
    near = {ours[one]: theirs[other] for one, other in counterparts(runs[0], runs[1], least).items()}
    return same, near


def _families(samples: Sequence[Sample], documents: Mapping[str, str]) -> dict[str, str]:
    """The families of the documents, if there is a sample that names a document and not its family."""
    if any(not sample.family and sample.document_id in documents for sample in samples):
        return families(documents)
    return {}


def _family(sample: Sample, families: Mapping[str, str]) -> str:
    return sample.family or families.get(sample.document_id, sample.document_id)


def _languages(samples: Sequence[Sample], limits: Thresholds) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for sample in _spread(samples, LANGUAGES_LOOKED_AT):
        found = sample.language or gates.language_of(answered(sample), limits)
        counts[found or "?"] += 1
    return dict(counts.most_common())


def _pairs(places: _Places) -> Pairs:
    alike: dict[int, str] = {}
    pairs = [sample for sample in places.samples if isinstance(sample, PreferenceSample)]
    for index, sample in enumerate(places.samples):
        chosen, rejected = (words(part) for part in taught(sample))
        both, total = (Counter(chosen) & Counter(rejected)).total(), len(chosen) + len(rejected)
        likeness = 2 * both / total if total else 1.0
        if likeness >= (ALIKE_EDIT if sample.method == "feedback" else ALIKE):
            alike[index] = "the same words" if chosen == rejected else f"{likeness:.0%} of the words are the same"
    bias = length_bias(pairs)
    return Pairs(
        pairs=bias.pairs,
        alike=places.found(alike),
        chosen_longer=bias.chosen_longer,
        chosen_shorter=bias.chosen_shorter,
        longer_chosen=bias.longer,
        longer_chosen_interval=bias.longer_interval,
        length_ratio=bias.ratio,
        length_ratio_interval=bias.ratio_interval,
    )


def _spread(values: Sequence[Any], count: int) -> list[Any]:
    """So many of the values, evenly over all."""
    if len(values) <= count:
        return list(values)
    return [values[place * len(values) // count] for place in range(count)]


def _spread_of(counts: Sequence[int]) -> tuple[int, float, int]:
    return min(counts), float(statistics.median(counts)), max(counts)


def _short(text: str, most: int) -> str:
    plain = " ".join(printable(hidden(text)).split())
    return plain if len(plain) <= most else plain[: most - 1] + "…"
