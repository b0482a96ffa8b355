"""How long changes take from the source's commit to the acknowledged write: quantiles, burn, and a histogram."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Seconds by name, as Prometheus writes them.
WINDOWS = {"1m": 60.0, "5m": 300.0, "1h": 3600.0}
SHOWN = "5m"
BURN_WINDOWS = ("5m", "1h")
# The objective is about the 95th percentile, so one change in twenty may be slower.
ALLOWED = 0.05
# Of more changes within an hour the newest count: 1.6 MB at most.
KEPT = 100_000
BUCKETS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)


@dataclass(frozen=True, slots=True)
class Window:
    """The changes of the last minutes: how many, quantiles of their delays in seconds (None of none), and the burn.

    `burn`: the share of changes slower than the objective over the share that may be; 1 keeps the objective exactly.
    """

    changes: int
    p50: float | None
    p95: float | None
    p99: float | None
    burn: float


class Delays:
    """Delays in seconds, each with the time at which it was measured, in bounded memory; safe across threads.

    Times are seconds of any clock that does not go back, the same for all calls.
    """

    def __init__(self, objective: float = 2.0) -> None:
        self.objective = objective
        self._bounds = tuple(sorted({*BUCKETS, objective}))
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        self._ring = np.empty((KEPT, 2))
        self._added = 0
        self._lock = threading.Lock()

    def add(self, delay: float, now: float) -> None:
        with self._lock:
            self._counts[bisect_left(self._bounds, delay)] += 1
            self._sum += delay
            self._ring[self._added % KEPT] = now, delay
            self._added += 1

    def windows(self, now: float) -> dict[str, Window]:
        """Each of WINDOWS by name."""
        with self._lock:
            held = self._ring[: min(self._added, KEPT)].copy()
        return {name: self._window(held[held[:, 0] > now - seconds, 1]) for name, seconds in WINDOWS.items()}

    def histogram(self) -> tuple[list[tuple[float, int]], float]:
        """How many delays since the start were at most each bound (the last is infinite), and the sum of all."""
        with self._lock:
            bounds = (*self._bounds, float("inf"))
            totals = np.cumsum(self._counts).tolist()
            return list(zip(bounds, totals, strict=True)), self._sum

    def _window(self, delays: np.ndarray[Any, np.dtype[np.float64]]) -> Window:
        ordered: list[float] = np.sort(delays).tolist()
        slow = int((delays > self.objective).sum())
        p50, p95, p99 = (percentile(ordered, share) for share in (0.50, 0.95, 0.99))
        return Window(len(ordered), p50, p95, p99, burn=slow / len(ordered) / ALLOWED if ordered else 0.0)


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest value that `share` of the ordered values do not exceed (nearest rank); None of nothing."""
    if not ordered:
        return None
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]
