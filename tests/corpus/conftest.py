"""A tokenizer that a person can follow."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

# As the program's entry does: unstructured reports to its makers otherwise.
os.environ["DO_NOT_TRACK"] = "true"


@dataclass(frozen=True)
class Words:
    """A tokenizer whose tokens are words and signs, with one special token at either end."""

    max_tokens: int = 256
    special_tokens: int = 2

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        return [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(self.token_spans(text)) + self.special_tokens for text in texts]


@pytest.fixture(scope="session")
def words() -> Words:
    return Words()
