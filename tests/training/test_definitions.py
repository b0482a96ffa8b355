"""Definitions of source files: asked for by what they say of themselves, and answered by their source."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.texts import told
from training.datasets.instructions import METHODS, Limits, Made, code_samples
from training.datasets.likeness import normalised
from training.datasets.templates import CODE_FRAMES

LIMITS = Limits(least_lines=2)


def made_of(text: str, title: str, language: str, limits: Limits = LIMITS) -> Made:
    """The samples of a source file."""
    return code_samples(told("d1", title, text, "Ada", category="code", language=language), limits)


PYTHON = '''\
"""Tea, in code — für alle 🍵."""

import functools


@functools.cache
@other(
    1,
)
def brew(cups, name="Grüner Tee 🍵"):
    """Brew tea for some cups. It takes
    a while."""
    return "🍵" * cups


if brew:

    class Kettle:
        """A kettle that boils water."""

        def boil(self, degrees):
            """Boil the water, e.g. To eighty degrees

            and no more.
            """
            def inner():
                """Never asked for by itself."""
            return inner

        def pour(self):
            return 1

    async def wait(): """Wait for the water to boil."""; return "ü"
'''


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_documented_python_is_asked_for_by_its_docstring_and_answered_by_its_source(line_end: str, start: str) -> None:
    text = start + PYTHON.replace("\n", line_end)

    made = made_of(text, "tea/pot.py", "python", Limits(least_lines=1))

    answers = [sample.answer.replace(line_end, "\n") for sample in made.samples]
    assert [text[sample.start : sample.end] for sample in made.samples] == [sample.answer for sample in made.samples]
    assert answers[0].startswith("@functools.cache\n@other(") or answers[0].startswith("\ufeff")
    assert answers[0].endswith('return "🍵" * cups')
    assert answers[1].startswith("    class Kettle:")
    assert answers[1].endswith("return 1")
    assert answers[2].startswith("        def boil(self, degrees):")
    assert answers[2].endswith("return inner")
    assert answers[3].endswith('return "ü"')
    names = [re.findall(r"`(.*?)`", sample.instruction)[0] for sample in made.samples]
    assert names == ["brew", "Kettle", "Kettle.boil", "wait"]
    assert made.samples[0].instruction.endswith("Brew tea for some cups.")
    assert made.samples[2].instruction.endswith("Boil the water, e.g. To eighty degrees.")
    assert all("tea/pot.py" in sample.instruction for sample in made.samples)
    assert made.left_out == {"no description": 1}


def test_two_definitions_of_one_name_are_told_apart() -> None:
    text = "\n".join(f'def brew():\n    """Brew the tea again."""\n    return {n}\n' for n in range(3))

    made = made_of(text, "pot.py", "python")

    assert len({sample.instruction for sample in made.samples}) == 3


def test_definitions_of_two_files_that_say_the_same_are_asked_for_in_other_words_as_far_as_they_go() -> None:
    text = 'def main(cups):\n    """Brew tea for everybody."""\n    return {}\n'
    files = [
        told(f"d{n}", "main.py", text.format(n), "Ada", category="code", language="python")
        for n in range(len(CODE_FRAMES) + 1)
    ]

    made = METHODS["code"](files, None, LIMITS)

    asked = {normalised(sample.instruction) for sample in made.samples}
    assert len(asked) == len(made.samples) == len(CODE_FRAMES)
    assert made.left_out == {"no instruction of its own": 1}


@pytest.mark.parametrize("text", ["def brew(:", "x = '\0'", "(" * 500, "print 'tea'", "\ud800", "match = '\\d'\nif"])
def test_what_is_no_python_gives_nothing(text: str) -> None:
    assert made_of(text, "pot.py", "python") == ((), {"not readable as Python": 1})


DEFINITIONS = {
    "go": """\
// Brew makes tea for many cups.
// It is slow.
func (p *Pot) Brew(cups int) error {
\tif cups > 0 {
\t\treturn nil
\t}
\treturn err
}""",
    "rust": """\
/// Makes tea for many cups.
#[must_use]
pub fn brew<T>(cups: T) -> Tea {
    Tea { cups }
}""",
    "java": """\
/**
 * Makes tea for many cups.
 *
 * @param cups how many
 */
@Override
public static Tea brew(int cups) {
    return new Tea(cups);
}""",
    "javascript": """\
/** Makes tea for many cups. */
export const brew = async (cups) => {
  return cups;
};""",
    "typescript": """\
// Makes tea for many cups
export function brew(cups: number): Tea {
  return { cups };
}""",
    "c": """\
// Makes tea for many cups.
static struct tea *brew(int cups)
{
    return pour(cups);
}""",
    "c#": """\
/// <summary>
/// Makes tea for many cups.
/// </summary>
public async Task<Tea> Brew(int cups)
{
    return null;
}""",
    "kotlin": """\
/** Makes tea for many cups. */
fun brew(cups: Int): Tea =
    Tea(cups)""",
    "ruby": """\
# Makes tea for many cups.
def brew(cups)
  pour(cups)
end""",
    "shell": """\
# Makes tea for many cups.
brew() {
  pour
}""",
}


@pytest.mark.parametrize("language", DEFINITIONS)
def test_a_comment_above_a_definition_asks_for_it_in_other_languages(language: str) -> None:
    definition = DEFINITIONS[language]
    text = f"int tea = 1;\n\n{definition}\n\n// nothing below\nbrew(3);\n"

    made = made_of(text, "pot", language)

    assert [sample.answer for sample in made.samples] == [definition]
    assert re.search(r"`brew`", made.samples[0].instruction, re.IGNORECASE)
    assert re.search(r"makes tea for many cups\.", made.samples[0].instruction, re.IGNORECASE)


def test_a_method_is_named_with_its_class() -> None:
    text = "class Pot {\n  // Makes tea for many cups.\n  Tea brew(int cups) {\n    return null;\n  }\n}\n"

    (sample,) = made_of(text, "Pot.java", "java").samples

    assert "`Pot.brew`" in sample.instruction
    assert sample.answer.startswith("  // Makes tea")


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("go", "// TODO: make more tea\nfunc Brew() {\n\treturn\n}"),
        ("javascript", "// Prints the tea to the table.\nprint(tea)\n"),
        ("javascript", "// Says that tea must be hot.\nit('is hot', () => {\n  expect(tea);\n});"),
        ("c", f"// If there is any tea left.\n{'** ' * 90}"),
        ("c", "// If there is any tea left.\nif (tea) {\n  drink();\n}"),
        ("java", "// Makes tea.\n\nTea brew() {\n  return null;\n}"),
        ("go", "// Makes tea for many cups.\nfunc Brew() string {\nreturn `\n{`\n}"),
        ("css", "/** The colour of tea. */\n.tea {\n  color: brown;\n}"),
    ],
)
def test_what_is_no_documented_definition_is_not_asked_for(language: str, text: str) -> None:
    assert made_of(text, "pot", language).samples == ()


SOURCE_LINES = """\
def f():
    '''Some words here.'''
    return 1
// Some words here
# Some words here
/**
*/
function f() {
}
class A {
  int f(int a) {
  }

é
\t\tx
fn g(
) {""".splitlines()
LANGUAGES = ["python", "go", "rust", "ruby", "shell", "java", "javascript", "", "yaml"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(SOURCE_LINES), max_size=20).map("\n".join), st.sampled_from(LANGUAGES))
def test_no_source_is_too_strange(text: str, language: str) -> None:
    made = made_of(text, "pot", language, Limits(least_lines=1))

    assert [text[sample.start : sample.end] for sample in made.samples] == [sample.answer for sample in made.samples]
    assert len({sample.instruction for sample in made.samples}) == len(made.samples)
