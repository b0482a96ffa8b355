"""An evaluation for people: a page that reads well by itself, and a table for a terminal. Nothing is computed here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from corpus.files import replace_file
from corpus.terminal import printable
from training.evaluation.figures import (
    ENOUGH_FAMILIES,
    ENOUGH_SAMPLES,
    Comparison,
    Evaluation,
    Metric,
    write_evaluation,
)
from training.evaluation.intervals import RESAMPLES

REPORT = "report.html"
TEMPLATES = Path(__file__).parent / "templates"
Verdict = Literal["better", "worse", "no clear difference"]
# The picture of a figure, in pixels: its axis, the rows of its intervals, and room below for the axis' numbers.
WIDTH, LEFT, RIGHT, ROW, AXIS = 480, 12, 12, 20, 48


@dataclass(frozen=True, slots=True)
class Shown:
    """How a figure is told: `unit` stands at its axis, `share` as per cent; `says` what it means."""

    name: str
    title: str
    unit: str
    says: str
    share: bool = False


GROUPS: tuple[tuple[str, tuple[Shown, ...]], ...] = (
    (
        "The author's own text",
        (
            Shown(
                "perplexity",
                "Perplexity",
                "perplexity",
                "How many tokens the model hesitates between, at each token of answers that it never saw.",
            ),
            Shown(
                "bits_per_byte", "Bits per byte", "bits per byte", "The same, whatever tokens a model cuts texts into."
            ),
        ),
    ),
    (
        "Style",
        (
            Shown(
                "style_author",
                "Taken for the author",
                "probability",
                "How sure a classifier is that the author wrote the answers.",
                share=True,
            ),
            Shown(
                "style_sentence_length",
                "Sentence length",
                "words a sentence, distance to the author",
                "How many words longer or shorter sentences are than the author's.",
            ),
            Shown(
                "style_vocabulary",
                "Vocabulary",
                "distance to the author, 0 to 1",
                "How differently often words are used: 0 as the author does, 1 no word in common.",
            ),
            Shown(
                "style_punctuation",
                "Punctuation",
                "marks in 1,000 characters, distance to the author",
                "How many marks there are too many or too few.",
            ),
        ),
    ),
    (
        "Answers with passages",
        (
            Shown(
                "groundedness",
                "Groundedness",
                "share of runs of five words",
                "How much of an answer stands in the passages that it was given.",
                share=True,
            ),
            Shown(
                "correctness",
                "Correctness",
                "share of words",
                "The words that an answer shares with the author's own.",
                share=True,
            ),
            Shown(
                "markers",
                "Sources named",
                "share of answers",
                "Answers that name passages by number, and only such as were given.",
                share=True,
            ),
        ),
    ),
    (
        "Preference",
        (
            Shown(
                "win_rate",
                "Preferred by the judge",
                "share of pairs",
                "Answers that a judge prefers to the other model's; half is a draw.",
                share=True,
            ),
        ),
    ),
    (
        "General abilities",
        (
            Shown(
                "general",
                "General questions",
                "share of questions",
                "Everyday questions whose right choice the model finds likeliest.",
                share=True,
            ),
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Bar:
    """An interval in a picture, in pixels: `kind` is model, against or author."""

    kind: str
    label: str
    y: float
    low: float
    high: float
    value: float


@dataclass(frozen=True, slots=True)
class Picture:
    """`ticks`: pixels and the number that stands there."""

    height: int
    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, str], ...]
    told: str


@dataclass(frozen=True, slots=True)
class Row:
    """A figure as it is told."""

    shown: Shown
    note: str
    better: str
    model: str
    interval: str
    n: int
    against: str
    yardstick: str
    difference: str
    verdict: Verdict | None
    few: bool
    picture: Picture


def write(evaluation: Evaluation, folder: Path) -> Path:
    """Write `evaluation.json` and `report.html`; the path of the latter. Raises OSError."""
    write_evaluation(folder, evaluation)
    path = folder / REPORT
    replace_file(path, page(evaluation).encode(errors="replace"))
    return path


def page(evaluation: Evaluation) -> str:
    """The report: one HTML file that needs nothing else."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    groups = [(title, [row for each in figures if (row := _row(evaluation, each))]) for title, figures in GROUPS]
    return templates.get_template("evaluation.html").render(
        evaluation=evaluation,
        model=short_name(evaluation.model),
        against=short_name(evaluation.against) if evaluation.against else None,
        summary=summary(evaluation),
        groups=[(title, rows) for title, rows in groups if rows],
        width=WIDTH,
        left=LEFT,
        right=WIDTH - RIGHT,
        missing=missing(evaluation),
        notes={
            name.replace("_", " ").capitalize(): note
            for name, note in evaluation.notes.items()
            if name not in _titles() and not note.startswith("not measured")
        },
        resamples=RESAMPLES,
    )


def verdict(comparison: Comparison, better: str) -> Verdict:
    """What the whole interval of a difference says."""
    sign = 1 if better == "higher" else -1
    if min(sign * comparison.low, sign * comparison.high) > 0:
        return "better"
    return "worse" if max(sign * comparison.low, sign * comparison.high) < 0 else "no clear difference"


def summary(evaluation: Evaluation) -> list[str]:
    """Is it better, and by how much: in sentences, the most important first."""
    model, silent = short_name(evaluation.model), _silent(evaluation)
    if evaluation.against is None:
        return [
            f"{model} was evaluated by itself: name another model to compare it with (--against).{silent}",
            *(line for line in [_held_out_alone(evaluation)] if line),
        ]
    against = short_name(evaluation.against)
    verdicts = {
        each.name: verdict(evaluation.comparisons[each.name], evaluation.metrics[each.name].better)
        for each in _shown()
        if each.name in evaluation.comparisons
    }
    if not verdicts:
        return [f"{model} could not be compared with {against}: the notes say why.{silent}"]
    sure = {name: told for name, told in verdicts.items() if not _few(evaluation.comparisons[name])}
    by = {told: [_titles()[name].lower() for name, each in sure.items() if each == told] for told in set(sure.values())}
    parts = [f"better than {against} in {_of(by.get('better', []), len(verdicts))}"]
    parts += [f"worse in {_of(by['worse'])}"] if "worse" in by else []
    sentence = f"{model} is {', and '.join(parts)}."
    if same := by.get("no clear difference"):
        sentence += f" In {_of(same)} the samples do not tell them apart."
    if few := [_titles()[name].lower() for name in verdicts if name not in sure]:
        sentence += f" In {_of(few)} there are too few samples to say."
    return [sentence + silent, *_sentences(evaluation, sure)]


def _few(comparison: Comparison) -> bool:
    families = comparison.families
    return comparison.n < ENOUGH_SAMPLES or (families is not None and families < ENOUGH_FAMILIES)


def _silent(evaluation: Evaluation) -> str:
    """A sentence that says how many answers are empty, with the space before it; "" where none is."""
    note = evaluation.notes.get("empty answers", "")
    for name in (evaluation.model, evaluation.against or ""):
        note = note.replace(name, short_name(name)) if name else note
    return f" {note}." if note else ""


def _sentences(evaluation: Evaluation, verdicts: dict[str, Verdict]) -> Iterator[str]:
    words = {
        "better": "It finds the author's held-out text likelier",
        "worse": "It finds the author's held-out text less likely",
        "no clear difference": "It finds the author's held-out text about as likely",
    }
    name = "perplexity" if "perplexity" in verdicts else "bits_per_byte"
    if name in verdicts:
        yield f"{words[verdicts[name]]}: {_compared(evaluation, name)}."
    if "style_author" in verdicts:
        told = f"A classifier takes its answers for the author's with {_compared(evaluation, 'style_author')}"
        if yardstick := evaluation.metrics.get("style_author_yardstick"):
            told += f"; the author's own text with {_number(yardstick.value, True)}"
        if note := evaluation.notes.get("style_author"):
            told += f" ({note})"
        yield f"{told}."
    if "win_rate" in verdicts:
        won = evaluation.metrics["win_rate"]
        yield f"The judge prefers its answers in {_number(won.value, True)} of the pairs ({_interval(won, True)})."


def _compared(evaluation: Evaluation, name: str) -> str:
    shown = next(each for each in _shown() if each.name == name)
    metric, comparison = evaluation.metrics[name], evaluation.comparisons[name]
    unit = {"perplexity": "a perplexity of ", "style_author": "a probability of "}.get(name, "")
    after = " bits per byte" if name == "bits_per_byte" else ""
    other = metric.value - comparison.difference
    return (
        f"{unit}{_number(metric.value, shown.share)} instead of {_number(other, shown.share)}{after}, a difference of "
        f"{_signed(comparison.difference, shown.share)} ({_interval(comparison, shown.share)})"
    )


def _held_out_alone(evaluation: Evaluation) -> str | None:
    metric = evaluation.metrics.get("perplexity")
    if metric is None:
        return None
    return (
        f"The author's held-out text has a perplexity of {_number(metric.value, False)} ({_interval(metric, False)})."
    )


def missing(evaluation: Evaluation) -> dict[str, str]:
    """What was not measured or not compared, by its title, and why as far as it is known."""
    found = {}
    for each in _shown():
        if each.name not in evaluation.metrics:
            why = evaluation.notes.get(each.name) or evaluation.notes.get(
                "style_distances" if each.name.startswith("style_") else "groundedness", "not measured"
            )
            found[each.title] = why.removeprefix("not measured: ")
        elif evaluation.against and each.name not in evaluation.comparisons:
            found[each.title] = f"not compared: {evaluation.notes.get(each.name, 'the other model has no such figure')}"
    return found


def told(evaluation: Evaluation) -> str:
    """The evaluation for a terminal: its summary, and a line for each figure with its interval (95 %)."""
    lines = [*summary(evaluation), ""]
    rows = [row for each in _shown() if (row := _row(evaluation, each))]
    heads = ["", short_name(evaluation.model), "95 % interval"]
    table = [[row.shown.title, row.model, row.interval] for row in rows]
    if evaluation.against:
        heads += [short_name(evaluation.against), "difference", ""]
        for cells, row in zip(table, rows, strict=True):
            cells += [row.against, row.difference, f"{row.verdict or ''}{' (n small)' if row.few else ''}"]
    heads += ["author", "n"]
    for cells, row in zip(table, rows, strict=True):
        cells += [row.yardstick, f"{row.n:,}"]
    widths = [max(len(cells[at]) for cells in [heads, *table]) for at in range(len(heads))]
    for cells in [heads, *table]:
        # Words stand left, numbers right.
        wordy = {0, 5} if evaluation.against else {0}
        padded = (
            cell.ljust(width) if at in wordy else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        lines.append("  ".join(padded).rstrip())
    gone = missing(evaluation)
    if silent := evaluation.notes.get("empty answers"):
        gone["Empty answers"] = silent
    lines += ["", *(f"{name}: {why}" for name, why in gone.items())] if gone else []
    return printable("\n".join(lines)) + "\n"


def short_name(name: str) -> str:
    """A model's name without most of its digest."""
    folder, separator, digest = name.rpartition("@")
    return f"{folder}@{digest[:6]}" if separator else name


def _shown() -> Iterator[Shown]:
    for _, figures in GROUPS:
        yield from figures


def _titles() -> dict[str, str]:
    return {each.name: each.title for each in _shown()}


def _row(evaluation: Evaluation, shown: Shown) -> Row | None:
    metric = evaluation.metrics.get(shown.name)
    if metric is None:
        return None
    against, yardstick = (evaluation.metrics.get(f"{shown.name}_{suffix}") for suffix in ("against", "yardstick"))
    comparison = evaluation.comparisons.get(shown.name)
    sides = [("model", short_name(evaluation.model), metric)]
    if against and evaluation.against:
        sides.append(("against", short_name(evaluation.against), against))
    if yardstick:
        sides.append(("author", "the author", yardstick))
    return Row(
        shown=shown,
        note=evaluation.notes.get(shown.name, ""),
        better=metric.better,
        model=_number(metric.value, shown.share),
        interval=_interval(metric, shown.share),
        n=metric.n,
        against=_number(against.value, shown.share) if against else "",
        yardstick=_number(yardstick.value, shown.share) if yardstick else "",
        difference=f"{_signed(comparison.difference, shown.share)} ({_interval(comparison, shown.share)})"
        if comparison
        else "",
        verdict=verdict(comparison, metric.better) if comparison else None,
        few=comparison is not None and _few(comparison),
        picture=_picture(shown, sides),
    )


def _picture(shown: Shown, sides: Sequence[tuple[str, str, Metric]]) -> Picture:
    """Each interval as a bar over one axis, which starts at 0 where 0 is not far."""
    low, high = min(each.low for _, _, each in sides), max(each.high for _, _, each in sides)
    low = min(low, *(each.value for _, _, each in sides))
    high = max(high, *(each.value for _, _, each in sides))
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        # All are one number, but for its last digits.
        high = low + (1.0 if shown.share else abs(low) or 1.0)
    low = 0.0 if 0 <= low <= (high - low) * 2 else low
    ticks = _ticks(low, high)
    first, last = min(low, ticks[0]), max(high, ticks[-1])

    def x(value: float) -> float:
        return round(LEFT + 20 + (value - first) / (last - first) * (WIDTH - LEFT - RIGHT - 40), 1)

    bars = tuple(
        Bar(kind, label, ROW * at + ROW / 2 + 4, x(each.low), x(each.high), x(each.value))
        for at, (kind, label, each) in enumerate(sides)
    )
    told = "; ".join(
        f"{label} {_number(each.value, shown.share)} ({_interval(each, shown.share)})" for _, label, each in sides
    )
    numbers = tuple((x(tick), _tick(tick, ticks, shown.share)) for tick in ticks)
    return Picture(ROW * len(sides) + AXIS, bars, numbers, f"{shown.title}, in {shown.unit}: {told}")


def _ticks(low: float, high: float) -> list[float]:
    """Four to six round numbers that hold the range between them."""
    span = high - low or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / 4))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if span / (size * power) <= 5)
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [at * step for at in range(start, max(end, start + 1) + 1)]


def _tick(value: float, ticks: Sequence[float], share: bool) -> str:
    step = (ticks[1] - ticks[0]) * (100 if share else 1)
    places = max(0, -math.floor(math.log10(step) + 1e-9)) if step < 1 else (1 if step % 1 > 1e-9 else 0)
    return f"{value * 100:.{places}f} %" if share else f"{value:,.{places}f}"


def _number(value: float, share: bool) -> str:
    if not math.isfinite(value):
        return "not finite"
    if share:
        return f"{100 * value:.1f} %"
    places = 0 if abs(value) >= 1_000 else max(0, 2 - math.floor(math.log10(abs(value)))) if value else 1
    return f"{value:,.{min(places, 4)}f}"


def _signed(value: float, share: bool) -> str:
    """With a true minus; of shares, in points of per cent."""
    size = f"{100 * abs(value):.1f}" if share else _number(abs(value), False)
    return f"{'−' if value < 0 else '+'}{size}{' points' if share else ''}"


def _interval(of: Metric | Comparison, share: bool) -> str:
    if isinstance(of, Comparison):
        return f"{_signed(of.low, share).removesuffix(' points')} to {_signed(of.high, share).removesuffix(' points')}"
    low, high = _number(of.low, share), _number(of.high, share)
    return f"{low.removesuffix(' %')} to {high}"


def _of(names: Sequence[str], count: int | None = None) -> str:
    of = f" of {count} figures" if count is not None else ""
    if not names:
        return f"none{of}"
    listed = " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
    return f"{len(names)}{of} ({listed})"
