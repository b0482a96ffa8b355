"""The evaluation of a model: what it does with held-out documents, and whether it does better than another.

A model is measured once (`measure`, which needs it in memory) and the figures are taken from what it gave (`figures`,
which does not), so two models are never in memory at once, and every comparison is of the same samples.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec
import numpy as np

from corpus.prompts import Source
from training.datasets.likeness import grounded, words
from training.datasets.samples import InstructionSample
from training.datasets.scoring import JudgeUnusable
from training.datasets.wordsmith import Wordsmith, WordsmithUnavailable
from training.evaluation.figures import Comparison, Evaluation, Metric, SideBySide, served_digest
from training.evaluation.held_out import HeldOut, Question, asking, is_own
from training.evaluation.intervals import FEWEST_FAMILIES, Figure, comparable, comparison, mean, metric, ratio
from training.evaluation.judging import Judged, Pair, judged
from training.evaluation.style import DISTANCES, FEWEST, MOST, Text, classified, distances
from training.local_model import LEAST_ANSWER, Likelihood, NoSystemMessages, whole_sentences

if TYPE_CHECKING:
    from training.local_model import LocalModel

GENERAL = Path(__file__).parent / "sets" / "general.jsonl"
QUESTIONS, MAX_TOKENS, SEED = 100, 200, 7
# Room for an answer that a prompt with passages must leave.
RESTING_TOKENS = 64
SHOWN = 8
# Fewer answers say nothing of how sentences are distributed.
FEWEST_ANSWERS = 4
_MARKER = re.compile(r"\s?\[\s*(\d+(?:\s*[,;]\s*\d+)*)\s*\]")
Say = Callable[[str], None]


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A question of the fixed general set; `answer` is the text of the right one of `choices`."""

    question: str
    choices: tuple[str, ...]
    answer: str


class Rested(NamedTuple):
    """An answer to a question with passages, and the passages, numbered as the model saw them."""

    answer: str
    passages: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """What a model gave: `likelihoods` of the held-out answers; `answers` to the held-out questions; `rested`: answers
    to these with passages, None where the prompt has no room in its context; `general`: whether it preferred the right
    choice of each item; `tokens`: what its tokenizer is known by."""

    name: str
    likelihoods: tuple[Likelihood, ...]
    answers: tuple[str, ...]
    rested: tuple[Rested | None, ...]
    general: tuple[bool, ...]
    tokens: str
    notes: Mapping[str, str] = field(default_factory=dict)


class Others(NamedTuple):
    """Texts that are not the author's, for a classifier to learn from; `what` they are, in words."""

    what: str
    texts: tuple[Text, ...]


class Figures(NamedTuple):
    """By name; `metrics` has the other model's as NAME_against, and the author's own as NAME_yardstick."""

    metrics: dict[str, Metric]
    comparisons: dict[str, Comparison]
    notes: dict[str, str]


def general_set(path: Path = GENERAL) -> list[Item]:
    """The fixed general set. Raises OSError, msgspec.DecodeError."""
    return [msgspec.json.decode(line, type=Item) for line in path.read_bytes().splitlines() if line.strip()]


def measure(
    model: LocalModel, held_out: HeldOut, general: Sequence[Item], *, max_tokens: int, seed: int, say: Say
) -> Measured:
    """Everything that is asked of a model. Raises UnusableModel."""
    say(f"{model.name}: {len(held_out.samples)} held-out answers")
    likelihoods = model.nll([(asking(each.instruction), each.answer) for each in held_out.samples])
    answers = answer(model, held_out.questions, max_tokens=max_tokens, seed=seed, say=say)
    say(f"{model.name}: answers with passages")
    rested, notes = _rested(model, held_out.questions, max_tokens, seed)
    say(f"{model.name}: {len(general)} general questions")
    return Measured(
        name=model.name,
        likelihoods=tuple(likelihoods),
        answers=tuple(answers),
        rested=rested,
        general=tuple(_preferred(model, general)),
        tokens=model.spelling,
        notes=notes,
    )


def answer(model: LocalModel, questions: Sequence[Question], *, max_tokens: int, seed: int, say: Say) -> list[str]:
    """The model's own answers, without passages; "" where it gave none or the question fills its context."""
    places = [at for at, each in enumerate(questions) if model.fits(each.messages, LEAST_ANSWER)]
    found = [""] * len(questions)
    texts = model.answers(
        [questions[at].messages for at in places],
        max_tokens,
        seed=seed,
        told=lambda done: say(f"{model.name}: {done} of {len(places)} answers"),
    )
    for at, text in zip(places, texts, strict=True):
        found[at] = text
    return found


def _rested(
    model: LocalModel, questions: Sequence[Question], max_tokens: int, seed: int
) -> tuple[tuple[Rested | None, ...], dict[str, str]]:
    """Answers with passages: the right one and as many of other documents as leave room for an answer."""
    prompts = []
    notes = {}
    fewer = 0
    try:
        for at, question in enumerate(questions):
            # Rather fewer passages of other documents than an answer that is cut off.
            most = len(question.passages) - 1
            tries = [*((others, max_tokens) for others in range(most, -1, -1)), (0, min(max_tokens, RESTING_TOKENS))]
            for others, tokens in tries if question.passages else ():
                messages, numbered = question.resting(others)
                if model.fits(messages, tokens):
                    prompts.append((at, messages, numbered))
                    fewer += others < most
                    break
    except NoSystemMessages as error:
        return (None,) * len(questions), {"groundedness": str(error)}
    known = sum(bool(question.passages) for question in questions)
    if len(prompts) < known:
        notes["groundedness"] = (
            f"{known - len(prompts)} of {known} prompts with a passage have no room in a context of "
            f"{model.context:,} tokens and are left out"
        )
    if fewer:
        notes["passages"] = f"{fewer} prompts hold fewer passages of other documents, as the context has no room"
    texts = model.answers([messages for _, messages, _ in prompts], max_tokens, seed=seed)
    rested: list[Rested | None] = [None] * len(questions)
    for (at, _, numbered), text in zip(prompts, texts, strict=True):
        rested[at] = Rested(text, numbered)
    return tuple(rested), notes


def _preferred(model: LocalModel, items: Sequence[Item]) -> list[bool]:
    """Whether the right choice is the likeliest by byte, so that a short one has no advantage."""
    pairs = [(asking(item.question), choice) for item in items for choice in item.choices]
    likelihoods = iter(model.nll(pairs))
    found = []
    for item in items:
        costs = {choice: each.nll / max(1, each.bytes) for choice, each in zip(item.choices, likelihoods, strict=False)}
        found.append(min(costs, key=lambda choice: costs[choice]) == item.answer)
    return found


# From what the models gave to figures


def figures(
    held_out: HeldOut,
    model: Measured,
    against: Measured | None,
    *,
    others: Others | None = None,
    judge: Wordsmith | None = None,
    general: Sequence[Item] = (),
    seed: int = SEED,
) -> Figures:
    """The figures of `model`, and compared with `against`; why one is missing is in the notes.

    `others`: what the author is told from where the dataset has no other authors; `judge` is asked only here.
    """
    found = _Found(seed)
    found.notes |= held_out.notes
    for each in (model, against):
        for name, note in each.notes.items() if each else ():
            before = found.notes.get(name)
            found.notes[name] = f"{before}; {note}" if before and note not in before else note
    if silent := _silent(model, against):
        found.notes["empty answers"] = silent
    _likelihood(found, held_out, model, against)
    _author(found, held_out, model, against, others)
    _distances(found, held_out, model, against)
    _resting(found, held_out, model, against)
    if general:
        rights = [mean(each.general) if each else None for each in (model, against)]
        found.add("general", "higher", rights, [item.question for item in general])
        chance = sum(1 / len(item.choices) for item in general) / len(general)
        found.notes["general"] = f"a model that knows nothing has {chance:.0%}"
    _wins(found, held_out, model, against, judge)
    return Figures(found.metrics, found.comparisons, found.notes)


class _Found:
    """The figures as they are found, all in the same resamples."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.metrics: dict[str, Metric] = {}
        self.comparisons: dict[str, Comparison] = {}
        self.notes: dict[str, str] = {}

    def add(
        self,
        name: str,
        better: Literal["lower", "higher"],
        sides: Sequence[Figure | None],
        groups: Sequence[str],
        *,
        yardstick: Figure | None = None,
        moved: bool = False,
    ) -> None:
        """`sides`: the model's, and the other's if there is one, over the same samples, which are of `groups`."""
        for suffix, side in zip(("", "_against", "_yardstick"), (*sides, yardstick), strict=True):
            if side is not None:
                made = metric(name + suffix, better, side, len(groups), self.seed, groups=groups, moved=moved)
                # What is moved is a distance, and none is below 0.
                self.metrics[made.name] = msgspec.structs.replace(made, low=max(0.0, made.low)) if moved else made
        one, other = sides
        if one is not None and other is not None:
            self.compare(name, one, other, groups, moved=moved)

    def compare(self, name: str, one: Figure, other: Figure, groups: Sequence[str], *, moved: bool = False) -> None:
        if comparable(groups):
            self.comparisons[name] = comparison(name, one, other, len(groups), self.seed, groups=groups, moved=moved)
            return
        self.notes["families"] = (
            f"models are compared by document families, {FEWEST_FAMILIES} at least: where there are fewer the figures "
            "stand beside each other, and nothing is said of their difference; hold more documents out"
        )


def _silent(*sides: Measured | None) -> str:
    """Of which model how many answers are empty; "" where none is."""
    counted = [(each.name, sum(not text.strip() for text in each.answers), len(each.answers)) for each in sides if each]
    return "; ".join(f"{empty} of {all_} answers of {name} are empty" for name, empty, all_ in counted if empty)


def _likelihood(found: _Found, held_out: HeldOut, model: Measured, against: Measured | None) -> None:
    sides = [each for each in (model, against) if each]
    places = [
        at
        for at in range(len(held_out.samples))
        if all(each.likelihoods[at].whole and each.likelihoods[at].tokens for each in sides)
    ]
    cut = len(held_out.samples) - len(places)
    if cut:
        found.notes["perplexity"] = (
            f"{cut} of {len(held_out.samples)} held-out answers are longer than the context and left out"
        )
    if not places:
        return
    groups = [_family(held_out.samples[at]) for at in places]
    bits: list[Figure | None] = [None, None]
    tokens: list[Figure | None] = [None, None]
    for at, each in enumerate(sides):
        chosen = [each.likelihoods[place] for place in places]
        sums = [one.nll for one in chosen]
        tokens[at] = ratio(sums, [one.tokens for one in chosen], np.exp)
        bits[at] = ratio(sums, [one.bytes for one in chosen], lambda value: value / math.log(2))
    found.add("bits_per_byte", "lower", bits, groups)
    if against and against.tokens != model.tokens:
        tokens[1] = None
        found.notes["perplexity"] = "the models cut texts into different tokens: compare their bits per byte"
    found.add("perplexity", "lower", tokens, groups)


def _author(found: _Found, held_out: HeldOut, model: Measured, against: Measured | None, others: Others | None) -> None:
    theirs = Others("passages of other authors", held_out.others)
    places = [at for at, each in enumerate(held_out.questions) if each.sample.author == held_out.author]
    groups = [_group(held_out.questions[at]) for at in places]
    sides = [each for each in (model, against) if each]
    answers = [[Text(each.answers[at], group) for at, group in zip(places, groups, strict=True)] for each in sides]
    told = None
    for source in (theirs, others):
        if source is not None and told is None:
            told = classified(held_out.own, source.texts, answers, found.seed)
            if told is not None:
                found.notes["style_author"] = f"the classifier tells the author's passages from {source.what}"
    if told is None:
        there = [("passages of the author", held_out.own), *(each for each in (theirs, others) if each is not None)]
        counted = ", ".join(f"{sum(bool(each.text.strip()) for each in texts)} {what}" for what, texts in there)
        found.notes["style_author"] = (
            f"not measured: a classifier needs {FEWEST} texts of the author and {FEWEST} that are not theirs, in "
            f"separate documents; there are {counted}"
            + ("; name a model to compare with (--against)" if against is None and others is None else "")
        )
        return
    right = ratio(list(told.right * told.weights), list(told.weights))
    classifier = metric("style_classifier", "higher", right, len(told.right), found.seed, groups=told.groups)
    found.metrics["style_classifier"] = classifier
    worth = "; it is no better than a coin, and so is what it says" if classifier.low <= 0.5 else ""
    found.notes["style_author"] += (
        f", and is right in {classifier.value:.1%} ({classifier.low:.1%} to {classifier.high:.1%}) of "
        f"{classifier.n} texts of documents that it was not shown{worth}"
    )
    known: list[Figure | None] = [mean(side) for side in told.answers]
    found.add("style_author", "higher", ([*known, None])[:2], groups)
    own = len(told.author)
    found.metrics["style_author_yardstick"] = metric(
        "style_author_yardstick", "higher", mean(told.author), own, found.seed, groups=told.groups[:own]
    )


def _distances(found: _Found, held_out: HeldOut, model: Measured, against: Measured | None) -> None:
    places = [
        at
        for at, each in enumerate(held_out.questions)
        if each.sample.author == held_out.author and is_own(each.sample)
    ]
    # An empty answer has no style, and a distance of it says nothing.
    given = [at for at in places if all(each.answers[at].strip() for each in (model, against) if each)]
    if len(given) < FEWEST_ANSWERS:
        empty = f" ({_silent(model, against)})" if len(given) < len(places) else ""
        found.notes["style_distances"] = f"not measured: {len(given)} answers are too few{empty}"
        return
    places = given
    author = [Text(held_out.questions[at].sample.answer, _group(held_out.questions[at])) for at in places]
    answers = [[whole_sentences(each.answers[at]) for at in places] for each in (model, against) if each]
    for name in DISTANCES:
        yardstick, *sides = distances(name, author, [[each.text for each in author], *answers], found.seed)
        groups = [each.group for each in author]
        found.add(name, "lower", ([*sides, None])[:2], groups, yardstick=yardstick, moved=True)


def _resting(found: _Found, held_out: HeldOut, model: Measured, against: Measured | None) -> None:
    """Groundedness, correctness and markers of the answers that both models gave to questions with passages."""
    sides = [each.rested for each in (model, against) if each]
    places = [at for at in range(len(held_out.questions)) if all(side[at] is not None for side in sides)]
    if not places:
        found.notes.setdefault("groundedness", "not measured: the passages that the answers rest on are not known")
        return
    for name, of in (("groundedness", groundedness), ("correctness", correctness), ("markers", markers)):
        values: list[Figure | None] = []
        for side in sides:
            rested = [(held_out.questions[at], side[at]) for at in places]
            values.append(mean([of(question, each) for question, each in rested if each is not None]))
        found.add(name, "higher", ([*values, None])[:2], [_group(held_out.questions[at]) for at in places])


def groundedness(question: Question, rested: Rested) -> float:
    """The share of the answer's runs of five words that the passages have, as the gate of samples counts them: a
    shorter answer is one run, and an answer without words has none."""
    plain = _MARKER.sub("", rested.answer)
    if not words(plain):
        return 0.0
    return grounded([plain], "\n\n".join(each.text for each in rested.passages))[0]


def correctness(question: Question, rested: Rested) -> float:
    """The words that the answer shares with the author's, against the length of both.

    Source: Rajpurkar et al., SQuAD (2016), where it is called the F1 of tokens.
    """
    given, right = Counter(words(_MARKER.sub("", rested.answer))), Counter(words(question.sample.answer))
    both = (given & right).total()
    return 2 * both / (given.total() + right.total()) if both else 0.0


def markers(question: Question, rested: Rested) -> float:
    """1 where the answer names passages by number, and only such as were given; else 0."""
    named = {int(number) for found in _MARKER.findall(rested.answer) for number in re.findall(r"\d+", found)}
    return float(bool(named) and named <= {each.n for each in rested.passages})


def _wins(found: _Found, held_out: HeldOut, model: Measured, against: Measured | None, judge: Wordsmith | None) -> None:
    if judge is None or against is None:
        why = (
            "no judge is set (TWIN_LLM_URL, or --judge-url)" if judge is None else "there is no other model (--against)"
        )
        found.notes["win_rate"] = f"not measured: {why}"
        return
    pairs = [
        Pair(each.sample.document_id, each.sample.instruction, each.sample.answer, one, other)
        for each, one, other in zip(held_out.questions, model.answers, against.answers, strict=True)
    ]
    try:
        told = judged(pairs, judge)
    except (JudgeUnusable, WordsmithUnavailable) as error:
        found.notes["win_rate"] = f"not measured: {error}"
        return
    scores = [score for score in told.scores if score is not None]
    found.notes["win_rate"] = _of_judge(told, judge.name)
    if not scores:
        return
    groups = [_group(each) for each, score in zip(held_out.questions, told.scores, strict=True) if score is not None]
    won = mean(scores)
    found.metrics["win_rate"] = metric("win_rate", "higher", won, len(scores), found.seed, groups=groups)
    found.compare("win_rate", won, lambda weights: 1 - won(weights), groups)


def _of_judge(told: Judged, name: str) -> str:
    judged_pairs = sum(score is not None for score in told.scores)
    return (
        f"{judged_pairs} of {len(told.scores)} pairs judged by {name}, each in both orders; a tie counts half: "
        f"{told.ties} said to be one, {told.swapped} where the order decided; left out: {told.nonsense} replies "
        f"without a verdict, {told.failed} failed"
    )


def _group(question: Question) -> str:
    return _family(question.sample)


def _family(sample: InstructionSample) -> str:
    return sample.family or sample.document_id


# The whole


def evaluate(
    folder: Path,
    against: Path | None,
    held_out: HeldOut,
    *,
    base: Path | None = None,
    judge: Wordsmith | None = None,
    general: Sequence[Item] | None = None,
    max_tokens: int = MAX_TOKENS,
    seed: int = SEED,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    say: Say = lambda told: None,
) -> Evaluation:
    """Evaluate the model in `folder`, and compare it with the one in `against`.

    `base`: whose answers the author is told from where there is neither another author nor another model.
    Raises UnusableModel, UnreadableFigures.
    """
    from training.local_model import LocalModel

    items = general_set() if general is None else general
    began = now()
    taken = []
    for place in (folder, against):
        if place is not None:
            model = LocalModel(place)
            try:
                taken.append(measure(model, held_out, items, max_tokens=max_tokens, seed=seed, say=say))
            finally:
                model.close()
    model_gave, other = taken[0], taken[1] if len(taken) > 1 else None
    strange: Others | None = None
    if other is None and base is not None and not held_out.others:
        model = LocalModel(base)
        try:
            texts = answer(model, held_out.questions, max_tokens=max_tokens, seed=seed, say=say)
            strange = Others(f"answers of {model.name}", _as_texts(held_out, texts))
        finally:
            model.close()
    elif other is not None:
        strange = _of_both(held_out, model_gave, other, seed)
    say("figures")
    found = figures(held_out, model_gave, other, others=strange, judge=judge, general=items, seed=seed)
    return Evaluation(
        model=model_gave.name,
        against=other.name if other else None,
        dataset=held_out.dataset,
        generation=held_out.generation,
        created_at=began,
        seed=seed,
        metrics=found.metrics,
        comparisons=found.comparisons,
        samples=_side_by_side(held_out, model_gave, other, seed),
        notes=found.notes,
        files=served_digest(folder),
        against_files=served_digest(against) if against is not None else "",
        questions=len(held_out.questions),
    )


def _of_both(held_out: HeldOut, model: Measured, other: Measured, seed: int) -> Others:
    """Answers of both models to the same questions. A classifier that had learned from one of them alone would take
    the other for the author by that much more."""
    places = [
        at
        for at, both in enumerate(zip(model.answers, other.answers, strict=True))
        if all(answer.strip() for answer in both)
    ]
    if len(places) > MOST // 2:
        places = sorted(np.random.default_rng(seed).choice(places, MOST // 2, replace=False).tolist())
    texts = [Text(each.answers[at], _group(held_out.questions[at])) for each in (model, other) for at in places]
    return Others(f"answers of {model.name} and {other.name}", tuple(texts))


def _as_texts(held_out: HeldOut, answers: Sequence[str]) -> tuple[Text, ...]:
    return tuple(Text(text, _group(each)) for each, text in zip(held_out.questions, answers, strict=True))


def _side_by_side(held_out: HeldOut, model: Measured, other: Measured | None, seed: int) -> tuple[SideBySide, ...]:
    """Some questions by chance, not by how well they were answered."""
    order = np.random.default_rng(seed).permutation(len(held_out.questions))[:SHOWN]
    return tuple(
        SideBySide(
            question=held_out.questions[at].sample.instruction,
            author=held_out.questions[at].sample.answer,
            model=model.answers[at],
            against=other.answers[at] if other else None,
        )
        for at in sorted(order.tolist())
    )
