"""Whether every acknowledged change is searchable, answered from evidence.

1. A mark is written to the warehouse. Capture keeps the source's order, so once the mark is in the log, every change
   acknowledged before it is there too.
2. The ends of the partitions are then read from the log itself, and the dataflow's committed offsets must reach them.
3. Warehouse and ledger must agree. What differs although 1 and 2 hold has been missed by capture: it is sent again.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import msgspec
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from corpus.agreement import Disagreement
from streaming.clients import LogFailed, consumer, partitions_of

if TYPE_CHECKING:
    from corpus.warehouse import Warehouse

PAUSE = 0.02
RETRY = 0.5
# Capture may be restarting, or the log may have been: after this a new mark is made.
PATIENCE = 3.0


class TimedOut(Exception):
    """The time was over before the index had followed; the message says what is behind."""


class App(Protocol):
    """What `wait` asks of the running app; each call raises ConnectionError while it cannot be reached."""

    def stream(self) -> Mapping[str, str]:
        """`group`: the dataflow's consumer group; `epoch`: the log's."""
        ...

    def disagreement(self) -> Disagreement: ...

    def reconcile(self) -> None: ...


@dataclass
class Wait:
    """One wait until `deadline` (of `time.monotonic`); `behind` says what it is waiting for at the moment."""

    warehouse: Callable[[], Warehouse]
    app: App
    bootstrap: Callable[[], str]
    changes: str
    marks: str
    deadline: float
    behind: str = "nothing was checked yet"

    def until_searchable(self) -> Disagreement:
        """Return when everything is searchable or refused; the refused documents are in `failed`. Raises TimedOut."""
        suspects: set[str] = set()
        while True:
            try:
                self._until_applied()
                difference = self.app.disagreement()
                missing = {*difference.behind, *difference.leftover}
                if not missing:
                    return difference
                self.behind = _told(difference)
                # A document that was changed again meanwhile is behind for a moment; one that stays so was missed.
                if missing & suspects:
                    self.app.reconcile()
                suspects = missing
            except (ConnectionError, KafkaException, LogFailed) as error:
                self.behind = str(error)
                self._pause(RETRY)

    def _until_applied(self) -> None:
        """Return when the dataflow has applied all that was acknowledged when this was called."""
        stream = self.app.stream()
        self._until_marked()
        reader = consumer(self.bootstrap(), stream["group"])
        try:
            partitions = [TopicPartition(self.changes, number) for number in partitions_of(reader, self.changes)]
            ends = _ends(self.bootstrap(), reader.committed(partitions, timeout=5), self._pause)
            checked = time.monotonic()
            while True:
                committed = {part.partition: part.offset for part in reader.committed(partitions, timeout=5)}
                left = sum(max(0, end - max(0, committed[number])) for number, end in ends.items())
                if left == 0:
                    # A log that was started anew since the mark was seen is empty, and so is what is left of it.
                    if self.app.stream() != stream:
                        raise LogFailed("the log was started anew")
                    return
                self.behind = f"{left} events are captured and not yet applied"
                self._pause(PAUSE)
                if time.monotonic() > checked + RETRY:
                    checked = time.monotonic()
                    if self.app.stream() != stream:
                        raise LogFailed("the log was started anew")
        finally:
            reader.close()

    def _until_marked(self) -> None:
        self.behind = "capture has not told of the newest change"
        reader = consumer(self.bootstrap(), f"twin-wait-{uuid.uuid4()}")
        try:
            starts = []
            for number in partitions_of(reader, self.marks):
                place = TopicPartition(self.marks, number)
                # On some brokers this is before the end, never behind it: then older marks are read and passed over.
                place.offset = reader.get_watermark_offsets(place, timeout=5, cached=False)[1]
                starts.append(place)
            reader.assign(starts)
            token = str(uuid.uuid4())
            self.warehouse().mark(token)
            patience = time.monotonic() + PATIENCE
            while time.monotonic() < patience:
                message = reader.poll(PAUSE)
                if message is not None and message.error() is None and _marks(message.value(), token):
                    return
                self._pause(0)
            raise LogFailed(self.behind)
        finally:
            reader.close()

    def _pause(self, seconds: float) -> None:
        if time.monotonic() + seconds > self.deadline:
            raise TimedOut(self.behind)
        time.sleep(seconds)


def _marks(value: str | bytes | None, token: str) -> bool:
    """Whether this is the change that inserted the mark. A snapshot's read is not: it may come before the documents."""
    if value is None:
        return False
    envelope = msgspec.json.decode(value)
    return isinstance(envelope, dict) and envelope.get("op") in ("c", "u") and token in str(envelope.get("after"))


def _ends(bootstrap: str, committed: list[TopicPartition], pause: Callable[[float], None]) -> dict[int, int]:
    """The true end of each partition: read on from the committed offset until the broker says that there is no more."""
    probe = consumer(bootstrap, f"twin-wait-{uuid.uuid4()}", **{"enable.partition.eof": True, "fetch.wait.max.ms": 10})
    try:
        probe.assign([TopicPartition(part.topic, part.partition, max(part.offset, 0)) for part in committed])
        ends: dict[int, int] = {}
        # A log that was started anew may never say that there is no more.
        patience = time.monotonic() + PATIENCE
        while len(ends) < len(committed):
            if time.monotonic() > patience:
                raise LogFailed("the log does not tell where it ends")
            message = probe.poll(PAUSE)
            if message is None:
                pause(0)
                continue
            error = message.error()
            if error is not None and error.code() == KafkaError._PARTITION_EOF:
                ends[message.partition() or 0] = message.offset() or 0
        return ends
    finally:
        probe.close()


def _told(difference: Disagreement) -> str:
    parts = []
    if difference.behind:
        parts.append(
            f"{len(difference.behind)} documents are not yet searchable ({', '.join(difference.behind[:3])}...)"
        )
    if difference.leftover:
        parts.append(f"{len(difference.leftover)} deleted documents are still searchable")
    return "; ".join(parts)
