"""Whether a dataset may be trained on, and what `twin dataset check` says of it on a terminal. No I/O here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from corpus.terminal import printable
from training.datasets.checking import CheckReport, Example, Found, Overlap

# What a dataset must keep to. Shares of its samples, but for the longer ones among the chosen.
MOST_UNGROUNDED, MOST_REPEATED, MOST_BOILERPLATE, MOST_GENERIC, MOST_ALIKE = 0.05, 0.01, 0.01, 0.05, 0.05
MOST_LONGER_CHOSEN = 0.75


def passes(report: CheckReport) -> list[str]:
    """Why a dataset must not be trained on; empty when it may. What was not looked at is not held against it."""
    reasons = []
    for what, found, most in (
        ("answers that share no five words in a row with the author's texts", report.ungrounded, MOST_UNGROUNDED),
        ("samples that repeat another exactly", report.repeated.get("exact"), MOST_REPEATED),
        ("samples that nearly repeat another", report.repeated.get("near"), MOST_REPEATED),
        ("samples that repeat the meaning of another", report.repeated.get("semantic"), MOST_REPEATED),
        ("answers that are boilerplate", report.boilerplate, MOST_BOILERPLATE),
        ("questions that point at a text that nobody sees", report.generic, MOST_GENERIC),
        ("samples that hold personal data or secrets", report.privacy, 0.0),
        ("samples that share words with an evaluation set", report.contaminated, 0.0),
        ("pairs that are too alike", report.pairs.alike if report.pairs else None, MOST_ALIKE),
    ):
        if found is not None and found.share > most:
            allowed = f"at most {most:.0%}" if most else "none"
            reasons.append(f"{what}: {found.count:,} ({found.share:.1%}; {allowed} may)")
    for overlap in report.overlaps:
        for what, count in (
            ("questions", overlap.same_questions),
            ("answers", overlap.near_answers),
            ("answers in other words", overlap.same_meaning or 0),
        ):
            if count:
                reasons.append(f"{overlap.of} {what} that occur in {overlap.within}: {count:,} of {overlap.samples:,}")
        if overlap.families:
            reasons.append(f"document families in both {overlap.of} and {overlap.within}: {overlap.families:,}")
    if report.pairs and report.pairs.longer_chosen_interval[0] > MOST_LONGER_CHOSEN:
        reasons.append(
            f"pairs whose longer answer is chosen: {report.pairs.longer_chosen:.1%} (length alone would be learned)"
        )
    return reasons


def told(report: CheckReport) -> str:
    """The report for a terminal."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: CheckReport) -> Iterator[str]:
    counts = ", ".join(f"{count:,} {split}" for split, count in report.samples.items())
    yield f"{printable(report.source)}: {sum(report.samples.values()):,} {report.kind} ({counts})"
    yield _row("columns", printable(", ".join(f"{need} = {column}" for need, column in report.columns.items())))
    if report.skipped:
        yield _row("skipped", f"{report.skipped:,} rows without text in all of them")
    for name, (least, middle, most) in (("questions", report.question_words), ("answers", report.answer_words)):
        yield _row(name, f"{least} to {most:,} words, median {middle:g}")
    looked_at, total = sum(report.languages.values()), sum(report.samples.values())
    part = f" (of {looked_at:,} answers, evenly over all)" if looked_at < total else ""
    yield _row("languages", printable(", ".join(f"{name} {count}" for name, count in report.languages.items())) + part)
    if report.grounding is not None:
        shares = ", ".join(f"{name} {count:,}" for name, count in report.grounding.items())
        yield _row("grounding", f"words in a row that the {report.documents:,} documents have: {shares}")
    nothing = []
    for name, what, found in _findings(report):
        if found is None:
            continue
        if found.count:
            yield _row(name, f"{found.count:,} ({found.share:.1%}): {what}")
            yield from _told_examples(found.examples)
        else:
            nothing.append(name)
    for overlap in report.overlaps:
        yield from _told_overlap(overlap)
    if (pairs := report.pairs) is not None:
        low, high = pairs.longer_chosen_interval
        less, more = pairs.length_ratio_interval
        yield _row(
            "length bias",
            f"the longer answer is chosen in {pairs.longer_chosen:.1%} ({low:.1%} to {high:.1%}): longer "
            f"{pairs.chosen_longer:,}, shorter {pairs.chosen_shorter:,}, chosen has {pairs.length_ratio:.2f} times the "
            f"words ({less:.2f} to {more:.2f})",
        )
    if nothing:
        yield _row("none", ", ".join(nothing))
    for reason in report.not_looked_at:
        yield _row("not looked at", reason)
    reasons = passes(report)
    yield ""
    yield "fails:" if reasons else "passes"
    yield from (f"  {reason}" for reason in reasons)


def _findings(report: CheckReport) -> Iterator[tuple[str, str, Found | None]]:
    """What is counted, by the name of its line: what that is, and how many."""
    yield "ungrounded", "share no five words in a row with the author's texts", report.ungrounded
    for name, how in (("exact", "exactly"), ("near", "nearly"), ("semantic", "in other words")):
        yield f"{name} repeats", f"repeat another of their split {how}", report.repeated.get(name)
    yield "generic", "questions point at a text that nobody sees", report.generic
    yield "boilerplate", "answers are appeals, notices, links or hardly any words", report.boilerplate
    yield "lengths", "too short or too long", report.length
    yield "privacy", ", ".join(f"{what} {count:,}" for what, count in report.exposed.items()), report.privacy
    yield "contaminated", "share words with an evaluation set", report.contaminated
    yield "alike", "chosen and rejected hardly differ", report.pairs.alike if report.pairs else None


def _row(name: str, text: str) -> str:
    return f"  {name:<18}{text}"


def _told_overlap(overlap: Overlap) -> Iterator[str]:
    parts = [
        f"questions {overlap.same_questions} the same, {overlap.near_questions} nearly",
        f"answers {overlap.same_answers} the same, {overlap.near_answers} nearly",
    ]
    if overlap.same_meaning is not None:
        parts.append(f"{overlap.same_meaning} in other words")
    if overlap.families is not None:
        parts.append(f"document families on both sides {overlap.families}")
    yield _row("overlap", f"of {overlap.samples:,} {overlap.of}, in {overlap.within} too: {'; '.join(parts)}")
    yield from _told_examples(overlap.examples)


def _told_examples(examples: Iterable[Example]) -> Iterator[str]:
    for example in examples:
        reason = f" ({example.reason})" if example.reason else ""
        yield _row("", f"{example.split} {example.at}: {example.question}{reason}")
        yield _row("", f"  → {example.answer}")
