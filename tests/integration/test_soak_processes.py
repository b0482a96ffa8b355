"""A folder that changes while parts of the stack are killed: after each round the index is what the folder is."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from processes import changed

pytestmark = [pytest.mark.integration, pytest.mark.long]
STRUCK = ("killed", "restarted")


def test_whatever_part_is_killed_the_index_is_what_the_folder_is(
    homes: Callable[..., Any], notes: Callable[..., Any]
) -> None:
    twin = homes()
    twin.up()

    counts = changed(twin, notes(), random.Random(1), rounds=3)

    assert sum(count for what, count in counts.items() if what.startswith(STRUCK)) == 3


def test_whatever_part_is_struck_over_a_kafka_of_ones_own_the_index_is_what_the_folder_is(
    cluster: Any, homes: Callable[..., Any], notes: Callable[..., Any]
) -> None:
    twin = homes(**cluster.settings)
    twin.up()

    counts = changed(twin, notes(), random.Random(2), rounds=6, cluster=cluster)

    assert sum(count for what, count in counts.items() if what.startswith(STRUCK)) == 6
