"""Many ids in a few questions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def batches(ids: Iterable[T], size: int) -> Iterator[list[T]]:
    """The ids in order, `size` at a time; the last batch may have fewer."""
    iterator = iter(ids)
    while part := list(islice(iterator, size)):
        yield part
