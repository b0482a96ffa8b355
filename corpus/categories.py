"""Categories of documents and how each becomes searchable: one member and one RECIPES entry each, in this file only."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from corpus import chunking, cleaning
from corpus.documents import Chunk, Document

# Raised with every change to cleaning or splitting that alters what existing documents become.
RECIPE_VERSION = 1
# Raised with every change to what a point or a record holds that a reader or `twin verify` relies on.
LAYOUT_VERSION = 2


class UnknownCategory(ValueError):
    """A category without a recipe; the message lists the known ones."""


class Category(StrEnum):
    """What kind of text a document is."""

    ARTICLE = "article"
    POST = "post"
    CODE = "code"


class Model(Protocol):
    """What a generation says of its embedding model; `corpus.embedding.Embedder` has it."""

    @property
    def name(self) -> str: ...
    @property
    def dimensions(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Recipe:
    """From a crawled document to passages: `clean` gives the text that is kept and quoted, `split` its chunks."""

    clean: Callable[[Document], str]
    split: Callable[[str, Document, chunking.TokenSpans], list[Chunk]]


RECIPES: dict[Category, Recipe] = {
    Category.ARTICLE: Recipe(
        clean=lambda document: cleaning.clean_article(document.text),
        split=lambda text, document, tokenizer: chunking.split(text, tokenizer),
    ),
    Category.POST: Recipe(
        clean=lambda document: cleaning.clean_post(document.text),
        split=lambda text, document, tokenizer: chunking.split(text, tokenizer),
    ),
    Category.CODE: Recipe(
        clean=lambda document: cleaning.clean_code(document.text),
        split=lambda text, document, tokenizer: chunking.split_code(text, tokenizer),
    ),
}


def category_of(name: str) -> Category:
    """The category of this name. Raises UnknownCategory."""
    try:
        return Category(name)
    except ValueError:
        known = ", ".join(category.value for category in Category)
        raise UnknownCategory(f"category {name[:100]!r} is not known: choose one of {known}") from None


def generation(embedder: Model) -> str:
    """The name of what this model and these recipes make, fit for a collection or a directory.

    It changes with the model, its weights, or the recipes; what two generations hold is never mixed.
    """
    parameters = (
        (RECIPE_VERSION, LAYOUT_VERSION),
        (chunking.REACH, chunking.TARGET, chunking.SMALL_SECTION),
        (embedder.name, embedder.dimensions, embedder.max_tokens),
    )
    digest = hashlib.sha256(repr(parameters).encode()).hexdigest()
    model = re.sub(r"[^a-z0-9]+", "-", embedder.name.lower()).strip("-")[:60]
    return f"{model}-{digest[:8]}"


def point_ids(document_id: str, generation: str, chunks: Sequence[Chunk]) -> list[str]:
    """The id of each chunk's point: UUIDv5 of document, generation, the text's occurrence in the document, text hash.

    An edit keeps the ids of untouched chunks, equal passages of two documents differ, and no two chunks share one.
    """
    seen: Counter[str] = Counter()
    ids = []
    for chunk in chunks:
        text = hashlib.sha256(chunk.text.encode(errors="surrogatepass")).hexdigest()
        ids.append(str(uuid.uuid5(uuid.NAMESPACE_OID, f"chunk:{document_id}:{generation}:{seen[text]}:{text}")))
        seen[text] += 1
    return ids
