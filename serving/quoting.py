"""Which sentences answer a question: spans of a text, scored by the words they share and by meaning. Pure.

Every span is given by its offsets, so a quotation is its document's text letter for letter.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence, Set
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise

MAX_QUOTE = 700
# An identifier is the words that it is made of.
_WORDS = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_SUFFIX = re.compile(r"(?:['’]s|ing|ied|ies|ed|es|s|ly)$")
_FENCE = re.compile(r"\s*(```|~~~)")
_MARKER = re.compile(r"\s*(?:\\?[-*+•]|\d{1,3}\\?[.)]|>+)\s+")
_NOT_PROSE = re.compile(r"\s*(?:#{1,6}\s|[-=*_|:\s]+$)")
_SENTENCE_END = re.compile(r"""[.!?…]["'”’)\]*_]*\s+(?=["'“‘(\[*_]*(\w))|[。！？]\s*""")
# Extraction from web pages may glue one paragraph to the next; only a suspiciously long sentence is read so.
_GLUED = re.compile(r"(?<=[a-z]{2})\.(?=[A-Z][a-z ])|[!?](?=[A-Z])|(?<=[A-Z]{2})\.(?=[A-Z][a-z])")
LONG_SENTENCE = 300
_ITEM = r"(?:\|[^\n]*|(?:[-*+•] |\d{1,3}[.)] )[^\n]*(?:\n[ \t]*(?![-*+•#|\s]|\d{1,3}[.)])[^\n]+)*)"
_BLOCK = rf"\s*\n[ \t]*(?:(?P<fence>```|~~~).*?\n[ \t]*(?P=fence)|{_ITEM}(?:\s*\n[ \t]*{_ITEM})*)"
# A line that ends in a colon, and the list, table or code that it announces.
ANNOUNCED = re.compile(rf"(.*?:)({_BLOCK})", re.DOTALL)
_DOCSTRING = '"""'
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|cf|vs|Dr|Mr|Mrs|Ms|Prof|Fig|No|St|approx)|\b[A-Z])\.$")
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        a about after all also an and any are as at be because been before being between both but by can could did do
        does doing down during each few for from further had has have having he her here hers him his how i if in into
        is it its itself just many me more most much my no nor not now of off on once only or other our out over own
        say says same she should so some such tell than that the their them then there these they this those through
        to too under until up us very was we were what when where which while who whom why will with would you your
        """,
    )
)

REFERRING = re.compile(r"\s*(?:It|Its|They|Their|Them|This|These|That|Those|He|She|His|Her|Instead|There)\b")
_NUMBERS = "one two three four five six seven eight nine ten eleven twelve hundred thousand once twice half quarter"
# What is asked for, and what a sentence must have to say it.
_KINDS = (
    (re.compile(r"\bwhy\b"), re.compile(r"\b(?:because|since|so that|causes?|reasons?|due to|therefore)\b", re.I)),
    (
        re.compile(
            r"\b(?:when|costs?|how (?!(?:do|does|did|is|are|was|were|can|could|should|would|will|to|i|we|you)\b))"
        ),
        re.compile(rf"\d|\b(?:{'|'.join(_NUMBERS.split())}|\w+teen|\w+ty)\b", re.I),
    ),
)


@dataclass(frozen=True, slots=True)
class Span:
    """A sentence, a list item, or (not `prose`) a piece of code or of a table's rows: `text[start:end]`."""

    start: int
    end: int
    prose: bool = True


def terms(text: str) -> list[str]:
    """The words of a text in the form in which they are compared: folded case, common English endings off."""
    return [_stem(word) for word in _WORDS.findall(text.casefold())]


def content_terms(question: str) -> dict[str, str]:
    """The distinct words that a question is about, in order, each with how it is written there; all of its words if it
    has only common ones."""
    words = _WORDS.findall(question.casefold())
    return {_stem(word): word for word in [word for word in words if word not in STOP_WORDS] or words}


def spelled(term: str, vocabulary: Set[str]) -> str:
    """The term, or the word of the vocabulary that it is nearly spelled as; of short words too many are alike."""
    if term in vocabulary or len(term) < 7:
        return term
    alike = [word for word in vocabulary if word[0] == term[0] and abs(len(word) - len(term)) < 2]
    return next(iter(get_close_matches(term, sorted(alike), 1, 0.85)), term)


def _stem(word: str) -> str:
    stem = _SUFFIX.sub("", word).removesuffix("e") if len(word) > 4 else word
    return stem if len(stem) >= 3 else word


def sentences(text: str, start: int = 0, end: int | None = None) -> list[Span]:
    """The sentences within `text[start:end]`, none over MAX_QUOTE: list items apart, headings left out, code whole,
    tables cut between rows."""
    end = len(text) if end is None else end
    return [piece for begin, stop, prose in _blocks(text, start, end) for piece in _pieces(text, begin, stop, prose)]


def same_paragraph(text: str, one: Span, other: Span) -> bool:
    """Whether a sentence is the next one of its paragraph, so that it may speak of the same."""
    gap = text[one.end : other.start]
    return one.prose and other.prose and one.end <= other.start and not gap.strip() and gap.count("\n") < 2


def with_block(text: str, span: Span) -> Span:
    """A line that ends in a colon with the list, table or code that it announces, where MAX_QUOTE allows."""
    limit = span.start + MAX_QUOTE
    both = ANNOUNCED.match(text, span.start, limit + 1) if span.prose and text[span.end - 1] == ":" else None
    return Span(span.start, both.end()) if both and both.end(1) == span.end and both.end() <= limit else span


def _blocks(text: str, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """Paragraphs, list items, rows of tables and code blocks as (start, end, whether it is prose)."""
    start, end = _between_rows(text, start, end)
    block: int | None = None
    fence: str | None = None
    table = False
    position = start
    while position < end:
        stop = text.find("\n", position, end)
        stop = end if stop < 0 else stop
        line = text[position:stop]
        opened = _FENCE.match(line)
        row = not fence and _is_row(line)
        if block is not None and (table != row or (row and stop - block > MAX_QUOTE)):
            yield block, position, not (fence or table)
            block = None
        table = row
        if row:
            block = position if block is None else block
        elif fence:
            if opened and opened[1] == fence:
                if block is not None:
                    yield block, position, False
                block = fence = None
            elif block is None and line.strip():
                block = position
        elif opened or not line.strip() or _NOT_PROSE.match(line):
            if block is not None:
                yield block, position, True
            block, fence = None, opened[1] if opened else None
        elif marker := _MARKER.match(line):
            if block is not None:
                yield block, position, True
            block = position + marker.end()
        elif block is None:
            block = position
        position = stop + 1
    if block is not None:
        yield block, end, not (fence or table)


def is_table(quote: str) -> bool:
    """Whether this piece is rows of a table."""
    return all(map(_is_row, quote.split("\n")))


def _is_row(line: str) -> bool:
    plain = line.strip()
    return len(plain) > 1 and plain[0] == plain[-1] == "|"


def table_head(text: str, start: int) -> str:
    """The header and rule of the table whose rows go on at `start`, as lines; empty where it begins there."""
    above = text[:start].split("\n")[:-1]
    first = len(above)
    while first and _is_row(above[first - 1]):
        first -= 1
    head = above[first : first + 2]
    return "".join(f"{line}\n" for line in head) if len(head) == 2 and set(head[1]) <= set("|:- \t") else ""


def _between_rows(text: str, start: int, end: int) -> tuple[int, int]:
    """`start` and `end` without the pieces of a table's rows that they cut through."""
    begin, stop = text.rfind("\n", 0, start) + 1, text.find("\n", start)
    if begin < start and _is_row(text[begin : stop if stop >= 0 else len(text)]):
        start = stop + 1 if 0 <= stop < end else end
    begin, stop = text.rfind("\n", start, end) + 1 or start, text.find("\n", end)
    stop = stop if stop >= 0 else len(text)
    return start, begin if text[end:stop].strip() and _is_row(text[begin:stop]) else end


def _pieces(text: str, start: int, end: int, prose: bool) -> Iterator[Span]:
    ends = [*(_sentence_ends(text, start, end) if prose else ()), end]
    for begin, stop in pairwise([start, *ends]):
        glued = [match.end() for match in _GLUED.finditer(text, begin, stop)] if stop - begin > LONG_SENTENCE else []
        for first, last in pairwise([begin, *(glued if prose else ()), stop]):
            yield from _within_limit(text, first, last, prose)


def _sentence_ends(text: str, start: int, end: int) -> Iterator[int]:
    begin = start
    for match in _SENTENCE_END.finditer(text, start, end):
        following = match[1]
        if following and (following.islower() or _ABBREVIATION.search(text, begin, match.start() + 1)):
            continue
        begin = match.end()
        yield begin


def _within_limit(text: str, start: int, end: int, prose: bool) -> Iterator[Span]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    if prose:
        start, end = _without_docstring_marks(text, start, end)
    while end - start > MAX_QUOTE:
        reach = start + MAX_QUOTE
        cut = max(text.rfind("\n", start + 1, reach), text.rfind(" ", start + 1, reach))
        cut = cut if cut > start else reach
        yield Span(start, cut, prose)
        start = cut
        while start < end and text[start].isspace():
            start += 1
    if start < end:
        yield Span(start, end, prose)


def _without_docstring_marks(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without the quotes that open or end a docstring there; both stay where code follows the second."""
    opens, ends = text.startswith(_DOCSTRING, start, end), text.endswith(_DOCSTRING, start, end)
    if opens + ends != text.count(_DOCSTRING, start, end) or end - start <= len(_DOCSTRING):
        return start, end
    start, end = start + len(_DOCSTRING) * opens, end - len(_DOCSTRING) * ends
    # Quotes on lines of their own leave the line end beside them.
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def rarities(documents: Sequence[Sequence[str]]) -> dict[str, float]:
    """How much each term tells apart among these texts (the inverse document frequency of BM25, never negative)."""
    frequency = Counter(term for document in documents for term in set(document))
    return {term: math.log(1 + (len(documents) - n + 0.5) / (n + 0.5)) for term, n in frequency.items()}


def joined(text: str, one: Span, other: Span) -> Span | None:
    """The span of both, where they overlap or follow each other in a paragraph and a quotation can hold them."""
    first, last = sorted((one, other), key=lambda span: span.start)
    whole = Span(first.start, max(first.end, last.end), first.prose)
    meet = last.start < first.end or same_paragraph(text, first, last)
    return whole if meet and whole.end - whole.start <= MAX_QUOTE else None


def lacks_its_kind(question: str, sentence: str) -> bool:
    """Whether the question asks for a reason, or for a quantity or time, and no such thing is in the sentence."""
    kinds = [answer for asked, answer in _KINDS if asked.search(question.casefold())]
    return bool(kinds) and not any(answer.search(sentence) for answer in kinds)


def coverage(
    question: Collection[str], sentence: Sequence[str], around: Sequence[str], rarity: dict[str, float]
) -> float:
    """The share (0 to 1) of the question's information found in a sentence; words of its headings count a third.

    A question's word that is nowhere weighs the most: a sentence cannot seem to answer it.
    """
    unseen = max(rarity.values(), default=1.0)
    own, near = set(sentence), set(around)
    total = sum(rarity.get(term, unseen) for term in question)
    found = sum(rarity.get(term, 0.0) * (1.0 if term in own else 1 / 3 if term in near else 0.0) for term in question)
    return found / total if total else 0.0


def selected(
    scores: Sequence[float], held: Sequence[frozenset[str]], rarity: dict[str, float], limit: int
) -> list[int]:
    """Indices of up to `limit` sentences, best first: each good in itself and adding words that the others lack.

    `held`: the question's terms that each sentence holds. The sentence with the rarest of them is always among them.
    """
    if not scores:
        return []
    best = max(scores)
    chosen: list[int] = []
    covered: set[str] = set()
    everything = sum(rarity.get(term, 0.0) for term in frozenset().union(*held)) or 1.0
    rarest = max(frozenset().union(*held), key=lambda term: (rarity.get(term, 0.0), term), default=None)
    if rarest is not None:
        first = max((i for i, has in enumerate(held) if rarest in has), key=lambda i: (scores[i], -i))
        chosen, covered = [first], set(held[first])
    while len(chosen) < limit:
        rest = [i for i in range(len(scores)) if i not in chosen and scores[i] >= 0.6 * best]
        gains = {i: scores[i] + sum(rarity.get(term, 0.0) for term in held[i] - covered) / everything for i in rest}
        # What says nothing new must be nearly as good as the best to be worth a reader's time.
        worth = [i for i in rest if held[i] - covered or scores[i] >= 0.85 * best]
        if not worth:
            break
        chosen.append(max(worth, key=lambda i: (gains[i], -i)))
        covered |= held[chosen[-1]]
    return sorted(chosen, key=lambda i: (-scores[i], i))
