"""The dataflow's two ends at the log: a source that reads changes, an outlet that publishes features and commits.

Offsets are committed to a consumer group of the log, after the effects of every message up to them are acknowledged:
at-least-once delivery. The group's name holds the index' id and the log's epoch, so a new index, or a log that lost its
messages, is read from the start.
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from bytewax.inputs import DynamicSource, StatelessSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from confluent_kafka import OFFSET_BEGINNING, KafkaError, TopicPartition
from confluent_kafka import Message as LogMessage

from corpus.documents import LARGEST_MESSAGE
from streaming.changes import DeadLetter, Message
from streaming.clients import LogFailed, consumer, consumer_group, delivery_failure, life_of, partitions_of, producer
from streaming.indexing import Indexed, Outcome, Removed
from streaming.progress import Progress

if TYPE_CHECKING:
    from streaming.tracing import Traces

# Enough to fill the embedder's batches, few enough that a batch of long documents is written within seconds.
BATCH = 32
POLL_SECONDS = 0.05
COMMIT_SECONDS = 10.0
SCHEMA_VERSION = ("schema-version", b"1")
# The key is beside it.
LARGEST_LETTER = LARGEST_MESSAGE - 1_000_000
DOCUMENT_FIELDS = (
    *("document_id", "version", "category", "platform", "author", "author_id", "url", "title", "language"),
    *("published_at", "crawled_at", "crawl_id", "content_hash", "text"),
)
# librdkafka reconnects by itself; these say that it is at it.
TRANSIENT = frozenset(
    {
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
        KafkaError._TIMED_OUT,
        KafkaError._PARTITION_EOF,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    }
)


class LogLost(RuntimeError):
    """The log was started anew without its messages: what was read of it says nothing about the new one."""


@dataclass(frozen=True, slots=True)
class Log:
    """Where the dataflow reads and publishes. `epoch()` changes when the log was started anew without its messages."""

    bootstrap: str
    changes: str
    documents: str
    chunks: str
    dead_letters: str
    index_id: str
    epoch: Callable[[], str]

    def group(self, epoch: str) -> str:
        return consumer_group(self.index_id, epoch)


class ChangeSource(DynamicSource[Message]):
    """Messages of the changes topic from the committed offsets on; worker i of n reads the partitions p with p % n = i.

    One consumer reads all partitions of a worker, so batches form across them. Ends when `stop` is set.
    """

    def __init__(self, log: Log, progress: Progress, stop: threading.Event) -> None:
        self._log, self._progress, self._stop = log, progress, stop

    def build(self, step_id: str, worker_index: int, worker_count: int) -> ChangeReader:
        return ChangeReader(self._log, self._progress, self._stop, worker_index, worker_count)


class ChangeReader(StatelessSourcePartition[Message]):
    def __init__(self, log: Log, progress: Progress, stop: threading.Event, worker: int, workers: int) -> None:
        self._log, self._progress, self._stop = log, progress, stop
        self._epoch = log.epoch()
        self._consumer = consumer(log.bootstrap, log.group(self._epoch))
        self._life = life_of(log.bootstrap, log.changes)
        mine = [
            TopicPartition(log.changes, partition)
            for partition in partitions_of(self._consumer, log.changes)
            if partition % workers == worker
        ]
        self._partitions = self._consumer.committed(mine, timeout=COMMIT_SECONDS) if mine else []
        for partition in self._partitions:
            if partition.offset < 0:
                partition.offset = OFFSET_BEGINNING
            progress.committed(partition.partition, max(partition.offset, 0))
        self._consumer.assign(self._partitions)
        progress.reads(self._ends())

    def _ends(self) -> dict[int, int]:
        """The end of each partition as the last fetch told it. (Not every broker answers a question for it truly.)"""
        ends = {}
        for partition in self._partitions:
            _, end = self._consumer.get_watermark_offsets(partition, cached=True)
            ends[partition.partition] = end
        return ends

    def next_batch(self) -> list[Message]:
        if self._stop.is_set():
            raise StopIteration
        # Waiting here releases the GIL, and a first message is handed on at once: no window adds to the latency, and
        # what arrives while a batch is embedded makes up the next.
        first = self._consumer.poll(POLL_SECONDS)
        received = [] if first is None else [first, *self._consumer.consume(BATCH - 1, 0)]
        # Asked after receiving: the epoch changes before a new log starts, so nothing of the new log gets through.
        if self._log.epoch() != self._epoch:
            raise LogLost("the log was started anew")
        self._progress.reads(self._ends())
        return [message for message in (as_message(each, self._life) for each in received) if message is not None]

    def close(self) -> None:
        self._consumer.close()


def as_message(message: LogMessage, life: str) -> Message | None:
    """A message of this life of the log; None for an error that passes by itself. Raises LogFailed for others."""
    error = message.error()
    if error is not None:
        if error.code() in TRANSIENT and not error.fatal():
            return None
        raise LogFailed(f"the log cannot be read: {error.str()}")
    return Message(
        topic=message.topic() or "",
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        key=_bytes(message.key()),
        value=_bytes(message.value()),
        headers=tuple((str(header[0]), _bytes(header[1])) for header in message.headers() or ()),
        log=life,
        times={"logged": message.timestamp()[1] * 1_000_000, "received": time.time_ns()},
    )


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


class FeatureOutlet(DynamicSink[Outcome]):
    """Publishes what became of each change for downstream teams, then commits the changes' offsets."""

    def __init__(self, log: Log, progress: Progress, generation: str, traces: Traces | None = None) -> None:
        self._log, self._progress, self._generation, self._traces = log, progress, generation, traces

    def build(self, step_id: str, worker_index: int, worker_count: int) -> FeatureWriter:
        return FeatureWriter(self._log, self._progress, self._generation, self._traces)


class FeatureWriter(StatelessSinkPartition[Outcome]):
    def __init__(self, log: Log, progress: Progress, generation: str, traces: Traces | None = None) -> None:
        self._log, self._progress, self._generation, self._traces = log, progress, generation, traces
        # The epoch at the start: offsets of this run are never committed to a log that was started anew.
        self._committer = consumer(log.bootstrap, log.group(log.epoch()))
        self._producer = producer(log.bootstrap)
        self._failed: list[str] = []

    def write_batch(self, items: list[Outcome]) -> None:
        for outcome in items:
            for topic, key, value in features(outcome, self._log, self._generation):
                self._producer.produce(topic, value, key, headers=[SCHEMA_VERSION], on_delivery=self._delivered)
                self._producer.poll(0)
        self._producer.flush()
        if self._failed:
            raise LogFailed(f"the log did not take {len(self._failed)} messages: {self._failed[0]}")
        published = time.time_ns()
        offsets = _offsets(items)
        self._committer.commit(offsets=offsets, asynchronous=False)
        for partition in offsets:
            self._progress.committed(partition.partition, partition.offset)
        self._count(items)
        if self._traces is not None:
            self._traces.finish(items, published)

    def close(self) -> None:
        self._committer.close()

    def _delivered(self, error: KafkaError | None, message: LogMessage) -> None:
        reason = delivery_failure(error, message)
        if reason is not None:
            self._failed.append(reason)

    def _count(self, items: Iterable[Outcome]) -> None:
        for outcome in items:
            if isinstance(outcome, Indexed):
                self._progress.count(
                    documents_indexed=1,
                    chunks_embedded=outcome.embedded,
                    chunks_reused=outcome.reused,
                    chunks_deleted=outcome.removed,
                )
            elif isinstance(outcome, Removed):
                self._progress.count(documents_deleted=1, chunks_deleted=outcome.removed)
            elif isinstance(outcome, DeadLetter):
                self._progress.count(dead_letters=1)
            else:
                self._progress.count(**{f"messages_{outcome.why}": 1})


def message_of(outcome: Outcome) -> Message:
    """The message that an outcome came from."""
    return outcome.change.message if isinstance(outcome, Indexed | Removed) else outcome.message


def _offsets(outcomes: Iterable[Outcome]) -> list[TopicPartition]:
    """The next offset to read of each partition."""
    following: dict[tuple[str, int], int] = {}
    for message in map(message_of, outcomes):
        place = (message.topic, message.partition)
        following[place] = max(following.get(place, 0), message.offset + 1)
    return [TopicPartition(topic, partition, offset) for (topic, partition), offset in following.items()]


def features(outcome: Outcome, log: Log, generation: str) -> list[tuple[str, bytes | None, bytes | None]]:
    """Topic, key and value of each message that tells downstream of an outcome; a deletion is a tombstone.

    The key is always the document's id, and a message holds a document's whole state, so the compacted topics hold the
    newest state of every document, in order.
    """
    if isinstance(outcome, Indexed):
        key = outcome.record.document_id.encode()
        return [
            (log.documents, key, msgspec.json.encode(_document_message(outcome, generation))),
            (log.chunks, key, msgspec.json.encode(_chunks_message(outcome, generation))),
        ]
    if isinstance(outcome, Removed):
        key = outcome.change.document_id.encode()
        return [(log.documents, key, None), (log.chunks, key, None)]
    if isinstance(outcome, DeadLetter):
        owner = outcome.document_id.encode() if outcome.document_id else None
        letter = _dead_letter_message(outcome, generation)
        told = msgspec.json.encode(letter)
        if len(told) > LARGEST_LETTER:
            size = f"its message of {len(outcome.message.value or b'') / 1e6:.1f} MB is too large for a letter"
            told = msgspec.json.encode({**letter, "value": None, "reason": f"{outcome.reason} ({size})"})
        return [(log.dead_letters, owner, told)]
    return []


def _document_message(outcome: Indexed, generation: str) -> dict[str, Any]:
    record = outcome.record
    return {**{name: getattr(record, name) for name in DOCUMENT_FIELDS}, "generation": generation}


def _chunks_message(outcome: Indexed, generation: str) -> dict[str, Any]:
    """`embedding`: base64 of little-endian float32, which is a third of the same numbers as JSON."""
    record = outcome.record
    return {
        "document_id": record.document_id,
        "version": record.version,
        "generation": generation,
        "chunks": [
            {
                "chunk_id": place.chunk_id,
                "position": position,
                "heading_path": place.heading_path,
                "text": chunk.text,
                "embedding": base64.b64encode(np.asarray(outcome.vectors[place.chunk_id], "<f4").tobytes()).decode(),
            }
            for position, (place, chunk) in enumerate(zip(record.places, outcome.chunks, strict=True))
        ],
    }


def _dead_letter_message(outcome: DeadLetter, generation: str) -> dict[str, Any]:
    message = outcome.message
    return {
        "document_id": outcome.document_id,
        "version": outcome.version,
        "step": outcome.step,
        "reason": outcome.reason,
        "generation": generation,
        "failed_at": datetime.now(UTC),
        "topic": message.topic,
        "partition": message.partition,
        "offset": message.offset,
        "key": _base64(message.key),
        "value": _base64(message.value),
        "headers": [[name, _base64(value)] for name, value in message.headers],
    }


def _base64(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()
