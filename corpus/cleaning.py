"""Cleaning: what an author wrote stays, what a site put around it goes.

Case, paragraphs, headings, lists, quotations, tables and code stay as they are. Letters that only look different (bold
or italic mathematical letters, ligatures) become plain, invisible characters go, paragraphs that were wrapped for a
terminal flow again, and the furniture of pages (share buttons, navigation, comments, footers) is taken out where its
whole arrangement is recognised, never for a word alone.

Every function is total (any text in, text out), takes linear time, and changes nothing when applied again.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

LONE_SURROGATES = re.compile("[\ud800-\udfff]")
LINE_ENDS = re.compile("\r\n?|[\u2028\u2029\x0b\x0c]")
CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f]")
# Letters in fancy dress, and the older code points that fill the gaps among them (the italic h is Planck's constant).
DRESSED = re.compile(
    "[\U0001d400-\U0001d7ff\u2102\u210a-\u2113\u2115\u2119-\u211d\u2124\u2128\u212c\u212d\u212f-\u2131\u2133\u2134]+"
)
MATHEMATICAL = re.compile("[\U0001d400-\U0001d7ff]")
LIGATURES = re.compile("[\ufb00-\ufb06]")
MISREAD = re.compile("[\x80-\x9f]")
SPACES = re.compile("[\t\u00a0\u2000-\u200a\u202f\u205f\u3000]")
SPACE_RUN = re.compile(" {2,}")
# Joiners shape emoji and the scripts that need them; anywhere else they are residue, like the rest of these.
INVISIBLE = re.compile(
    "[\u00ad\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\x80-\x9f]"
    "|(?<![\u0590-\u0dff\ufe0f\u2190-\u2bff\U0001f000-\U0001faff])[\u200c\u200d]"
)
EMPTY_LINK = re.compile(r"(?<!!)\[ ?\]\([^()\s]*\)")

FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})([^`]*)$")
HEADING = re.compile(r" {0,3}#{1,6}(?:[ \t]|$)")
LIST_ITEM = re.compile(r"[ \t]*(?:[-*+•]|\d{1,9}[.)])(?:[ \t]|$)")
INDENTED = re.compile(r"(?: {4}| {0,3}\t)")
# Lines that are something of their own and never joined to the line above or below.
STRUCTURE = re.compile(
    r" {2}|\t|#{1,6}(?:\s|$)|[-*+•]\s|[>|]|\d{1,9}[.)]\s|[-=*_]{3,}\s*$|!?\[[^\]]*\]:|</?[a-zA-Z]|-{3,}\|"
)
# Lines that begin a paragraph, which may go on below: signs and escaped marks that authors use for items.
OPENING = re.compile(r"[→↳]|\\[-*+#]|\d{1,9}\\[.)]")
SUSPENDED_HYPHEN = re.compile(r"(?:and|or|to|und|oder|bis|et|ou|y|o)\b")
# Columns between which a text may have been wrapped, and how far a line may fall short of its paragraph's width
# because invisible characters were taken out.
NARROWEST, WIDEST, SLACK = 60, 120, 3
# html2text's own.
PAGE_WIDTH = 78
ROUNDS = 8
LONGEST_LABEL = 300


class Block(NamedTuple):
    """Lines between blank ones, or a whole block of code.

    `spaced`: a blank line stands before it; `plain`: short text in one line, to be compared, and empty for code and for
    anything longer than furniture is; `heading`: the text of a heading without its markup, empty for anything else.
    """

    code: bool
    lines: tuple[str, ...]
    spaced: bool
    plain: str = ""
    heading: str = ""


def _block(code: bool, lines: Sequence[str], spaced: bool) -> Block:
    if code or len(lines) > LONGEST_LABEL or sum(map(len, lines)) > LONGEST_LABEL:
        return Block(code, tuple(lines), spaced)
    plain = " ".join(line.strip() for line in lines)
    return Block(code, tuple(lines), spaced, plain, plain.lstrip("#").strip(" *_#") if HEADING.match(lines[0]) else "")


def clean_article(text: str) -> str:
    """The author's text of an article in Markdown, or in plain text taken from a page or a PDF."""
    return _settled(_article, _without_medium_page(text))


def clean_post(text: str) -> str:
    """The author's text of a post: as an article, but every line break is the author's, and there is no page around."""
    return _settled(_post, text)


def clean_code(text: str) -> str:
    """Source code as it is, with one kind of line end and without control characters."""
    return _readable(text).strip("\n").rstrip()


def _settled(step: Callable[[str], str], text: str) -> str:
    """What is left when the step changes nothing more: taking one thing out can bring together two others."""
    for _ in range(ROUNDS):
        before, text = text, step(text)
        if text == before:
            break
    return text


def _article(text: str) -> str:
    blocks = [_legible_block(block) for block in _blocks(_readable(text))]
    for rule in RULES:
        blocks = rule(blocks)
    return _joined([block if block.code else block._replace(lines=_flowing(block.lines)) for block in blocks])


def _post(text: str) -> str:
    return _joined([_legible_block(block) for block in _blocks(_readable(text))])


def _readable(text: str) -> str:
    """The text with what no store or tokenizer takes removed, and lines ended by a newline only."""
    text = LONE_SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)
    return CONTROLS.sub("", LINE_ENDS.sub("\n", text)).removeprefix("\ufeff")


def _legible(line: str) -> str:
    """One line of prose with plain letters and single spaces; its indentation and a Markdown line break are kept."""
    if line[:1] == " " and line[1:2] not in (" ", "\t", ""):
        line = line[1:]  # html2text's, before emphasis at the start of a paragraph
    if line.isascii() and "  " not in line and "\t" not in line and "[" not in line and not line[-1:].isspace():
        return line
    if MISREAD.search(line):
        line = _with_quotes(line)
    line = unicodedata.normalize("NFC", line)
    line = DRESSED.sub(_undressed, line)
    line = LIGATURES.sub(lambda match: unicodedata.normalize("NFKC", match[0]), line)
    body = SPACES.sub(" ", INVISIBLE.sub("", line.lstrip(" \t")))
    indentation = INVISIBLE.sub("", line[: len(line) - len(line.lstrip(" \t"))])
    line_break = "  " if body.endswith("  ") and body.strip() else ""
    body = EMPTY_LINK.sub("", body.rstrip())
    if not INDENTED.match(line):
        body = SPACE_RUN.sub(" ", body)
    return unicodedata.normalize("NFC", indentation + body.rstrip() + line_break)


def _undressed(match: re.Match[str]) -> str:
    # Without a mathematical letter beside them these are signs in their own right, such as the set of real numbers.
    return unicodedata.normalize("NFKC", match[0]) if MATHEMATICAL.search(match[0]) else match[0]


def _with_quotes(line: str) -> str:
    """Quotation marks and dashes of Windows texts that were read as another encoding."""
    # Here, so that texts without the fault do not pay for the import. It reports to its makers unless DO_NOT_TRACK is
    # set in the environment before: the program's entry does that, since this module is kept from the system.
    from unstructured.cleaners.core import replace_unicode_quotes

    return str(replace_unicode_quotes(line))


def _legible_block(block: Block) -> Block:
    if block.code:
        return block
    lines = [_legible(line) for line in block.lines]
    # A line break before nothing is none.
    return _block(False, [*lines[:-1], lines[-1].rstrip()], block.spaced)


def _blocks(text: str) -> Iterator[Block]:
    """The blocks of a Markdown text in order."""
    lines: list[str] = []
    blanks: list[str] = []
    fence = ""
    indented = in_list = spaced = False

    def taken() -> Iterator[Block]:
        nonlocal lines, spaced
        if lines:
            yield _block(bool(fence) or indented, lines, spaced)
        lines, spaced = [], False

    for line in text.split("\n"):
        if fence:
            lines.append(line)
            if line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                yield from taken()
                fence = ""
            continue
        if not line.strip():
            blanks.append(line)
            continue
        opening = FENCE.match(line)
        if indented and INDENTED.match(line) and not opening:
            lines.extend([*blanks, line])
            blanks = []
            continue
        starts_code = bool(INDENTED.match(line)) and not in_list and (bool(blanks) or not lines)
        if blanks or opening or indented:
            yield from taken()
            spaced, blanks = bool(blanks), []
        indented = starts_code and not opening
        if opening:
            fence = opening[1]
        elif not indented:
            in_list = bool(LIST_ITEM.match(line)) or (in_list and line[0].isspace())
        lines.append(line)
    yield from taken()


def _joined(blocks: Sequence[Block]) -> str:
    parts: list[str] = []
    for block in blocks:
        if not block.lines:
            continue
        parts.append("\n\n" if block.spaced else "\n")
        parts.append("\n".join(block.lines))
    return "".join(parts).strip("\n").rstrip()


def _flowing(lines: tuple[str, ...]) -> tuple[str, ...]:
    """The lines with wrapped paragraphs joined; all lines of a paragraph tell whether it was wrapped, or none."""
    result: list[str] = []
    paragraph: list[str] = []
    belongs = False  # below an item, a quotation or a row, a line belongs to it
    for line in lines:
        structure = STRUCTURE.match(line) is not None
        if structure or belongs or OPENING.match(line):
            result.extend(_unwrapped(paragraph))
            paragraph = []
        if structure or belongs:
            result.append(line)
            belongs = belongs or not HEADING.match(line)
            continue
        paragraph.append(line)
        if line.endswith("  "):
            result.extend(_unwrapped(paragraph))
            paragraph = []
    result.extend(_unwrapped(paragraph))
    return tuple(result)


def _unwrapped(lines: list[str]) -> list[str]:
    """The paragraph as one line if each of its lines ends where the next word would not have fitted."""
    width = max((len(line.rstrip()) for line in lines), default=0)
    if len(lines) < 2 or not NARROWEST <= width <= WIDEST:
        return lines
    for line, following in pairwise(lines):
        word = following.split(" ", 1)[0].partition("-")[0]
        if len(line) + 1 + len(word) <= width - SLACK:
            return lines
    return [_run_on(lines)]


def _run_on(lines: Sequence[str]) -> str:
    parts = [lines[0]]
    for line, following in pairwise(lines):
        within_word = line[-1:] == "-" and line[-2:-1].isalpha() and following[:1].isalpha()
        parts.append("" if within_word and not SUSPENDED_HYPHEN.match(following) else " ")
        parts.append(following)
    return "".join(parts)


# Pages. Each rule recognises an arrangement that only a page's template makes.

LABELS = re.compile(
    r"(?:share(?: this post)?|copy link|facebook|email|notes?|other|subscribe|sign in|sign up|log in|subscribesign in"
    r"|open in app|write|follow|following|listen|top highlight|member-only story|published in|twitter|x|linkedin"
    r"|reddit|whatsapp|telegram|bluesky|mastodon|pocket|print|save|bookmark|more|previous|next|previousnext|comments"
    r"|restacks|top|latest|discussions|discussion about this post|no posts|ready for more\?|likes?|reply|report"
    r"|download|get (?:the )?app|start writing|start writingget the app|menu|search|close|home|archive|about"
    r"|skip to content)$"
)
LEAST_LABELS = 3
NEUTRAL = re.compile(r"[\d.,]+[kKmM]?$|[·∙|.–—-]{1,3}$|\d+ min read$|(?:[\w-]+\.)+[a-z]{2,}$")
DATE = re.compile(
    r"(?:(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.? \d{1,2}(?:, \d{4})?"
    r"|\d{1,2}\.? (?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.? \d{4}|\d{4}-\d\d-\d\d)(?: ?[∙·] ?\w+)?$",
    re.IGNORECASE,
)
SUBSTACK_HEAD = re.compile(r"(?:subscribe ?sign in|subscribe|sign in)$", re.IGNORECASE)
SUBSTACK_APPEAL = re.compile(
    r".{0,120}(?:is a reader-supported publication|thanks for reading\b.*\bsubscribe"
    r"|subscribe (?:for free )?to receive new posts)",
    re.IGNORECASE,
)
# Where what follows an article begins, the surest sign first.
ENDINGS = tuple(
    re.compile(sign, re.IGNORECASE)
    for sign in (
        r"discussion about this post$",
        r"sign up to discover human stories",
        r"ready for more\?$",
        r"recommended from medium$",
    )
)
COLOPHON = re.compile(
    r"(?:privacy ?[∙·|]? ?terms ?[∙·|]? ?(?:collection notice)?|substack is the home for great culture"
    r"|to make medium work, we log user data.*|help status about.*|text to speech)$",
    re.IGNORECASE,
)
CREDIT = re.compile(
    r"[\W_]*(?:images?|photos?|pictures?|screenshots?|illustrations?|figures?|gifs?|videos?)"
    r"(?: (?:created|generated|made|taken|drawn))?(?: (?:with|using) [\w .-]{1,30})? by (?:the )?"
    r"(?:authors?|dall[\W_]?e|midjourney|[^\W\d][\w .-]{1,40} (?:on|via|from) (?:unsplash|pexels|pixabay|flickr))\b"
    r"(?:[^.!?]|\.\d){0,60}[\W_]*$"
    r"|[\W_]*(?:if|unless) (?:not )?otherwise stated, all images are (?:created )?by the author[\W_]*$",
    re.IGNORECASE,
)
CONSENT = re.compile(
    r"(?:we (?:and our partners )?use cookies|this (?:web)?site uses cookies"
    r"|by (?:continuing|using) (?:to use )?(?:this|our) (?:web)?site)"
    r"\b.*\b(?:accept|agree|consent|privacy|policy|experience)\b"
    r"|(?:this site requires javascript|you need to enable javascript|please (?:enable|turn on) javascript)\b",
    re.IGNORECASE,
)
COPYRIGHT = re.compile(
    r"_*(?:©|\(c\)|copyright)[ ,©\d–-]{1,20}[^.!?]{0,80}\.?(?: all rights reserved\.?)?$", re.IGNORECASE
)
ICON = re.compile(r"\s*[*-] (?:__|.* __$)")
PAGE_CONTENTS = re.compile(r"(?:sections|on this page|in this article)$", re.IGNORECASE)
METADATA = re.compile(r"(?:author|authors|published|modified|date|affiliation)$", re.IGNORECASE)
# Blocks: how far from either end, within which head and within which end of a page a rule looks.
EDGE = 4
HEAD = 40
LAST_LINES = 20


def _without_substack_head(blocks: list[Block]) -> list[Block]:
    """Publication, buttons, and between the title and the text the author's name, the date and counts."""
    signed = next((place for place, block in enumerate(blocks[:EDGE]) if SUBSTACK_HEAD.match(block.plain)), None)
    if signed is None or not any(block.plain.lower() in ("share this post", "copy link") for block in blocks[:HEAD]):
        return blocks
    blocks = _without_label_runs([_unwrapped_heading(block) for block in blocks[signed + 1 :]])
    title = next((place for place, block in enumerate(blocks[:HEAD]) if block.heading), None)
    if title is None:
        return blocks
    text = title + 1
    while text < len(blocks) and text <= title + 2 and blocks[text].heading:
        text += 1
    dated = next(
        (place for place in range(text, min(text + EDGE, len(blocks))) if DATE.match(blocks[place].plain)), None
    )
    if dated is not None:
        while dated + 1 < len(blocks) and NEUTRAL.match(blocks[dated + 1].plain):
            dated += 1
        blocks = blocks[:text] + blocks[dated + 1 :]
    return _without_appeals(blocks)


def _unwrapped_heading(block: Block) -> Block:
    """A heading that html2text wrapped is one line again."""
    if block.code or not HEADING.match(block.lines[0]) or len(block.lines) < 2:
        return block
    for line, following in pairwise(block.lines):
        if (
            len(line) > PAGE_WIDTH
            or len(line) + 1 + len(following.split(" ", 1)[0].partition("-")[0]) <= PAGE_WIDTH - SLACK
        ):
            return block
    return _block(False, [_run_on(block.lines)], block.spaced)


def _without_appeals(blocks: list[Block]) -> list[Block]:
    kept: list[Block] = []
    for block in blocks:
        if block.plain.lower() == "subscribe":
            if kept and SUBSTACK_APPEAL.match(kept[-1].plain):
                kept.pop()
            continue
        kept.append(block)
    return kept


def _without_label_runs(blocks: list[Block]) -> list[Block]:
    """Buttons: runs of single lines that are labels, three different ones at least, with the counts among them."""
    kept: list[Block] = []
    run: list[Block] = []
    labels: set[str] = set()

    def settle() -> None:
        nonlocal run, labels
        if len(labels) < LEAST_LABELS:
            kept.extend(run)
        run, labels = [], set()

    for block in blocks:
        label = (block.heading or block.plain).lower()
        after_share = bool(run) and run[-1].plain.lower() == "share this post"
        if LABELS.match(label):
            labels.add(label)
            run.append(block)
        elif (label and NEUTRAL.match(label)) or (after_share and block.heading):
            run.append(block)
        else:
            settle()
            kept.append(block)
    settle()
    return kept


def _without_page_end(blocks: list[Block]) -> list[Block]:
    """Comments, recommendations and all that follows, if the last lines are a colophon."""
    if not any(COLOPHON.match(block.plain) for block in blocks[-LAST_LINES:]):
        return blocks
    for sign in ENDINGS:
        for place in reversed(range(len(blocks))):
            if sign.match(blocks[place].heading or blocks[place].plain):
                return blocks[:place]
    return blocks


def _without_site_head(blocks: list[Block]) -> list[Block]:
    """Navigation of a generated site: lists with the residue of icons, before the title and after it."""
    title = next((place for place, block in enumerate(blocks) if block.lines[0].startswith("# ")), None)
    if title is None or not any(ICON.match(line) for block in blocks[:title] if not block.code for line in block.lines):
        return blocks
    rest = blocks[title + 1 :]
    labels = [place for place, block in enumerate(rest[: EDGE * 3]) if METADATA.match(block.plain)]
    if labels:
        rest = rest[: min(labels[0], 1)] + rest[labels[-1] + 2 :]
    menu = next((place for place, block in enumerate(rest[:EDGE]) if ICON.match(block.lines[0])), None)
    if menu is not None:
        after = menu
        while after < len(rest) and not rest[after].code and LIST_ITEM.match(rest[after].lines[0]):
            after += 1
        rest = rest[:menu] + rest[after:]
    rest = [_without_copy_button(block) for block in rest]
    return [blocks[title], *_without_page_contents(rest)]


def _without_copy_button(block: Block) -> Block:
    if not block.code or not block.lines[-1].endswith("__"):
        return block
    return block._replace(lines=(*block.lines[:-1], block.lines[-1].removesuffix("__")))


def _without_page_contents(blocks: list[Block]) -> list[Block]:
    """A list of links to the page's own headings, under a label of the template's."""
    place = next(
        (place for place, block in enumerate(blocks[:EDGE]) if PAGE_CONTENTS.match(block.heading or block.plain)), None
    )
    if place is None or place + 1 >= len(blocks):
        return blocks
    headings = {block.heading for block in blocks}
    items = [line.strip().lstrip("*-+ ").strip(" *_") for line in blocks[place + 1].lines]
    if sum(item in headings for item in items) * 2 < len(items):
        return blocks
    return blocks[:place] + blocks[place + 2 :]


def _without_edges(blocks: list[Block]) -> list[Block]:
    """Copyright lines at the end; requests for consent or scripts at either end."""
    head, middle = blocks[:EDGE], blocks[EDGE:]
    middle, tail = middle[:-EDGE], middle[-EDGE:]
    head = [block for block in head if not CONSENT.match(block.plain)]
    tail = [block for block in tail if not CONSENT.match(block.plain) and not COPYRIGHT.match(block.plain)]
    return [*head, *middle, *tail]


def _without_credits(blocks: list[Block]) -> list[Block]:
    """Lines that say who made a picture, and a heading over nothing else."""
    kept: list[Block] = []
    for block in blocks:
        if CREDIT.match(block.plain):
            if kept and kept[-1].heading.lower() in ("images", "image credits"):
                kept.pop()
            continue
        kept.append(block)
    return kept


def _without_nothing(blocks: list[Block]) -> list[Block]:
    """Headings without words, and lines of which nothing is left."""
    return [block for block in blocks if block.code or any(line.strip("# ") for line in block.lines)]


RULES: tuple[Callable[[list[Block]], list[Block]], ...] = (
    _without_page_end,
    _without_substack_head,
    _without_site_head,
    _without_label_runs,
    _without_edges,
    _without_credits,
    _without_nothing,
)

# Medium's pages arrive with everything run together in one line.
MEDIUM_HEAD = re.compile(r"[^\n]{0,300}?Open in appSign upSign in(?:Write)?(?:Sign upSign in)?(?:Top highlight)?")
MEDIUM_BYLINE = re.compile(
    r"(?:(?<=[.!?)\w”’])(?:[^\W\d_a-z][\w.’'-]* ){1,3}[^\W\d_a-z][\w’'-]*)?"
    r"·Follow(?:Published in[^·\n]{1,60})?·\d+ min read·[A-Z][a-z]{2} \d{1,2}(?:, \d{4})?[\d.,K]*(?:ListenShare|Share)?"
)
MEDIUM_END = "Sign up to discover human stories that deepen your understanding of the world."
MEDIUM_COLOPHON = "To make Medium work, we log user data."


def _without_medium_page(text: str) -> str:
    head = MEDIUM_HEAD.match(text.lstrip())
    if not head:
        return text
    text = text.lstrip()
    end = text.find(MEDIUM_END)
    text = text[head.end() : end] if end >= 0 and MEDIUM_COLOPHON in text[end:] else text[head.end() :]
    byline = MEDIUM_BYLINE.search(text, 0, 2000)
    return text if not byline else f"{text[: byline.start()]}\n\n{text[byline.end() :]}"
