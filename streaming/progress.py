"""What the dataflow has done and how fresh the index is, safe across threads and always answered from memory."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from streaming.freshness import BURN_WINDOWS, SHOWN, Delays, Window


@dataclass
class Progress:
    """Counts by name, the lag, and the delays of changes. Snapshot reads have no delay and are left out."""

    counts: Counter[str] = field(default_factory=Counter)
    state: str = "starting"
    reason: str | None = None
    delays: Delays = field(default_factory=Delays)
    # A worker may have no partition at all, and reads all the same.
    _reading: bool = False
    _ends: dict[int, int] = field(default_factory=dict)
    _committed: dict[int, int] = field(default_factory=dict)
    _embedded: float | None = None
    _letters: Callable[[], dict[str, int]] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def report(self, state: str, reason: str | None) -> None:
        """What the dataflow is at: starting, running, waiting (and for what) or stopped; its readers begin anew."""
        with self._lock:
            self.state, self.reason = state, reason
            self._ends.clear()
            self._embedded = None
            self._reading = False

    def count(self, **amounts: int) -> None:
        with self._lock:
            self.counts.update(amounts)

    def searchable(self, committed_at: datetime | None) -> None:
        """A change committed at that time became searchable now."""
        if committed_at is not None:
            delay = max(0.0, (datetime.now(UTC) - committed_at).total_seconds())
            self.delays.add(delay, time.monotonic())

    def reads(self, ends: Mapping[int, int]) -> None:
        """A reader noted the end of each of its partitions. (Asking its consumer would wait for the reader's poll.)"""
        with self._lock:
            self._ends.update(ends)
            self._reading = True

    def reads_no_more(self, partitions: Iterable[int]) -> None:
        """These partitions are another reader's now."""
        with self._lock:
            for partition in partitions:
                self._ends.pop(partition, None)
                self._committed.pop(partition, None)

    def embeds(self) -> None:
        """The model is at work on a batch: called every second or so, before each of its parts."""
        self._embedded = time.monotonic()

    def embedding(self, within: float) -> bool:
        """Whether the model was at work within these seconds, in a dataflow that did not fail since."""
        last = self._embedded
        return last is not None and time.monotonic() - last < within

    def tells_letters(self, count: Callable[[], dict[str, int]]) -> None:
        """`count()` gives the number of open dead letters by the step that refused them."""
        with self._lock:
            self._letters = count

    def tells_letters_no_more(self, count: Callable[[], dict[str, int]]) -> None:
        with self._lock:
            self._letters = None if self._letters == count else self._letters

    def letters(self) -> dict[str, int] | None:
        """Open dead letters by step; None while nobody reads them."""
        with self._lock:
            count = self._letters
        # Without the lock: it reads the log, and counts what it finds.
        return count() if count is not None else None

    def committed(self, partition: int, offset: int) -> None:
        with self._lock:
            self._committed[partition] = offset

    def lag(self) -> int | None:
        """Events in the log that are not yet applied, as of the last poll; None while nothing is read."""
        with self._lock:
            if not self._reading:
                return None
            return sum(max(0, end - self._committed.get(partition, 0)) for partition, end in self._ends.items())

    def windows(self) -> dict[str, Window]:
        """The delays of the last minute, five minutes and hour."""
        return self.delays.windows(time.monotonic())

    def freshness(self) -> dict[str, Any]:
        """As `/api/status` tells it: p50, p95 and p99 of SHOWN, and all windows, the objective and its burn."""
        windows = self.windows()
        told = {
            name: {"changes": window.changes, **{each: getattr(window, each) for each in ("p50", "p95", "p99")}}
            for name, window in windows.items()
        }
        shown = {name: value for name, value in told[SHOWN].items() if name != "changes"}
        burn = {name: windows[name].burn for name in BURN_WINDOWS}
        return {**shown, "windows": told, "objective": self.delays.objective, "burn": burn}

    def counted(self) -> dict[str, int]:
        with self._lock:
            return dict(self.counts)
