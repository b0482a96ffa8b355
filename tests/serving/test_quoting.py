"""Sentences are cut where a reader would cut them, and the ones that answer are chosen."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.quoting import (
    MAX_QUOTE,
    Span,
    content_terms,
    coverage,
    is_table,
    joined,
    lacks_its_kind,
    rarities,
    same_paragraph,
    selected,
    sentences,
    spelled,
    table_head,
    terms,
    with_block,
)

MARKDOWN = st.lists(
    st.sampled_from(
        [
            "# Head\n",
            "\n",
            "A sentence. ",
            "Another one!\n",
            "- item\n",
            "```\n",
            "code.x = 1\n",
            "| a | b |\n",
            "|---|---|\n",
            "“Said.” ",
        ]
    )
    | st.text(max_size=40),
    max_size=30,
).map("".join)


def cut(text: str) -> list[str]:
    return [text[span.start : span.end] for span in sentences(text)]


def test_prose_is_cut_at_sentences_and_never_at_abbreviations() -> None:
    text = "Lamps burn oil, e.g. Colza. Dr. Hale lit them at 4.5 metres!  “Why?” he asked. Nobody\nknew."
    assert cut(text) == [
        "Lamps burn oil, e.g. Colza.",
        "Dr. Hale lit them at 4.5 metres!",
        "“Why?” he asked.",
        "Nobody\nknew.",
    ]


def test_headings_and_rules_are_no_sentences_and_list_items_stand_alone() -> None:
    assert cut("# Title\n\nFirst.\n\n---\n- one item\n- another item\n1. third") == [
        "First.",
        "one item",
        "another item",
        "third",
    ]


TABLE = "| Lamp | Oil |\n|------|-----|\n| tower | colza |\n| pier | whale |"


def test_a_table_is_one_piece_that_is_no_prose() -> None:
    text = f"Lamps burn oil. See:\n{TABLE}\nNobody knew."
    assert [(text[span.start : span.end], span.prose) for span in sentences(text)] == [
        ("Lamps burn oil.", True),
        ("See:", True),
        (TABLE, False),
        ("Nobody knew.", True),
    ]


def test_a_long_table_is_cut_between_its_rows_and_each_piece_knows_its_head() -> None:
    rows = "".join(f"| tower {number} | colza. From Brittany |\n" for number in range(100))
    text = f"Before.\n\n| Lamp | Oil |\n|---|---|\n{rows}\nAfter."
    pieces = [span for span in sentences(text) if not span.prose]
    assert len(pieces) > 2
    assert all(is_table(text[span.start : span.end]) for span in pieces)
    assert table_head(text, pieces[0].start) == ""
    assert table_head(text, pieces[1].start) == "| Lamp | Oil |\n|---|---|\n"
    assert "".join(text[span.start : span.end] for span in pieces).count("tower") == 100


@pytest.mark.parametrize(
    ("block", "behind"),
    [
        ("\n\n```sql\nSELECT 1;\n\nSELECT 2;\n```", "\n\nAfter."),
        (f"\n{TABLE}", "\nAfter."),
        ("\n\n- one,\n  and more\n- two", "\n\nAfter."),
        ("\n\n1. one\n\n2. two", "\n\n# Head"),
        ("\n- one\n- two", ""),
    ],
)
def test_a_line_ending_in_a_colon_belongs_with_the_block_that_it_announces(block: str, behind: str) -> None:
    text = f"Lamps burn. Look at these:{block}{behind}"
    whole = with_block(text, sentences(text)[1])
    assert text[whole.start : whole.end] == f"Look at these:{block}"


@pytest.mark.parametrize(
    "behind", ["", "\n\nA paragraph.", "\n\n# Head\n\n- one", "\n\n- " + "word " * 200, "\n```\nopen"]
)
def test_a_line_ending_in_a_colon_stands_alone_where_no_block_follows_that_fits(behind: str) -> None:
    text = f"Look at these:{behind}"
    span = sentences(text)[0]
    assert with_block(text, span) == span


@given(MARKDOWN)
@settings(deadline=None)
def test_a_line_and_its_block_are_a_stretch_that_fits(text: str) -> None:
    for span in sentences(text):
        whole = with_block(text, span)
        assert whole.start == span.start
        assert span.end <= whole.end <= span.start + MAX_QUOTE


def test_sentences_of_one_paragraph_are_joined_and_others_are_not() -> None:
    text = "Lamps burn oil. It comes\nfrom afar.\n\nNobody knew.\n- one\n- two"
    first, second, third, one, two = sentences(text)
    assert joined(text, second, first) == Span(first.start, second.end)
    assert joined(text, Span(first.start, second.end), second) == Span(first.start, second.end)
    assert not any(same_paragraph(text, *pair) for pair in [(second, first), (second, third), (third, one), (one, two)])
    assert joined(text, second, third) is None


@pytest.mark.parametrize(
    ("question", "lacking", "having"),
    [
        ("Why did it stop?", "It stopped in May.", "It stopped because a lamp broke."),
        ("When did it stop?", "It stopped at night.", "It stopped on 3 May."),
        ("How long is the pause?", "There is a pause.", "It lasts twenty minutes."),
        ("What does a lamp cost?", "Lamps cost money.", "Lamps cost 4 euros."),
    ],
)
def test_a_sentence_lacks_what_is_asked_for_or_has_it(question: str, lacking: str, having: str) -> None:
    assert lacks_its_kind(question, lacking)
    assert not lacks_its_kind(question, having)
    assert not lacks_its_kind("How do lamps burn?", lacking)


def test_a_long_word_that_is_nearly_a_known_one_is_taken_for_it() -> None:
    known = {"tombston", "retention", "layer", "bread"}
    assert [spelled(word, known) for word in ("tombstoen", "retension", "tombston")] == [
        *("tombston", "retention", "tombston")
    ]
    assert [spelled(word, known) for word in ("lawyer", "breed", "university")] == ["lawyer", "breed", "university"]


@given(st.integers(0, len(TABLE)), st.integers(0, len(TABLE)))
@settings(deadline=None)
def test_a_passage_that_begins_or_ends_within_a_row_quotes_whole_rows_only(start: int, end: int) -> None:
    rows = TABLE.split("\n")
    pieces = [TABLE[span.start : span.end] for span in sentences(TABLE, start, max(start, end))]
    assert {line for piece in pieces for line in piece.split("\n")} <= set(rows)


def test_code_is_kept_whole() -> None:
    assert cut("Run it:\n\n```python\nx = f(1). Y = 2\n\nz = 3\n```\n\nDone.") == [
        "Run it:",
        "x = f(1). Y = 2\n\nz = 3",
        "Done.",
    ]


def test_a_docstring_is_quoted_without_its_quotes() -> None:
    assert cut('"""Keep the newest row. Drop the others."""') == ["Keep the newest row.", "Drop the others."]
    assert cut('"""Retry.\n\nWith jitter.\n"""') == ["Retry.", "With jitter."]
    assert cut('"""Retry.""" import time') == ['"""Retry.""" import time']


@given(MARKDOWN, st.integers(0, 50))
@settings(deadline=None)
def test_spans_are_ordered_disjoint_trimmed_and_within_the_limits(text: str, start: int) -> None:
    start = min(start, len(text))
    spans = sentences(text, start)
    assert all(span.start >= start and 0 < span.end - span.start <= MAX_QUOTE for span in spans)
    assert all(text[span.start : span.end] == text[span.start : span.end].strip() for span in spans)
    assert all(before.end <= after.start for before, after in pairwise(spans))


def test_a_sentence_longer_than_a_quotation_is_cut_between_words() -> None:
    text = "word " * 400
    pieces = cut(text)
    assert len(pieces) > 1
    assert " ".join(pieces).split() == text.split()


def test_a_long_run_of_glued_sentences_is_cut_and_a_dotted_name_is_not() -> None:
    text = "It keeps our data.Why Mongo?We wanted a store that takes any shape of text " + "and more " * 30 + "in it."
    assert cut(text)[:2] == ["It keeps our data.", "Why Mongo?"]
    assert cut("Use torch.Tensor here.") == ["Use torch.Tensor here."]


def test_words_compare_without_case_and_common_endings() -> None:
    assert terms("Stations reported") == terms("station reports")
    assert terms("PAUSE_SECONDS") == terms("pause second")
    assert list(content_terms("What does the ZQbacedi station report?")) == ["zqbacedi", "station", "report"]


@given(st.text("bcdfg", min_size=4, max_size=8), st.lists(st.text("hijkl ", min_size=1), min_size=1, max_size=12))
@settings(deadline=None)
def test_the_sentence_with_the_rare_word_of_the_question_is_always_chosen(rare: str, others: list[str]) -> None:
    texts = [f"the station {other} reports" for other in others]
    texts.insert(len(texts) // 2, f"the zq{rare} station says little")
    held_terms = [terms(text) for text in texts]
    asked = list(content_terms(f"What does the zq{rare} station report?"))
    rarity = rarities(held_terms)
    scores = [coverage(asked, words, (), rarity) for words in held_terms]
    held = [frozenset(asked) & frozenset(words) for words in held_terms]
    chosen = selected(scores, held, rarity, 3)
    assert texts.index(f"the zq{rare} station says little") in chosen


def test_coverage_is_a_share_that_an_unknown_word_keeps_low() -> None:
    documents = [terms("the station reports rain"), terms("the station reports sun"), terms("nothing else")]
    rarity = rarities(documents)
    assert coverage(terms("station reports rain"), documents[0], (), rarity) == 1.0
    assert coverage(["zqnowhere", *terms("station reports")], documents[0], (), rarity) < 0.6
