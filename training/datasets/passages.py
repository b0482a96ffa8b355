"""Passages: the whole paragraphs of a cleaned text that are an answer by themselves. No I/O here."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import msgspec

from corpus.chunking import (
    BLOCK,
    DEEPEST_HEADING,
    FENCE,
    GLUED,
    HEADING_LINE,
    INDENTED,
    LIST_ITEM,
    SENTENCE,
    prose_units,
)
from corpus.documents import headings_below
from training.datasets.ranges import Positive, in_order

# A sign of Chinese, Japanese or Korean counts as a word.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|(?:(?![\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af])[^\W_])+")

Place = Literal["whole", "opening", "middle", "closing"]


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """How large a passage is, in words."""

    least_words: Positive = 40
    most_words: Positive = 350

    def __post_init__(self) -> None:
        in_order(least_words=self.least_words, most_words=self.most_words)


class Passage(NamedTuple):
    """`text[start:end]`: whole paragraphs of one section; `headings`: those above it that the title does not say;
    `place`: where in its section, or in the document where no heading is above it."""

    start: int
    end: int
    headings: tuple[str, ...]
    place: Place


class _Block(NamedTuple):
    start: int
    end: int
    words: int


class _Section(NamedTuple):
    path: tuple[str, ...]
    blocks: list[_Block]

    @property
    def words(self) -> int:
        return sum(block.words for block in self.blocks)


FENCED = re.compile(r"^ {0,3}(`{3,}|~{3,}).*?(?:^ {0,3}\1|\Z)", re.DOTALL | re.MULTILINE)
TABLE_ROW = re.compile(r"^[ \t]*\|.*$|^.*\|[ \t]*$", re.MULTILINE)
LINK = re.compile(r"!?\[[^\[\]\n]{0,1000}\]\([^)\n]{0,2000}\)|<?https?://[^\s>)]+>?")
MOSTLY = 0.5


def words(text: str) -> list[str]:
    """The words of a text in the form in which they are compared."""
    return WORD.findall(text.casefold())


def passages(text: str, title: str = "", sizes: Sizes | None = None) -> tuple[list[Passage], Counter[str]]:
    """Passages of a cleaned Markdown text, in order, not overlapping, and what gives none, by reason.

    A passage is consecutive whole paragraphs, lists and code blocks of one section. One paragraph that is too long by
    itself, as on pages whose paragraphs ran together, is cut between sentences. A section with less than the least
    number of words is taken with its subsections where they fit into one passage.
    """
    sizes = sizes or Sizes()
    left_out: Counter[str] = Counter()
    found: list[tuple[int, int, tuple[str, ...], int]] = []
    sections = _sections(text, sizes.most_words)
    at = 0
    while at < len(sections):
        path = sections[at].path
        below = at + 1
        while below < len(sections) and _is_below(sections[below].path, path):
            below += 1
        tree = [section for section in sections[at:below] if section.words]
        # With the headings between them.
        size = len(WORD.findall(text, tree[0].blocks[0].start, tree[-1].blocks[-1].end)) if tree else 0
        small = any(section.words < sizes.least_words for section in tree)
        # Before the first heading there is no section that others could belong to.
        fits = size <= sizes.most_words
        together = len(tree) > 1 and fits and small and bool(path or sections[at].words)
        runs = [[block for section in tree for block in section.blocks]] if together else _runs(sections[at], sizes)
        for run in runs:
            start, end = run[0].start, run[-1].end
            if reason := _unfit(text[start:end], sizes):
                left_out[reason] += 1
            else:
                found.append((start, end, _headings(path, title), at))
        at = below if together else at + 1
    # Passages under a heading have their place within its section, the others within the document.
    of = [section if headings else -1 for _, _, headings, section in found]
    total, passed = Counter(of), Counter[int]()
    result = []
    for group, (start, end, headings, _) in zip(of, found, strict=True):
        result.append(Passage(start, end, headings, _place(passed[group], total[group])))
        passed[group] += 1
    return result, left_out


def _is_below(path: tuple[str, ...], above: tuple[str, ...]) -> bool:
    return len(path) > len(above) and path[: len(above)] == above


def _headings(path: tuple[str, ...], title: str) -> tuple[str, ...]:
    """The headings that the title does not say; pages often add their author or site to a title."""
    headings = headings_below([re.sub(r"\\([^\w\s])", r"\1", heading).strip("_* ") for heading in path], title)
    first = headings[0].casefold() if headings else ""
    return headings[1:] if first and first in title.casefold() and 2 * len(first) > len(title) else headings


def _place(at: int, total: int) -> Place:
    if total == 1:
        return "whole"
    return "opening" if at == 0 else "closing" if at == total - 1 else "middle"


def _sections(text: str, most_words: int) -> list[_Section]:
    """What stands under each heading, and before the first."""
    units = list(prose_units(text))
    ends = [*(unit.start for unit in units[1:]), len(text)] if units else []
    sections = [_Section((), [])]
    # The starts of a block's sentences, its own first.
    block: list[int] = []

    def close(end: int) -> None:
        if block:
            sections[-1].blocks.extend(_blocks(text, block, end, most_words))
            block.clear()

    for unit, end in zip(units, ends, strict=True):
        line = text[unit.start : end].split("\n", 1)[0]
        first = unit.strength == GLUED
        if unit.strength >= DEEPEST_HEADING or (
            first and (unit.path != sections[-1].path or (not block and HEADING_LINE.match(line)))
        ):
            close(unit.start)
            sections.append(_Section(unit.path, []))
            continue
        if unit.strength == BLOCK or not block:
            close(unit.start)
            block.append(unit.start)
        elif unit.strength == SENTENCE and line[:1].strip() and not FENCE.match(line) and not LIST_ITEM.match(line):
            block.append(unit.start)
    close(len(text))
    return sections


def _blocks(text: str, starts: Sequence[int], end: int, most_words: int) -> Iterator[_Block]:
    """A block, or if it is prose that is too long, its sentences; without the whitespace around."""
    whole = text[starts[0] : end]
    size = len(WORD.findall(whole))
    structured = FENCED.search(whole) or TABLE_ROW.search(whole) or LIST_ITEM.match(whole) or INDENTED.match(whole)
    cuts = [*starts, end] if size > most_words and not structured else [starts[0], end]
    for start, stop in pairwise(cuts):
        piece = text[start:stop]
        # The indentation of a first line is part of a list or of code.
        kept = piece.rstrip()
        if kept:
            yield _Block(start, start + len(kept), len(WORD.findall(kept)))


def _runs(section: _Section, sizes: Sizes) -> list[list[_Block]]:
    """A section's blocks as passages of about the same length; rules and other lines without words not at the ends."""
    parts = max(1, math.ceil(section.words / sizes.most_words))
    target = section.words / parts
    runs: list[list[_Block]] = [[]]
    size = 0
    for block in section.blocks:
        if runs[-1] and (size + block.words > sizes.most_words or size >= max(target, sizes.least_words)):
            runs.append([])
            size = 0
        runs[-1].append(block)
        size += block.words
    if len(runs) > 1 and size < sizes.least_words and sum(b.words for b in runs[-2]) + size <= sizes.most_words:
        last = runs.pop()
        runs[-1].extend(last)
    return [kept for run in runs if (kept := _without_ends(run))]


def _without_ends(run: list[_Block]) -> list[_Block]:
    said = [at for at, block in enumerate(run) if block.words]
    return run[said[0] : said[-1] + 1] if said else []


def _unfit(text: str, sizes: Sizes) -> str:
    """Why a passage is no answer; "" if it is one."""
    size = len(WORD.findall(text))
    if size < sizes.least_words:
        return "too short"
    if size > sizes.most_words:
        return "too long"
    without_code = FENCED.sub("", "" if INDENTED.match(text) and not LIST_ITEM.match(text) else text)
    without_tables = TABLE_ROW.sub("", without_code)
    rest = [size, *(len(WORD.findall(part)) for part in (without_code, without_tables, LINK.sub("", without_tables)))]
    if rest[-1] >= MOSTLY * size:
        return ""
    lost = [before - after for before, after in pairwise(rest)]
    return ("mostly code", "mostly a table", "mostly links")[lost.index(max(lost))]
