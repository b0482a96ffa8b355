"""Definitions: what a source file defines and describes, read by grammar or by comments. No I/O here."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from corpus.chunking import ABBREVIATION, SENTENCE_END, code_units

LINE_END = re.compile(r"\r\n|\r|\n")


class Definition(NamedTuple):
    """`text[start:end]`: a definition with its documentation; `told`: the first sentence of that, "" without any."""

    start: int
    end: int
    name: str
    kind: str
    told: str


def definitions(text: str, language: str) -> list[Definition] | str:
    """The definitions of a source file in a language (in small letters), in order; or why none can be told.

    Python is read by its grammar, other languages by the comment directly above a definition.
    """
    return _python(text) if language == "python" else _commented(text, language)


def _first_sentence(text: str) -> str:
    """The first sentence of a description, without the line breaks of its paragraph; with a full stop."""
    paragraph = " ".join(re.split(r"\n[ \t]*\n", text.strip(), maxsplit=1)[0].split())
    for match in SENTENCE_END.finditer(paragraph):
        if not ABBREVIATION.search(paragraph, max(0, match.end() - 12), match.end()):
            paragraph = paragraph[: match.end()].rstrip()
            break
    return paragraph if not paragraph or paragraph.endswith((".", "!", "?", "。")) else f"{paragraph.rstrip(':;,')}."


def _python(text: str) -> list[Definition] | str:
    """Functions, methods and classes of a module; or why there are none."""
    offset = len(text) - len(text.removeprefix("\ufeff"))
    try:
        with warnings.catch_warnings():
            # An author's escape sequences are not ours to complain of.
            warnings.simplefilter("ignore")
            tree = ast.parse(text[offset:])
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "not readable as Python"
    starts = [offset, *(match.end() for match in LINE_END.finditer(text, offset))]
    found: list[Definition] = []

    def place(line: int, column: int) -> int:
        # The grammar counts the bytes of UTF-8.
        start = starts[line - 1]
        end = starts[line] if line < len(starts) else len(text)
        return start + len(text[start:end].encode()[:column].decode())

    def visit(nodes: Sequence[ast.stmt], outer: tuple[str, ...]) -> None:
        for node in nodes:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                is_class = isinstance(node, ast.ClassDef)
                kind = "class" if is_class else "method" if outer else "function"
                end = place(node.end_lineno or node.lineno, node.end_col_offset or 0)
                name = ".".join((*outer, node.name))
                # The indentation of the first line belongs to it, as that of the others does.
                told = _first_sentence(ast.get_docstring(node) or "")
                found.append(Definition(starts[first - 1], end, name, kind, told))
                if is_class:
                    visit(node.body, (*outer, node.name))
            elif isinstance(node, (ast.If, ast.Try, ast.With)):
                visit(_inner(node), outer)

    visit(tree.body, ())
    return found


def _inner(node: ast.If | ast.Try | ast.With) -> list[ast.stmt]:
    handlers = [statement for handler in getattr(node, "handlers", ()) for statement in handler.body]
    return [*node.body, *getattr(node, "orelse", ()), *getattr(node, "finalbody", ()), *handlers]


SLASHES = re.compile(r"[ \t]*//[/!]?(?![/!])[ \t]?(.*)")
HASHES = re.compile(r"[ \t]*#(?![!#])'?[ \t]?(.*)")
BLOCK_COMMENT = re.compile(r"^[ \t]*/\*\*?|\*+/[ \t]*$|^[ \t]*\*(?!/)[ \t]?", re.MULTILINE)
# Attributes and annotations stand between a comment and its definition.
ANNOTATION = re.compile(r"[ \t]*(?:@\w|#!?\[|\[\[?[A-Z])")
FUNCTIONS = frozenset({"function", "func", "fun", "fn", "def", "sub"})
KEYWORDS = "|".join(sorted(FUNCTIONS)) + (
    "|class|struct|enum|interface|trait|protocol|record|object|type|module|contract|impl|extension|namespace|mod"
)
DEFINITIONS = (
    # What a keyword announces, the last one if there are several; a method of Go names its receiver first.
    re.compile(
        rf"[ \t]*(?:[\w@]+(?:\([^()]*\))?[ \t]+)*(?P<kind>{KEYWORDS})\b\*?(?:<[^<>]*>)?[ \t]*(?:\([^()]*\)[ \t]*)?"
        r"(?P<name>[\w$.]+[?!]?)"
    ),
    re.compile(
        r"[ \t]*(?:export[ \t]+)?(?:const|let|var)[ \t]+(?P<name>[\w$]+)[^=]*=[ \t]*(?:async[ \t]*)?"
        r"(?:function\b|\([^()]*\)[^=]*=>|[\w$]+[ \t]*=>)"
    ),
    re.compile(r"[ \t]*(?P<name>[\w.]+)[ \t]*(?:<-|=)[ \t]*function\b"),
    # A name with parameters and the beginning of a body; or with a type before it, and the body may be below.
    re.compile(r"(?!.*=>)[ \t]*(?:[\w<>\[\],.?&*:~]+[ \t]+)*[&*]*(?P<name>[\w$~:]+)[ \t]*\([^;]*\{[ \t]*$"),
    re.compile(r"(?!.*=>)[ \t]*(?:[\w<>\[\],.?&*:~]+[ \t]+)+[&*]*(?P<name>[\w$~:]+)[ \t]*\([^;{]*$"),
)
NO_NAMES = frozenset(
    re.findall(
        r"\w+",
        "await case catch defer do elif else fixed for foreach guard if lock new return sizeof switch synchronized "
        "throw try unless until using while with yield",
    )
)
CLOSING = re.compile(r"[ \t]*(?:[)\]}]|end\b)")
OPENING = re.compile(r"[ \t]*\{[ \t]*$")
HAS_BODY = re.compile(r"\{|=")
LONGEST_LINE = 300
PRAGMA = re.compile(r"(?:eslint|nolint|noinspection|go:|ts-|prettier|copyright|license|spdx|todo|fixme)", re.IGNORECASE)
TAG = re.compile(r"[ \t]*[@\\]\w")
HASH_LANGUAGES = frozenset({"ruby", "shell", "r", "perl", "julia"})
SLASH_LANGUAGES = frozenset(
    {"c", "c++", "c#", "cuda", "dart", "go", "java", "javascript", "kotlin", "objective-c", "php", "rust", "scala"}
    | {"solidity", "swift", "typescript", "zig"}
)


def _commented(text: str, language: str) -> list[Definition] | str:
    """Definitions that a comment stands directly above; they end where the indentation says so."""
    if language not in HASH_LANGUAGES | SLASH_LANGUAGES:
        return "a language whose definitions are not known"
    marks = HASHES if language in HASH_LANGUAGES else SLASHES
    lines = text.split("\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    paths = {unit.start: unit.path for unit in code_units(text)}
    found = []
    for at, line in enumerate(lines):
        definition = _defined(line)
        if definition is None:
            continue
        name, kind = definition
        first, told = _comment_above(lines, at, marks)
        if first == at:
            continue
        last = _last_line(lines, at)
        body = "\n".join(lines[at : last + 1])
        # A call is no definition; and text that is not indented, such as a long string, hides where one ends.
        is_call = marks is SLASHES and kind == "function" and not HAS_BODY.search(body)
        if is_call or body.count("{") != body.count("}"):
            continue
        outer = [known[0] for enclosing in paths[starts[at]] if (known := _defined(enclosing))]
        end = starts[first] + len("\n".join(lines[first : last + 1]).rstrip())
        found.append(Definition(starts[first], end, ".".join([*outer, name]), kind, told))
    return found


def _defined(line: str) -> tuple[str, str] | None:
    """Name and kind of what a line defines."""
    line = line.rstrip("\r")
    if len(line) > LONGEST_LINE or not line.strip() or line.split(None, 1)[0] in NO_NAMES:
        return None
    for pattern in DEFINITIONS:
        match = pattern.match(line)
        kind = (match.groupdict().get("kind") or "") if match else ""
        # In C these begin the type of a function as well.
        is_type = kind in ("struct", "enum") and "(" in line
        if match and match["name"] not in NO_NAMES and not is_type:
            return match["name"], "function" if not kind or kind in FUNCTIONS else kind
    return None


def _comment_above(lines: Sequence[str], at: int, marks: re.Pattern[str]) -> tuple[int, str]:
    """The first line of the comment that ends directly above a line, and its first sentence; the line itself if there
    is none."""
    last = at - 1
    while last >= 0 and ANNOTATION.match(lines[last]):
        last -= 1
    first = last
    if last >= 0 and lines[last].rstrip().endswith("*/") and marks is SLASHES:
        while first >= 0 and "/*" not in lines[first]:
            first -= 1
        if first < 0 or not lines[first].lstrip().startswith("/**"):
            return at, ""
        told = [BLOCK_COMMENT.sub("", line.rstrip("\r")) for line in lines[first : last + 1]]
    else:
        while first >= 0 and marks.match(lines[first]):
            first -= 1
        first += 1
        told = [match[1].rstrip("\r") for line in lines[first : last + 1] if (match := marks.match(line))]
    if first > last:
        return at, ""
    plain = [re.sub(r"</?\w[^>]*>", "", line) for line in told if not TAG.match(line)]
    sentence = _first_sentence("\n".join(plain))
    return first, "" if PRAGMA.match(sentence) else sentence


def _last_line(lines: Sequence[str], at: int) -> int:
    """The last line of a definition: what is indented further belongs to it, and a line that closes it."""

    def indent(line: str) -> int:
        return len(line.expandtabs(4)) - len(line.expandtabs(4).lstrip())

    base, last = indent(lines[at]), at
    for below in range(at + 1, len(lines)):
        line = lines[below]
        if not line.strip():
            continue
        if indent(line) > base or (indent(line) == base and OPENING.match(line.rstrip("\r"))):
            last = below
            continue
        # `} else {` goes on, `}` does not.
        if indent(line) == base and CLOSING.match(line):
            last = below
            if not line.rstrip().endswith(("{", "(", "[")):
                break
            continue
        break
    return last
