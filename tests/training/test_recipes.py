"""Recipes: what a file may say, and that a wrong value is named with what is allowed."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from training.datasets.building import Recipe
from training.datasets.ranges import InvalidRecipe
from training.datasets.store import read_recipe

LARGEST = """\
kind: preferences
methods: [backtranslation, code]
size: 1
validation: 0.5
test: 0.49
languages: [of nobody]
limits: {least_words: 1, most_words: 1, least_lines: 5, most_lines: 5, grounded: 1.0}
thresholds: {near: 1.0, grounding: 0, shortest_answer: 0, longest_answer: 1}
rules: {least_words: 0, ratio: 1.0, overlap: 0}
"""


def read(tmp_path: Path, content: str | bytes) -> Recipe:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_recipe(file)


def test_values_at_the_edges_of_what_is_allowed_are_taken(tmp_path: Path) -> None:
    recipe = read(tmp_path, LARGEST)

    assert (recipe.size, recipe.limits.most_words, recipe.thresholds.near, recipe.rules.overlap) == (1, 1, 1.0, 0)
    assert read(tmp_path, msgspec.yaml.encode(Recipe())) == Recipe()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("size: -5", "size: expected `int` >= 1"),
        ("size: 0", "size: expected `int` >= 1"),
        ("validation: 0.6", "validation: expected `float` <= 0.5"),
        ("test: -0.1", "test: expected `float` >= 0"),
        ("test: .nan", "test: expected `float`"),
        ("{validation: 0.5, test: 0.5}", r"validation \(0.5\) and test \(0.5\) must leave a share for train"),
        (
            "{kind: preferences, methods: [question]}",
            "methods: question is none for preferences.*backtranslation, code",
        ),
        ("methods: [guessing]", r"methods\[0\]: invalid enum value 'guessing'"),
        ("limits: {most_words: 0}", "limits.most_words: expected `int` >= 1"),
        ("limits: {least_words: 400}", r"limits: least_words \(400\) must not be above most_words \(350\)"),
        ("limits: {least_lines: 9, most_lines: 8}", r"limits: least_lines \(9\) must not be above most_lines \(8\)"),
        ("limits: {grounded: 1.5}", "limits.grounded: expected `float` <= 1"),
        ("limits: {least_word: 4}", "limits: object contains unknown field `least_word`"),
        ("thresholds: {near: 0}", "thresholds.near: expected `float` > 0"),
        ("thresholds: {decontamination: 0}", "thresholds.decontamination: expected `int` >= 1"),
        (
            "thresholds: {longest_question: 1}",
            r"thresholds: shortest_question \(2\) must not be above longest_question",
        ),
        ("thresholds: {shortest_answer: 2000}", r"thresholds: shortest_answer \(2000\) must not be above"),
        ("rules: {ratio: 0.5}", "rules.ratio: expected `float` >= 1"),
        ("rules: {overlap: 2}", "rules.overlap: expected `float` <= 1"),
        ("rules: {a: 2}", "rules: object contains unknown field `a`"),
        ("sise: 20", "object contains unknown field `sise`; a recipe has kind, methods, size"),
        ("size: [", "is not YAML"),
        (b"\xff", "is not YAML"),
    ],
)
def test_a_value_that_no_recipe_may_have_is_named_with_what_is_allowed(
    tmp_path: Path, content: str | bytes, told: str
) -> None:
    with pytest.raises(InvalidRecipe, match=rf"recipe.yaml.*{told}"):
        read(tmp_path, content)


def test_options_that_do_not_go_together_are_refused_as_in_a_file() -> None:
    with pytest.raises(InvalidRecipe, match="question is none for preferences"):
        msgspec.structs.replace(Recipe(methods=("question",)), kind="preferences")
