"""The article of a page as Markdown: what stays, what goes, and what the page says about itself."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingestion.pages import read_page
from ingestion.reading import Unreadable

ADDRESS = "https://blog.example.com/p/fine-tune"
PROSE = "Cedars grow slowly on the mountain and their roots hold the soil."

BLOG = """<!doctype html><html lang="en-GB"><head><title>Fine-tune | Some Blog</title></head><body>
<nav><ul><li><a href="/">Home</a></li></ul></nav>
<header><h1>Some Blog</h1></header>
<div class="cookie-banner">We use cookies.</div>
<main><article class="post"><h1 class="post-title">Fine-tune</h1>
<p>It adapts a <strong>model</strong>, see <a href="/p/intro">the introduction</a>
   and <a href="https://arxiv.org/abs/1">LoRA</a> with <code>alpha * 2</code>.</p>
<h2 id="install">Install <a class="anchor" href="#install">#</a></h2>
<div class="highlight"><pre><code class="language-bash"><span>pip</span> install <span>peft</span>
pip install trl   # two
</code></pre></div>
<h3><a href="#train">Train it</a></h3>
<pre class="sourceCode python"><code class="sourceCode python"><span id="cb1-1"><span>def</span> f(x):</span>
<span id="cb1-2">    <span>if</span> x &lt; 3:</span>
<span id="cb1-3"></span>
<span id="cb1-4">        <span>return</span> x * 2</span></code></pre>
<ul><li>one</li><li>two<ul><li>nested</li><li>too</li></ul></li><li><p>three</p></li></ul>
<ol><li>first</li><li>second</li></ol>
<blockquote><p>A quotation of <i>weight</i>.</p><p>Two paragraphs.</p></blockquote>
<table><thead><tr><th>Rank</th><th>Loss</th></tr></thead><tbody><tr><td>8</td><td>a|b</td></tr></tbody></table>
<figure><img src="/img/a.png" alt="Loss curve"><figcaption>The loss falls.</figcaption></figure>
<p>One line.<br>Another line.</p><p># Not a heading</p><hr>
<div class="share-buttons"><a href="#">Share</a> this post</div>
</article><section id="comments"><h3>Comments</h3><p>Great post!</p></section></main>
<aside><p>Related articles</p></aside><footer>© 2024</footer><script>track()</script></body></html>"""

MARKDOWN = """\
# Fine-tune

It adapts a **model**, see [the introduction](https://blog.example.com/p/intro) and [LoRA](https://arxiv.org/abs/1) \
with `alpha * 2`.

## Install

```bash
pip install peft
pip install trl   # two
```

### Train it

```python
def f(x):
    if x < 3:

        return x * 2
```

- one
- two
  - nested
  - too
- three

1. first
2. second

> A quotation of *weight*.
>
> Two paragraphs.

| Rank | Loss |
| --- | --- |
| 8 | a\\|b |

![Loss curve](https://blog.example.com/img/a.png)

The loss falls.

One line.
Another line.

\\# Not a heading

---"""


def page(body: str, head: str = "") -> bytes:
    return f"<html><head>{head}</head><body>{body}</body></html>".encode()


def text(body: str) -> str:
    return read_page(page(body), ADDRESS, None).text


def test_an_article_is_kept_and_what_surrounds_it_goes() -> None:
    assert read_page(BLOG.encode(), ADDRESS, None).text == MARKDOWN


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        (
            "<div><div><div class=content><p>{0}</p><p>{0}</p></div></div><div><a href=/x>Elsewhere</a></div></div>",
            "{0}\n\n{0}",
        ),
        ("<p>{0}</p><p>{0}</p>", "{0}\n\n{0}"),
        ("{0}<br><br>{0}", "{0}\n\n{0}"),
        ("<div role=main><p>{0}</p></div><div><p>Imprint</p></div>", "{0}"),
        ("<div itemprop=articleBody><p>{0}</p></div><p>Short.</p>", "{0}"),
        ("<div id=comments><p>{0}</p></div>", "{0}"),
        ("<article><p>Teaser</p></article><div><p>{0}</p><p>{0}</p></div>", "{0}\n\n{0}"),
        ("<div><p>{0}</p><p hidden>Secret</p><p style='display: none'>Secret</p></div>", "{0}"),
        ("<form><div><p>{0}</p></div><input><button>Send</button></form>", "{0}"),
        ("<article><p>{0}</p><form>Subscribe</form><aside><p>A note.</p></aside></article>", "{0}\n\nA note."),
        ("<main><p>{0}</p></main><aside><p>About the author.</p></aside>", "{0}"),
        ("<table><tr><td><p>{0}</p><h2>Below</h2></td></tr></table>", "{0}\n\n## Below"),
    ],
)
def test_the_article_is_found_in_pages_of_all_kinds(body: str, kept: str) -> None:
    assert text(body.format(PROSE)) == kept.format(PROSE)


@pytest.mark.parametrize(
    ("code", "markdown"),
    [
        ("<pre>plain  text\n  kept</pre>", "```\nplain  text\n  kept\n```"),
        ("<pre data-lang=Rust><code>fn a() {}</code></pre>", "```rust\nfn a() {}\n```"),
        ("<div class='highlight-source-go'><pre>package a</pre></div>", "```go\npackage a\n```"),
        ("<pre>a<br>b</pre>", "```\na\nb\n```"),
        ("<pre><div>a</div><div>  b</div></pre>", "```\na\n  b\n```"),
        ("<pre>a ``` b</pre>", "````\na ``` b\n````"),
        ("<pre><span class=lineno>1</span>a = 1</pre>", "```\na = 1\n```"),
        (
            "<table class=rouge-table><tr><td class=gutter><pre>1\n2</pre></td><td><pre>a\nb</pre></td></tr></table>",
            "```\na\nb\n```",
        ),
        ("<pre> \n </pre><p>x</p>", "x"),
        ("<p><code>a `b` c</code></p>", "``a `b` c``"),
        ("<figure><pre><code>in a figure</code></pre></figure>", "```\nin a figure\n```"),
    ],
)
def test_code_is_kept_as_it_is(code: str, markdown: str) -> None:
    assert text(code) == markdown


@pytest.mark.parametrize(
    ("html", "markdown"),
    [
        ("<p>a <b> bold </b> word</p>", "a **bold** word"),
        ("<p>x <a href='javascript:alert(1)'>click</a></p>", "x click"),
        ("<p>x <a href='/a (b)'>link</a></p>", "x [link](https://blog.example.com/a%20%28b%29)"),
        ("<p>x <a href='http://[bad'>link</a></p>", "x link"),
        ("<dl><dt>Term</dt><dd>Meaning</dd></dl>", "**Term**\n\nMeaning"),
        ("<ul><li><p>a</p><p>b</p></li><li>c</li></ul>", "- a\n\n  b\n\n- c"),
        (
            "<p>x <span class=katex><math><annotation encoding='application/x-tex'>y^2</annotation></math></span></p>",
            "x $y^2$",
        ),
        ("<p>a&nbsp;b\n  c</p>", "a b c"),
        ("<p>x<img src='a.png' alt=''><img src='data:image/png;base64,AA' alt='b'></p>", "x"),
        ("<p>```not a fence</p>", "\\```not a fence"),
    ],
)
def test_marks_are_written_as_markdown(html: str, markdown: str) -> None:
    assert text(html) == markdown


def test_json_ld_says_title_author_and_date() -> None:
    said = """{"@graph": [{"@type": "WebSite", "name": "Blog"}, {"@type": ["BlogPosting"], "headline": "The title",
        "author": [{"name": "Ada"}, {"name": "Grace"}], "inLanguage": "de-AT",
        "datePublished": "2024-03-04T10:00:00+01:00"}]}"""
    head = f'<title>T | Blog</title><script type="application/ld+json">{said}</script>'
    reading = read_page(page(f"<p>{PROSE}</p>", head), ADDRESS, None)
    assert (reading.title, reading.author, reading.language) == ("The title", "Ada, Grace", "de")
    assert reading.published_at == datetime(2024, 3, 4, 9, tzinfo=UTC)


@pytest.mark.parametrize(
    ("head", "body", "expected"),
    [
        (
            "<meta property=article:author content=https://example.com/ada><meta name=author content=Ada>",
            "",
            ("Ada", None),
        ),
        ("", "<p class=by>By <a rel=author href=/ada>Ada</a></p>", ("Ada", None)),
        ("<meta name=date content=2024-03-04>", "", (None, datetime(2024, 3, 4, tzinfo=UTC))),
        ("", "<time datetime=2024-03-04>4 March</time>", (None, datetime(2024, 3, 4, tzinfo=UTC))),
        ("<meta name=date content='last week'>", "", (None, None)),
        ("<script type=application/ld+json>{broken</script>", "", (None, None)),
        ("<script type=application/ld+json>[[[7, null]]]</script>", "", (None, None)),
    ],
)
def test_author_and_date_are_found_where_pages_put_them(
    head: str, body: str, expected: tuple[str | None, datetime | None]
) -> None:
    reading = read_page(page(f"<article><p>{PROSE}</p>{body}</article>", head), ADDRESS, None)
    assert (reading.author, reading.published_at) == expected


def test_an_element_of_attributes_beyond_reason_is_refused_at_once() -> None:
    attributes = " ".join(f'a{number}="x y"' for number in range(200_000))
    with pytest.raises(Unreadable, match="attributes"):
        read_page(f"<article><p {attributes}>{PROSE}</p></article>".encode(), ADDRESS, None)


def test_one_long_attribute_is_no_reason_to_refuse_a_page() -> None:
    page = f"<article><p>{PROSE}</p><img src='data:image/png;base64,{'A' * 50_000}' alt='{'a b ' * 20_000}'></article>"
    assert PROSE in read_page(page.encode(), ADDRESS, None).text


def test_a_page_nested_beyond_reason_is_refused() -> None:
    for tag in ("div", "blockquote", "b", "ul><li"):
        with pytest.raises(Unreadable, match="is nested too deeply"):
            text(f"<p>{PROSE}</p>" + f"<{tag}>" * 5_000 + PROSE)


@pytest.mark.parametrize("tag", ["div", "blockquote", "b", "ul><li", "table><tr><td", "pre"])
def test_a_page_nested_as_deep_as_the_parser_goes_is_read(tag: str) -> None:
    depth = 240 // len(tag.split("><"))
    assert PROSE in text(f"<{tag}>" * depth + PROSE).replace("\n", " ")


@settings(deadline=None, max_examples=150)
@given(st.text(st.sampled_from("<>/ ab\"'=&;#x\n`*[]()!-") | st.characters(codec="utf-8"), max_size=200))
def test_whatever_a_page_holds_is_read_or_refused(body: str) -> None:
    try:
        reading = read_page(f"<p>{body}</p>".encode(), ADDRESS, "utf-8")
    except Unreadable:
        return
    assert reading.text == reading.text.strip()


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.recursive(
            st.sampled_from(["word", "a < b", "`", "<br>", "<img alt=a src=b>", "x" * 30]),
            lambda inner: st.builds(
                lambda tag, parts: f"<{tag}>{''.join(parts)}</{tag}>",
                st.sampled_from(
                    ["p", "div", "ul", "li", "pre", "code", "a href=/x", "b", "table", "tr", "td", "h2", "blockquote"]
                ),
                st.lists(inner, max_size=4),
            ),
            max_leaves=20,
        ),
        max_size=5,
    )
)
def test_no_word_of_an_article_is_lost(parts: list[str]) -> None:
    body = "".join(parts).replace("</a href=/x>", "</a>")
    article = f"<article><p>{PROSE * 20}</p>{body}</article>"
    assert text(article).count("word") == body.count("word")
