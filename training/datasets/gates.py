"""Quality gates: what keeps a sample out of a dataset, as values, in the order of a table. No I/O here.

Which of two samples that repeat each other is kept depends on the samples alone, never on the order that they come in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np

from corpus.language import natural_language
from training.datasets import wording
from training.datasets.likeness import (
    SHINGLE,
    Embed,
    closest,
    grounded,
    normalised,
    not_alone,
    passages_of,
    remembering,
    repeats,
    same_meaning,
    shingles,
    words,
)
from training.datasets.privacy import exposed
from training.datasets.ranges import Count, Positive, Share, SomeShare, in_order
from training.datasets.samples import InstructionSample, Sample, answered, asked

# A text's language is told from so much of it.
LANGUAGE_CHARACTERS = 1_000


class Thresholds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where each gate draws its line. Shares and cosines go from 0 to 1."""

    # Jaccard of runs of five words, from which two answers are nearly the same.
    near: SomeShare = 0.8
    # Cosine of two answers of one language and method, from which they mean the same.
    meaning: SomeShare = 0.95
    # Share of the answer's runs of five words that its document has: below it an answer must at least be near to the
    # document in meaning (`closeness`, cosine with a passage of it); with no run at all it always falls. By MiniLM
    # passages had at least 0.75 with their own document, invented answers on its subject 0.45 (median) to 0.73.
    grounding: Share = 0.1
    closeness: Share = 0.7
    # A language is believed above this probability, from this many characters on.
    language: Share = 0.9
    language_characters: Count = 100
    # In words; an answer of a thousand fits into 2,048 tokens.
    shortest_question: Count = 2
    longest_question: Positive = 500
    shortest_answer: Count = 5
    longest_answer: Positive = 1_000
    # Share of an answer's characters in lines of boilerplate, from which it falls.
    boilerplate: Share = 0.2
    # Share of letters among what is not space, below which prose is not prose, and code not code.
    letters: Share = 0.6
    code_letters: Share = 0.3
    # Share of the lines that are links and little else, from which it is a list of links.
    links: Share = 0.5
    # What a language model says of a sample, where it is asked: 0.5 is three of five.
    judge: Share = 0.5
    # Words in a row shared with an evaluation text.
    decontamination: Positive = 8

    def __post_init__(self) -> None:
        in_order(shortest_question=self.shortest_question, longest_question=self.longest_question)
        in_order(shortest_answer=self.shortest_answer, longest_answer=self.longest_answer)


@dataclass(frozen=True, slots=True)
class Context:
    """What gates decide by.

    `passages`: cleaned text by document id, empty where there is none to compare with; `embed`: texts to float32
    vectors of length 1, or None; `evaluation_sets`: the texts of each, by its name; `languages`: ISO 639-1 codes of
    those that are let through, or None for all.
    """

    passages: Mapping[str, str] = field(default_factory=dict)
    embed: Embed | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    evaluation_sets: Mapping[str, Sequence[str]] = field(default_factory=dict)
    languages: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """The sample at index `at` falls at this gate; `other` is the index of the sample that it repeats.

    The reason never holds what was found of personal data or secrets.
    """

    gate: str
    at: int
    reason: str
    other: int | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """What one gate found. `scores`: by index and name; `left_out`: why it could not look, or only in part."""

    findings: Sequence[Finding] = ()
    scores: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    left_out: str | None = None


@dataclass(frozen=True, slots=True)
class Gated:
    """What remains. `kept`: indices, ascending; `findings`: one for each that fell, by gate and index; `scores`: by
    index and name, from 0 to 1; `left_out`: why a gate, by its name, could not look, or only in part."""

    kept: tuple[int, ...]
    findings: tuple[Finding, ...]
    scores: Mapping[int, Mapping[str, float]]
    left_out: Mapping[str, str]


# Samples, and the indices of those to be judged.
Gate = Callable[[Sequence[Sample], Sequence[int], Context], Judged]


def gate(samples: Sequence[Sample], context: Context) -> Gated:
    """Send samples through all gates, in order; each judges what those before it kept."""
    context = replace(context, embed=remembering(context.embed))
    kept: list[int] = list(range(len(samples)))
    findings: list[Finding] = []
    scores: dict[int, dict[str, float]] = {at: {} for at in kept}
    left_out: dict[str, str] = {}
    for name, judge in GATES.items():
        judged = judge(samples, kept, context)
        fallen = {finding.at for finding in judged.findings}
        findings += sorted(judged.findings, key=lambda finding: finding.at)
        kept = [at for at in kept if at not in fallen]
        for at, found in judged.scores.items():
            scores[at] |= found
        if judged.left_out:
            left_out[name] = judged.left_out
    return Gated(tuple(kept), tuple(findings), scores, left_out)


def taught(sample: Sample) -> tuple[str, ...]:
    """What a model learns from a sample: an answer, or a chosen and a rejected one."""
    return (sample.answer,) if isinstance(sample, InstructionSample) else (sample.chosen, sample.rejected)


def is_code(sample: Sample) -> bool:
    """Whether the answer is code."""
    return sample.category == "code" or sample.method == "code"


def _ordered(samples: Sequence[Sample], at: Sequence[int]) -> list[int]:
    """Indices by what the samples are: the first of two that repeat each other is kept."""

    def place(index: int) -> tuple[str, int, str, str, tuple[str, ...], int]:
        sample = samples[index]
        return sample.document_id, sample.start, sample.method, asked(sample), taught(sample), index

    return sorted(at, key=place)


def exact_duplicates(samples: Sequence[Sample], at: Sequence[int], context: Context) -> Judged:
    """The same question and answer, or the same answer alone, but for case, spaces and forms of characters."""
    findings = []
    met: dict[tuple[str, ...], int] = {}
    for index in _ordered(samples, at):
        answer = tuple(normalised(part) for part in taught(samples[index]))
        first = met.setdefault(answer, index)
        if first != index:
            same = normalised(asked(samples[first])) == normalised(asked(samples[index]))
            findings.append(
                Finding("exact", index, "the same question and answer" if same else "the same answer", first)
            )
    return Judged(findings)


def near_duplicates(samples: Sequence[Sample], at: Sequence[int], context: Context) -> Judged:
    """Nearly the same words in the answer (MinHash finds, Jaccard decides)."""
    ordered = _ordered(samples, at)
    texts = [[shingles(part) for part in taught(samples[index])] for index in ordered]
    least = context.thresholds.near
    return Judged(
        [
            Finding("near", ordered[one], f"at least {least:.0%} of the words in a row are the same", ordered[other])
            for one, other in repeats(texts, least).items()
        ]
    )


def semantic_duplicates(samples: Sequence[Sample], at: Sequence[int], context: Context) -> Judged:
    """The same meaning in other words, within one language and method."""
    if context.embed is None:
        return Judged(left_out="no embedding model: meanings were not compared")
    groups: dict[tuple[object, ...], list[int]] = {}
    for index in _ordered(samples, at):
        sample = samples[index]
        groups.setdefault((type(sample), sample.method, sample.language), []).append(index)
    findings = []
    least = context.thresholds.meaning
    for group in groups.values():
        first, *others = zip(*(taught(samples[index]) for index in group), strict=True)
        vectors = [context.embed(first)]
        if others:
            # Rejected answers are embedded where the chosen one is like another.
            alike = not_alone(vectors[0], least)
            group = [group[at] for at in alike]
            vectors = [vectors[0][alike], *(context.embed([column[at] for at in alike]) for column in others)]
        for one, other in same_meaning(vectors, least).items():
            findings.append(Finding("semantic", group[one], "the same meaning in other words", group[other]))
    return Judged(findings)


def grounding(samples: Sequence[Sample], at: Sequence[int], context: Context) -> Judged:
    """Whether the answer rests on its document.

    It falls when it shares no run of five words with it (a shorter answer: all of its words), and when it shares less
    than `thresholds.grounding` and is not near to it in meaning either; without an embedding model the share alone
    decides. Only those that it decides about have a `closeness`. What people preferred is not held against a document.
    """
    if not context.passages:
        return Judged(left_out="no documents: whether answers rest on them was not looked at")
    by_document: dict[str, list[int]] = {}
    for index in at:
        if samples[index].method != "feedback":
            by_document.setdefault(samples[index].document_id, []).append(index)
    findings: list[Finding] = []
    scores: dict[int, dict[str, float]] = {}
    for id, indices in by_document.items():
        if id not in context.passages:
            findings += [Finding("grounding", index, "its document is not among the documents") for index in indices]
            continue
        text = context.passages[id]
        shares = dict(zip(indices, grounded([answered(samples[index]) for index in indices], text), strict=True))
        little = [index for index in indices if 0 < shares[index] < context.thresholds.grounding]
        near: Mapping[int, float] = {}
        # Only these hang on their meaning, and a document has many passages to embed.
        if context.embed is not None and little:
            answers = context.embed([answered(samples[index]) for index in little])
            found = closest(answers, context.embed(passages_of(text))).clip(0, 1).tolist()
            near = dict(zip(little, found, strict=True))
        for index, share in shares.items():
            scores[index] = {"grounding": round(share, 3)}
            if index in near:
                scores[index]["closeness"] = round(near[index], 3)
            if share == 0:
                findings.append(Finding("grounding", index, f"shares no {SHINGLE} words in a row with its document"))
            elif share < context.thresholds.grounding and near.get(index, -1.0) < context.thresholds.closeness:
                findings.append(
                    Finding("grounding", index, f"only {share:.1%} of its words in a row stand in its document")
                )
    left_out = "no embedding model: by shared words alone" if context.embed is None else None
    return Judged(findings, scores, left_out)


def language(samples: Sequence[Sample], at: Sequence[int], context: Context) -> Judged:
    """A language that is not let through: the declared one, else that of the answer. Code is not looked at."""
    if context.languages is None:
        return Judged(left_out="every language is let through")
    findings = []
    for index in at:
        sample = samples[index]
        if is_code(sample):
            continue
        found = sample.language or language_of(answered(sample), context.thresholds)
        if found is not None and found not in context.languages:
            findings.append(Finding("language", index, f"its language is {found}"))
    return Judged(findings)


def language_of(text: str, limits: Thresholds) -> str | None:
    """The ISO 639-1 code of a text's language as far as these limits believe it."""
    return natural_language(text, sure=limits.language, shortest=limits.language_characters, sample=LANGUAGE_CHARACTERS)


def length(samples: Sequence[Sample], at: Sequence[int], context: Context) -> Judged:
    """A question or an answer that is too short or too long, in words."""
    limits = context.thresholds
    findings = []
    for index in at:
        for what, text, least, most in (
            ("question", asked(samples[index]), limits.shortest_question, limits.longest_question),
            ("answer", answered(samples[index]), limits.shortest_answer, limits.longest_answer),
        ):
            count = len(words(text))
            if not least <= count <= most:
                findings.append(Finding("length", index, f"the {what} has {count} words, not {least} to {most}"))
                break
    return Judged(findings)


def boilerplate(samples: Sequence[Sample], at: Sequence[int], context: Context) -> Judged:
    """An answer that is no author's text in good part: appeals, notices, lists of links, hardly any letters."""
    limits = context.thresholds
    findings = []
    scores = {}
    for index in at:
        answer = answered(samples[index])
        code = is_code(samples[index])
        share, what = (0.0, "") if code else wording.boilerplate(answer)
        scores[index] = {"boilerplate": round(share, 3)}
        if share >= limits.boilerplate:
            findings.append(Finding("boilerplate", index, f"{share:.0%} of the answer is boilerplate, such as {what}"))
        elif not code and (listed := wording.links(answer)) >= limits.links:
            findings.append(Finding("boilerplate", index, f"{listed:.0%} of the lines are links"))
        elif (solid := wording.letters(answer)) < (limits.code_letters if code else limits.letters):
            findings.append(Finding("boilerplate", index, f"only {solid:.0%} of the answer are letters"))
    return Judged(findings, scores)


def privacy(samples: Sequence[Sample], at: Sequence[int], context: Context) -> Judged:
    """Personal data or a secret in the question or in what is taught. The reason names the kind and place only."""
    findings = []
    for index in at:
        sample = samples[index]
        places = ("answer",) if isinstance(sample, InstructionSample) else ("chosen answer", "rejected answer")
        for place, text in (("question", asked(sample)), *zip(places, taught(sample), strict=True)):
            found = next(exposed(text), None)
            if found is not None:
                reason = f"{found.what} ({found.kind}) in the {place}, at character {found.start}"
                findings.append(Finding("privacy", index, reason))
                break
    return Judged(findings)


def decontamination(samples: Sequence[Sample], at: Sequence[int], context: Context) -> Judged:
    """Words that a model is evaluated by: as many in a row as `thresholds.decontamination`, or a whole short text."""
    if not context.evaluation_sets:
        return Judged(left_out="no evaluation set is registered")
    size = context.thresholds.decontamination
    runs: dict[int, str] = {}
    short: dict[tuple[str, ...], str] = {}
    for name, texts in context.evaluation_sets.items():
        for found in map(words, texts):
            if len(found) >= size:
                runs |= dict.fromkeys(shingles(found, size).tolist(), name)
            elif found:
                short[tuple(found)] = name
    known = np.sort(np.fromiter(runs, np.uint64, len(runs)))
    findings = []
    for index in at:
        for text in (asked(samples[index]), *taught(samples[index])):
            found = words(text)
            own = shingles(found, size) if len(found) >= size else np.empty(0, np.uint64)
            met = np.intersect1d(own, known, assume_unique=True)
            if len(met):
                reason = f"shares {size} words in a row with the evaluation set {runs[int(met[0])]!r}"
                findings.append(Finding("decontamination", index, reason))
                break
            if tuple(found) in short:
                reason = f"is a text of the evaluation set {short[tuple(found)]!r}"
                findings.append(Finding("decontamination", index, reason))
                break
    return Judged(findings)


GATES: Mapping[str, Gate] = {
    "exact": exact_duplicates,
    "near": near_duplicates,
    "semantic": semantic_duplicates,
    "grounding": grounding,
    "language": language,
    "length": length,
    "boilerplate": boilerplate,
    "privacy": privacy,
    "decontamination": decontamination,
}
