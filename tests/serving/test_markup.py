"""What authors and models write becomes HTML that can do nothing, with the cited words marked where they stand."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st

from serving.markup import ATTRIBUTES, TAGS, document_html, html, part, window, with_markers

PIECES = st.sampled_from(
    (
        *("<script>x</script>", "<img src=x onerror=y>", "[a](javascript:b)", "**b**", "# h\n", "\n\n", "- i\n"),
        *("```\nc\n```\n", "> q\n", "![i](http://e/x.png)", "[a](http://e/)", '"onload="', "<a href='x'>", "`k`"),
        *("| a |\n|---|\n", "&lt;", "]("),
    )
)
MARKDOWN = st.lists(PIECES | st.text(max_size=12), max_size=12).map("".join)


class Seen(HTMLParser):
    """Collects what a browser would make of HTML."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.marked, self.text, self._marks = "", "", 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._marks += tag == "mark"

    def handle_endtag(self, tag: str) -> None:
        self._marks -= tag == "mark"

    def handle_data(self, data: str) -> None:
        self.text += data
        self.marked += data if self._marks else ""


def harmless(seen: Seen) -> bool:
    ours = {"mark", "span"}
    return all(
        tag in TAGS | ours
        and set(attributes) <= ATTRIBUTES.get(tag, set()) | {"rel", "id", "class", "aria-label"}
        and re.match(r"(https?|mailto):|/documents/|$", attributes.get("href") or "") is not None
        for tag, attributes in seen.tags
    )


@given(MARKDOWN, st.integers(0, 80), st.integers(1, 40))
@settings(deadline=None, max_examples=200)
def test_whatever_is_written_is_harmless(text: str, start: int, length: int) -> None:
    assert harmless(Seen(html(text)))
    assert harmless(Seen(document_html(text, mark=(start, start + length), chunks=[(0, 1), (start, 2)])))
    assert harmless(Seen(document_html(text, code=True, mark=(start, start + length))))
    assert harmless(Seen(with_markers(html(text + " [1]"), lambda n: "/documents/x?a=1&b=2" if n == 1 else None)))


def test_raw_html_is_shown_as_the_text_that_it_is() -> None:
    seen = Seen(html("A <img src=x onerror=alert(1)> here"))
    assert seen.text.strip() == "A <img src=x onerror=alert(1)> here"
    assert [tag for tag, _ in seen.tags] == ["p"]


def marked(text: str, quote: str, code: bool = False) -> Seen:
    start = text.index(quote)
    return Seen(document_html(text, code=code, mark=(start, start + len(quote))))


def test_the_cited_words_are_marked_across_emphasis_links_and_lists() -> None:
    text = "# Head\n\nBefore. **The lamp** is [lit](https://e.org) at dusk. After.\n\n- one item\n- two\n"
    assert marked(text, "**The lamp** is [lit](https://e.org) at dusk.").marked == "The lamp is lit at dusk."
    assert marked(text, "one item").marked == "one item"
    assert marked(text, "# Head").marked == "Head"
    assert marked(text, "Before. **The lamp**").marked == "Before. The lamp"
    assert "h1" in [tag for tag, _ in marked(text, "# Head").tags]


def test_code_is_marked_where_it_is_cited() -> None:
    text = "Run:\n\n```python\nx = a < b\ny = 2\n```\n"
    assert marked(text, "x = a < b").marked == "x = a < b"
    assert marked("if a < b:\n    go()\n", "a < b", code=True).marked == "a < b"


def test_one_mark_is_where_a_link_can_lead_to() -> None:
    seen = marked("One. **Two** three. Four.", "**Two** three.")
    assert [attributes.get("id") for tag, attributes in seen.tags if tag == "mark"] == ["cited", None]


def test_a_document_cannot_mark_itself() -> None:
    assert Seen(document_html("a \ue000forged\ue001 \ue0021\ue003", mark=None)).tags == [("p", {})]


def test_the_beginnings_of_chunks_are_shown_and_change_nothing_else() -> None:
    text = "# Head\n\nFirst.\n\n- item\n\n```\ncode\n```\n\n1. one\n"
    offsets = [text.index(start) for start in ("# Head", "First", "- item", "```", "1. one")]
    plain, shown = Seen(html(text)), Seen(document_html(text, chunks=[(at, n) for n, at in enumerate(offsets, 1)]))
    chunks = [attributes["id"] for tag, attributes in shown.tags if tag == "span"]
    assert chunks == [f"chunk-{n}" for n in range(1, 6)]
    assert [tag for tag, _ in shown.tags if tag != "span"] == [tag for tag, _ in plain.tags]


def test_a_mark_over_the_rows_of_a_table_ends_with_them() -> None:
    text = "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n\nWhat follows.\n"
    start = text.index("| 1")

    out = document_html(text, mark=(start, text.index("\n\n")))

    assert re.findall("<mark[^>]*>(.*?)</mark>", out) == ["1", "2", "3", "4"]


def test_a_number_in_brackets_within_a_quotation_is_the_authors_own() -> None:
    answer = "“Shown in [1] and **by us [2]**.” [1]\n\n| a | b |\n|---|---|\n| [2] | 3 |\n\n[2]"

    out = with_markers(html(answer), {1: "/documents/x", 2: "/documents/y"}.get, quoted=True)

    assert out.count('class="marker"') == 2
    assert "Shown in [1] and" in out
    assert "by us [2]" in out


def test_markers_are_links_outside_of_code_only() -> None:
    out = with_markers(html("It is so [1] and [2]; `a[1]` and\n\n```\nb[1]\n```"), {1: "/documents/x"}.get)
    assert out.count('class="marker"') == 1
    assert "[2]" in out
    assert "a[1]" in out
    assert "b[1]" in out


@given(MARKDOWN.map(lambda text: text * 5), st.integers(0, 300), st.integers(0, 100), st.integers(0, 100))
@settings(deadline=None)
def test_a_window_holds_what_it_is_opened_on(text: str, start: int, length: int, around: int) -> None:
    start = min(start, len(text))
    end = min(start + length, len(text))
    first, last = window(text, start, end, around)
    assert 0 <= first <= start <= end <= last <= len(text)
    fences = re.findall(r"^[ \t]*(?:```|~~~)", text[:first] + "|", re.MULTILINE)
    assert len(fences) % 2 == 0 or start - around <= 0


@given(MARKDOWN.map(lambda text: text * 5), st.integers(1, 60))
@settings(deadline=None)
def test_the_parts_of_a_text_go_through_all_of_it(text: str, size: int) -> None:
    offset, seen = 0, 0
    for _ in range(len(text) + 2):
        first, last = part(text, offset, size)
        assert text[seen:first].strip() == ""
        seen = last
        if last >= len(text.rstrip()):
            break
        offset = last
    assert seen >= len(text.rstrip())
