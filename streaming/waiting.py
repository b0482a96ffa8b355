"""Whether every acknowledged change is searchable, answered from evidence.

1. A mark is written to the warehouse. Capture keeps the source's order, so once the mark is in the log, every change
   acknowledged before it is there too.
2. The ends of the partitions are then read from the log itself, and the dataflow's committed offsets must reach them.
3. Warehouse and ledger must agree. What differs although 1 and 2 hold has been missed by capture: it is sent again.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
# A log that is away is told in one sentence, not with every attempt.
QUIET = {"log_level": 0}


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
            self.until_applied()
            with self._tried():
                with self._asking("the app"):
                    difference = self.app.disagreement()
                missing = {*difference.behind, *difference.leftover}
                if not missing:
                    return difference
                self.behind = _told(difference)
                # A document that was changed again meanwhile is behind for a moment; one that stays so was missed.
                if missing & suspects:
                    self.app.reconcile()
                suspects = missing

    def until_applied(self) -> None:
        """Return when the dataflow has applied all that was acknowledged when this was called. Raises TimedOut."""
        while True:
            with self._tried():
                return self._until_applied()

    @contextmanager
    def _tried(self) -> Iterator[None]:
        """What is away is noted and, after a pause, passed over: the caller tries again."""
        try:
            yield
            return
        except (ConnectionError, LogFailed) as error:
            self.behind = str(error)
        except KafkaException as error:
            self.behind = f"the log does not answer ({error.args[0].str()})"
        self._pause(RETRY)

    def _until_applied(self) -> None:
        with self._asking("MongoDB"):
            # First, for the app asks it too: the part that hangs is named, not the one that waits for it.
            self.warehouse().now()
        with self._asking("the app"):
            stream = self.app.stream()
        self._until_marked()
        reader = consumer(self.bootstrap(), stream["group"], **QUIET)
        try:
            with self._asking("the log"):
                partitions = [TopicPartition(self.changes, number) for number in partitions_of(reader, self.changes)]
                ends = _ends(self.bootstrap(), reader.committed(partitions, timeout=5), self._pause)
            checked = time.monotonic()
            while True:
                with self._asking("the log"):
                    committed = {part.partition: part.offset for part in reader.committed(partitions, timeout=5)}
                left = sum(max(0, end - max(0, committed[number])) for number, end in ends.items())
                if left == 0:
                    # A log that was started anew since the mark was seen is empty, and so is what is left of it.
                    self._must_be(stream)
                    return
                self.behind = f"{left} events are captured and not yet applied"
                self._pause(PAUSE)
                if time.monotonic() > checked + RETRY:
                    checked = time.monotonic()
                    self._must_be(stream)
        finally:
            reader.close()

    def _must_be(self, stream: Mapping[str, str]) -> None:
        with self._asking("the app"):
            now = self.app.stream()
        if now != stream:
            raise LogFailed("the log was started anew")

    def _until_marked(self) -> None:
        reader = consumer(self.bootstrap(), f"twin-wait-{uuid.uuid4()}", **QUIET)
        try:
            starts = []
            with self._asking("the log"):
                for number in partitions_of(reader, self.marks):
                    place = TopicPartition(self.marks, number)
                    # On some brokers this is before the end, never behind it: older marks are read and passed over.
                    place.offset = reader.get_watermark_offsets(place, timeout=5, cached=False)[1]
                    starts.append(place)
            reader.assign(starts)
            token = str(uuid.uuid4())
            with self._asking("MongoDB"):
                self.warehouse().mark(token)
            self.behind = "capture has not told of the newest change"
            patience = time.monotonic() + PATIENCE
            while time.monotonic() < patience:
                message = reader.poll(PAUSE)
                if message is not None and message.error() is None and _marks(message.value(), token):
                    return
                self._pause(0)
            raise LogFailed(self.behind)
        finally:
            reader.close()

    @contextmanager
    def _asking(self, part: str) -> Iterator[None]:
        """While a part is asked, its answer is what is waited for."""
        before, self.behind = self.behind, f"{part} does not answer: see `twin status`"
        yield
        self.behind = before

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
    further = {**QUIET, "enable.partition.eof": True, "fetch.wait.max.ms": 10}
    probe = consumer(bootstrap, f"twin-wait-{uuid.uuid4()}", **further)
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
