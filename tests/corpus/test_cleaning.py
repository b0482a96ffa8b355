"""What cleaning keeps of an author's text, and what it takes away of the page around it."""

import json
import os
import subprocess
import sys
import textwrap
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from corpus.cleaning import clean_article, clean_code, clean_post

HANDBOOK = Path(__file__).parents[3] / "shared/data/handbook/articles.json"
CLEANERS = [clean_article, clean_post, clean_code]

SHARE = "\n\n".join(
    [
        "Share this post",
        "#### The tide tables",
        "harbour.example.com",
        "Copy link",
        "Facebook",
        "Email",
        "Note",
        "Other\n",
    ]
)
# What a converter puts before a block of code.
GAP = "    \n    "
NEWSLETTER = f"""# The Harbour Letter

SubscribeSign in

{SHARE}
# The tide tables

### How a small port keeps time

Ada Keeper

Mar 3, 2024

14

{SHARE}
Share

Every morning at six the harbour master reads the gauge at the end of the old
pier and writes the figure into a book that is older than the pier itself.

Image by author

The Harbour Letter is a reader-supported publication. To receive new posts, subscribe.

Subscribe

{GAP}
    def tide(hour):
        return 3.2 * hour   # metres

Facebook and email are not how a tide is announced here.

#### Images

If not otherwise stated, all images are created by the author.

14

{SHARE}
Share

PreviousNext

#### Discussion about this post

Comments

Restacks

| A ReaderMar 4Liked by Ada KeeperWhat a lovely letter!Expand full
commentReplyShare
---|---

Top

Latest

Discussions

No posts

Ready for more?

Subscribe

© 2024 Ada Keeper

Privacy ∙ Terms ∙ Collection notice

Start WritingGet the app

Substack is the home for great culture

This site requires JavaScript to run correctly. Please turn on JavaScript or
unblock scripts
"""

SITE = f"""Ada Keeper

  * __Course
  * __About

  * __
  * __

  1. Tides
  2. Tables

# Reading a tide table

A guide for beginners

Harbours

Author

Ada Keeper

Published

March 3, 2024

  * **Tides** __

    * Reading a tide table

    * Neap and spring

  * * * *

  * **Winds** __

    * The Beaufort scale

## **Sections**

  * Columns
  * Rows

## Columns

Each column is a day.

{GAP}
    print("high water")__

## Rows

  * morning
  * evening

__Copyright 2023, Ada Keeper
"""

RUN_TOGETHER = (
    "Tide Tables | Harbour NotesOpen in appSign upSign inWriteSign upSign inTop highlightTide Tables for AllHow to "
    "read one.Ada Keeper·FollowPublished inHarbour Notes·16 min read·Mar 16, 20242.1K13ListenShareThe sea rises twice "
    "a day.Nobody knows it better than Ada.Sign up to discover human stories that deepen your understanding of the "
    "world.FreeMore from Ada KeeperTo make Medium work, we log user data. By using Medium, you agree to our Policy."
)


class TestTheAuthorsText:
    def test_case_headings_lists_links_and_emphasis_stay(self) -> None:
        text = (
            "# A Title\n\nSome **bold** and _fine_ words, with a [link](https://example.com/a).\n\n"
            "- first\n- second\n  - nested\n\n1. One\n2. Two\n\n> quoted\n> twice\n\n"
            "| a | b |\n|---|---|\n| 1 | 2 |\n\n---\n\nEnd."
        )
        assert clean_article(text) == text

    def test_a_paragraph_wrapped_for_a_terminal_flows_again(self) -> None:
        paragraph = (
            "The keeper of the light had counted ships for thirty years and could name the owner of each by the sound "
            "of its engine, a long-lasting reputation, before- and afterwards, in a town as small as this one is."
        )
        wrapped = "\n".join(textwrap.wrap(paragraph, 66))
        assert "long-\nlasting" in wrapped
        assert clean_article(f"{wrapped}\n\nAnother paragraph.") == f"{paragraph}\n\nAnother paragraph."

    @pytest.mark.parametrize(
        "text",
        [
            "Roses are red\nviolets are blue\nthe harbour is grey\nand so are you",
            "Dear readers,\nthank you for a year of letters, and for every one of your answers to them.\nAda",
            "A line that ends with a break  \nand goes on below.",
            "- an item that is quite long and was wrapped by its author at about eighty columns\n  of text\n- another",
        ],
    )
    def test_line_breaks_that_an_author_chose_stay(self, text: str) -> None:
        assert clean_article(text) == text

    def test_fenced_code_is_kept_letter_for_letter(self) -> None:
        code = "```python\ndef  f( x ):\n\n\n\treturn  '𝐛𝐨𝐥𝐝 ﬁ\u00a0'   \n```"
        assert clean_article(f"Before.\n\n{code}\n\nAfter.") == f"Before.\n\n{code}\n\nAfter."

    def test_indented_code_keeps_its_spaces_and_blank_lines(self) -> None:
        text = "Run:\n\n    for  i in x:\n\n\n        print( i )\n\nDone."
        assert clean_article(text) == text

    def test_letters_in_fancy_dress_become_plain_ones(self) -> None:
        assert clean_article("𝗗𝗲𝗽𝗹𝗼𝘆 𝘵𝘩𝘦 𝙼𝚘𝚍𝚎𝚕 𝟭𝟮, ﬁrst eﬀort, 𝑤ℎ𝑎𝑡") == "Deploy the Model 12, first effort, what"

    def test_signs_and_scripts_that_mean_something_stay(self) -> None:
        text = "x ∈ ℝ, Ω, ℹ, ½, ™, 😀👩‍💻, نمی‌خواهم, 漢字，カナ, æ œ ß, e.g. naïve"
        assert clean_article(text) == text

    def test_invisible_characters_and_odd_spaces_go(self) -> None:
        assert (
            clean_article("so\u00adft\u200b and\u00a0hard \u202f\u2003space\u2060s\u200d \ufeffhere")
            == "soft and hard spaces here"
        )

    def test_accents_are_composed(self) -> None:
        assert clean_article("cafe\u0301") == "café"

    def test_quotation_marks_of_a_windows_text_are_mended(self) -> None:
        assert clean_article("It\x92s \x93fine\x94, she said.") == "It’s “fine”, she said."

    def test_every_kind_of_line_end_is_one_newline(self) -> None:
        assert clean_code("a\r\nb\rc\n") == "a\nb\nc"
        assert clean_post("a\r\nb") == "a\nb"

    def test_a_post_keeps_each_of_its_lines(self) -> None:
        text = "𝗧𝗵𝗿𝗲𝗲 things that I learned at sea, and why they matter for software\n↓\n1. Wait\n\n\n2. Listen"
        assert clean_post(text) == (
            "Three things that I learned at sea, and why they matter for software\n↓\n1. Wait\n\n2. Listen"
        )

    def test_code_keeps_tabs_spaces_and_blank_lines(self) -> None:
        source = "\tif x:\n\n\n\t\treturn  '𝐛'  # ﬁ\n"
        assert clean_code(source) == source.rstrip("\n")

    @pytest.mark.parametrize("clean", CLEANERS)
    def test_lone_surrogates_become_replacement_characters(self, clean) -> None:
        assert clean("a\ud800b") == "a\ufffdb"

    @pytest.mark.parametrize("clean", CLEANERS)
    @pytest.mark.parametrize("text", ["", " ", "\n\n", "\x00", "\ufeff"])
    def test_nothing_stays_nothing(self, clean, text: str) -> None:
        assert clean(text) == ""


class TestThePageAround:
    def test_a_newsletter_keeps_title_subtitle_text_and_code_only(self) -> None:
        assert clean_article(NEWSLETTER) == (
            "# The tide tables\n\n### How a small port keeps time\n\n"
            "Every morning at six the harbour master reads the gauge at the end of the old pier and writes the figure "
            "into a book that is older than the pier itself.\n\n"
            "    def tide(hour):\n        return 3.2 * hour   # metres\n\n"
            "Facebook and email are not how a tide is announced here."
        )

    def test_the_words_that_begin_a_pages_end_do_not_cut_off_an_article_that_uses_them(self) -> None:
        own = "#### Discussion about this post\n\nwas lively.\n\nReady for more?\n\nThe neap tide comes next."
        text = NEWSLETTER.replace("Facebook and email are not how", f"{own}\n\nFacebook and email are not how")
        assert own in clean_article(text)
        assert clean_article(text).endswith("announced here.")

    def test_a_generated_site_loses_its_navigation_and_keeps_the_authors_lists(self) -> None:
        assert clean_article(SITE) == (
            "# Reading a tide table\n\nA guide for beginners\n\n## Columns\n\nEach column is a day.\n\n"
            '    print("high water")\n\n## Rows\n\n  * morning\n  * evening'
        )

    def test_a_page_that_was_run_together_loses_its_head_and_end(self) -> None:
        assert clean_article(RUN_TOGETHER) == (
            "Tide Tables for AllHow to read one.\n\nThe sea rises twice a day.Nobody knows it better than Ada."
        )

    @pytest.mark.parametrize(
        "paragraph",
        [
            "Subscribe",
            "Share",
            "Facebook\n\nis where we met.",
            "We use cookies in this chapter to explain sessions.",
            "Image by image, the model learns what a ship is.",
            "Comments\n\nare a smell.",
            "Ready for more?\n\nRead on.",
            "Sign up to discover human stories that deepen your understanding of the world.",
            "#### Discussion about this post\n\nIt was long.",
            "Copyright law is hard. It took years.",
            "## Sections\n\n- of the report\n- of the law",
            "Author\n\nAda\n\nPublished\n\n2024",
            "Mar 3, 2024\n\n14",
        ],
    )
    def test_words_of_a_page_in_an_authors_text_stay(self, paragraph: str) -> None:
        text = f"# Title\n\nFirst.\n\n{paragraph}\n\nLast."
        assert clean_article(text) == text

    def test_empty_headings_and_links_go(self) -> None:
        assert clean_article("#\n\nText [](https://example.com/anchor) here.\n\n##") == "Text here."


FRAGMENTS = st.sampled_from(
    [
        *NEWSLETTER.split("\n\n"),
        *SITE.split("\n\n"),
        RUN_TOGETHER,
        "```",
        "    code",
        "\n",
        "  \n",
        "a line  ",
        "# H",
        "* item",
        "---",
    ]
)
WRAPPED = st.lists(st.text("ab -.", min_size=1, max_size=90), max_size=6).map("\n".join)
SEPARATED = st.tuples(st.one_of(FRAGMENTS, WRAPPED, st.text(max_size=60)), st.sampled_from(["\n\n", "\n", "  \n", " "]))
PAGES = st.lists(SEPARATED, max_size=14).map(lambda parts: "".join(text + separator for text, separator in parts))
ANYTHING = st.one_of(PAGES, st.text(st.characters(codec=None), max_size=300))


@pytest.mark.parametrize("clean", CLEANERS)
@given(text=ANYTHING)
@example(text="e\u200d\u0301\u200d")
@example(text="* a\n\nImage by author\n\n    x  =  1")
@settings(deadline=None, max_examples=200)
def test_cleaning_takes_any_text_and_a_second_time_changes_nothing(clean, text: str) -> None:
    once = clean(text)
    assert clean(once) == once
    once.encode()


@given(
    words=st.lists(st.text("abcdefgh", min_size=1, max_size=12), min_size=1, max_size=60), width=st.integers(60, 100)
)
@settings(deadline=None)
def test_wrapping_never_loses_or_glues_words(words: list[str], width: int) -> None:
    wrapped = "\n".join(textwrap.wrap(" ".join(words), width))
    assert clean_article(wrapped).split() == words


@given(text=st.text(st.characters(categories=["Lu", "Ll", "Nd", "Zs", "Po"]), max_size=200))
@settings(deadline=None)
def test_plain_prose_loses_no_letter(text: str) -> None:
    kept = unicodedata.normalize("NFKC", "".join(clean_post(text).split()))
    assert sum(map(str.isalnum, kept)) == sum(map(str.isalnum, unicodedata.normalize("NFKC", "".join(text.split()))))


@pytest.mark.parametrize(
    "text",
    [
        "a" * 8_000_000,
        "[" * 1_000_000 + "](" * 500_000,
        " " * 4_000_000 + "\u00a0" * 2_000_000,
        "*_" * 2_000_000,
        "`" * 4_000_000,
        "ℝ" * 2_000_000,
        "\u200d" * 2_000_000,
        "Image by " * 200_000,
        "Copy link\n\nFacebook\n\n" * 10_000,
        "a line of about forty characters, wrapped\n" * 40_000,
        "a\n\n" * 25_000,
    ],
    ids=lambda text: repr(text[:12]),
)
def test_the_largest_text_comes_to_its_end(text: str) -> None:
    # A rule that backtracks would be at it for hours; and what is left is clean: cleaning it again changes nothing.
    cleaned = clean_article(text)
    assert clean_article(cleaned) == cleaned


@pytest.mark.parametrize(
    ("text", "imported"), [("𝗔 text ﬁt to read", False), ("A \x93misread\x94 text", True)], ids=["sound", "misread"]
)
def test_only_texts_with_the_fault_pay_for_unstructured_and_nothing_connects(text: str, imported: bool) -> None:
    program = f"""
import sys
seen = []
sys.addaudithook(lambda event, _: seen.append(event) if event in ("socket.connect", "subprocess.Popen") else None)
from corpus.cleaning import clean_article
clean_article({text!r})
print(seen, "unstructured" in sys.modules)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == f"[] {imported}"


class TestTheHandbook:
    @pytest.fixture(scope="class")
    @staticmethod
    def articles() -> list[dict]:
        if not HANDBOOK.exists():
            pytest.skip("the export of real articles is not here")
        return [record["content"] for record in json.loads(HANDBOOK.read_bytes())]

    def test_nothing_of_the_pages_is_left(self, articles: list[dict]) -> None:
        left = [
            (article["Title"], line)
            for article in articles
            for line in clean_article(article["Content"]).split("\n")
            if line.strip()
            in {"Copy link", "Share this post", "SubscribeSign in", "Ready for more?", "Restacks", "Image by author"}
            or "This site requires JavaScript" in line
            or "Sign upSign in" in line
            or "we log user data" in line
            or line.startswith("  * __")
        ]
        assert left == []

    def test_what_the_authors_wrote_is_there(self, articles: list[dict]) -> None:
        kept = [len(clean_article(article["Content"])) / len(article["Content"]) for article in articles]
        # The shortest newsletter is a third page furniture; the handbook as a whole is a tenth.
        assert min(kept) > 0.6
        assert sum(len(clean_article(article["Content"])) for article in articles) > 920_000

    def test_cleaning_again_changes_nothing(self, articles: list[dict]) -> None:
        for article in articles:
            once = clean_article(article["Content"])
            assert clean_article(once) == once
