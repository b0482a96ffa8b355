"""Splitting: a cleaned text to passages that fit the embedding model.

Boundaries are chosen by what stands near them, never by counting from the start of the document, so an edit moves only
the boundaries beside it. A text is cut into units (sentences, lines); the place before each unit has a strength
(heading, paragraph, item, sentence); a place becomes a boundary when none within reach is stronger.
Source: Bjørner, Blass and Gurevich, Content-dependent chunking for differential compression, the local maximum approach
(2010).
"""

from __future__ import annotations

import re
import zlib
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple, Protocol

from corpus.documents import Chunk

# Tokens. Boundaries keep this distance while a text can be split so; a chunk above TARGET is split where it can be.
REACH = 90
TARGET = 220
LEAST_REACH = 10
# A section below this many tokens joins a neighbour: a heading with one line says little by itself.
SMALL_SECTION = 40
# An unspaced run (base64, minified code) can be one unknown token of any length, so it is also counted by characters.
LONG_TOKEN = 40
CHARACTERS_PER_TOKEN = 4
# Where the local rule finds less than one boundary in this many targets, the text is so uniform (a table of zeros, one
# letter a million times) that nothing tells one place from another, and it is cut evenly.
UNIFORM = 8
# Characters that a tokenizer is given at once.
SLICE = 1 << 15

# Strengths of the place before a unit; that before a heading of level n is HEADING - n.
GLUED, TOKEN, WORD, WRAPPED, SENTENCE, LINE, ITEM, BLOCK = range(-4, 4)
HEADING = 10
DEEPEST_HEADING = HEADING - 6

FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")
HEADING_LINE = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*))?$")
UNDERLINE = re.compile(r" {0,3}(={3,}|-{3,})[ \t]*$")
LIST_ITEM = re.compile(r"[ \t]*(?:[-*+•]|\d{1,9}[.)])[ \t]+\S")
INDENTED = re.compile(r"(?: {4}| {0,3}\t)")
MARKUP = re.compile(r"\*\*|__|`")
# A full stop before a space and no small letter; before a capital without a space, as on pages whose paragraphs ran
# together; or the full stop of a script that puts no space.
SENTENCE_END = re.compile(
    r"""[.!?…]["'”’»)\]*_]*[ \t]+(?=[^\sa-zß-öø-ÿ])|(?<=[a-z)\]”’][.!?])(?=[A-Z“→])|[。！？]["'”’」』）]*[ \t]*"""
)
ABBREVIATION = re.compile(r"(?:^|[\s(])(?:[A-Za-z]|Mr|Mrs|Ms|Dr|Prof|St|vs|etc|cf|Fig|No|approx|e\.g|i\.e)\.\s+$")
WRAPPED_LINE = 60
# A line of code that goes on with what stands above it.
CONTINUES = re.compile(r"[ \t]*(?:[)\]}]|(?:end|else|elif|except|finally|catch|then|do|in)\b)")
CODE_NAME_LENGTH = 120


class TokenSpans(Protocol):
    """What splitting asks of a model's tokenizer."""

    @property
    def max_tokens(self) -> int:
        """The model's window, special tokens included."""

    @property
    def special_tokens(self) -> int:
        """Tokens that the model adds to every text."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special tokens included, without truncation."""

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """Start and end, in characters, of each token of the text, without special tokens or truncation."""


class Unit(NamedTuple):
    """A piece that is split only if it alone is too long; units cover their text without a gap.

    `start`: in characters, the end is where the next unit starts; `strength`: of the place before it; `path`: the
    headings above it.
    """

    start: int
    strength: int
    path: tuple[str, ...]


def split(text: str, tokenizer: TokenSpans, max_tokens: int | None = None) -> list[Chunk]:
    """Chunks of prose in Markdown or plain text, in order, not overlapping; all that is not whitespace is in one.

    No chunk has more than `max_tokens` (default: the model's window), special tokens included.
    """
    return _chunks(text, list(prose_units(text)), tokenizer, max_tokens or tokenizer.max_tokens)


def split_code(text: str, tokenizer: TokenSpans, max_tokens: int | None = None) -> list[Chunk]:
    """Chunks of source code in any language, cut between definitions as blank lines and indentation show them.

    The same promises as `split`; `heading_path` holds the lines that enclose the chunk, such as `class Index:`.
    """
    return _chunks(text, list(code_units(text)), tokenizer, max_tokens or tokenizer.max_tokens)


def prose_units(text: str) -> Iterator[Unit]:
    """Units of a Markdown text: headings, sentences, list items, lines of code and tables."""
    headings: list[tuple[int, str]] = []
    path: tuple[str, ...] = ()
    lines = text.split("\n")
    fence = ""
    blank_before = True
    follows = GLUED  # what the unit before allows: GLUED after a heading, SENTENCE after "as follows:", BLOCK otherwise
    kind = ""
    start = 0
    for number, line in enumerate(lines):
        here, start = start, start + len(line) + 1
        if not line.strip():
            blank_before = True
            continue
        if fence:
            if line.lstrip().startswith(fence) and not line.strip(f" \t{fence[0]}"):
                fence, strength = "", WRAPPED
            else:
                strength = ITEM if blank_before else LINE
            yield Unit(here, min(strength, follows), path)
            blank_before, follows = False, BLOCK
            continue
        level, title = _heading(lines, number, blank_before)
        if level:
            while headings and headings[-1][0] >= level:
                headings.pop()
            headings.append((level, title))
            path = tuple(name for _, name in headings if name)
            yield Unit(here, GLUED if follows == GLUED and here else HEADING - level, path)
            blank_before, follows, kind = True, GLUED, ""
            continue
        opening = FENCE.match(line)
        before, kind = kind, _kind(line, opening, blank_before, kind)
        if opening:
            fence, strength = opening[1], BLOCK
        elif kind == "item":
            strength = ITEM if before in ("item", "continuation") else BLOCK
        elif kind in ("code", "table") and before == kind:
            strength = ITEM if blank_before else LINE
        elif kind == "continuation":
            strength = LINE
        else:
            strength = BLOCK if blank_before or before not in ("text", "item") else _line_strength(lines[number - 1])
        yield Unit(here, min(strength, follows), path)
        if kind in ("text", "item", "continuation"):
            yield from (Unit(here + offset, SENTENCE, path) for offset in _sentence_starts(line))
        blank_before, follows = False, SENTENCE if line.rstrip().endswith((":", "↓", "：")) and not opening else BLOCK
        follows = (
            WRAPPED if opening or UNDERLINE.match(lines[number + 1] if number + 1 < len(lines) else "") else follows
        )


def _heading(lines: Sequence[str], number: int, blank_before: bool) -> tuple[int, str]:
    """Level and title of the heading on this line; level 0 if there is none."""
    line = lines[number]
    if match := HEADING_LINE.match(line):
        title = (match[2] or "").rstrip().rstrip("#").rstrip()
        return len(match[1]), MARKUP.sub("", title).strip()
    beneath = UNDERLINE.match(lines[number + 1]) if blank_before and number + 1 < len(lines) else None
    alone = beneath and (number + 2 == len(lines) or not lines[number + 2].strip())
    if alone and beneath and not INDENTED.match(line) and not LIST_ITEM.match(line) and not UNDERLINE.match(line):
        return 1 if "=" in beneath[1] else 2, MARKUP.sub("", line).strip()
    return 0, ""


def _kind(line: str, opening: re.Match[str] | None, blank_before: bool, before: str) -> str:
    """What a line belongs to, given what the line before it belonged to."""
    if opening:
        return "fence"
    indented = INDENTED.match(line) is not None
    if indented and before != "item" and before != "continuation" and (blank_before or before == "code"):
        return "code"
    if LIST_ITEM.match(line):
        return "item"
    if line.lstrip().startswith("|"):
        return "table"
    if before in ("item", "continuation") and (line[0].isspace() or not blank_before):
        return "continuation"
    return "text"


def _line_strength(line: str) -> int:
    """The strength of a line break within a paragraph: less where the line was only wrapped."""
    line = line.rstrip()
    return WRAPPED if len(line) >= WRAPPED_LINE and not line.endswith((".", "!", "?", "…", ":", "。")) else LINE


def _sentence_starts(line: str) -> Iterator[int]:
    for match in SENTENCE_END.finditer(line):
        end = match.end()
        if 0 < end < len(line) and not ABBREVIATION.search(line, max(0, end - 12), end):
            yield end


def code_units(text: str) -> Iterator[Unit]:
    """Units of source code: its lines. The less a line is indented, and after a blank line, the stronger its place."""
    enclosing: list[tuple[int, str]] = []
    blank_before, before = True, 0
    indents: list[int] = [0]
    start = 0
    for line in text.split("\n"):
        here, start = start, start + len(line) + 1
        content = line.strip()
        if not content:
            blank_before = True
            continue
        indent = len(line.expandtabs(4)) - len(line.expandtabs(4).lstrip())
        while len(indents) > 1 and indents[-1] > indent:
            indents.pop()
        if indents[-1] < indent:
            indents.append(indent)
        while enclosing and enclosing[-1][0] >= indent:
            enclosing.pop()
        path = tuple(name for _, name in enclosing)
        if not CONTINUES.match(line):
            enclosing.append((indent, content[:CODE_NAME_LENGTH]))
        # Blank lines decide first: decorators and comments belong to the definition beneath them.
        if CONTINUES.match(line):
            strength = WRAPPED
        elif blank_before:
            strength = (HEADING - 1, BLOCK, ITEM)[min(len(indents) - 1, 2)]
        elif indent < before:
            strength = LINE
        else:
            strength = SENTENCE if indent == before else WRAPPED
        yield Unit(here, strength, path)
        blank_before, before = False, indent


class _Places:
    """Units with their sizes: `position[i]` is the number of tokens before unit i; one more for the end of the text."""

    def __init__(self, text: str, units: Sequence[Unit], sizes: Sequence[int]) -> None:
        self.units = units
        self.position = [0, *accumulate(sizes)]
        # Equally strong places are told apart by the first letters that follow, which an edit elsewhere leaves alone.
        self.strength = [
            (unit.strength, zlib.crc32(text[unit.start : unit.start + 24].encode(errors="surrogatepass")), -unit.start)
            for unit in units
        ]

    def peaks(self, candidates: Sequence[int], reach: int) -> list[int]:
        """Those candidates (ascending) than which no other within `reach` tokens is stronger."""
        position, strength = self.position, self.strength
        window: deque[int] = deque()
        ahead = 0
        found = []
        for index in candidates:
            while ahead < len(candidates) and position[candidates[ahead]] < position[index] + reach:
                while window and strength[window[-1]] < strength[candidates[ahead]]:
                    window.pop()
                window.append(candidates[ahead])
                ahead += 1
            while position[window[0]] <= position[index] - reach:
                window.popleft()
            if window[0] == index:
                found.append(index)
        return found

    def inner(self, first: int, last: int, reach: int) -> list[int]:
        """The places between units `first` and `last` that keep `reach` tokens from either end."""
        low = bisect_left(self.position, self.position[first] + reach, first + 1, last)
        high = bisect_left(self.position, self.position[last] - reach + 1, low, last)
        return list(range(low, high))

    def size(self, first: int, last: int) -> int:
        return self.position[last] - self.position[first]


def _chunks(text: str, units: list[Unit], tokenizer: TokenSpans, max_tokens: int) -> list[Chunk]:
    if not units:
        return []
    limit = max_tokens - tokenizer.special_tokens
    units, sizes = _sized(text, units, tokenizer, limit)
    places = _Places(text, units, sizes)
    target, reach = min(TARGET, limit), min(REACH, max(1, limit // 3))
    sections = [0, *_section_starts(places, min(SMALL_SECTION, reach)), len(units)]
    spans: list[tuple[int, int, tuple[str, ...], int]] = []
    for first, last in pairwise(sections):
        for one, other in pairwise([first, *_divide(places, first, last, target, reach, limit), last]):
            start = units[one].start
            end = units[other].start if other < len(units) else len(text)
            spans.append((start, end, _path(units, one, other), places.size(one, other)))
    chunks: list[Chunk] = []
    for start, end, path in _fitting(text, spans, tokenizer, max_tokens):
        chunks.append(Chunk(len(chunks), path, text[start:end], start, end))
    return chunks


def _sized(text: str, units: list[Unit], tokenizer: TokenSpans, limit: int) -> tuple[list[Unit], list[int]]:
    """The units with their sizes in tokens; those above `limit` are replaced by their words."""
    ends = [unit.start for unit in units[1:]] + [len(text)]
    spans = [(unit.start, end) for unit, end in zip(units, ends, strict=True)]
    short = [text[start:end] for start, end in spans if end - start <= SLICE]
    counted = iter(tokenizer.count_tokens(short))
    result: list[Unit] = []
    sizes: list[int] = []
    for unit, (start, end) in zip(units, spans, strict=True):
        size = limit + 1
        if end - start <= SLICE:
            size = next(counted) - tokenizer.special_tokens
        if size <= limit and end - start <= limit * LONG_TOKEN:
            result.append(unit)
            sizes.append(max(size, 1))
            continue
        strength = unit.strength
        for offset, weight, spaced in _atoms(text, start, end, tokenizer):
            result.append(Unit(offset, strength, unit.path))
            sizes.append(weight)
            strength = WORD if spaced else TOKEN
    return result, sizes


def _atoms(text: str, start: int, end: int, tokenizer: TokenSpans) -> Iterator[tuple[int, int, bool]]:
    """Start and weight of each token between the offsets, and whether whitespace follows it."""
    while start < end:
        stop = min(end, start + SLICE)
        offsets = [start + first for first, last in tokenizer.token_spans(text[start:stop]) if last > first]
        starts = [start, *sorted({offset for offset in offsets if offset > start}), stop]
        for first, last in pairwise(starts):
            width = len(text[first:last].rstrip())
            for piece in range(first, max(first + width, first + 1), LONG_TOKEN):
                finish = piece + LONG_TOKEN >= first + width
                weight = (
                    max(1, min(LONG_TOKEN, first + width - piece) // CHARACTERS_PER_TOKEN) if width > LONG_TOKEN else 1
                )
                yield piece, weight, finish and first + width < last
        start = stop


def _section_starts(places: _Places, least: int) -> list[int]:
    """The headings that begin a chunk: all but those of sections too small to stand alone."""
    headings = [index for index, unit in enumerate(places.units) if index and unit.strength >= DEEPEST_HEADING]
    inside = places.inner(0, len(places.units), least)
    allowed = range(inside[0], inside[-1] + 1) if inside else range(0)
    return places.peaks([index for index in headings if index in allowed], least)


def _divide(places: _Places, first: int, last: int, target: int, reach: int, limit: int) -> list[int]:
    """The places at which the units from `first` to `last` are cut, ascending."""
    cuts: list[int] = []
    pending = [(first, last, reach)]
    while pending:
        first, last, reach = pending.pop()
        size = places.size(first, last)
        if size <= target or last - first < 2 or (reach < LEAST_REACH and size <= limit):
            continue
        candidates = places.inner(first, last, max(reach, 1))
        if not candidates and reach > 0:
            pending.append((first, last, reach // 2))
            continue
        found = places.peaks(candidates, max(reach, 1)) or [(first + last) // 2]
        if len(found) * UNIFORM * target < size:
            found = _even(places, first, last, target)
        cuts.extend(found)
        pending.extend((one, other, reach) for one, other in pairwise([first, *found, last]))
    return sorted(cuts)


def _even(places: _Places, first: int, last: int, target: int) -> list[int]:
    """Places about three quarters of `target` apart."""
    found: list[int] = []
    here = first
    while places.size(here, last) > target:
        here = max(here + 1, bisect_left(places.position, places.position[here] + target * 3 // 4, here, last))
        if here >= last:
            break
        found.append(here)
    return found


def _path(units: Sequence[Unit], first: int, last: int) -> tuple[str, ...]:
    """The headings of the first text in a chunk, those at its beginning included."""
    index = first
    while index + 1 < last and units[index + 1].strength == GLUED:
        index += 1
    return units[index].path


def _fitting(
    text: str, spans: Sequence[tuple[int, int, tuple[str, ...], int]], tokenizer: TokenSpans, max_tokens: int
) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """The spans without whitespace at their ends; halved where the tokenizer counts more than `max_tokens` after all.

    A text can have more tokens than its pieces had: a word that was cut, or a tokenizer that looks across spaces.
    """
    trimmed = [(*_trimmed(text, start, end), path, size) for start, end, path, size in spans]
    near = [place for place, (_, _, _, size) in enumerate(trimmed) if size > max_tokens * 3 // 4]
    counted = dict(zip(near, tokenizer.count_tokens([text[trimmed[i][0] : trimmed[i][1]] for i in near]), strict=True))
    for place, (start, end, path, _) in enumerate(trimmed):
        pending = [(start, end, counted.get(place, 0))]
        while pending:
            start, end, count = pending.pop()
            if start >= end:
                continue
            if count <= max_tokens or end - start == 1:
                yield start, end, path
                continue
            middle = (start + end) // 2
            space = text.rfind(" ", start + 1, middle)
            middle = space if space > start else middle
            for one, other in (_trimmed(text, middle, end), _trimmed(text, start, middle)):
                pending.append((one, other, tokenizer.count_tokens([text[one:other]])[0]))


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without whitespace at its ends, but for the indentation of its first line."""
    piece = text[start:end]
    kept = piece.rstrip()
    leading = len(kept) - len(kept.lstrip())
    return start + kept.rfind("\n", 0, leading) + 1, start + len(kept)
