"""A folder that changes while parts of the stack are killed: after each round the index is what the folder is."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from processes import changed

pytestmark = [pytest.mark.integration, pytest.mark.long]


def test_whatever_part_is_killed_the_index_is_what_the_folder_is(
    homes: Callable[..., Any], notes: Callable[..., Any]
) -> None:
    twin = homes()
    twin.up()

    counts = changed(twin, notes(), random.Random(1), rounds=3)

    assert sum(count for what, count in counts.items() if what.startswith("killed")) == 3
