"""How like an author a text is: a classifier that was not shown the document, and distances with a yardstick."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.evaluation.intervals import metric, ratio
from training.evaluation.style import (
    DISTANCES,
    FEWEST,
    LEADING_WORDS,
    Text,
    classified,
    distances,
    divergence,
    halves,
    marks_apart,
    punctuation,
    sentence_lengths,
    transport,
    word_counts,
)

NOUNS = ("harbour", "keeper", "boat", "tide", "lantern", "rope", "gull", "pier", "storm", "chart", "anchor", "sail")
COUNTS = st.lists(st.integers(0, 50), min_size=4, max_size=4)


def terse(chance: random.Random) -> str:
    """Short sentences, no commas."""
    return " ".join(f"The {chance.choice(NOUNS)} was old." for _ in range(chance.randint(4, 8)))


def flowery(chance: random.Random) -> str:
    """Long sentences with commas and semicolons."""
    parts = [f"and, as one would have it, the {chance.choice(NOUNS)}" for _ in range(chance.randint(4, 8))]
    return f"Behold; {', '.join(parts)}; which shall be remembered!"


def texts(write: object, families: int, seed: int, each: int = 3, name: str = "family") -> list[Text]:
    chance = random.Random(seed)
    assert callable(write)
    return [Text(write(chance), f"{name}-{number}") for number in range(families) for _ in range(each)]


def test_a_classifier_knows_the_author_again_in_documents_that_it_was_not_shown() -> None:
    own, others = texts(terse, 8, 1), texts(flowery, 8, 2, name="other")
    like, unlike = texts(terse, 8, 3, each=1), texts(flowery, 8, 4, each=1)

    told = classified(own, others, [like, unlike], seed=7)

    assert told is not None
    assert told.right.mean() > 0.9
    assert told.author.mean() > 0.7
    assert told.answers[0].mean() > 0.7
    assert told.answers[1].mean() < 0.3


def test_a_classifier_of_texts_that_do_not_differ_is_seen_to_be_useless() -> None:
    own, others = texts(terse, 20, 1), texts(terse, 20, 2, name="other")

    told = classified(own, others, [], seed=7)

    assert told is not None
    accuracy = metric("a", "higher", ratio(list(told.right * told.weights), list(told.weights)), len(told.right), 7)
    assert accuracy.low < 0.5 < accuracy.value + 0.2
    assert accuracy.high < 0.75


def test_answers_that_the_classifier_learns_from_are_judged_by_one_that_has_not_seen_them() -> None:
    # Another model's answers stand for what the author is not; they are the author's own words here, so whoever does
    # not remember them cannot tell.
    chance = random.Random(5)
    words = [chance.sample(NOUNS, 6) for _ in range(60)]
    own = [Text(" ".join(each), f"family-{at}") for at, each in enumerate(words[:30])]
    answers = [Text(" ".join(each), f"family-{at}") for at, each in enumerate(words[30:])]

    told = classified(own, answers, [answers], seed=7)

    assert told is not None
    assert 0.3 < told.answers[0].mean() < 0.7


def test_texts_of_one_document_or_of_too_few_train_no_classifier() -> None:
    many = texts(flowery, 8, 2, name="other")

    assert classified(texts(terse, 1, 1, each=20), many, [], seed=7) is None
    assert classified(texts(terse, FEWEST - 1, 1, each=1), many, [], seed=7) is None
    assert classified(texts(terse, 8, 1), [], [], seed=7) is None
    silent = [Text("", f"other-{number}") for number in range(30)]
    assert classified(texts(terse, 8, 1), silent, [], seed=7) is None


def test_the_classifier_is_not_told_by_line_ends_where_a_text_comes_from() -> None:
    own = texts(terse, 8, 1)
    others = [Text(each.text.replace(" ", "\n"), each.group) for each in texts(terse, 8, 2, name="other")]

    told = classified(own, others, [], seed=7)

    assert told is not None
    assert told.right.mean() < 0.8


def test_the_same_seed_gives_the_same_probabilities() -> None:
    own, others = texts(terse, 6, 1), texts(flowery, 6, 2, name="other")

    first, again = (classified(own, others, [own], seed=3) for _ in range(2))

    assert first is not None
    assert again is not None
    assert np.array_equal(first.answers[0], again.answers[0])


def test_sentences_lie_as_far_apart_as_they_must_be_lengthened() -> None:
    three, five = sentence_lengths(["One two three. Four five six."]), sentence_lengths(["a b c d e."])
    mixed = sentence_lengths(["One two three. a b c d e."])

    assert transport(three, five)[0] == pytest.approx(2)
    assert transport(three, mixed)[0] == pytest.approx(1)
    assert transport(three, three)[0] == 0


def test_an_answer_without_words_is_a_sentence_of_none() -> None:
    assert transport(sentence_lengths([""]), sentence_lengths(["one two three."]))[0] == pytest.approx(3)


def test_words_lie_apart_from_nothing_to_everything() -> None:
    same, other, empty = (word_counts(["a b b c", "c b b a", "x y z", ""])[[at]] for at in (1, 2, 3))
    own = word_counts(["a b b c", "c b b a", "x y z", ""])[[0]]

    assert divergence(own, same)[0] == pytest.approx(0, abs=1e-7)
    assert divergence(own, other)[0] == pytest.approx(1)
    assert divergence(own, empty)[0] == 1


def test_of_a_long_text_only_the_beginning_is_looked_at_for_words() -> None:
    counted = word_counts([" ".join(f"word{number}" for number in range(LEADING_WORDS * 3))])

    assert counted.sum() == LEADING_WORDS


def test_punctuation_is_counted_in_a_thousand_characters() -> None:
    few, many = punctuation(["a" * 99 + "."]), punctuation(["a" * 97 + "..."])

    assert marks_apart(few, many)[0] == pytest.approx(20)


@given(COUNTS, COUNTS)
def test_a_divergence_is_the_same_both_ways_and_between_0_and_1(one: list[int], other: list[int]) -> None:
    left, right = np.array([one], float), np.array([other], float)

    there, back = divergence(left, right)[0], divergence(right, left)[0]

    assert there == pytest.approx(back)
    assert 0 <= there <= 1


@pytest.mark.parametrize("name", DISTANCES)
def test_the_author_is_nearer_to_himself_than_a_stranger_is(name: str) -> None:
    author = texts(terse, 8, 1)
    stranger = [each.text for each in texts(flowery, 8, 2)]
    once = np.ones((1, len(author)))

    yardstick, far = distances(name, author, [[each.text for each in author], stranger], seed=7)

    assert yardstick(once)[0] < far(once)[0]


def test_nobody_is_held_against_the_documents_that_the_questions_are_of() -> None:
    # Each family has words of its own, so an answer that repeats the author's text is far from the other families'.
    author = [Text(f"alpha{number} beta{number} gamma{number}", f"family-{number}") for number in range(6)]

    (repeated,) = distances("style_vocabulary", author, [[each.text for each in author]], seed=7)

    assert repeated(np.ones((1, 6)))[0] == pytest.approx(1)


def test_halves_divide_no_family_and_are_about_as_long() -> None:
    author = texts(terse, 9, 1)

    first = halves(author, seed=7)

    sides = {(each.group, bool(side)) for each, side in zip(author, first, strict=True)}
    assert len(sides) == 9
    sizes = [sum(len(each.text) for each, side in zip(author, first, strict=True) if side == which) for which in (0, 1)]
    assert 0.7 < sizes[0] / sizes[1] < 1.5
    assert halves(texts(terse, 1, 1, each=4), seed=7).tolist() == [True, False, True, False]
