"""How alike texts are: near ones are found as by comparing all, without doing so where they are of one template."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from training.datasets import likeness
from training.datasets.likeness import Shingles, counterparts, jaccard, repeats, shingles


def prose(seed: int, count: int) -> list[str]:
    source = random.Random(seed)
    return [f"word{source.randrange(5_000)}" for _ in range(count)]


def of_a_template(number: int, own: int) -> Shingles:
    """A text of 200 words that all have, around some of its own."""
    frame = prose(1, 200)
    return shingles([*frame[:120], *prose(100 + number, own), *frame[120:]])


def nearest(one: Shingles, others: Sequence[Shingles], least: float) -> int | None:
    return next((at for at, other in enumerate(others) if len(one) and jaccard(one, other) >= least), None)


@pytest.mark.parametrize("least", [0.8, 1.0])
def test_texts_of_a_template_are_near_where_their_runs_say_so(least: float) -> None:
    source = random.Random(5)
    # Twice each, since what is the template's own is no other's.
    texts = [of_a_template(source.randrange(12), source.choice((2, 20, 24, 28, 60))) for _ in range(60)]
    texts += [shingles([]), shingles(["one"]), shingles(["one"]), *(shingles(prose(seed % 3, 30)) for seed in range(6))]

    found = repeats([(own,) for own in texts], least)

    expected: dict[int, int] = {}
    first: list[int] = []
    for at, own in enumerate(texts):
        earlier = nearest(own, [texts[one] for one in first], least)
        if earlier is not None:
            expected[at] = first[earlier]
        elif len(own):
            first.append(at)
    assert 0 < len(expected) < len(texts) - 1
    assert found == expected
    halves = texts[::2], texts[1::2]
    pairs = {at: nearest(own, halves[1], least) for at, own in enumerate(halves[0])}
    assert counterparts(*halves, least) == {at: other for at, other in pairs.items() if other is not None}
    assert repeats([], least) == {}


def test_documents_of_one_template_are_not_compared_run_by_run(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [of_a_template(number, 110) for number in range(50)]
    assert 0.4 < jaccard(texts[0], texts[1]) < 0.6
    compared = []
    monkeypatch.setattr(likeness, "jaccard", lambda *of: compared.append(of) or jaccard(*of))

    assert repeats([(own,) for own in texts], 0.8) == {}

    assert compared == []


def test_a_pair_is_a_repeat_only_where_both_of_its_parts_are() -> None:
    one, other, another = (shingles(prose(seed, 60)) for seed in (1, 2, 3))

    assert repeats([(one, other), (one, another), (one, other), (one,)], 0.8) == {2: 0}
