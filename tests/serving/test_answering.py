"""What a model says is passed on as it comes, but no number in it names a source that does not exist."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serving.answering import all_cited, checked

TEXT = st.lists(
    st.sampled_from(
        ["word", " ", "[", "]", "1", "2", "17", ",", "; ", "`", "```", "\n", "[1]", " [3, 9]", "[ 2 ]", "1000"]
    ),
    max_size=30,
)


def passed_on(pieces: Sequence[str], highest: int = 3) -> list[str]:
    async def spoken() -> AsyncGenerator[str]:
        for piece in pieces:
            yield piece

    async def collected() -> list[str]:
        return [piece async for piece in checked(spoken(), highest)]

    return asyncio.run(collected())


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("So it is [1].", "So it is [1]."),
        ("So it is [9].", "So it is."),
        ("So [1, 2; 8] it is", "So [1][2] it is"),
        ("None [0] here [004]", "None here"),
        ("None [1000] here[1000], nor [" + "9" * 5000 + "]", "None here, nor"),
        ("So [ 1 ] and [ 2 , 1000 ; 3 ] it is", "So [1] and [2][3] it is"),
        ("So [1, 1, 01] it is", "So [1] it is"),
        ("Say `a[1000]`:\n```\nb[ 1 ] = c[1, 2]\n```", "Say `a[1000]`:\n```\nb[ 1 ] = c[1, 2]\n```"),
        ("`a[7]` and\n```\nb[8]\n``` then [8]", "`a[7]` and\n```\nb[8]\n``` then"),
        ("A list [a, b] and [1", "A list [a, b] and [1"),
    ],
)
def test_only_numbers_of_passages_remain(said: str, shown: str) -> None:
    assert "".join(passed_on([said])) == shown


@pytest.mark.parametrize(
    ("said", "supported"),
    [
        ("The tide rises [1]. It falls [2].", True),
        ("The tide rises. [1] It falls. [2]", True),
        ("[1] The tide rises.\n\n[2] It falls.", True),
        ("# Tides\n\nThere are two:\n\n- it rises [1]\n- it falls [2]", True),
        ("The tide rises [1]. It falls.", False),
        ("The tide rises. It falls [2].", False),
        ("The tide rises [3].", False),
        ("I do not know.", False),
        ("", False),
    ],
)
def test_an_answer_is_supported_if_each_of_its_statements_names_a_passage(said: str, supported: bool) -> None:
    assert all_cited(said, {1, 2}) is supported


@given(TEXT, st.data())
@settings(deadline=None)
def test_however_the_words_arrive_the_same_is_shown(pieces: list[str], data: st.DataObject) -> None:
    whole = "".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    split = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert "".join(passed_on(split)) == "".join(passed_on([whole]))


@given(TEXT)
@example(["[", "17", "`", "`", "]"])
@settings(deadline=None)
def test_outside_of_code_no_false_number_is_left(pieces: list[str]) -> None:
    shown = "".join(passed_on(pieces))
    # Brackets on both sides of code are no marker.
    prose = "`".join(shown.split("`")[::2])
    assert set(re.findall(r"\[\s*(\d+)\s*\]", prose)) <= {"1", "2", "3"}


def test_nothing_is_held_back_longer_than_it_must() -> None:
    assert passed_on(["One", " two", " [", "1", "] three"]) == ["One", " two", " [1] three"]
