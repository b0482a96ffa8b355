"""The dataflow's two ends at the log: a source that reads changes, an outlet that publishes features and commits.

Offsets are committed to a consumer group of the log, after the effects of every message up to them are acknowledged:
at-least-once delivery. The group's name holds the index' id and the log's epoch, so a new index, or a log that lost its
messages, is read from the start.
"""

from __future__ import annotations

import base64
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from bytewax.inputs import DynamicSource, StatelessSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as LogMessage

from streaming.changes import DeadLetter, Message
from streaming.clients import LogFailed, consumer, consumer_group, delivery_failure, life_of, partitions_of, producer
from streaming.indexing import Indexed, Outcome, Removed, Unchanged
from streaming.letters import SCHEMA_VERSION, OpenLetters, letter_id, letter_value, replayed, tombstone
from streaming.progress import Progress

if TYPE_CHECKING:
    from streaming.tracing import Traces

# Enough to fill the embedder's batches, few enough that a batch of long documents is written within seconds.
BATCH = 32
POLL_SECONDS = 0.05
IDLE_POLLS = 40
TRANSACTION_SECONDS = 30.0
DOCUMENT_FIELDS = (
    *("document_id", "version", "category", "platform", "author", "author_id", "url", "title", "language"),
    *("published_at", "crawled_at", "crawl_id", "content_hash", "text"),
)
# A worker that is killed is missed after ten seconds. One that embeds a batch of the largest documents does not poll
# for minutes, and is not to be taken for dead.
SHARING = {
    "session.timeout.ms": 10_000,
    "heartbeat.interval.ms": 1_000,
    "max.poll.interval.ms": 900_000,
    "partition.assignment.strategy": "range",
}
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
    """Where the dataflow reads and publishes.

    `epoch()` changes when the log was started anew without its messages; `shared`: other processes may follow the same
    log into the same index, so the partitions are shared out by the consumer group; `publishes`: whether
    downstream is told, which only the live generation's dataflow does; `term`: which time it is live.
    """

    bootstrap: str
    changes: str
    documents: str
    chunks: str
    dead_letters: str
    index_id: str
    epoch: Callable[[], str]
    shared: bool = False
    publishes: bool = True
    term: str = ""

    def group(self, epoch: str) -> str:
        return consumer_group(self.index_id, epoch, self.term)


def hand_over(former: Log, candidate: Log, successor: Log) -> None:
    """Let `successor` begin where both dataflows have been, by partition: what `former` has not published, and what
    `candidate` has not applied, comes to it. Neither may be running. Raises LogFailed or KafkaException."""
    epoch = former.epoch()
    applied: dict[int, int] = {}
    for log in (former, candidate):
        reader = consumer(log.bootstrap, log.group(epoch))
        try:
            partitions = [TopicPartition(log.changes, number) for number in partitions_of(reader, log.changes)]
            for part in reader.committed(partitions, timeout=TRANSACTION_SECONDS):
                applied[part.partition] = min(applied.get(part.partition, part.offset), part.offset)
        finally:
            reader.close()
    begin = [TopicPartition(successor.changes, number, offset) for number, offset in applied.items() if offset >= 0]
    if begin:
        committer = consumer(successor.bootstrap, successor.group(epoch))
        try:
            committer.commit(offsets=begin, asynchronous=False)
        finally:
            committer.close()


class Member:
    """A worker's consumer, and the partitions that it has: the same ones for good, or what the group gives it."""

    def __init__(self, log: Log, progress: Progress, worker: int, workers: int) -> None:
        self._progress = progress
        # The epoch at the start: offsets of this run are never committed to a log that was started anew.
        self.epoch = log.epoch()
        self._users, self._closed = 2, False
        self.partitions: dict[int, TopicPartition] = {}
        self.consumer = consumer(log.bootstrap, log.group(self.epoch), **(SHARING if log.shared else {}))
        if log.shared:
            self.consumer.subscribe([log.changes], on_assign=self._given, on_revoke=self._taken, on_lost=self._taken)
            return
        mine = [
            TopicPartition(log.changes, partition)
            for partition in partitions_of(self.consumer, log.changes)
            if partition % workers == worker
        ]
        self._given(self.consumer, mine)

    def ends(self) -> dict[int, int]:
        """The end of each partition as the last fetch told it. (Not every broker answers a question for it truly.)"""
        ends = {}
        for number, partition in self.partitions.items():
            _, end = self.consumer.get_watermark_offsets(partition, cached=True)
            ends[number] = end
        return ends

    def commit(self, offsets: list[TopicPartition]) -> None:
        self.consumer.commit(offsets=offsets, asynchronous=False)

    def leave(self) -> None:
        """The reader and the writer of a worker share it: it is closed when both have left."""
        self._users -= 1
        if not self._users:
            self.close()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.consumer.close()

    def _given(self, reader: Consumer, partitions: list[TopicPartition]) -> None:
        # Those of a worker that was killed in the middle of a transaction are told when its time is over.
        found = reader.committed(partitions, timeout=TRANSACTION_SECONDS) if partitions else []
        for partition in found:
            if partition.offset < 0:
                partition.offset = OFFSET_BEGINNING
            self._progress.committed(partition.partition, max(partition.offset, 0))
        self.partitions = {partition.partition: partition for partition in found}
        reader.assign(found)

    def _taken(self, reader: Consumer, partitions: list[TopicPartition]) -> None:
        self._progress.reads_no_more([partition.partition for partition in partitions])
        self.partitions = {}


class Members:
    """The members of one process' dataflow, by worker: its reader and its writer ask for the same one."""

    def __init__(self, log: Log, progress: Progress) -> None:
        self._log, self._progress = log, progress
        self._members: dict[int, Member] = {}
        self._lock = threading.Lock()

    def of(self, worker: int, workers: int) -> Member:
        with self._lock:
            if worker not in self._members:
                self._members[worker] = Member(self._log, self._progress, worker, workers)
            return self._members[worker]

    def close(self) -> None:
        """Leave the group, whatever ended the dataflow: a member that nobody polls would keep its partitions."""
        for member in self._members.values():
            member.close()


class ChangeSource(DynamicSource[Message]):
    """Messages of the changes topic from the committed offsets on; ends when `stop` is set.

    Of one process with n workers, worker i reads the partitions p with p % n = i; where several processes share the
    log, the consumer group gives each worker its own. One consumer reads all partitions of a worker, so batches form
    across them.
    """

    def __init__(self, log: Log, members: Members, progress: Progress, stop: threading.Event) -> None:
        self._log, self._members, self._progress, self._stop = log, members, progress, stop

    def build(self, step_id: str, worker_index: int, worker_count: int) -> ChangeReader:
        return ChangeReader(self._log, self._members.of(worker_index, worker_count), self._progress, self._stop)


class ChangeReader(StatelessSourcePartition[Message]):
    def __init__(self, log: Log, member: Member, progress: Progress, stop: threading.Event) -> None:
        self._log, self._member, self._progress, self._stop = log, member, progress, stop
        self._life = life_of(log.bootstrap, log.changes)
        self._idle = 0
        progress.reads(member.ends())

    def next_batch(self) -> list[Message]:
        if self._stop.is_set():
            raise StopIteration
        # Waiting here releases the GIL, and a first message is handed on at once: no window adds to the latency, and
        # what arrives while a batch is embedded makes up the next.
        first = self._member.consumer.poll(POLL_SECONDS)
        received = [] if first is None else [first, *self._member.consumer.consume(BATCH - 1, 0)]
        self._idle = self._idle + 1 if first is None else 0
        if self._idle == IDLE_POLLS:
            # What failed before would have come again by now.
            self._progress.report("running", None)
        # Asked after receiving: the epoch changes before a new log starts, so nothing of the new log gets through.
        if self._log.epoch() != self._member.epoch:
            raise LogLost("the log was started anew")
        self._progress.reads(self._member.ends())
        return [message for message in (as_message(each, self._life) for each in received) if message is not None]

    def close(self) -> None:
        self._member.leave()


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

    def __init__(
        self, log: Log, members: Members, progress: Progress, generation: str, traces: Traces | None = None
    ) -> None:
        self._log, self._members, self._progress = log, members, progress
        self._generation, self._traces = generation, traces

    def build(self, step_id: str, worker_index: int, worker_count: int) -> FeatureWriter:
        member = self._members.of(worker_index, worker_count)
        tells = worker_index == 0
        return FeatureWriter(self._log, member, self._progress, self._generation, self._traces, tells=tells)


class FeatureWriter(StatelessSinkPartition[Outcome]):
    def __init__(
        self,
        log: Log,
        member: Member,
        progress: Progress,
        generation: str,
        traces: Traces | None = None,
        tells: bool = True,
    ) -> None:
        self._log, self._member, self._progress = log, member, progress
        self._generation, self._traces = generation, traces
        # What is open is read from the topic itself, so a crash between an effect and its tombstone forgets nothing.
        self._letters = OpenLetters(log.bootstrap, log.dead_letters)
        self._lettered: dict[int, int] = {}
        if tells:
            progress.tells_letters(self._open_letters)
        self._failed: list[str] = []
        self._producer = producer(log.bootstrap, transactional=log.shared)
        if log.shared:
            self._producer.init_transactions(TRANSACTION_SECONDS)

    def write_batch(self, items: list[Outcome]) -> None:
        self._letters.refresh()
        published = self._publish_fenced(items) if self._log.shared else self._publish(items)
        self._letters.follow(self._lettered)
        for partition in _offsets(items):
            self._progress.committed(partition.partition, partition.offset)
        self._progress.report("running", None)
        self._count(items)
        if self._traces is not None:
            self._traces.finish(items, published)

    def _publish(self, items: list[Outcome]) -> int:
        """Publish, and then commit; when the last message was acknowledged (ns)."""
        self._produce(items)
        self._producer.flush()
        if self._failed:
            raise LogFailed(f"the log did not take {len(self._failed)} messages: {self._failed[0]}")
        published = time.time_ns()
        self._member.commit(_offsets(items))
        return published

    def _publish_fenced(self, items: list[Outcome]) -> int:
        """Publish and commit in one transaction, which the log refuses to a worker that its group has given up.

        So a worker that slept publishes nothing over what the next owner of its partitions has published meanwhile.
        Source: KIP-447, "Producer scalability for exactly once semantics".
        """
        # What the group has given to another worker meanwhile, that one applies again and publishes in its order.
        items = [outcome for outcome in items if message_of(outcome).partition in self._member.partitions]
        try:
            self._producer.begin_transaction()
            self._produce(items)
            members = self._member.consumer.consumer_group_metadata()
            self._producer.send_offsets_to_transaction(_offsets(items), members, TRANSACTION_SECONDS)
            self._producer.commit_transaction(TRANSACTION_SECONDS)
        except KafkaException as error:
            if not error.args[0].fatal():
                self._producer.abort_transaction(TRANSACTION_SECONDS)
            # What was applied comes again, here or to whoever has the partition now.
            raise LogFailed(f"what was applied cannot be published: {error.args[0].str()}") from error
        return time.time_ns()

    def _produce(self, items: list[Outcome]) -> None:
        # What this batch does to letters, ahead of what was read of their topic.
        opened: dict[str, bool] = {}
        for outcome in items if self._log.publishes else ():
            for topic, key, value in features(outcome, self._log, self._generation):
                self._send(topic, key=key, value=value, headers=[SCHEMA_VERSION])
            if isinstance(outcome, DeadLetter):
                opened[letter_id(outcome)] = True
            again = replayed(message_of(outcome))
            for id in settled(outcome):
                if id == again or opened.get(id, id in self._letters):
                    why = "replayed" if id == again else "resolved"
                    self._send(self._log.dead_letters, **tombstone(id, why))
                    opened[id] = False
                    self._progress.count(**{f"letters_{why}": 1})

    def close(self) -> None:
        self._progress.tells_letters_no_more(self._open_letters)
        self._letters.close()
        self._member.leave()

    def _send(self, topic: str, **message: Any) -> None:
        self._producer.produce(topic, on_delivery=self._delivered, **message)
        self._producer.poll(0)

    def _open_letters(self) -> dict[str, int]:
        """How many letters are open by the step that refused them, with what commands did to them meanwhile."""
        self._letters.refresh()
        self._progress.count(letters_discarded=self._letters.discarded())
        return dict(Counter(letter.step for letter in self._letters.found()))

    def _delivered(self, error: KafkaError | None, message: LogMessage) -> None:
        reason = delivery_failure(error, message)
        if reason is not None:
            self._failed.append(reason)
        elif message.topic() == self._log.dead_letters:
            self._lettered[message.partition() or 0] = message.offset() or 0

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
        return [(log.dead_letters, letter_id(outcome).encode(), letter_value(outcome, generation, datetime.now(UTC)))]
    return []


def settled(outcome: Outcome) -> set[str]:
    """Ids of the letters that are open no more, if they were: that of the document, and that which was replayed.

    What is told again of a document whose newest version was refused settles nothing: that has the same letter.
    """
    again = replayed(message_of(outcome))
    ids = {again} if again is not None else set()
    if isinstance(outcome, DeadLetter):
        return ids - {letter_id(outcome)}
    if isinstance(outcome, Removed):
        return ids | {outcome.change.document_id}
    if isinstance(outcome, Indexed):
        own, refused = {outcome.record.document_id}, outcome.record.failure is not None
        return ids - own if refused else ids | own
    if isinstance(outcome, Unchanged):
        return ids - {outcome.document_id} if outcome.refused else ids | {outcome.document_id}
    return ids


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
