"""Preference samples: the author's text over the model's own, people's edits and thumbs, and what teaches nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.datasets.preferences import (
    Feedback,
    NotFeedback,
    alike,
    length_bias,
    paired,
    preferred,
    prompts,
    read_feedback,
)
from training.datasets.samples import InstructionSample, PreferenceSample
from training.shares import wilson

AUTHORS = "Green tea is steeped at eighty degrees for two minutes, and never longer than three."
MODELS = "As an assistant I would recommend that everybody buys expensive water in bottles and boils it twice."


def sample(answer: str = AUTHORS, instruction: str = "How is green tea made?") -> InstructionSample:
    return InstructionSample(
        instruction=instruction,
        answer=answer,
        method="backtranslation",
        document_id="d1",
        version=7,
        start=10,
        end=10 + len(answer),
        author="Ada",
        category="article",
        language="en",
        generator="templates",
        prompt_version="templates-1",
        family="f1",
    )


def row(**changes: Any) -> dict[str, Any]:
    known = {
        "feedback_id": "f1",
        "at": "2026-03-01T12:00:00Z",
        "author": "Ada",
        "question": "How is green tea made?",
        "answer": MODELS,
        "model": "champion-3",
        "verdict": "down",
    }
    return known | changes


def written(path: Path, *rows: dict[str, Any] | str) -> Path:
    lines = [line if isinstance(line, str) else json.dumps(line) for line in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_model_is_asked_what_the_author_answers_and_nothing_else() -> None:
    (request,) = prompts([sample()])

    assert request.messages == ({"role": "user", "content": "How is green tea made?"},)
    assert request.document_id == "d1"


def test_the_authors_text_is_better_than_the_models_own_answer_and_keeps_its_place_in_the_document() -> None:
    made = paired([sample()], [f"{MODELS}\n"], "base-1")

    (pair,) = made.samples
    assert (pair.prompt, pair.chosen, pair.rejected) == ("How is green tea made?", AUTHORS, MODELS)
    assert (pair.method, pair.generator, pair.document_id, pair.version) == ("on-policy", "base-1", "d1", 7)
    assert (pair.start, pair.end, pair.family) == (10, 10 + len(AUTHORS), "f1")
    assert not made.left_out


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "the model failed"),
        (f" {AUTHORS.upper()}\n", "equal"),
        ("Buy tea.", "too short"),
        ("", "too short"),
        (AUTHORS.replace("three", "four"), "too alike"),
        (AUTHORS + " " + MODELS, "differing mainly in length"),
        (" ".join(AUTHORS.split()[:9]), "differing mainly in length"),
    ],
)
def test_a_pair_that_teaches_nothing_is_left_out_with_its_reason(answer: str | None, reason: str) -> None:
    made = paired([sample(), sample()], [MODELS, answer], "base-1")

    assert len(made.samples) == 1
    assert made.left_out == {reason: 1}


def test_a_much_longer_answer_that_says_something_else_is_a_pair() -> None:
    made = paired([sample()], [f"{MODELS} {MODELS}"], "base-1")

    assert len(made.samples) == 1


def test_answers_that_do_not_belong_to_the_samples_are_a_mistake_and_no_shorter_list() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired([sample(), sample()], [MODELS], "base-1")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["tea", "is", "hot", "and"])), st.lists(st.sampled_from(["tea", "is", "cold"])))
def test_likeness_is_a_share_and_the_same_from_either_side(one: list[str], other: list[str]) -> None:
    first, second = " ".join(one), " ".join(other)

    assert 0 <= alike(first, second) == alike(second, first) <= 1
    assert alike(first, first.upper() + "!") == (1.0 if one else 0.0)


def test_an_edit_is_better_than_the_answer_it_was_made_from(tmp_path: Path) -> None:
    cited = {"n": 1, "document_id": "d1", "version": 7, "start": 3, "end": 40, "quote": "…"}
    edit = row(verdict="edit", answer=AUTHORS, edited=AUTHORS.replace("eighty", "seventy"), citations=[cited])

    made = preferred(read_feedback(written(tmp_path / "feedback.jsonl", edit)))

    (pair,) = made.samples
    assert ("seventy" in pair.chosen, "eighty" in pair.rejected) == (True, True)
    assert (pair.method, pair.generator) == ("feedback", "champion-3")
    assert (pair.document_id, pair.version, pair.start, pair.end) == ("d1", 7, 3, 40)


def test_a_liked_answer_is_better_than_a_disliked_one_to_the_same_question_of_the_same_author(tmp_path: Path) -> None:
    path = written(
        tmp_path / "feedback.jsonl",
        row(feedback_id="1", verdict="up", answer=AUTHORS, question="How is  GREEN tea made?"),
        row(feedback_id="2", verdict="down"),
        row(feedback_id="3", verdict="down", author="Another", answer="Bob would never drink any tea at all."),
        row(feedback_id="4", verdict="up", question="How is coffee made?", answer=AUTHORS),
    )

    made = preferred(read_feedback(path))

    assert [(pair.chosen, pair.rejected, pair.author) for pair in made.samples] == [(AUTHORS, MODELS, "Ada")]
    assert made.left_out == {"a thumb without its opposite": 2}


def test_a_pair_names_every_document_that_one_of_its_answers_rests_on(tmp_path: Path) -> None:
    def cites(*ids: str) -> list[dict[str, str]]:
        return [{"document_id": id} for id in ids]

    path = written(
        tmp_path / "feedback.jsonl",
        row(feedback_id="1", verdict="up", answer=AUTHORS, citations=cites("d1", "d2")),
        row(feedback_id="2", verdict="up", answer=AUTHORS.upper(), citations=cites("d3")),
        row(feedback_id="3", verdict="down", citations=cites("d4", "d2")),
        row(
            feedback_id="4", verdict="edit", edited="Eighty degrees, and for two minutes.", citations=cites("d5", "d6")
        ),
    )

    made = preferred(read_feedback(path))

    assert [set(ids) for ids in made.documents] == [{"d5", "d6"}, {"d1", "d2", "d3", "d4"}]
    assert [pair.document_id for pair in made.samples] == ["d5", "d4"]
    assert paired([sample()], [MODELS], "base-1").documents == (("d1",),)


def test_an_answer_about_which_people_disagree_is_neither_better_nor_worse(tmp_path: Path) -> None:
    path = written(
        tmp_path / "feedback.jsonl",
        row(feedback_id="1", verdict="up", person="ada"),
        row(feedback_id="2", verdict="down", person="bob"),
        row(feedback_id="3", verdict="up", answer=AUTHORS),
    )

    made = preferred(read_feedback(path))

    assert made.samples == ()
    assert made.left_out == {"people disagree": 2, "a thumb without its opposite": 1}


def test_each_answer_is_used_about_as_often_as_the_others() -> None:
    def thumb(number: int, verdict: str, answer: str) -> Feedback:
        return msgspec.convert(row(feedback_id=str(number), verdict=verdict, answer=answer), Feedback)

    animals = ("cats sleep on warm stones", "dogs bark at the moon", "owls hunt without a sound")
    liked = [thumb(number, "up", f"{animal} when it is late.") for number, animal in enumerate(animals)]

    made = preferred([*liked, thumb(8, "down", MODELS), thumb(9, "down", AUTHORS)])

    assert [(pair.chosen[:4], pair.rejected[:5]) for pair in made.samples] == [
        ("cats", MODELS[:5]),
        ("dogs", AUTHORS[:5]),
        ("owls", MODELS[:5]),
    ]


def test_what_comes_again_under_the_same_id_replaces_what_was_said_before(tmp_path: Path) -> None:
    path = written(
        tmp_path / "feedback.jsonl",
        row(feedback_id="1", verdict="up", at="2026-03-01T12:00:00Z"),
        "",
        row(feedback_id="2", verdict="up", at="2026-02-01T12:00:00+01:00", unknown_field={"a": 1}),
        row(feedback_id="1", verdict="down", at="2026-03-02T12:00:00Z"),
    )

    assert [(one.feedback_id, one.verdict) for one in read_feedback(path)] == [("2", "up"), ("1", "down")]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (row(verdict="meh"), "verdict: .*up, down or edit"),
        (row(at="yesterday"), "at"),
        (row(at="2026-03-01T12:00:00"), "at"),
        (row(answer=""), "answer"),
        (row(question=7), "question"),
        ({name: value for name, value in row().items() if name != "author"}, "author"),
        (row(verdict="edit"), "edited: the verdict `edit` needs"),
        (row(verdict="edit", edited=" "), "edited: the verdict `edit` needs"),
        (row(citations=[{"n": 1}]), r"citations\[0\]|document_id"),
        ("{cut off", "not a JSON object in one line"),
        ("[]", "object"),
    ],
)
def test_a_bad_line_is_named_with_its_field(tmp_path: Path, line: dict[str, Any] | str, told: str) -> None:
    path = written(tmp_path / "feedback.jsonl", row(), line)

    with pytest.raises(NotFeedback, match=rf"feedback.jsonl, line 2: .*(?:{told})"):
        read_feedback(path)


def test_a_mark_of_byte_order_before_feedback_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "feedback.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(row()).encode())

    assert [one.feedback_id for one in read_feedback(tmp_path / "feedback.jsonl")] == ["f1"]


def test_bytes_that_are_no_text_and_a_file_that_is_not_there_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes(json.dumps(row(question="té"), ensure_ascii=False).encode("latin-1"))

    with pytest.raises(NotFeedback, match=r"line 1: .*UTF-8"):
        read_feedback(tmp_path / "latin.jsonl")
    with pytest.raises(NotFeedback, match="cannot be read"):
        read_feedback(tmp_path / "none.jsonl")


def pair_of(chosen: str, rejected: str) -> PreferenceSample:
    (made,) = paired([sample(chosen)], [rejected], "base-1").samples
    return made


def test_pairs_that_always_prefer_the_longer_answer_show_it() -> None:
    longer = [pair_of(f"{AUTHORS} {number}", "Boil water, pour it over and drink.") for number in range(20)]

    bias = length_bias(longer)

    assert (bias.pairs, bias.chosen_longer, bias.longer) == (20, 20, 1.0)
    assert bias.longer_interval == wilson(20, 20)
    # 16 words against 7, and never another number: no interval at all.
    assert (bias.ratio, *bias.ratio_interval) == pytest.approx([16 / 7] * 3)


def test_pairs_without_a_preference_for_length_have_none_within_the_interval() -> None:
    one, other = AUTHORS, "Boil water, pour it over and drink."
    mixed = [pair_of(one, other), pair_of(other, one)] * 15

    bias = length_bias(mixed)

    assert (bias.longer, bias.ratio) == (0.5, pytest.approx(1))
    assert bias.longer_interval[0] < 0.5 < bias.longer_interval[1]
    assert bias.ratio_interval[0] < 1 < bias.ratio_interval[1]


def test_answers_of_the_same_length_are_no_preference() -> None:
    assert length_bias([pair_of("abcde fghij klmno pqrst uvwxy", "zzzzz yyyyy xxxxx wwwww vvvvv")]).longer == 0.5


def test_of_no_pairs_nothing_is_claimed() -> None:
    with pytest.raises(ValueError, match="build preference samples first"):
        length_bias([])
