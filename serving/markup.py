"""From authors' Markdown to HTML that is safe in a page, with stretches marked and places of chunks shown. Pure.

Documents and models are not trusted: raw HTML in a text is shown as text, what Markdown makes of it is sanitised, and
only then are marks of ours put in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from html import escape
from typing import Any

import nh3
from markdown_it import MarkdownIt

TAGS = {
    *("a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre"),
    *("s", "strong", "sub", "sup", "table", "tbody", "td", "th", "thead", "tr", "ul"),
}
ATTRIBUTES = {"a": {"href", "title"}, "ol": {"start"}}
# Characters for private use: a document may hold none of ours, so they are taken out of it first.
OPEN, CLOSE, CHUNK, END = "\ue000", "\ue001", "\ue002", "\ue003"
_PRIVATE = re.compile(f"[{OPEN}{CLOSE}{CHUNK}{END}]")
_TAG_OR_TEXT = re.compile(r"""<(?:[^"'<>]|"[^"]*"|'[^']*')*>|[^<]+|<""")
_BOUNDARY = re.compile(f"{CHUNK}(\\d+){END}")
# What must stay at the beginning of its line to be Markdown, and what must stay at the edge of the words it marks.
_BLOCK_START = re.compile(
    r"(?:[ \t\n]+|#{1,6}[ \t]+|>[ \t]?|[-*+][ \t]+|\d{1,9}[.)][ \t]+|\|[ \t]*|(?:```|~~~)[^\n]*\n)*"
)
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)", re.MULTILINE)
_INLINE_START = re.compile(r"[*_`\[!\s]*")
_INLINE_END = re.compile(r"[*_`|\s]*$")


@cache
def _markdown() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    markdown.add_render_rule("image", _image)
    return markdown


def _image(self: Any, tokens: Sequence[Any], index: int, options: Any, env: Any) -> str:
    """A link in place of the picture: pages of ours load nothing from other hosts."""
    token = tokens[index]
    return (
        f'<a href="{escape(str(token.attrGet("src") or ""))}">[image: {escape(token.content or "without a name")}]</a>'
    )


def html(markdown: str) -> str:
    """Sanitised HTML of Markdown; links go to http, https and mail addresses only."""
    return nh3.clean(
        _markdown().render(markdown),
        tags=TAGS,
        attributes=ATTRIBUTES,
        url_schemes={"http", "https", "mailto"},
        url_relative="deny",
        link_rel="noopener noreferrer nofollow",
    )


def document_html(
    text: str, *, code: bool = False, mark: tuple[int, int] | None = None, chunks: Sequence[tuple[int, int]] = ()
) -> str:
    """A stretch of a document as HTML.

    `code`: the text is source code and shown as it is; `mark`: offsets of the cited words; `chunks`: offset and number
    of each chunk that begins here. A mark that falls into a link's address or the like is left out.
    """
    plain = _PRIVATE.sub(" ", text)
    inserts: list[tuple[int, int, str]] = []
    if mark is not None:
        start, end = _edges(plain, *mark, code=code)
        if start < end:
            inserts += [(start, 2, OPEN), (end, 0, CLOSE)]
    inserts += [(_block_edge(plain, offset, code), 1, f"{CHUNK}{number}{END}") for offset, number in chunks]
    for offset, _, sentinel in sorted(inserts, reverse=True):
        plain = plain[:offset] + sentinel + plain[offset:]
    safe = f"<pre><code>{escape(plain)}</code></pre>" if code else html(plain)
    return _marked(safe)


def _block_edge(text: str, offset: int, code: bool) -> int:
    match = None if code else _BLOCK_START.match(text, offset)
    return min(match.end() if match else offset, len(text))


def _edges(text: str, start: int, end: int, *, code: bool) -> tuple[int, int]:
    start, end = max(0, start), min(len(text), end)
    if code:
        return start, end
    if not text[:start].rpartition("\n")[2].strip():
        start = _block_edge(text, start, code)
    inline = _INLINE_START.match(text, start)
    trailing = _INLINE_END.search(text, start, end)
    return inline.end() if inline else start, trailing.start() if trailing else end


def _marked(safe: str) -> str:
    """Sentinels as elements: each stretch of text between OPEN and CLOSE becomes a mark, across all tags between."""
    out: list[str] = []
    within = first = False
    for piece in _TAG_OR_TEXT.findall(safe):
        if piece.startswith("<") and piece.endswith(">"):
            out.append(_PRIVATE.sub("", piece))
            continue
        for part in re.split(f"([{OPEN}{CLOSE}])", piece):
            if part in (OPEN, CLOSE):
                within, first = part == OPEN, part == OPEN
            elif within and part.strip():
                identity, first = ' id="cited"' if first else "", False
                out.append(f"<mark{identity}>{part}</mark>")
            else:
                out.append(part)
    return _BOUNDARY.sub(lambda match: f'<span class="chunk" id="chunk-{match[1]}">{match[1]}</span>', "".join(out))


def with_markers(safe: str, link: Callable[[int], str | None], *, quoted: bool = False) -> str:
    """The HTML of an answer with each `[n]` outside of code as a link; `link` gives its address or None.

    `quoted`: the answer is made of quotations, so a marker stands behind one; a `[n]` within is the author's own.
    """

    def linked(match: re.Match[str]) -> str:
        address = link(int(match[1]))
        if address is None:
            return match[0]
        return f'<a class="marker" href="{escape(address)}" aria-label="Source {match[1]}">{match[1]}</a>'

    if quoted:
        return re.sub(r"(?:(?<=<p>)|(?<=” ))\[(\d{1,3})\](?=</p>)", linked, safe)
    out: list[str] = []
    within_code = 0
    for piece in _TAG_OR_TEXT.findall(safe):
        if piece.startswith("<code"):
            within_code += 1
        elif piece.startswith("</code"):
            within_code -= 1
        is_text = not (piece.startswith("<") and piece.endswith(">"))
        out.append(re.sub(r"\[(\d{1,3})\]", linked, piece) if is_text and not within_code else piece)
    return "".join(out)


def window(text: str, start: int, end: int, around: int) -> tuple[int, int]:
    """Offsets of a stretch of about `around` characters on both sides of start and end, cut between paragraphs.

    It never begins within a block of code: what follows would be read the wrong way round.
    """
    first = max(0, start - around)
    if first > 0:
        paragraph = text.find("\n\n", first, start)
        first = paragraph + 2 if paragraph >= 0 else first
        fences = [match.start() for match in _FENCE.finditer(text, 0, first)]
        first = fences[-1] if len(fences) % 2 else first
    return first, _between_paragraphs(text, end, end + around)


def part(text: str, offset: int, size: int) -> tuple[int, int]:
    """Offsets of about `size` characters from the paragraph of `offset`, or from `offset` if that began long before."""
    first = min(offset, len(text))
    begin = text.rfind("\n\n", max(0, first - size // 4), first + 2)
    if begin >= 0 and first > 0:
        first = begin + 2
    return first, _between_paragraphs(text, max(first, offset) + 1, first + size)


def _between_paragraphs(text: str, low: int, high: int) -> int:
    """The last end of a paragraph between two offsets, else the higher one."""
    if high >= len(text):
        return len(text)
    paragraph = text.rfind("\n\n", low, high)
    return paragraph if paragraph >= 0 else high
