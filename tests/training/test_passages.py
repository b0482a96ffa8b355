"""Passages: whole paragraphs of one section, of the right size, and what gives none."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.datasets.passages import Sizes, passages, words

SIZES = Sizes(least_words=8, most_words=30)


def sentence(subject: str, number: int = 12) -> str:
    """A paragraph of so many words."""
    return " ".join([subject.capitalize(), *["word"] * (number - 2), "ends."])


TEA = f"""\
# Making tea

{sentence("intro")}

## Water

{sentence("kettle")}

{sentence("steam")}

{sentence("boiling")}

{sentence("cooling")}

## Leaves

{sentence("green")}
"""


def test_a_passage_is_whole_paragraphs_of_one_section() -> None:
    found, left_out = passages(TEA, "Making tea", SIZES)

    assert [(TEA[one.start : one.end], one.headings, one.place) for one in found] == [
        (sentence("intro"), (), "whole"),
        (f"{sentence('kettle')}\n\n{sentence('steam')}", ("Water",), "opening"),
        (f"{sentence('boiling')}\n\n{sentence('cooling')}", ("Water",), "closing"),
        (sentence("green"), ("Leaves",), "whole"),
    ]
    assert not left_out


def test_a_section_too_small_to_be_an_answer_is_taken_with_its_subsections_if_they_fit() -> None:
    text = "## Water\n\nIt matters.\n\n### Soft\n\n" + sentence("soft") + "\n\n## Leaves\n\n" + sentence("green")

    found, _ = passages(text, "", SIZES)

    assert [text[one.start : one.end] for one in found] == [
        f"It matters.\n\n### Soft\n\n{sentence('soft')}",
        sentence("green"),
    ]


def test_code_and_tables_are_never_cut() -> None:
    code = "```python\n" + "# a comment, no heading\n\n" * 3 + "pour(water)\n```"
    table = "| leaf | minutes |\n|---|---|\n| green | 2 |\n| black | 4 |"
    text = "\n\n".join([sentence("one", 15), code, sentence("two", 15), table, sentence("three", 15)])

    found, _ = passages(text, "", SIZES)

    cut = "|".join(text[one.start : one.end] for one in found)
    assert len(found) == 3
    assert code in cut
    assert table in cut


def test_what_a_colon_announces_stays_with_it() -> None:
    text = f"{sentence('one', 20)}\n\n{sentence('two', 8)} You need:\n\n- a kettle\n- a cup\n\n{sentence('three', 15)}"

    found, _ = passages(text, "", SIZES)

    assert any("You need:\n\n- a kettle\n- a cup" in text[one.start : one.end] for one in found)


def test_a_paragraph_longer_than_any_answer_is_cut_between_sentences() -> None:
    text = " ".join(sentence(subject) for subject in ("one", "two", "three", "four", "five"))

    found, _ = passages(text, "", SIZES)

    assert [one.place for one in found] == ["opening", "middle", "closing"]
    assert all(text[one.start : one.end].endswith("ends.") for one in found)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Tea is hot.", "too short"),
        ("- " + " ".join(["word"] * 40), "too long"),
        ("Look at this code, it pours:\n\n```\n" + "pour(water, into=cup)\n" * 5 + "```", "mostly code"),
        ("All of them:\n\n| leaf | minutes |\n|---|---|\n" + "| green tea | two |\n" * 4, "mostly a table"),
        (
            "See also:\n\n- [green tea at length](https://example.org/green)\n- [black tea](https://example.org/black)",
            "mostly links",
        ),
    ],
)
def test_what_is_no_answer_is_left_out_with_its_reason(text: str, reason: str) -> None:
    assert passages(text, "", SIZES) == ([], {reason: 1})


def test_a_text_without_spaces_has_words_too() -> None:
    text = "茶は静かに淹れるものである。お湯は八十度がよい。"

    assert len(words(text)) > 15
    assert [text[one.start : one.end] for one in passages(text, "", SIZES)[0]] == [text]


LINES = """\
# One
## Two
### Three

Some words stand here. And more of them there!
- item of a list
1. numbered words
| a | b |
```
    indented = code
Title
=====
---
As follows:
é ü 茶""".splitlines()
MARKDOWN = st.lists(st.sampled_from(LINES), max_size=40).map("\n".join)


@settings(max_examples=100, deadline=None)
@given(MARKDOWN)
def test_passages_of_any_text_are_in_order_apart_trimmed_and_of_the_right_size(text: str) -> None:
    sizes = Sizes(least_words=3, most_words=25)

    found, _ = passages(text, "One", sizes)

    end = 0
    for one in found:
        assert end <= one.start < one.end <= len(text)
        assert text[one.start : one.end].strip("\n") == text[one.start : one.end].rstrip()
        assert sizes.least_words <= len(words(text[one.start : one.end])) <= sizes.most_words
        end = one.end
