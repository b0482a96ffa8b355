"""The dataflow's progress, the oldest unprocessed changes and the last verification as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import isinf

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from streaming.freshness import BURN_WINDOWS
from streaming.lag import Probe
from streaming.progress import Progress
from streaming.verify import KINDS, Report

QUANTILES = {"0.5": "p50", "0.95": "p95", "0.99": "p99"}


class StreamMetrics(Collector):
    """Reads progress and probe whenever it is asked; a value that nobody knows yet is left out."""

    def __init__(
        self,
        progress: Progress,
        verified: Callable[[], Report | None] = lambda: None,
        probe: Probe | None = None,
    ) -> None:
        self._progress, self._verified, self._probe = progress, verified, probe

    def collect(self) -> Iterator[Metric]:
        counts = CounterMetricFamily("twin_stream", "What became of documents, chunks and messages.", labels=["what"])
        for what, amount in sorted(self._progress.counted().items()):
            counts.add_metric([what], amount)
        yield counts
        yield _gauge("twin_stream_running", "Whether the dataflow runs.", self._progress.state == "running")
        letters = self._progress.letters()
        if letters is not None:
            opened = GaugeMetricFamily("twin_dead_letters_open", "Open dead letters.", labels=["step"])
            for step, number in sorted(letters.items()):
                opened.add_metric([step], number)
            yield opened
        lag = self._progress.lag()
        if lag is not None:
            yield _gauge("twin_stream_lag_events", "Events in the log that are not yet applied.", lag)
        yield from self._freshness()
        if self._probe is not None:
            yield from self._oldest(self._probe)
        report = self._verified()
        if report is not None:
            yield from _of_verification(report)

    def _freshness(self) -> Iterator[Metric]:
        delays, windows = self._progress.delays, self._progress.windows()
        buckets, total = delays.histogram()
        yield HistogramMetricFamily(
            "twin_freshness_seconds",
            "Source commit to acknowledged write of each change.",
            buckets=[("+Inf" if isinf(bound) else str(bound), count) for bound, count in buckets],
            sum_value=total,
        )
        yield _gauges(
            "twin_freshness_window_seconds",
            "Quantiles of source commit to acknowledged write over the last minutes.",
            ("window", "quantile"),
            (
                ((name, quantile), value)
                for name, window in windows.items()
                for quantile, field in QUANTILES.items()
                if (value := getattr(window, field)) is not None
            ),
        )
        yield _gauge(
            "twin_freshness_objective_seconds",
            "What 95 % of changes are to stay below.",
            delays.objective,
        )
        yield _gauges(
            "twin_freshness_burn_ratio",
            "Share of changes slower than the objective, over the 5 % that may be.",
            ("window",),
            (((name,), windows[name].burn) for name in BURN_WINDOWS),
        )

    def _oldest(self, probe: Probe) -> Iterator[Metric]:
        yield _gauges(
            "twin_oldest_unprocessed_seconds",
            "Age of the oldest change of a partition that is not processed; 0 when there is none.",
            ("partition",),
            (((str(partition),), age) for partition, age in probe.ages().items()),
        )
        still, looked = probe.still(), probe.looked_ago()
        if still is not None:
            yield _gauge("twin_oldest_still_seconds", "Since the committed offsets were first seen as they are.", still)
        if looked is not None:
            yield _gauge("twin_oldest_look_age_seconds", "Since the log was last asked for the oldest change.", looked)


@contextmanager
def served(collectors: Iterable[Collector], host: str, port: int) -> Iterator[str]:
    """The address at which Prometheus is told of these, by a thread. Raises OSError if that cannot be had."""
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise OSError(f"metrics cannot be told at {host}:{port}: {error.strerror}; choose another port") from error
    try:
        yield f"http://{host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _gauge(name: str, told: str, value: float) -> Metric:
    return GaugeMetricFamily(name, told, value=value)


def _gauges(name: str, told: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    gauge = GaugeMetricFamily(name, told, labels=labels)
    for of, value in values:
        gauge.add_metric(of, value)
    return gauge


class BesideMetrics(Collector):
    """The progress of the generation that is not live, by its role; nothing while there is none."""

    def __init__(self, beside: Callable[[], tuple[str, Progress] | None]) -> None:
        self._beside = beside

    def collect(self) -> Iterator[Metric]:
        found = self._beside()
        if found is None:
            return
        role, progress = found
        counts = CounterMetricFamily(
            "twin_beside_stream", "As twin_stream, of the generation beside the live one.", labels=["role", "what"]
        )
        for what, amount in sorted(progress.counted().items()):
            counts.add_metric([role, what], amount)
        yield counts
        lag = progress.lag()
        if lag is not None:
            gauge = GaugeMetricFamily(
                "twin_beside_lag_events", "Events not yet applied to the generation beside.", labels=["role"]
            )
            gauge.add_metric([role], lag)
            yield gauge


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
        yield _gauge(name, told, value)
