"""An evaluation as people read it: in a sentence, in a table on a terminal, and on a page that needs nothing else."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from training.evaluation.figures import Comparison, Evaluation, Metric, SideBySide, read_evaluation
from training.evaluation.report import (
    ENOUGH_FAMILIES,
    ENOUGH_SAMPLES,
    REPORT,
    Verdict,
    page,
    summary,
    told,
    verdict,
    write,
)
from training.release.gate import Rule

HOSTILE = "<script>alert('owned')</script><img src=https://example.org/x onerror=alert(1)>"


def metric(name: str, value: float, better: Literal["lower", "higher"] = "lower", spread: float = 0.1) -> Metric:
    return Metric(name=name, better=better, value=value, low=value - spread, high=value + spread, n=40)


def compared(name: str, difference: float, spread: float = 0.1) -> Comparison:
    return Comparison(name=name, difference=difference, low=difference - spread, high=difference + spread, n=40)


def evaluation(**changes: Any) -> Evaluation:
    metrics = (
        metric("perplexity", 45.2, spread=3),
        metric("perplexity_against", 130.3, spread=9),
        metric("bits_per_byte", 1.5),
        metric("bits_per_byte_against", 2.1),
        metric("style_vocabulary", 0.7),
        metric("style_vocabulary_against", 0.69),
        metric("style_vocabulary_yardstick", 0.6),
        metric("general", 0.42, "higher"),
        metric("general_against", 0.71, "higher"),
    )
    comparisons = (
        compared("perplexity", -85.1, 5),
        compared("bits_per_byte", -0.6),
        compared("style_vocabulary", 0.01),
        compared("general", -0.29),
    )
    made = Evaluation(
        model="taught@0123456789ab",
        against="base@ba9876543210",
        dataset="instructions-0123",
        generation="g1",
        created_at=datetime(2026, 5, 1, 12, 30, tzinfo=UTC),
        seed=7,
        metrics={each.name: each for each in metrics},
        comparisons={each.name: each for each in comparisons},
        samples=(SideBySide(question="What of tea?", author="It is steeped.", model="Steep it.", against=""),),
        notes={"win_rate": "not measured: no judge is set", "general": "a model that knows nothing has 25%"},
    )
    return msgspec.structs.replace(made, **changes)


def alone() -> Evaluation:
    found = evaluation()
    own = {name: each for name, each in found.metrics.items() if not name.endswith("_against")}
    return msgspec.structs.replace(found, against=None, metrics=own, comparisons={})


class Tags(HTMLParser):
    """Which tags a page has, and their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))


@pytest.mark.parametrize(
    ("low", "high", "better", "meant"),
    [
        (-2.0, -1.0, "lower", "better"),
        (-2.0, -1.0, "higher", "worse"),
        (1.0, 2.0, "higher", "better"),
        (1.0, 2.0, "lower", "worse"),
        (-1.0, 1.0, "higher", "no clear difference"),
        (0.0, 1.0, "higher", "no clear difference"),
    ],
)
def test_a_difference_is_what_its_whole_interval_says(low: float, high: float, better: str, meant: Verdict) -> None:
    found = Comparison(name="m", difference=(low + high) / 2, low=low, high=high, n=9)

    assert verdict(found, better) == meant


def test_the_first_sentence_says_whether_it_is_better_and_in_what() -> None:
    first, second = summary(evaluation())

    assert first == (
        "taught@012345 is better than base@ba9876 in 2 of 4 figures (perplexity and bits per byte), and worse in 1 "
        "(general questions). In 1 (vocabulary) the samples do not tell them apart."
    )
    assert second == (
        "It finds the author's held-out text likelier: a perplexity of 45.2 instead of 130, a difference of −85.1 "
        "(−90.1 to −80.1)."
    )


def test_a_model_that_is_better_in_nothing_is_not_praised() -> None:
    worse = {name: msgspec.structs.replace(compared(name, 0.6)) for name in ("bits_per_byte", "perplexity")}

    first, second = summary(evaluation(comparisons=worse))

    assert first.startswith("taught@012345 is better than base@ba9876 in none of 2 figures, and worse in 2")
    assert second.startswith("It finds the author's held-out text less likely")


@pytest.mark.parametrize("few", [{"n": 19}, {"n": 40, "families": 4}])
def test_of_too_few_samples_nothing_is_called_better_but_in_its_row(few: dict[str, int]) -> None:
    found = evaluation()
    comparisons = {name: msgspec.structs.replace(each, **few) for name, each in found.comparisons.items()}  # type: ignore[arg-type]
    comparisons["general"] = found.comparisons["general"]
    found = msgspec.structs.replace(found, comparisons=comparisons)

    sentences = summary(found)

    assert sentences == [
        "taught@012345 is better than base@ba9876 in none of 4 figures, and worse in 1 (general questions). In 3 "
        "(perplexity, bits per byte and vocabulary) there are too few samples to say."
    ]
    (row,) = [line for line in told(found).splitlines() if line.startswith("Bits per byte")]
    assert "better (n small)" in row
    assert page(found).count("(n small)") == 3


def test_as_many_samples_are_enough_to_say_something_as_the_release_gate_asks_for() -> None:
    rule = Rule(must="improve")

    assert (rule.samples, rule.families) == (ENOUGH_SAMPLES, ENOUGH_FAMILIES)


def test_empty_answers_are_told_in_the_first_paragraph_and_under_the_figures() -> None:
    note = "12 of 12 answers of taught@0123456789ab are empty"

    for found in (
        evaluation(notes={"empty answers": note}),
        msgspec.structs.replace(alone(), notes={"empty answers": note}),
    ):
        assert summary(found)[0].endswith(" 12 of 12 answers of taught@012345 are empty.")
        assert f"Empty answers: {note}" in told(found).splitlines()
        assert f"<dt>Empty answers</dt><dd>{note}</dd>" in page(found)


def test_without_another_model_nothing_is_called_better() -> None:
    text = told(alone())

    assert "was evaluated by itself" in text
    assert "better" not in text
    assert "45.2" in text


def test_the_terminal_has_a_line_for_each_figure_with_its_intervals() -> None:
    lines = told(evaluation()).splitlines()

    (row,) = [line for line in lines if line.startswith("Perplexity")]
    assert " ".join(row.split()) == "Perplexity 45.2 42.2 to 48.2 130 −85.1 (−90.1 to −80.1) better 40"
    (row,) = [line for line in lines if line.startswith("General questions")]
    assert "42.0 %" in row
    assert "−29.0 points" in row
    assert "worse" in row
    assert "Preferred by the judge: no judge is set" in lines
    table = lines[lines.index("") + 1 :]
    assert max(map(len, table[:5])) < 140


def test_the_page_needs_nothing_but_itself() -> None:
    found = Tags(page(evaluation()))

    names = {tag for tag, _ in found.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "form"}
    for _, attributes in found.tags:
        assert not {"src", "srcset", "href", "style"} & attributes.keys()
    assert (
        "meta",
        {"http-equiv": "Content-Security-Policy", "content": "default-src 'none'; style-src 'unsafe-inline'"},
    ) in (found.tags)
    assert "url(" not in page(evaluation())


def test_what_models_and_authors_wrote_is_text_and_nothing_else() -> None:
    hostile = SideBySide(question=HOSTILE, author=HOSTILE, model=HOSTILE, against=HOSTILE)

    text = page(evaluation(samples=(hostile,), notes={"general": HOSTILE}))

    assert not {tag for tag, _ in Tags(text).tags} & {"script", "img"}
    assert text.count("&lt;script&gt;") == 5


def test_every_picture_says_in_words_what_it_shows_and_stays_within_its_frame() -> None:
    text = page(evaluation())

    pictures = [attributes for tag, attributes in Tags(text).tags if tag == "svg" and attributes.get("role") == "img"]
    assert len(pictures) == 4
    assert "taught@012345 45.2 (42.2 to 48.2); base@ba9876 130 (121 to 139)" in str(pictures[0]["aria-label"])
    for x in re.findall(r'(?:x1|x2|cx|x)="([\d.]+)"', text):
        assert 0 <= float(x) <= 480
    assert "probability" not in text
    assert "perplexity</text>" in text


def test_an_answer_that_a_model_did_not_give_is_said_to_be_none() -> None:
    assert 'class="text nothing">no answer</p>' in page(evaluation())


def test_what_was_not_measured_stands_on_the_page_with_its_reason() -> None:
    text = page(evaluation()).partition("<h2>Not measured</h2>")[2]

    assert "<dt>Preferred by the judge</dt><dd>no judge is set</dd>" in text
    assert "<dt>Groundedness</dt>" in text


@pytest.mark.parametrize(("value", "spread"), [(0.0, 0.0), (0.3, 0.0), (1.0, 1e-17), (12345.6, 0.0), (1e-6, 1e-7)])
def test_a_figure_without_any_spread_has_an_axis_all_the_same(value: float, spread: float) -> None:
    same = {name: metric(name, value, spread=spread) for name in ("perplexity", "style_author", "general")}

    text = page(evaluation(metrics=same, comparisons={}))

    assert text.count('role="img"') == 3
    assert "nan" not in text.casefold().replace("nance", "")


def test_both_files_are_written_and_the_evaluation_is_read_as_it_was(tmp_path: Path) -> None:
    made = evaluation(samples=(SideBySide(question="\ud800?", author="a", model="b"),))
    told_of = evaluation()

    path = write(told_of, tmp_path / "new")

    assert path == tmp_path / "new" / REPORT
    assert path.stat().st_size < 100_000
    assert read_evaluation(tmp_path / "new") == told_of
    assert page(made).encode(errors="replace")
