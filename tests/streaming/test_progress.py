"""What the dataflow says of itself: freshness by nearest rank, lag from what was read and what was committed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from streaming.metrics import StreamMetrics
from streaming.progress import Freshness, Progress, percentile


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([], 0.5, None), ([3.0], 0.99, 3.0), ([1.0, 2.0, 3.0, 4.0], 0.5, 2.0), (list(range(1, 101)), 0.95, 95)],
)
def test_a_percentile_is_a_value_that_was_measured(values: list[float], share: float, expected: float | None) -> None:
    assert percentile(values, share) == expected


def test_a_snapshot_is_no_measure_of_freshness() -> None:
    progress = Progress()
    progress.searchable(None)

    assert progress.freshness() == Freshness(None, None, None)


def test_freshness_is_the_time_since_the_commit_and_never_negative() -> None:
    progress = Progress()
    progress.searchable(datetime.now(UTC) - timedelta(seconds=5))
    assert (progress.freshness().p50 or 0) >= 5

    ahead = Progress()
    ahead.searchable(datetime.now(UTC) + timedelta(seconds=5))
    assert ahead.freshness().p50 == 0.0


def test_lag_is_what_was_read_and_not_yet_committed_and_unknown_while_nothing_reads() -> None:
    progress = Progress()
    ends = {0: 10, 1: 3}

    assert progress.lag() is None
    reader = lambda: ends  # noqa: E731 - the same function is taken away again below
    progress.reads(reader)
    progress.committed(0, 4)
    assert progress.lag() == 9
    progress.committed(0, 10)
    progress.committed(1, 3)
    assert progress.lag() == 0
    progress.reads_no_more(reader)
    assert progress.lag() is None


def test_metrics_leave_out_what_nobody_knows_yet() -> None:
    progress = Progress()
    progress.count(documents_indexed=2)

    samples = {sample.name: sample for metric in StreamMetrics(progress).collect() for sample in metric.samples}

    assert samples["twin_stream_total"].value == 2
    assert samples["twin_stream_running"].value == 0
    assert "twin_stream_lag_events" not in samples
    assert "twin_freshness_seconds" not in samples
