"""From a question to the passages that may answer it, each cut from one version of one document."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta

from corpus.categories import UnknownCategory, category_of
from corpus.index import Filters, Hit, Index, Place, Record
from serving.parts import Embedder

PASSAGE_WORDS = 300
_WORD = re.compile(r"\S+")
_YEAR, _MONTH = re.compile(r"\d{4}"), re.compile(r"\d{4}-\d{2}")


class InvalidQuestion(ValueError):
    """A question or a filter that cannot be answered to; the message says what it may be."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of a document around one or more hits: `text` is `record.text[start:end]`; `n` counts from 1."""

    n: int
    record: Record
    version: int
    chunk_id: str
    heading_path: tuple[str, ...]
    start: int
    end: int
    score: float

    @property
    def text(self) -> str:
        return self.record.text[self.start : self.end]

    def place_of(self, offset: int) -> Place:
        """The chunk that holds this offset of the record's text, else the chunk that was found."""
        for place in self.record.places:
            if place.start <= offset < place.end:
                return place
        return Place(self.chunk_id, self.start, self.end, self.heading_path)


def checked_question(question: str, maximum: int) -> str:
    """The question without surrounding space. Raises InvalidQuestion if nothing is left or it is too long."""
    plain = question.strip()
    if not plain:
        raise InvalidQuestion("the question is empty: ask something")
    if len(plain) > maximum:
        raise InvalidQuestion(
            f"the question has {len(plain):,} characters, at most {maximum:,} are answered: shorten it"
        )
    return plain


def filters_from(
    *,
    author: str | None = None,
    category: str | None = None,
    platform: str | None = None,
    language: str | None = None,
    since: str | None = None,
    until: str | None = None,
) -> Filters:
    """Filters from what a person or program wrote: empty means any; `until` includes the day or month it names.

    Raises InvalidQuestion for a category that there is not, and for dates as `period` does.
    """
    begin, end = period(since, until)
    return Filters(
        author=author or None,
        category=known_category(category),
        platform=platform or None,
        language=language or None,
        since=begin,
        until=end,
    )


def known_category(name: str | None) -> str | None:
    """The name of a category, None if it is empty. Raises InvalidQuestion for one that there is not."""
    try:
        return category_of(name).value if name else None
    except UnknownCategory as error:
        raise InvalidQuestion(str(error)) from error


def period(since: str | None, until: str | None) -> tuple[datetime | None, datetime | None]:
    """Both ends of the time in which a document was published, or read if it names no date; empty means open.

    Raises InvalidQuestion for what is no date, and for an end before the beginning.
    """
    begin = moment(since, "since") if since else None
    end = moment(until, "until", last=True) if until else None
    if begin and end and begin > end:
        raise InvalidQuestion(f"since ({since}) lies after until ({until}): swap them")
    return begin, end


def moment(text: str, name: str, last: bool = False) -> datetime:
    """The first (or `last`) instant of an ISO year, month or day, or the instant itself; UTC where no zone is given."""
    plain = text.strip()
    try:
        if _YEAR.fullmatch(plain):
            begin = date(int(plain), 1, 1)
            after = date(begin.year + 1, 1, 1)
        elif _MONTH.fullmatch(plain):
            begin = date.fromisoformat(plain + "-01")
            after = (begin.replace(day=28) + timedelta(days=4)).replace(day=1)
        elif len(plain) == len("2024-01-31"):
            begin = date.fromisoformat(plain)
            after = begin + timedelta(days=1)
        else:
            instant = datetime.fromisoformat(plain)
            return instant if instant.tzinfo else instant.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidQuestion(f"{name} is {text[:40]!r}: write a date such as 2024, 2024-05 or 2024-05-31") from error
    if last:
        return datetime.combine(after, time(), UTC) - timedelta(milliseconds=1)
    return datetime.combine(begin, time(), UTC)


def search(index: Index, embedder: Embedder, question: str, filters: Filters, limit: int) -> list[Hit]:
    """The best chunks for a question, best first. Blocks."""
    return index.search(question, embedder.embed([question])[0], filters, limit)


def retrieve(index: Index, embedder: Embedder, question: str, filters: Filters, limit: int) -> list[Passage]:
    """The passages around the best chunks, best first, cut from the records as they are now. Blocks."""
    hits = search(index, embedder, question, filters, limit)
    records = index.records(sorted({hit.document_id for hit in hits}))
    return passages(hits, records)


def passages(hits: Iterable[Hit], records: Mapping[str, Record], words: int = PASSAGE_WORDS) -> list[Passage]:
    """Each hit widened to about `words` words of its document; hits of one region make one passage.

    A hit whose text is no longer at its place (its document was edited between the two reads) is left out.
    """
    found: list[Passage] = []
    for hit in hits:
        record = records.get(hit.document_id)
        if record is None or record.deleted or record.version is None:
            continue
        if record.text[hit.start : hit.end] != hit.text:
            continue
        start, end = widened(record.text, hit.start, hit.end, words)
        found.append(Passage(0, record, record.version, hit.chunk_id, hit.heading_path, start, end, hit.score))
    return [replace(passage, n=n) for n, passage in enumerate(_disjoint(found), 1)]


def widened(text: str, start: int, end: int, words: int) -> tuple[int, int]:
    """`start` and `end` moved outwards until about `words` words lie between, preferring ends of paragraphs."""
    missing = words - len(_WORD.findall(text, start, end))
    if missing <= 0:
        return start, end
    reach = missing * 12
    before = [match.start() for match in _WORD.finditer(text, max(0, start - reach), start)]
    after = [match.end() for match in _WORD.finditer(text, end, min(len(text), end + reach))]
    left, right = missing // 2, missing - missing // 2
    # What one side cannot give, the other may.
    left, right = max(left, missing - len(after)), max(right, missing - len(before))
    begin = before[-left] if left and len(before) >= left else (before[0] if before and left else start)
    finish = after[right - 1] if right and len(after) >= right else (after[-1] if after and right else end)
    paragraph = text.find("\n\n", begin, start)
    if begin > 0 and paragraph >= 0:
        begin = paragraph + 2
    paragraph = text.rfind("\n\n", end, finish)
    if finish < len(text.rstrip()) and paragraph >= 0:
        finish = paragraph
    return begin, max(finish, end)


def _disjoint(found: Sequence[Passage]) -> list[Passage]:
    """Passages without overlap: one that touches a better one of the same version becomes part of it."""
    kept: list[Passage] = []
    for passage in found:
        for position, other in enumerate(kept):
            same = other.record.document_id == passage.record.document_id
            if same and passage.start <= other.end and other.start <= passage.end:
                kept[position] = replace(other, start=min(other.start, passage.start), end=max(other.end, passage.end))
                break
        else:
            kept.append(passage)
    return kept if len(kept) == len(found) else _disjoint(kept)
