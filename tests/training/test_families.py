"""Document families: what belongs together, and that no split divides it."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from training.datasets.families import TooFew, divide, families, split_of


def prose(seed: int, count: int = 200) -> str:
    source = random.Random(seed)
    return " ".join(f"word{source.randrange(5_000)}" for _ in range(count))


def part(text: str, start: int, end: int) -> str:
    return " ".join(text.split()[start:end])


def test_an_article_that_came_out_on_two_platforms_is_one_family() -> None:
    article = prose(1)
    documents = {
        "medium": f"Published in The Gate. {article} Thanks for reading.",
        "blog": article.replace("word7", "word8"),
        "other": prose(2),
    }

    assert families(documents) == {"medium": "blog", "blog": "blog", "other": "other"}


def test_an_abridged_copy_belongs_to_the_whole() -> None:
    whole = prose(1, 2_000)

    assert families({"a": whole, "b": part(whole, 700, 800) + " " + prose(3, 60)}) == {"a": "a", "b": "a"}


def test_a_quotation_makes_no_family_but_a_fifth_does_under_one_title() -> None:
    whole = prose(1, 1_000)
    documents = {"a": whole, "b": part(whole, 100, 160) + " " + prose(3, 140)}

    assert families(documents, {"a": "Gates", "b": "Doors"}) == {"a": "a", "b": "b"}
    assert families(documents, {"a": "Gates ", "b": "GATES"}) == {"a": "a", "b": "a"}
    assert families(documents, {"a": "", "b": ""}) == {"a": "a", "b": "b"}
    assert families({"a": whole, "b": prose(3)}, {"a": "Gates", "b": "Gates"}) == {"a": "a", "b": "b"}


def test_what_belongs_to_one_of_a_family_belongs_to_all() -> None:
    middle = prose(1, 300)
    documents = {
        "c": part(middle, 0, 120),
        "b": middle,
        "a": part(middle, 160, 300),
        "d": prose(2),
    }

    assert families(documents) == {"a": "a", "b": "a", "c": "a", "d": "d"}


def test_a_licence_above_every_file_makes_no_family() -> None:
    licence = prose(1, 150)
    documents = {f"file{number:02}": f"{licence} {prose(10 + number, 60)}" for number in range(30)}

    assert len(set(families(documents).values())) == 30


def test_many_copies_of_one_document_are_one_family() -> None:
    page = prose(1)
    documents = {f"copy{number:02}": f"{page} number {number}" for number in range(30)}

    assert set(families(documents | {"else": prose(2)}).values()) == {"copy00", "else"}
    assert set(families(documents | {"some of it": part(page, 20, 120)}).values()) == {"copy00"}


def test_empty_and_tiny_documents_stay_alone_unless_they_are_the_same() -> None:
    documents = {"a": "", "b": "", "c": "pass", "d": "pass", "e": "import gates", "f": prose(1)}

    assert families(documents) == {"a": "a", "b": "b", "c": "c", "d": "c", "e": "e", "f": "f"}
    assert families({}) == {}


def test_families_do_not_depend_on_the_order_of_the_documents() -> None:
    documents = {}
    for seed in range(20):
        text = prose(seed, 300)
        documents |= {f"whole{seed}": text, f"part{seed}": part(text, seed, seed + 100)}
    expected = families(documents)

    for seed in range(5):
        shuffled = list(documents)
        random.Random(seed).shuffle(shuffled)
        assert families({id: documents[id] for id in shuffled}) == expected
    assert len(set(expected.values())) == 20


def grown(count: int, source: random.Random) -> dict[str, str]:
    return {f"d{number}-{member}": f"d{number}" for number in range(count) for member in range(source.randrange(1, 6))}


@pytest.mark.parametrize("seed", range(10))
def test_no_family_is_divided_and_no_split_is_empty(seed: int) -> None:
    source = random.Random(seed)
    given = grown(source.choice((3, 4, 7, 50)), source)

    splits = divide(given, seed)

    assert splits.keys() == given.keys()
    assert set(splits.values()) == {"train", "validation", "test"}
    by_family = {family: {splits[id] for id in given if given[id] == family} for family in given.values()}
    assert all(len(places) == 1 for places in by_family.values())


def test_documents_that_come_later_move_none_that_were_there() -> None:
    before = grown(200, random.Random(1))
    after = before | {f"new{number}": f"new{number}" for number in range(200)}

    first, then = divide(before, 7), divide(after, 7)

    assert all(then[id] == split for id, split in first.items())


def test_a_family_that_grows_stays_unless_the_new_member_leads_it() -> None:
    stayed = 0
    for number in range(300):
        members = [f"d{number}", f"e{number}"]
        stayed += split_of(members, 1) == split_of([*members, f"f{number}"], 1)

    # A third of the new members lead, and two thirds of these go to train as the former leader did.
    assert stayed / 300 > 0.8


def test_shares_are_met_and_large_families_go_nowhere_more_often_than_small_ones() -> None:
    for size in (1, 10):
        places = Counter(
            split_of([f"{number}-{member}" for member in range(size)], 3, 0.1, 0.2) for number in range(2_000)
        )

        assert places["validation"] / 2_000 == pytest.approx(0.1, abs=0.03)
        assert places["test"] / 2_000 == pytest.approx(0.2, abs=0.03)


def test_another_seed_is_another_division_and_the_same_seed_the_same() -> None:
    given = grown(100, random.Random(1))

    assert divide(given, 1) == divide(dict(reversed(given.items())), 1)
    assert divide(given, 1) != divide(given, 2)


def test_too_few_families_are_refused_with_what_to_do() -> None:
    with pytest.raises(TooFew) as told:
        divide({"a": "a", "b": "a", "c": "c"}, 1)

    assert "2 document families" in str(told.value)
    assert "(3)" in str(told.value)
    assert "twin ingest" in str(told.value)
    assert set(divide({"a": "a", "b": "a", "c": "c"}, 1, validation=0).values()) == {"train", "test"}
    assert divide({"a": "a"}, 1, validation=0, test=0) == {"a": "train"}


@pytest.mark.parametrize(("validation", "test"), [(-0.1, 0.1), (0.5, 0.5), (float("nan"), 0.1)])
def test_shares_that_are_none_are_refused(validation: float, test: float) -> None:
    with pytest.raises(ValueError, match="shares of validation"):
        divide({"a": "a", "b": "b", "c": "c"}, 1, validation, test)
