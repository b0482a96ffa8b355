"""Categories, the recipe of each, and the names and ids that follow from them."""

import uuid
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus import categories
from corpus.categories import RECIPES, Category, UnknownCategory, category_of, generation, point_ids
from corpus.documents import Chunk, Document, new_document
from corpus.embedding import Embedder


def document(category: str, text: str) -> Document:
    return new_document(
        url="https://example.com/a",
        category=category,
        platform="files",
        author_name="Ada Keeper",
        title="A title",
        text=text,
        crawl_id="1",
        crawled_at=datetime(2024, 3, 3, tzinfo=UTC),
    )


def chunks(*texts: str) -> list[Chunk]:
    return [
        Chunk(position, (), text, position * 100, position * 100 + len(text)) for position, text in enumerate(texts)
    ]


def test_every_category_has_a_recipe_that_makes_chunks_of_its_cleaned_text(words) -> None:
    assert set(RECIPES) == set(Category)
    for category in Category:
        written = document(category, "# A\r\n\r\nSome text.\r\n")
        recipe = RECIPES[category_of(written.category)]
        text = recipe.clean(written)
        assert text == "# A\n\nSome text."
        assert [chunk.text for chunk in recipe.split(text, written, words)] == [text]


def test_each_category_is_cleaned_in_its_own_way() -> None:
    text = "𝗕𝗼𝗹𝗱\n\nImage by author\n\nend"
    assert RECIPES[Category.ARTICLE].clean(document("article", text)) == "Bold\n\nend"
    assert RECIPES[Category.POST].clean(document("post", text)) == "Bold\n\nImage by author\n\nend"
    assert RECIPES[Category.CODE].clean(document("code", text)) == text


def test_an_unknown_category_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownCategory, match=r"'poem'.*article, post, code"):
        category_of("poem")


class TestGeneration:
    def test_it_names_the_model_and_is_fit_for_a_directory(self, embedder: Embedder) -> None:
        name = generation(embedder)
        assert name.startswith("minilm-l6-int8-")
        assert name == generation(embedder)
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")

    def test_it_changes_with_the_recipe(self, embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
        before = generation(embedder)
        monkeypatch.setattr(categories, "RECIPE_VERSION", -1)
        assert generation(embedder) != before

    def test_it_changes_with_how_texts_are_split(self, embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
        before = generation(embedder)
        monkeypatch.setattr(categories.chunking, "TARGET", 7)
        assert generation(embedder) != before


class TestPointIds:
    def test_an_edit_keeps_the_ids_of_untouched_chunks_wherever_they_move(self) -> None:
        before = point_ids("d", "g", chunks("one", "two", "three"))
        after = point_ids("d", "g", chunks("zero", "one", "2", "three"))
        assert after[1] == before[0]
        assert after[3] == before[2]
        assert not {after[0], after[2]} & set(before)

    def test_equal_texts_of_one_document_differ_by_their_occurrence(self) -> None:
        first, other, second = point_ids("d", "g", chunks("same", "other", "same"))
        assert len({first, other, second}) == 3
        assert point_ids("d", "g", chunks("same", "same")) == [first, second]

    def test_documents_and_generations_never_share_one(self) -> None:
        ids = [point_ids(name, made, chunks("same"))[0] for name in ("d", "e") for made in ("g", "h")]
        assert len(set(ids)) == 4

    def test_place_and_headings_of_a_chunk_do_not_matter(self) -> None:
        (chunk,) = chunks("text")
        moved = replace(chunk, position=9, start=7, end=11, heading_path=("A",))
        assert point_ids("d", "g", [chunk]) == point_ids("d", "g", [moved])

    @given(texts=st.lists(st.text(st.characters(codec=None), max_size=4), max_size=30))
    @settings(deadline=None)
    def test_they_are_distinct_uuids(self, texts: list[str]) -> None:
        ids = point_ids("d", "g", chunks(*texts))
        assert len(set(ids)) == len(ids)
        assert all(uuid.UUID(id).version == 5 for id in ids)
