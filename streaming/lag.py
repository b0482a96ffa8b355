"""The age of the oldest unprocessed change of each partition, asked of the log itself by a consumer of its own.

It needs nothing of the dataflow but the offsets that it committed, so it tells of one that waits, hangs or is gone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as LogMessage

from streaming.changes import origin
from streaming.clients import LogFailed, consumer, partitions_of
from streaming.log import Log, as_message

LOOK_SECONDS = 2.0
OLD_SECONDS = 10.0
# With the pause between two looks, what hangs is told before OLD_SECONDS are over.
STILL_SECONDS = OLD_SECONDS - LOOK_SECONDS
ASK_SECONDS = 5.0
# The first message alone is wanted. One that is larger than a fetch comes alone, but it comes.
FRUGAL = {
    "enable.partition.eof": True,
    "fetch.wait.max.ms": 10,
    "fetch.message.max.bytes": 64_000,
    "fetch.max.bytes": 1_000_000,
    "queued.min.messages": 1,
    "log_level": 0,
}


@dataclass(frozen=True, slots=True)
class Head:
    """What stands at a partition's committed offset: a message and its source's time (seconds since the epoch).

    `offset` and `committed_at` are None where nothing is behind.
    """

    position: int
    offset: int | None = None
    committed_at: float | None = None


class Probe:
    """Looks for the oldest unprocessed change of each partition; what it saw is told from memory, at any time.

    `look` and `follow` belong to one thread, all else may be asked by others. `clock` gives seconds since the epoch.
    """

    def __init__(self, log: Log, clock: Callable[[], float] = time.time) -> None:
        self._log, self._clock = log, clock
        self._reader: Consumer | None = None
        self._epoch = ""
        self._heads: dict[int, Head] = {}
        self._moved = self._looked = 0.0
        self._reason: str | None = None
        self._closed = threading.Event()

    def look(self) -> None:
        """Ask the log for the committed offsets and, where they moved, for the first message behind each."""
        epoch = self._log.epoch()
        if epoch != self._epoch:
            self._forget()
        try:
            if self._reader is None:
                self._reader = consumer(self._log.bootstrap, self._log.group(epoch), **FRUGAL)
                self._epoch = epoch
            heads = self._found(self._reader)
        except (KafkaException, LogFailed) as error:
            # What was seen stays, and grows older; the next look asks anew.
            self._reason = error.args[0].str() if isinstance(error, KafkaException) else str(error)
            self._let_go()
            return
        if self._closed.is_set():
            self._let_go()
        elif self._log.epoch() == epoch:
            now = self._clock()
            if {number: head.position for number, head in heads.items()} != {
                number: head.position for number, head in self._heads.items()
            }:
                self._moved = now
            self._heads, self._looked, self._reason = heads, now, None

    def follow(self, log: Log) -> None:
        """Ask for this dataflow's offsets from the next look on; of another generation, what was seen means nothing."""
        if (log.index_id, log.term) != (self._log.index_id, self._log.term):
            self._forget()
        self._log = log

    def close(self) -> None:
        """End a look that is under way, and look no more."""
        self._closed.set()

    def ages(self) -> dict[int, float]:
        """By partition, the seconds since the source committed the oldest change that is not processed; 0 of none."""
        now = self._clock()
        return {number: _age(head, now) for number, head in sorted(self._heads.items())}

    def looked_ago(self) -> float | None:
        """Seconds since the log last answered; None before it did."""
        return self._clock() - self._looked if self._looked else None

    def still(self) -> float | None:
        """Seconds since the committed offsets were first seen as they are now; None before the first look."""
        return self._clock() - self._moved if self._moved else None

    def told(self) -> dict[str, Any]:
        """As `/api/status` tells it.

        `seconds`: the age of the oldest, None before the first look; `partitions`: those that are behind, the oldest
        first; `still`: as `still()`; `stuck`: whether the oldest is older than
        OLD_SECONDS while nothing moves; `looked`: seconds since the last look; `reason`: why the log does not answer.
        """
        now, heads = self._clock(), self._heads
        behind = [
            {"partition": number, "offset": head.offset, "seconds": _age(head, now)}
            for number, head in heads.items()
            if head.offset is not None
        ]
        behind.sort(key=lambda each: -each["seconds"])
        oldest = behind[0]["seconds"] if behind else 0.0
        still = self.still()
        return {
            "seconds": oldest if self._looked else None,
            "partitions": behind,
            "still": still,
            "stuck": oldest > OLD_SECONDS and (still or 0.0) > STILL_SECONDS,
            "looked": self.looked_ago(),
            "reason": self._reason,
        }

    def _found(self, reader: Consumer) -> dict[int, Head]:
        """What stands at the committed offset of each partition; one that did not move since is not read again."""
        topic = self._log.changes
        places = [TopicPartition(topic, number) for number in partitions_of(reader, topic, ASK_SECONDS)]
        heads, ask = {}, []
        for place in reader.committed(places, timeout=ASK_SECONDS):
            if place.error is not None:
                raise LogFailed(f"the log does not tell what is committed: {place.error.str()}")
            known = self._heads.get(place.partition)
            if known is not None and known.offset is not None and known.position == place.offset:
                heads[place.partition] = known
            else:
                ask.append(place)
        return {**heads, **(self._read(reader, ask) if ask else {})}

    def _read(self, reader: Consumer, places: list[TopicPartition]) -> dict[int, Head]:
        topic = self._log.changes
        positions = {place.partition: place.offset for place in places}
        reader.assign(
            [TopicPartition(topic, number, at if at >= 0 else OFFSET_BEGINNING) for number, at in positions.items()]
        )
        heads: dict[int, Head] = {}
        try:
            # Without an end but the answer: a large message may take its time, and a log that is away comes back.
            while len(heads) < len(positions) and not self._closed.is_set() and self._log.epoch() == self._epoch:
                message = reader.poll(0.1)
                number = message.partition() if message is not None else None
                if message is None or (number is not None and number in heads):
                    continue
                head = _head(message, positions)
                if head is not None and number is not None:
                    heads[number] = head
                    reader.pause([TopicPartition(topic, number)])
        finally:
            # A pause outlives the assignment.
            reader.resume(reader.assignment())
            reader.unassign()
        return heads

    def _forget(self) -> None:
        """A log that was started anew: nothing of the former one counts."""
        self._let_go()
        self._heads, self._moved = {}, 0.0

    def _let_go(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def _head(message: LogMessage, positions: dict[int, int]) -> Head | None:
    """What a message, or the end of a partition, says; None of an error that passes by itself."""
    error, number = message.error(), message.partition() or 0
    if error is not None and error.code() == KafkaError._PARTITION_EOF:
        return Head(positions[number])
    first = as_message(message, "")
    if first is None:
        return None
    committed_at = origin(first).committed_at
    seconds = committed_at.timestamp() if committed_at is not None else first.times["logged"] / 1e9
    return Head(positions[number], first.offset, seconds)


def _age(head: Head, now: float) -> float:
    return max(0.0, now - head.committed_at) if head.committed_at is not None else 0.0
