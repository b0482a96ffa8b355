"""What the dataflow says of itself: freshness since the commit, lag from what was read and what was committed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from streaming.lag import Head, Probe
from streaming.log import Log
from streaming.metrics import StreamMetrics, served
from streaming.progress import Progress


def samples(progress: Progress, probe: Probe | None = None) -> dict[tuple[str, ...], float]:
    """The exposition as Prometheus reads it: values by name and labels."""
    registry = CollectorRegistry()
    registry.register(StreamMetrics(progress, probe=probe))
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_a_snapshot_is_no_measure_of_freshness() -> None:
    progress = Progress()
    progress.searchable(None)

    told = progress.freshness()

    assert (told["p50"], told["p95"], told["p99"], told["windows"]["1h"]["changes"]) == (None, None, None, 0)


def test_freshness_is_the_time_since_the_commit_and_never_negative() -> None:
    progress = Progress()
    progress.searchable(datetime.now(UTC) - timedelta(seconds=5))
    told = progress.freshness()
    assert told["p50"] >= 5
    assert told["objective"] == 2.0
    assert told["burn"] == {"5m": 20.0, "1h": 20.0}

    ahead = Progress()
    ahead.searchable(datetime.now(UTC) + timedelta(seconds=5))
    assert ahead.freshness()["p50"] == 0.0


def test_lag_is_what_was_read_and_not_yet_committed_and_unknown_while_nothing_reads() -> None:
    progress = Progress()
    assert progress.lag() is None

    progress.reads({0: 10, 1: 3})
    progress.committed(0, 4)
    assert progress.lag() == 9
    progress.committed(0, 10)
    progress.committed(1, 3)
    assert progress.lag() == 0
    progress.reads({1: 5})
    assert progress.lag() == 2


def test_a_dataflow_that_waits_reads_nothing() -> None:
    progress = Progress()
    progress.reads({0: 10})

    progress.report("waiting", "the log is away")

    assert progress.lag() is None


def test_the_model_is_at_work_until_it_is_silent_or_its_dataflow_fails() -> None:
    progress = Progress()
    assert not progress.embedding(within=1000)

    progress.embeds()
    assert progress.embedding(within=1000)
    assert not progress.embedding(within=0)

    progress.report("waiting", "the index is away")
    assert not progress.embedding(within=1000)


def test_metrics_leave_out_what_nobody_knows_yet() -> None:
    progress = Progress()
    progress.count(documents_indexed=2)

    told = samples(progress)

    assert told["twin_stream_total", "documents_indexed"] == 2
    assert told["twin_stream_running",] == 0
    names = {name for name, *_ in told}
    assert not names & {"twin_stream_lag_events", "twin_freshness_window_seconds", "twin_oldest_unprocessed_seconds"}


def test_freshness_is_a_histogram_and_gauges_by_window_and_quantile() -> None:
    progress = Progress()
    progress.delays.add(0.3, 0.0)
    progress.searchable(datetime.now(UTC) - timedelta(seconds=7))

    told = samples(progress)

    assert (told["twin_freshness_seconds_count",], told["twin_freshness_seconds_bucket", "+Inf"]) == (2, 2)
    assert (told["twin_freshness_seconds_bucket", "0.25"], told["twin_freshness_seconds_bucket", "2.0"]) == (0, 1)
    assert told["twin_freshness_seconds_sum",] > 7
    assert told["twin_freshness_window_seconds", "0.99", "1m"] >= 7
    assert told["twin_freshness_objective_seconds",] == 2.0
    assert told["twin_freshness_burn_ratio", "5m"] > 1


def test_the_oldest_change_has_a_gauge_for_each_partition() -> None:
    probe = Probe(Log("", "changes", "", "", "", "index", lambda: ""), clock=lambda: 100.0)
    probe._heads = {0: Head(5), 1: Head(7, 7, 88.0)}

    told = samples(Progress(), probe)

    assert told["twin_oldest_unprocessed_seconds", "0"] == 0
    assert told["twin_oldest_unprocessed_seconds", "1"] == 12


def test_workers_without_the_app_tell_prometheus_themselves() -> None:
    progress = Progress()
    progress.count(chunks_embedded=3)
    with served([StreamMetrics(progress)], "127.0.0.1", 0) as address:
        with urlopen(address) as answer:  # noqa: S310
            assert 'twin_stream_total{what="chunks_embedded"} 3.0' in answer.read().decode().splitlines()
        port = int(address.rpartition(":")[2].partition("/")[0])
        with pytest.raises(OSError, match=r"choose another port"), served([], "127.0.0.1", port):
            pass
