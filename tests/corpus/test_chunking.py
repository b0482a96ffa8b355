"""Where texts are cut, what a chunk promises, and what an edit leaves alone."""

import random
import re
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus.chunking import TARGET, TokenSpans, split, split_code
from corpus.documents import Chunk
from corpus.embedding import Embedder

NOUNS = ["harbour", "signal", "river", "copper", "meadow", "lantern", "granite", "orchard", "compass", "winter"]


def sentence(source: random.Random, words: int = 14) -> str:
    return " ".join(source.choice(NOUNS) for _ in range(words)).capitalize() + "."


def paragraph(source: random.Random, sentences: int) -> str:
    return " ".join(sentence(source, source.randint(6, 20)) for _ in range(sentences))


def article(source: random.Random, sections: int) -> str:
    parts = [f"# Notes on {source.choice(NOUNS)}"]
    for number in range(1, sections + 1):
        parts.append(f"## Section {number}")
        parts.extend(paragraph(source, source.randint(1, 9)) for _ in range(source.randint(1, 6)))
    return "\n\n".join(parts)


def assert_sound(text: str, chunks: list[Chunk], tokenizer: TokenSpans, most: int | None = None) -> None:
    """Chunks are exact, ordered, apart, within the window, and leave out nothing but whitespace."""
    end = 0
    for position, chunk in enumerate(chunks):
        assert chunk.position == position
        assert chunk.text == text[chunk.start : chunk.end]
        assert chunk.text.strip()
        assert text[end : chunk.start].strip() == ""
        assert chunk.start >= end
        end = chunk.end
    assert text[end:].strip() == ""
    counts = tokenizer.count_tokens([chunk.text for chunk in chunks])
    assert max(counts, default=0) <= (most or tokenizer.max_tokens)


class TestStructure:
    def test_a_short_text_is_one_chunk(self, words) -> None:
        assert [chunk.text for chunk in split("\n\nA short text.\n\nOf two paragraphs.\n", words)] == [
            "A short text.\n\nOf two paragraphs."
        ]

    @pytest.mark.parametrize("text", ["", " \n\n\t "])
    def test_nothing_has_no_chunk(self, words, text: str) -> None:
        assert split(text, words) == []
        assert split_code(text, words) == []

    def test_each_section_is_a_chunk_with_the_headings_above_it(self, words) -> None:
        body = paragraph(random.Random(1), 6)
        text = f"# Book\n\n## One\n\n{body}\n\n### Deeper\n\n{body}\n\n## Two\n\n{body}"
        assert [chunk.heading_path for chunk in split(text, words)] == [
            ("Book", "One"),
            ("Book", "One", "Deeper"),
            ("Book", "Two"),
        ]

    def test_a_heading_stays_with_the_text_below_it(self, words) -> None:
        text = article(random.Random(2), 12)
        assert not [chunk for chunk in split(text, words) if re.search(r"(^|\n)#+ [^\n]*$", chunk.text)]

    def test_tiny_sections_join_a_neighbour(self, words) -> None:
        text = "\n\n".join(f"## Question {number}\n\nA short answer." for number in range(40))
        sizes = words.count_tokens([chunk.text for chunk in split(text, words)])
        assert min(sizes) >= 20
        assert max(sizes) <= TARGET

    def test_underlined_headings_count_and_their_markup_does_not(self, words) -> None:
        body = paragraph(random.Random(3), 6)
        text = f"The **Book**\n===\n\n{body}\n\nOne `part`\n---\n\n{body}"
        assert [chunk.heading_path for chunk in split(text, words)] == [("The Book",), ("The Book", "One part")]

    def test_comments_in_code_are_no_headings(self, words) -> None:
        text = "# Real\n\n```python\n# not one\nx = 1\n```\n\n    # nor this\n\nText."
        assert {chunk.heading_path for chunk in split(text, words)} == {("Real",)}

    def test_long_paragraphs_are_cut_between_sentences(self, words) -> None:
        chunks = split(paragraph(random.Random(4), 60), words)
        assert len(chunks) > 2
        assert all(chunk.text.endswith(".") for chunk in chunks)

    def test_an_abbreviation_ends_no_sentence(self, words) -> None:
        text = "Ask Dr. Keeper or e.g. Mr. Light about it. " * 60
        assert all(chunk.text.endswith("it.") for chunk in split(text, words))

    def test_paragraphs_are_preferred_to_sentences(self, words) -> None:
        source = random.Random(5)
        text = "\n\n".join(paragraph(source, 5) for _ in range(12))
        assert all(chunk.start == 0 or text[: chunk.start].endswith("\n\n") for chunk in split(text, words))

    def test_a_block_of_code_that_fits_is_not_cut(self, words) -> None:
        code = "```python\n" + "\n".join(f"value_{n} = compute({n})" for n in range(15)) + "\n```"
        prose = paragraph(random.Random(6), 8)
        assert any(code in chunk.text for chunk in split(f"{prose}\n\n{code}\n\n{prose}", words))

    def test_a_lead_in_stays_with_its_list(self, words) -> None:
        source = random.Random(7)
        items = "\n".join(f"- {sentence(source)}" for _ in range(6))
        text = f"{paragraph(source, 9)}\n\nRemember these:\n\n{items}\n\n{paragraph(source, 9)}"
        assert not any(chunk.text.endswith("these:") for chunk in split(text, words))


class TestCode:
    SOURCE = "\n\n\n".join(
        f'class Index{n}:\n    """Keeps {n}."""\n\n'
        + "\n\n".join(
            f"    @cached\n    def method_{m}(self, value):\n"
            + "\n".join(f"        self.total_{k} += value * {k}  # step {k}" for k in range(7))
            + "\n        return self"
            for m in range(4)
        )
        for n in range(3)
    )

    def test_it_is_cut_between_definitions(self, words) -> None:
        starts = {chunk.text.strip().split(None, 1)[0] for chunk in split_code(self.SOURCE, words)}
        assert starts <= {"class", "@cached"}

    def test_a_chunk_keeps_its_indentation_and_names_what_encloses_it(self, words) -> None:
        inner = [chunk for chunk in split_code(self.SOURCE, words) if "@cached" in chunk.text[:20]]
        assert inner
        for chunk in inner:
            assert chunk.text.startswith("    @cached")
            assert len(chunk.heading_path) == 1
            assert re.fullmatch(r"class Index\d:", chunk.heading_path[0])

    def test_any_language_will_do(self, words) -> None:
        function = "func Add{0}(a int, b int) int {{\n\tif a > {0} {{\n\t\treturn a\n\t}}\n\treturn a + b + {0}\n}}\n"
        text = "package main\n\n" + "\n".join(function.format(n) for n in range(30))
        chunks = split_code(text, words)
        assert_sound(text, chunks, words)
        assert all(chunk.text.startswith(("func", "package")) for chunk in chunks)


LINES = st.one_of(
    st.sampled_from(
        ["# A", "## B", "### C", "", "", "```", "~~~", "    code = 1", "- item", "1. one", "| a | b |", "---", "> q"]
    ),
    st.text(st.sampled_from("ab .!?。漢é\u0301\u200d😀\ud800\t\u00a0()[]_*#`"), max_size=120),
    st.sampled_from(NOUNS).map(lambda noun: f"{noun} " * 40),
    st.integers(0, 900).map(lambda length: "x" * length),
)
TEXTS = st.lists(LINES, max_size=60).map("\n".join)


@given(text=TEXTS, window=st.integers(8, 256), cut=st.sampled_from([split, split_code]))
@settings(deadline=None, max_examples=300)
def test_chunks_are_exact_ordered_complete_and_within_the_window(words, text: str, window: int, cut) -> None:
    assert_sound(text, cut(text, words, window), words, window)


@given(text=TEXTS)
@settings(deadline=None, max_examples=100)
def test_the_models_own_tokenizer_never_counts_more_than_its_window(embedder: Embedder, text: str) -> None:
    assert_sound(text, split(text, embedder), embedder)


@pytest.mark.parametrize(
    "text",
    [
        "QUJDRA+/x9z" * 2000,
        "漢字仮名" * 3000,
        "a" * 20_000,
        "{a:1,b:[2,3]};" * 2000,
        "\u0e01\u0e33" * 5000,
        "😀" * 5000,
    ],
    ids=lambda text: text[:6],
)
def test_a_run_without_spaces_is_cut_within_the_window(embedder: Embedder, text: str) -> None:
    chunks = split(text, embedder)
    assert_sound(text, chunks, embedder)
    assert max(len(chunk.text) for chunk in chunks) <= 256 * 40


@lru_cache(maxsize=2)
def texts_of(text: str, tokenizer: TokenSpans) -> frozenset[str]:
    """Of a text that is compared with one edit after another, cut once."""
    return frozenset(chunk.text for chunk in split(text, tokenizer))


class TestEdits:
    @staticmethod
    def replaced(text: str, edited: str, tokenizer: TokenSpans) -> int:
        return len(texts_of(text, tokenizer) - texts_of(edited, tokenizer))

    def test_a_new_word_in_a_section_replaces_the_sections_chunk_only(self, embedder: Embedder) -> None:
        source = random.Random(8)
        words = [f"zq{''.join(source.sample('bdfklmnprtaeiou', 8))}" for _ in range(10)]
        bodies = (" ".join(source.choice(NOUNS) for _ in range(60)) for _ in words)
        text = "# Notes on charlie\n\n" + "\n".join(
            f"## Section {number}\n\nThe {word} station reports that {body}.\n"
            for number, (word, body) in enumerate(zip(words, bodies, strict=True), 1)
        )
        assert [self.replaced(text, text.replace(word, "zqnewabide"), embedder) for word in words] == [1] * 10

    @pytest.mark.parametrize("seed", range(6))
    def test_an_edit_of_a_word_seldom_reaches_a_third_chunk(self, embedder: Embedder, seed: int) -> None:
        source = random.Random(seed)
        text = article(source, 12)
        places = [match.span() for match in re.finditer(r"[a-z]{4,}", text)]
        counts = []
        for start, end in source.sample(places, 40):
            counts.append(self.replaced(text, f"{text[:start]}lighthouse{text[end:]}", embedder))
        assert len(split(text, embedder)) > 10
        assert sum(count > 2 for count in counts) <= 1, counts
        assert max(counts) <= 4, counts

    def test_a_paragraph_put_in_front_leaves_the_rest_alone(self, embedder: Embedder) -> None:
        source = random.Random(9)
        text = "\n\n".join(paragraph(source, 4) for _ in range(60))
        chunks = len(split(text, embedder))
        assert self.replaced(text, f"{paragraph(source, 4)}\n\n{text}", embedder) <= 2 < chunks / 5


@pytest.mark.parametrize(
    "unit",
    ["This is a plain sentence of some ten words or so. ", "a\n\n", "x" * 50 + "\n", "word ", "## H\n\ntext\n\n"],
    ids=repr,
)
def test_work_grows_with_the_length_only(words, monkeypatch: pytest.MonkeyPatch, unit: str) -> None:
    read: list[int] = []
    spans = type(words).token_spans
    monkeypatch.setattr(type(words), "token_spans", lambda self, text: read.append(len(text)) or spans(self, text))

    def tokenised(length: int) -> int:
        read.clear()
        text = unit * (length // len(unit))
        chunks = split(text, words)
        characters = sum(read)
        assert_sound(text, chunks, words)
        return characters

    assert tokenised(320_000) < 8.5 * tokenised(40_000)
