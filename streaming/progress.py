"""What the dataflow has done and how fresh the index is: counters and a window of delays, safe across threads."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

WINDOW = 1000


@dataclass(frozen=True, slots=True)
class Freshness:
    """Seconds from the source's commit to the acknowledged write over the last changes; None before the first."""

    p50: float | None
    p95: float | None
    p99: float | None


@dataclass
class Progress:
    """Counts by name and the delays of the last WINDOW changes. Snapshot reads have no delay and are left out."""

    counts: Counter[str] = field(default_factory=Counter)
    state: str = "starting"
    reason: str | None = None
    _ends: list[Callable[[], dict[int, int]]] = field(default_factory=list)
    _committed: dict[int, int] = field(default_factory=dict)
    _delays: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def report(self, state: str, reason: str | None) -> None:
        """What the dataflow is at: starting, running, waiting (and for what) or stopped."""
        with self._lock:
            self.state, self.reason = state, reason

    def count(self, **amounts: int) -> None:
        with self._lock:
            self.counts.update(amounts)

    def searchable(self, committed_at: datetime | None) -> None:
        """A change committed at that time became searchable now."""
        if committed_at is not None:
            delay = max(0.0, (datetime.now(UTC) - committed_at).total_seconds())
            with self._lock:
                self._delays.append(delay)

    def reads(self, ends: Callable[[], dict[int, int]]) -> None:
        """A reader started; `ends()` gives the end of each partition that it reads."""
        with self._lock:
            self._ends.append(ends)

    def reads_no_more(self, ends: Callable[[], dict[int, int]]) -> None:
        with self._lock:
            self._ends = [other for other in self._ends if other != ends]

    def committed(self, partition: int, offset: int) -> None:
        with self._lock:
            self._committed[partition] = offset

    def lag(self) -> int | None:
        """Events in the log that are not yet applied; None while nothing is read."""
        with self._lock:
            readers, committed = list(self._ends), dict(self._committed)
            if not readers:
                return None
            return sum(
                max(0, end - committed.get(partition, 0)) for ends in readers for partition, end in ends().items()
            )

    def freshness(self) -> Freshness:
        with self._lock:
            delays = sorted(self._delays)
        return Freshness(*(percentile(delays, share) for share in (0.50, 0.95, 0.99)))

    def counted(self) -> dict[str, int]:
        with self._lock:
            return dict(self.counts)


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest value that `share` of the ordered values do not exceed (nearest rank); None of nothing."""
    if not ordered:
        return None
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]
