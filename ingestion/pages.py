"""HTML pages: the article as Markdown, with code blocks, headings and links kept, and what the page says about itself.

Which part is the article follows the idea of Arc90's Readability: drop what is navigation by role, tag or name, then
take the marked-up article, else the element that holds most of the text that is not within links.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

from lxml import etree, html  # type: ignore[import-untyped]
from lxml.html import HtmlElement  # type: ignore[import-untyped]

from ingestion.reading import Reading, Unreadable, decode, moment

SHORTEST_ARTICLE = 100
# fmt: off
NEVER_TEXT = frozenset((
    "script", "style", "noscript", "template", "svg", "canvas", "iframe", "object", "button", "input", "select",
    "textarea", "nav", "dialog", "title", "audio", "video", "menu",
))
NOT_ARTICLE_ROLES = frozenset((
    "navigation", "complementary", "search", "dialog", "alertdialog", "banner", "contentinfo",
))
HEADINGS = {f"h{level}": level for level in range(1, 7)}
BLOCKS = frozenset((
    "address", "article", "blockquote", "body", "center", "dd", "details", "div", "dl", "dt", "fieldset", "figcaption",
    "figure", "footer", "header", "hgroup", "hr", "li", "main", "ol", "p", "pre", "section", "summary", "table", "ul",
    "tbody", "thead", "tfoot", "tr", "td", "th", *HEADINGS,
))
# fmt: on
NOT_ARTICLE_NAMES = re.compile(
    r"(^|[-_ ])(comments?|disqus|cookies?|consent|newsletter|subscri(be|ption)|social|share|sharing|related|sidebar"
    r"|recommend\w*|breadcrumbs?|pagination|pager|promo|advert\w*|ads?|banner|popup|modal|skip-?(link|nav)|nav(bar)?"
    r"|navigation|sr-only|screen-reader-text|visually-hidden|toc|table-of-contents|site-(header|footer)|copy-?button"
    r")($|[-_ ])"
)
LINE_NUMBERS = re.compile(r"(^|[-_ ])(linenos?|line-?numbers?|gutter|ln-numbers?|rouge-gutter)($|[-_ ])")
CODE_LANGUAGE = re.compile(r"(?:^|\s)(?:lang(?:uage)?-|highlight-source-|brush:\s*)([\w+#.-]+)")
CODE_FRAMES = frozenset(("sourcecode", "sourceCode"))
CONTAINERS = frozenset(("body", "center", "div", "main", "section", "table", "tbody", "td", "tr"))
EMPHASIS = {"strong": "**", "b": "**", "em": "*", "i": "*", "del": "~~", "s": "~~"}
CODE_SPANS = frozenset(("code", "kbd", "samp", "tt"))
OUTSIDE_LINKS = etree.XPath(".//text()[not(ancestor::a)]")
ARTICLE_TYPES = re.compile(r"(Article|Posting|Report)$")
META_CHARSET = re.compile(rb"<meta[^>]+charset\s*=\s*[\"']?\s*([\w-]+)", re.IGNORECASE)
MOST_ATTRIBUTES = 5_000
LONG_TAG = re.compile(r"<[a-zA-Z][^<>]{10000,}")
QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")
META_AUTHORS = ("author", "article:author", "dc.creator", "citation_author", "parsely-author")
META_DATES = (
    "article:published_time",
    "date",
    "dc.date",
    "dcterms.created",
    "citation_publication_date",
    "parsely-pub-date",
)


def read_page(content: bytes, address: str | None, charset: str | None, shortest: int = 1) -> Reading:
    """The article of a page. `address`: where links are relative to; `charset`: what HTTP said of the encoding.

    Raises Unreadable if it is not valid in its encoding, or has no article of at least `shortest` characters.
    """
    page = _decoded(content, charset, strict=address is None).replace("\0", "")
    # The parser compares each attribute of an element with all the others: 200,000 of them take it minutes.
    if any(len(QUOTED.sub("", tag[0]).split()) > MOST_ATTRIBUTES for tag in LONG_TAG.finditer(page)):
        raise Unreadable(f"has an element with more than {MOST_ATTRIBUTES:,} attributes")
    parser = html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True)
    try:
        root = html.document_fromstring(page.encode(), parser=parser)
    except (etree.LxmlError, AssertionError) as error:
        raise Unreadable("is not HTML") from error
    # The parser leaves out all that follows without a word.
    if any("Excessive depth" in entry.message for entry in parser.error_log):
        raise Unreadable("is nested too deeply: more than 256 elements within each other")
    said = _said(root)
    canonical = next((link.get("href") for link in root.iter("link") if _has(link.get("rel"), "canonical")), None)
    base = next((tag.get("href") for tag in root.iter("base") if tag.get("href")), None)
    place = _joined(address, base or "") or address
    _drop_page_parts(root)
    article = _article(root)
    text = "\n\n".join(_blocks(article, place)).strip()
    mass = _mass(article)
    if mass < shortest:
        raise Unreadable(f"has no article: {mass} characters of running text on the page")
    return Reading(
        text=text,
        title=said["title"] or _heading(article),
        author=said["author"],
        published_at=moment(said["published"]) or moment(_first_time(article)),
        language=said["language"],
        canonical_url=_joined(address, canonical) if canonical else None,
    )


def _decoded(content: bytes, charset: str | None, *, strict: bool) -> str:
    declared = META_CHARSET.search(content[:4096])
    named = charset or (declared.group(1).decode("ascii", "replace") if declared else None)
    if content.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")) or named is None or _is_utf8(named):
        try:
            return decode(content)
        except Unreadable:
            if strict or named is not None:
                raise
            # The WHATWG's rule for pages of the web that say nothing.
            named = "windows-1252"
    try:
        return content.decode(named, "replace" if named == "windows-1252" else "strict")
    except LookupError as error:
        raise Unreadable(f"names an unknown encoding ({named[:40]})") from error
    except UnicodeDecodeError as error:
        raise Unreadable(f"is not valid {named}: byte 0x{content[error.start]:02x} at offset {error.start}") from error


def _is_utf8(name: str) -> bool:
    return name.lower().replace("-", "").replace("_", "") in ("utf8", "usascii", "ascii")


# What the page says about itself


def _said(root: HtmlElement) -> dict[str, str | None]:
    metas: dict[str, str] = {}
    for tag in root.iter("meta"):
        name = (tag.get("property") or tag.get("name") or tag.get("itemprop") or "").lower()
        if name and (tag.get("content") or "").strip():
            metas.setdefault(name, " ".join(tag.get("content").split()))
    linked = next(_linked_articles(root), {})
    titles = [element.text_content() for element in root.iter("title")]
    authors = [linked.get("author"), *(metas.get(name) for name in META_AUTHORS), *_marked_authors(root)]
    dates = [linked.get("datePublished"), *(metas.get(name) for name in META_DATES), metas.get("datepublished")]
    language = root.get("lang") or linked.get("inLanguage") or metas.get("og:locale") or metas.get("content-language")
    return {
        "title": _line(linked.get("headline")) or metas.get("og:title") or _line(titles[0] if titles else None),
        "author": next((name for value in authors if (name := _name(value))), None),
        "published": next((value for value in dates if moment(value)), None),
        "language": re.split("[-_]", language.strip())[0].lower() or None if isinstance(language, str) else None,
    }


def _linked_articles(root: HtmlElement) -> Iterator[Mapping[str, Any]]:
    """Articles described in JSON-LD (schema.org)."""
    for script in root.iter("script"):
        if (script.get("type") or "").lower() != "application/ld+json":
            continue
        try:
            found: list[Any] = [json.loads(script.text or "")]
        except (ValueError, RecursionError):
            continue
        while found:
            entry = found.pop(0)
            if isinstance(entry, list):
                found += entry
            elif isinstance(entry, Mapping):
                kinds = entry.get("@type")
                if any(isinstance(kind, str) and ARTICLE_TYPES.search(kind) for kind in _listed(kinds)):
                    yield entry
                found += _listed(entry.get("@graph"))


def _marked_authors(root: HtmlElement) -> Iterator[str]:
    for element in root.iter("a", "span", "div", "p", "address"):
        if _has(element.get("rel"), "author") or _has(element.get("itemprop"), "author"):
            yield element.text_content()


def _name(value: object) -> str | None:
    """The name within the ways that pages give an author; an address is no name."""
    names = [entry.get("name") if isinstance(entry, Mapping) else entry for entry in _listed(value)]
    kept = [line for name in names if (line := _line(name)) and "://" not in line and len(line) <= 100]
    return ", ".join(kept) or None


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _line(value: object) -> str | None:
    return " ".join(value.split()) or None if isinstance(value, str) else None


def _has(attribute: str | None, word: str) -> bool:
    return word in (attribute or "").lower().split()


# Which part is the article


def _drop_page_parts(root: HtmlElement) -> None:
    """Remove what is never text, and what is not the article by its role or name unless it holds most of the page."""
    for element in list(root.iter(*NEVER_TEXT)):
        _remove(element)
    most = _mass(root) / 2
    for element in list(root.iter(etree.Element)):
        if element.getparent() is None or element.tag in ("html", "body", "main", "article"):
            continue
        if _is_hidden(element) or _is_line_numbers(element) or (_is_page_part(element) and _mass(element) < most):
            _remove(element)


def _is_hidden(element: HtmlElement) -> bool:
    style = (element.get("style") or "").replace(" ", "").lower()
    return element.get("hidden") is not None or "display:none" in style or "visibility:hidden" in style


def _is_line_numbers(element: HtmlElement) -> bool:
    return (
        element.tag in ("td", "pre", "span") and LINE_NUMBERS.search((element.get("class") or "").lower()) is not None
    )


def _is_page_part(element: HtmlElement) -> bool:
    if (element.get("role") or "").lower() in NOT_ARTICLE_ROLES:
        return True
    inside = any(ancestor.tag in ("article", "main") for ancestor in element.iterancestors())
    # Some sites put all of a page into one form; notes beside the text are asides too.
    if element.tag == "form" or (element.tag in ("header", "footer", "aside") and not inside):
        return True
    if element.tag in ("pre", "code", "span", "p", "a", *HEADINGS, "table", "td", "tr"):
        return False
    names = f"{element.get('class') or ''} {element.get('id') or ''}".lower()
    return NOT_ARTICLE_NAMES.search(names) is not None


def _remove(element: HtmlElement) -> None:
    parent = element.getparent()
    if parent is not None:
        element.drop_tree()


def _article(body: HtmlElement) -> HtmlElement:
    whole = _mass(body)
    bodies = [element for element in body.iter(etree.Element) if _has(element.get("itemprop"), "articlebody")]
    articles = [element for element in body.iter("article") if next(element.iterancestors("article"), None) is None]
    mains = [element for element in body.iter(etree.Element) if element.tag == "main" or element.get("role") == "main"]
    for marked in (bodies, articles, mains):
        best = max(marked, key=_mass, default=None)
        # One card of a list of articles is not the article, nor is a marked teaser.
        if best is not None and _mass(best) >= 0.5 * whole:
            return best
    found = body
    while True:
        most = 0.8 * _mass(found)
        child = next((child for child in found if child.tag in CONTAINERS and _mass(child) >= most), None)
        if child is None:
            return found
        found = child


def _mass(element: HtmlElement) -> int:
    """Characters of text outside links."""
    return sum(len("".join(text.split())) for text in OUTSIDE_LINKS(element))


def _length(element: HtmlElement) -> int:
    return len("".join(element.text_content().split()))


def _heading(article: HtmlElement) -> str | None:
    found = next(article.iter("h1", "h2"), None)
    return _line(found.text_content()) if found is not None else None


def _first_time(article: HtmlElement) -> str | None:
    found = next((time.get("datetime") for time in article.iter("time")), None)
    return str(found) if found else None


# Markdown


def _blocks(element: HtmlElement, place: str | None) -> list[str]:
    """The blocks (paragraphs, headings, lists, ...) of what stands in an element."""
    blocks: list[str] = []
    run = [_text(element.text)]

    def flush() -> None:
        paragraph = _tidy("".join(run))
        if paragraph:
            blocks.append(re.sub(r"\A(#{1,6} |>|```|~~~)", r"\\\1", paragraph))
        run.clear()

    for child in element:
        if child.tag in BLOCKS:
            flush()
            blocks += _block(child, place)
        elif child.tag not in CODE_SPANS and any(inner.tag in BLOCKS for inner in child.iterdescendants()):
            flush()
            blocks += _blocks(child, place)
        else:
            run.append(_inline(child, place))
        run.append(_text(child.tail))
    flush()
    return blocks


def _block(element: HtmlElement, place: str | None) -> list[str]:
    tag = element.tag
    if tag in HEADINGS:
        heading = " ".join(_tidy(_insides(element, place, heading=True)).split())
        return [f"{'#' * HEADINGS[tag]} {heading}"] if heading else []
    if tag == "pre":
        return _code(element)
    if tag in ("ul", "ol"):
        return _list(element, place)
    if tag == "blockquote":
        quoted = "\n\n".join(_blocks(element, place))
        return ["\n".join(f"> {line}".rstrip() for line in quoted.split("\n"))] if quoted else []
    if tag == "table":
        return _table(element, place)
    if tag == "hr":
        return ["---"]
    if tag == "dt":
        term = _tidy(_insides(element, place))
        return [f"**{term}**"] if term else []
    return _blocks(element, place)


def _list(element: HtmlElement, place: str | None) -> list[str]:
    items: list[str] = []
    loose = False
    for blocks in _items(element, place):
        mark = f"{len(items) + 1}. " if element.tag == "ol" else "- "
        # A list within an item stands close to it; other blocks need a blank line.
        joined = blocks[0]
        for block in blocks[1:]:
            close = re.match(r"(- |\d+\. )", block) is not None
            loose = loose or not close
            joined += ("\n" if close else "\n\n") + block
        indent = " " * len(mark)
        items.append(mark + "\n".join(indent + line if line else line for line in joined.split("\n"))[len(indent) :])
    return [("\n\n" if loose else "\n").join(items)] if items else []


def _items(element: HtmlElement, place: str | None) -> Iterator[list[str]]:
    """The blocks of each item of a list; text that stands between the items is one too."""
    yield from _stray(element.text)
    for child in element:
        blocks = _block(child, place) if child.tag in BLOCKS else [_tidy(_inline(child, place))]
        if any(blocks):
            yield [block for block in blocks if block]
        yield from _stray(child.tail)


def _stray(text: str | None) -> Iterator[list[str]]:
    if tidy := _tidy(_text(text)):
        yield [tidy]


def _table(table: HtmlElement, place: str | None) -> list[str]:
    """Rows of cells; a table that only lays out blocks (code beside its line numbers) is read as those blocks."""
    rows = [
        [cell for cell in row if cell.tag in ("td", "th")]
        for row in table.iter("tr")
        if next(row.iterancestors("table"), None) is table
    ]
    cells = [cell for row in rows for cell in row]
    captions = list(table.iterchildren("caption"))
    layout = any(next(cell.iter("pre", "table", "ul", "ol", *HEADINGS), None) is not None for cell in cells)
    astray = _length(table) > sum(map(_length, [*cells, *captions]))
    if layout or astray or max((len(row) for row in rows), default=0) < 2:
        return _blocks(table, place)
    width = max(len(row) for row in rows)
    lines = [
        [" ".join(" ".join(_blocks(cell, place)).split()).replace("|", "\\|") for cell in row]
        + [""] * (width - len(row))
        for row in rows
        if row
    ]
    shown = ["| " + " | ".join(line) + " |" for line in lines]
    return [
        *filter(None, (_tidy(_insides(caption, place)) for caption in captions)),
        "\n".join([shown[0], "|" + " --- |" * width, *shown[1:]]),
    ]


def _code(element: HtmlElement) -> list[str]:
    text = "".join(_code_text(element)).replace("\xa0", " ").strip("\n")
    lines = "\n".join(line.rstrip() for line in text.split("\n"))
    if not lines.strip():
        return []
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", lines)), 3)
    return [f"{fence}{_code_language(element)}\n{lines}\n{fence}"]


def _code_text(element: HtmlElement) -> Iterator[str]:
    yield element.text or ""
    for child in element:
        if child.tag == "br":
            yield "\n"
        else:
            inner = "".join(_code_text(child))
            yield inner
            # Some highlighters make every line an element and leave the line breaks to the style sheet.
            if child.tag in ("div", "li", "tr", "p") and not inner.endswith("\n"):
                yield "\n"
        yield child.tail or ""


def _code_language(element: HtmlElement) -> str:
    near = [element, *element.iter("code"), *list(element.iterancestors())[:3]]
    for place in near:
        classes = place.get("class") or ""
        named = CODE_LANGUAGE.search(classes)
        if named:
            return str(named.group(1)).lower()
        if place.get("data-lang") or place.get("data-language"):
            return str(place.get("data-lang") or place.get("data-language")).lower()
        words = classes.split()
        if CODE_FRAMES.intersection(words):
            named_beside = [word for word in words if word not in CODE_FRAMES and word.isalpha()]
            if named_beside:
                return named_beside[-1].lower()
    return ""


def _inline(element: HtmlElement, place: str | None, *, heading: bool = False) -> str:
    tag = element.tag
    if tag == "br":
        return "\n"
    if tag == "img":
        source, alternative = element.get("src") or "", _line(element.get("alt"))
        return f"![{alternative}]({_absolute(source, place)})" if alternative and not source.startswith("data:") else ""
    formula = _formula(element)
    if formula:
        return f"${formula}$"
    if tag in CODE_SPANS:
        code = " ".join(element.text_content().split())
        mark = "``" if "`" in code else "`"
        return f"{mark}{code}{mark}" if code else ""
    inside = _insides(element, place, heading=heading)
    text = inside.strip()
    if not text:
        return inside
    before, after = inside[: len(inside) - len(inside.lstrip())], inside[len(inside.rstrip()) :]
    if tag in EMPHASIS and "\n" not in text:
        return f"{before}{EMPHASIS[tag]}{text}{EMPHASIS[tag]}{after}"
    if tag == "a":
        target = element.get("href") or ""
        if heading and (target.startswith("#") or "#" in target):
            # A permanent link of the heading to itself; often it is only a sign.
            return inside if any(character.isalnum() for character in text) else ""
        address = _absolute(target, place)
        return (
            f"{before}[{text}]({address}){after}" if urlsplit(address).scheme in ("http", "https", "mailto") else inside
        )
    return inside


def _insides(element: HtmlElement, place: str | None, *, heading: bool = False) -> str:
    parts = [_text(element.text)]
    for child in element:
        parts += [_inline(child, place, heading=heading), _text(child.tail)]
    return "".join(parts)


def _formula(element: HtmlElement) -> str | None:
    """The TeX of a formula, as KaTeX, MathJax and MathML carry it."""
    if element.tag == "math" or "katex" in (element.get("class") or "").split():
        found = next((note.text for note in element.iter("annotation") if "tex" in (note.get("encoding") or "")), None)
        return _line(found) or _line(element.get("alttext"))
    return None


def _joined(place: str | None, target: str) -> str | None:
    """The address that a page at `place` means by `target`; None for what is no address."""
    try:
        joined = urljoin(place or "", target.strip())
        urlsplit(joined)
    except ValueError:
        return None
    return joined or None


def _absolute(target: str, place: str | None) -> str:
    joined = _joined(place, target) or ""
    return joined.replace(" ", "%20").replace("(", "%28").replace(")", "%29")


def _text(text: str | None) -> str:
    return re.sub(r"\s+", " ", text or "")


def _tidy(text: str) -> str:
    """One space between words, none at the ends of lines."""
    return re.sub(r" *\n *", "\n", re.sub(r"[ \t]{2,}", " ", text)).strip()
