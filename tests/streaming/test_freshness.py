"""Delays over windows: quantiles of what was measured, the burn of the objective, and a histogram that only grows."""

from __future__ import annotations

import pytest

from streaming import freshness
from streaming.freshness import Delays, percentile


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([], 0.5, None), ([3.0], 0.99, 3.0), ([1.0, 2.0, 3.0, 4.0], 0.5, 2.0), (list(range(1, 101)), 0.95, 95)],
)
def test_a_percentile_is_a_value_that_was_measured(values: list[float], share: float, expected: float | None) -> None:
    assert percentile(values, share) == expected


def test_a_window_holds_the_changes_of_its_minutes() -> None:
    delays = Delays()
    for now, delay in ((100.0, 9.0), (3000.0, 5.0), (3590.0, 1.0)):
        delays.add(delay, now)

    windows = delays.windows(3600.0)

    assert {name: window.changes for name, window in windows.items()} == {"1m": 1, "5m": 1, "1h": 3}
    assert (windows["1m"].p50, windows["1h"].p50, windows["1h"].p99) == (1.0, 5.0, 9.0)


def test_a_window_without_a_change_has_no_quantiles_and_burns_nothing() -> None:
    window = Delays().windows(0.0)["1m"]

    assert (window.changes, window.p50, window.p95, window.p99, window.burn) == (0, None, None, None, 0.0)


def test_the_burn_is_one_where_a_twentieth_is_slower_than_the_objective() -> None:
    delays = Delays(objective=2.0)
    for number in range(100):
        # Exactly the objective is within it.
        delays.add(2.1 if number < 5 else 2.0, 0.0)
    assert delays.windows(1.0)["5m"].burn == pytest.approx(1.0)

    for _ in range(100):
        delays.add(3.0, 1000.0)
    windows = delays.windows(1001.0)
    assert windows["5m"].burn == pytest.approx(20.0)
    assert windows["1h"].burn == pytest.approx(105 / 200 / 0.05)


def test_of_more_changes_than_are_kept_the_newest_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freshness, "KEPT", 10)
    delays = Delays()
    for number in range(25):
        delays.add(float(number), 0.0)

    window = delays.windows(1.0)["1h"]

    assert (window.changes, window.p50) == (10, 19.0)
    assert delays.histogram()[0][-1] == (float("inf"), 25)


def test_the_histogram_counts_each_bound_with_all_below_and_has_one_at_the_objective() -> None:
    delays = Delays(objective=1.7)
    for delay in (0.01, 0.1, 1.7, 1.8, 9999.0):
        delays.add(delay, 0.0)

    buckets, total = delays.histogram()

    counted = dict(buckets)
    assert [bound for bound, _ in buckets] == sorted(counted)
    assert (counted[0.025], counted[0.1], counted[1.7], counted[2.5], counted[float("inf")]) == (1, 2, 3, 4, 5)
    assert total == pytest.approx(10002.61)
