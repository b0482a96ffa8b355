"""The release gate: a model that surely is better passes, one that only might be does not."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from training.evaluation.figures import Comparison, Evaluation, Metric
from training.release.gate import Decision, InvalidRules, Rule, Rules, judge, load_rules


def evaluation(
    name: str,
    low: float,
    high: float,
    *,
    better: str = "lower",
    n: int = 60,
    families: int | None = None,
    value: tuple[float, float] = (1.0, 2.0),
    against: str | None = "base@1",
    notes: dict[str, str] | None = None,
) -> Evaluation:
    """One figure, whose difference to the champion lies between `low` and `high`."""
    metric = Metric(name=name, better=better, value=sum(value) / 2, low=value[0], high=value[1], n=n)  # type: ignore[arg-type]
    comparison = Comparison(name=name, difference=(low + high) / 2, low=low, high=high, n=n, families=families)
    return Evaluation(
        model="twin@2",
        against=against,
        dataset="d1",
        generation="g1",
        created_at=datetime(2026, 6, 1, tzinfo=UTC),
        seed=0,
        metrics={name: metric},
        comparisons={name: comparison} if against else {},
        notes=notes or {},
    )


def decided(found: Evaluation, **rules: Rule) -> Decision:
    return judge(found, Rules(figures=rules))


IMPROVE = Rule(must="improve")


def test_a_model_whose_whole_interval_is_better_passes() -> None:
    decision = decided(evaluation("perplexity", -9.0, -0.1), perplexity=IMPROVE)

    assert decision.passes
    assert "better" in decision.kept[0]
    assert "-9 to -0.1" in decision.kept[0]


@pytest.mark.parametrize(
    ("low", "high", "told"), [(-9.0, 0.1, "not surely better"), (0.5, 3.0, "worse"), (0, 0, "not")]
)
def test_a_model_that_only_might_be_better_or_is_worse_is_refused(low: float, high: float, told: str) -> None:
    decision = decided(evaluation("perplexity", low, high), perplexity=IMPROVE)

    assert not decision.passes
    assert told in decision.refuses[0]


def test_better_is_higher_for_a_figure_that_says_so() -> None:
    rules = {"correctness": IMPROVE}

    assert decided(evaluation("correctness", 0.1, 0.2, better="higher"), **rules).passes
    assert not decided(evaluation("correctness", -0.2, -0.1, better="higher"), **rules).passes


def test_an_improvement_must_be_as_large_as_the_rule_says() -> None:
    rule = Rule(must="improve", by=0.5)

    assert decided(evaluation("bits_per_byte", -0.9, -0.6), bits_per_byte=rule).passes
    assert not decided(evaluation("bits_per_byte", -0.9, -0.4), bits_per_byte=rule).passes


def test_a_loss_that_the_interval_does_not_exclude_is_refused_even_if_the_point_is_a_gain() -> None:
    rule = Rule(must="not_worsen", margin=0.05)

    kept = decided(evaluation("general", -0.04, 0.06, better="higher"), general=rule)
    refused = decided(evaluation("general", -0.06, 0.10, better="higher"), general=rule)

    assert kept.passes
    assert not refused.passes
    assert "may be worse by 0.05" in refused.refuses[0]


def test_a_win_rate_must_reach_its_value_with_its_whole_interval() -> None:
    rule = Rule(must="reach", value=0.5)

    assert decided(evaluation("win_rate", 0, 0, better="higher", value=(0.51, 0.7)), win_rate=rule).passes
    assert not decided(evaluation("win_rate", 0, 0, better="higher", value=(0.45, 0.7)), win_rate=rule).passes


def test_a_figure_that_is_missing_refuses_if_it_is_required_and_is_told_of_if_not() -> None:
    found = evaluation("perplexity", -2.0, -1.0, notes={"win_rate": "no judge is set"})
    wins = Rule(must="reach", value=0.4, required=False)

    lenient = decided(found, perplexity=IMPROVE, win_rate=wins)
    strict = decided(found, perplexity=IMPROVE, win_rate=Rule(must="reach", value=0.4))

    assert lenient.passes
    assert lenient.not_judged == ("win_rate: not measured (no judge is set)",)
    assert not strict.passes


def test_too_few_samples_are_no_evidence() -> None:
    decision = decided(evaluation("perplexity", -2.0, -1.0, n=3), perplexity=IMPROVE)

    assert not decision.passes
    assert "3 samples are too few" in decision.refuses[0]


def test_many_samples_of_few_document_families_are_no_evidence_either() -> None:
    few = decided(evaluation("perplexity", -2.0, -1.0, n=60, families=4), perplexity=IMPROVE)
    enough = decided(evaluation("perplexity", -2.0, -1.0, n=60, families=5), perplexity=IMPROVE)

    assert (few.passes, enough.passes) == (False, True)
    assert "samples of 4 document families are too few to judge, 5 are needed" in few.refuses[0]


def test_what_a_required_figure_lacks_is_held_out_and_not_asked_for() -> None:
    found = evaluation("perplexity", -2.0, -1.0, families=4)

    asked = judge(found, Rules(figures={"perplexity": IMPROVE}), available={"families": 30}).refuses[0]
    lacking = judge(found, Rules(figures={"perplexity": IMPROVE}), available={"families": 4}).refuses[0]

    assert asked.endswith("evaluate on more (`--questions`)")
    assert lacking.endswith("and the dataset has 4: hold more out (`test` of its recipe)")


@pytest.mark.parametrize(
    ("available", "required", "passes"),
    [(60, False, False), (None, False, False), (12, False, True), (12, True, False)],
)
def test_too_few_samples_are_excused_only_where_there_are_no_more_and_nothing_is_required(
    available: int | None, required: bool, passes: bool
) -> None:
    good, few = evaluation("perplexity", -2.0, -1.0), evaluation("style_author", 0.1, 0.2, better="higher", n=12)
    both = msgspec.structs.replace(
        good, metrics={**good.metrics, **few.metrics}, comparisons={**good.comparisons, **few.comparisons}
    )
    rule = Rule(must="not_worsen", margin=0.1, required=required)

    there = {} if available is None else {"samples": available}
    decision = judge(both, Rules(figures={"perplexity": IMPROVE, "style_author": rule}), available=there)

    assert decision.passes == passes
    assert "style_author: 12 samples are too few" in " ".join((*decision.refuses, *decision.not_judged))


@pytest.mark.parametrize(
    ("asked", "there", "passes"), [(2, 66, False), (12, 12, True), (20, 66, True), (2, None, False)]
)
def test_a_model_that_was_hardly_asked_does_not_pass_whatever_is_missing_for_that(
    asked: int, there: int | None, passes: bool
) -> None:
    found = msgspec.structs.replace(evaluation("perplexity", -2.0, -1.0), questions=asked)
    rules = Rules(figures={"perplexity": IMPROVE, "correctness": Rule(must="not_worsen", margin=0.1, required=False)})

    decision = judge(found, rules, available={} if there is None else {"samples": there})

    assert decision.passes == passes
    assert any(f"asked {asked} questions" in reason for reason in decision.refuses) != passes


def test_a_figure_of_too_few_families_to_be_compared_is_not_excused_where_there_are_more() -> None:
    found = evaluation("perplexity", -2.0, -1.0)
    alone = Metric(name="correctness", better="higher", value=0.5, low=0.4, high=0.6, n=20, families=2)
    found = msgspec.structs.replace(found, metrics={**found.metrics, "correctness": alone})
    rules = Rules(figures={"perplexity": IMPROVE, "correctness": Rule(must="not_worsen", margin=0.1, required=False)})

    assert not judge(found, rules, available={"samples": 60, "families": 9}).passes
    assert judge(found, rules, available={"samples": 60, "families": 2}).passes


def test_where_all_questions_were_asked_nobody_is_told_to_ask_more() -> None:
    found = msgspec.structs.replace(evaluation("perplexity", -2.0, -1.0), questions=66)
    six = evaluation("groundedness", 0.1, 0.2, better="higher", n=6)
    found = msgspec.structs.replace(
        found,
        metrics={**found.metrics, **six.metrics},
        comparisons={**found.comparisons, **six.comparisons},
        notes={"groundedness": "60 of 66 prompts with a passage have no room"},
    )
    rules = Rules(figures={"perplexity": IMPROVE, "groundedness": Rule(must="not_worsen", margin=0.1, required=False)})

    all_asked = judge(found, rules, available={"samples": 66}).refuses
    more_there = judge(found, rules, available={"samples": 100}).refuses

    assert all_asked[0].endswith("all 66 questions were asked (60 of 66 prompts with a passage have no room)")
    assert more_there[0].endswith("evaluate on more (`--questions`)")


def test_a_comparison_with_the_wrong_model_is_told_once() -> None:
    found = evaluation("perplexity", -2.0, -1.0)
    rules = Rules(figures={"perplexity": IMPROVE, "general": Rule(must="not_worsen", margin=0.1)})

    decision = judge(found, rules, mismatch="it was compared with another")

    assert not decision.passes
    assert decision.told() == ["refuses: it was compared with another"]


def test_figures_that_stand_for_themselves_pass_whatever_an_optional_one_was_compared_with() -> None:
    found = evaluation("general", 0.1, 0.2, better="higher", value=(0.5, 0.6))
    reach = Rule(must="reach", value=0.4)
    optional = Rule(must="not_worsen", margin=0.1, required=False)

    decision = judge(found, Rules(figures={"general": reach, "correctness": optional}), mismatch="with another")

    assert decision.passes
    assert decision.told()[1:] == ["not judged: with another"]


@pytest.mark.parametrize("broken", [float("nan"), float("-inf")])
def test_an_interval_that_is_no_number_is_no_evidence(broken: float) -> None:
    assert not decided(evaluation("perplexity", broken, -1.0), perplexity=IMPROVE).passes


def test_where_nothing_could_be_judged_nothing_passes() -> None:
    decision = decided(evaluation("perplexity", -2, -1, against=None), perplexity=Rule(must="improve", required=False))

    assert not decision.passes
    assert "nothing was judged" in decision.refuses[-1]


def test_one_broken_rule_of_several_is_enough_and_every_rule_is_told_of() -> None:
    good = evaluation("perplexity", -2.0, -1.0)
    bad = evaluation("general", -0.5, -0.2, better="higher")
    both = Evaluation(
        **{name: getattr(good, name) for name in ("model", "against", "dataset", "generation", "created_at", "seed")},
        metrics={**good.metrics, **bad.metrics},
        comparisons={**good.comparisons, **bad.comparisons},
    )

    decision = decided(both, perplexity=IMPROVE, general=Rule(must="not_worsen", margin=0.05))

    assert not decision.passes
    assert [told.split(":")[:2] for told in decision.told()] == [["refuses", " general"], ["kept", " perplexity"]]


def test_the_rules_that_come_with_the_program_ask_for_a_better_likelihood() -> None:
    rules = load_rules()

    assert rules.figures["bits_per_byte"] == Rule(must="improve")
    assert not judge(evaluation("bits_per_byte", -0.2, 0.1), rules).passes


def test_rules_of_ones_own_replace_a_section_and_leave_the_others(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text("due: {feedback: 3}\n")

    rules = load_rules(file)

    assert rules.due.feedback == 3
    assert rules.figures == load_rules().figures


def test_rules_tell_their_file_and_a_digest_of_what_counts(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text("due: {feedback: 3}\n")
    first = load_rules(file).source
    file.write_text("due: {feedback: 4}\n")

    assert first.startswith(f"{file} (SHA-256 ")
    assert load_rules(file).source != first
    assert load_rules().source.startswith("the program")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("source: the program", "no section"),
        ("figures: {perplexity: {must: improve, wil: 3}}", "wil"),
        ("figures: {perplexity: {must: shine}}", "shine"),
        ("figures: {beauty: {must: improve}}", "there is no figure beauty"),
        ("figures: {general: {must: not_worsen}}", "margin"),
        ("figures: {general: {must: improve, margin: 1}}", "margin"),
        ("figures: {general: {must: reach}}", "value"),
        ("figures: {}", "figures"),
        ("figures: [", "not YAML"),
        ("twelve", "sections"),
        ("canary: {failure_margin: 7}", "failure_margin"),
    ],
)
def test_rules_that_cannot_be_used_say_why(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(text)

    with pytest.raises(InvalidRules, match=told):
        load_rules(file)


def test_rules_that_are_not_there_are_told_of(tmp_path: Path) -> None:
    with pytest.raises(InvalidRules, match="no such file"):
        load_rules(tmp_path / "none.yaml")
