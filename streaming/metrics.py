"""The dataflow's progress as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from streaming.progress import Progress
from streaming.verify import KINDS, Report


class StreamMetrics(Collector):
    """Reads the progress whenever it is asked; a value that nobody knows yet is left out."""

    def __init__(self, progress: Progress, verified: Callable[[], Report | None] = lambda: None) -> None:
        self._progress, self._verified = progress, verified

    def collect(self) -> Iterator[Metric]:
        counts = CounterMetricFamily("twin_stream", "What became of documents, chunks and messages.", labels=["what"])
        for what, amount in sorted(self._progress.counted().items()):
            counts.add_metric([what], amount)
        yield counts
        running = GaugeMetricFamily("twin_stream_running", "Whether the dataflow runs.")
        running.add_metric([], self._progress.state == "running")
        yield running
        lag = self._progress.lag()
        if lag is not None:
            gauge = GaugeMetricFamily("twin_stream_lag_events", "Events in the log that are not yet applied.")
            gauge.add_metric([], lag)
            yield gauge
        delays = self._progress.freshness()
        fresh = GaugeMetricFamily(
            "twin_freshness_seconds", "Source commit to acknowledged write, over the last changes.", labels=["quantile"]
        )
        for quantile, value in (("0.5", delays.p50), ("0.95", delays.p95), ("0.99", delays.p99)):
            if value is not None:
                fresh.add_metric([quantile], value)
        yield fresh
        report = self._verified()
        if report is not None:
            yield from _of_verification(report)


def _of_verification(report: Report) -> Iterator[Metric]:
    faults = GaugeMetricFamily("twin_verify_faults", "Faults of the last verification, by kind.", labels=["kind"])
    for kind in KINDS:
        faults.add_metric([kind], getattr(report, kind))
    yield faults
    for name, told, value in (
        (
            "twin_verify_unrepaired_faults",
            "Faults of the last verification that it did not mend.",
            report.found - report.repaired,
        ),
        ("twin_verify_documents", "Documents that the last verification compared.", report.documents),
        ("twin_verify_chunks", "Chunks that the last verification compared.", report.chunks),
        ("twin_verify_seconds", "How long the last verification took.", report.seconds),
        ("twin_verify_timestamp_seconds", "When the last verification ended.", report.finished_at.timestamp()),
    ):
        gauge = GaugeMetricFamily(name, told)
        gauge.add_metric([], value)
        yield gauge
