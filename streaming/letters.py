"""Dead letters: what could not be applied, kept in a compacted topic until it is resolved, replayed or discarded.

A letter's key is its id: that of the document, else the place of its message. The newest value of each key is the open
letter, a tombstone means that there is none any more. So the topic itself is the list of what is open.
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import msgspec
from confluent_kafka import OFFSET_BEGINNING, KafkaError, TopicPartition
from confluent_kafka import Message as LogMessage

from corpus.documents import LARGEST_MESSAGE
from streaming.changes import ATTEMPTS_HEADER, LETTER_HEADER, VERSION_HEADER, DeadLetter, Message
from streaming.clients import LogFailed, consumer, partitions_of

# On a tombstone: resolved, replayed or discarded.
RESOLUTION_HEADER = "twin.resolution"
SCHEMA_VERSION = ("schema-version", b"1")
REPLAY_HEADERS = (LETTER_HEADER, ATTEMPTS_HEADER, VERSION_HEADER)
# The key is beside it.
LARGEST_LETTER = LARGEST_MESSAGE - 1_000_000
POLL_SECONDS = 0.05
PATIENCE = 10.0
UNKNOWN_TIME = datetime.fromtimestamp(0, UTC)
# Few letters in memory at a time, however large the originals in them are.
READING = {
    "enable.partition.eof": True,
    "fetch.message.max.bytes": 1_000_000,
    "queued.max.messages.kbytes": 1_000,
    "log_level": 0,
}


@dataclass(frozen=True, slots=True)
class Letter:
    """An open letter without its message, whose place in the changes is `topic`, `partition` and `offset`.

    `letter_id`: the document's id, else `<topic>/<partition>/<offset>`; `attempts`: how often this message has failed;
    `generation`: of the index that refused it; `at`: partition and offset of the letter in its own topic.
    """

    letter_id: str
    step: str
    reason: str
    document_id: str | None = None
    version: int | None = None
    attempts: int = 1
    generation: str = ""
    failed_at: datetime = UNKNOWN_TIME
    topic: str = ""
    partition: int = 0
    offset: int = -1
    at: tuple[int, int] = (0, -1)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which letters are meant: every condition that is given holds. `reason` is a part of it, whatever its case."""

    step: str | None = None
    document_id: str | None = None
    reason: str | None = None
    since: datetime | None = None

    def holds(self, letter: Letter) -> bool:
        return (
            self.step in (None, letter.step)
            and self.document_id in (None, letter.document_id)
            and (self.reason or "").casefold() in letter.reason.casefold()
            and (self.since is None or letter.failed_at >= self.since)
        )


def letter_id(refused: DeadLetter) -> str:
    """The id that this letter has, however often it is replayed."""
    message = refused.message
    return refused.document_id or replayed(message) or place_id(message.topic, message.partition, message.offset)


def place_id(topic: str, partition: int, offset: int) -> str:
    return f"{topic}/{partition}/{offset}"


def replayed(message: Message) -> str | None:
    """The id of the letter that this message was replayed from; None for any other message."""
    told = dict(message.headers).get(LETTER_HEADER)
    return told.decode("utf-8", "replace") if told else None


def letter_value(refused: DeadLetter, generation: str, failed_at: datetime) -> bytes:
    """The letter as JSON; key, value and headers of its message in base64.

    The value is null where the message is too large to be kept: such a letter cannot be replayed.
    """
    message = refused.message
    told = dict(message.headers).get(ATTEMPTS_HEADER) or b""
    former = int(told) if told.isdigit() and len(told) < 10 else 0
    letter = {
        "letter_id": letter_id(refused),
        "document_id": refused.document_id,
        "version": refused.version,
        "step": refused.step,
        "reason": refused.reason,
        "attempts": former + 1,
        "generation": generation,
        "failed_at": failed_at,
        "topic": message.topic,
        "partition": message.partition,
        "offset": message.offset,
        "key": _base64(message.key),
        "value": _base64(message.value),
        "headers": [[name, _base64(value)] for name, value in message.headers if name not in REPLAY_HEADERS],
    }
    whole = msgspec.json.encode(letter)
    if len(whole) <= LARGEST_LETTER:
        return whole
    size = f"its message of {len(message.value or b'') / 1e6:.1f} MB is too large for a letter"
    return msgspec.json.encode({**letter, "value": None, "reason": f"{refused.reason} ({size})"})


def message_in(value: bytes) -> Message:
    """The message that a letter of this value holds; an empty one where it holds none."""
    try:
        told = msgspec.json.decode(value)
        headers = tuple((str(name), _plain(header)) for name, header in told["headers"])
        place = told["topic"], told["partition"], told["offset"]
        return Message(*place, _plain(told["key"]), _plain(told["value"]), headers)
    except (ValueError, TypeError, KeyError, RecursionError):
        return Message("", 0, -1, None, None)


def replay_of(letter: Letter, value: bytes) -> dict[str, Any] | None:
    """What `produce` takes to send the letter's message again, given its value; None where that holds no message."""
    message = message_in(value)
    if message.value is None:
        return None
    version = [(VERSION_HEADER, str(letter.version).encode())] if letter.version is not None else []
    return {
        "topic": letter.topic,
        "key": message.key,
        "value": message.value,
        "headers": [
            *message.headers,
            (LETTER_HEADER, letter.letter_id.encode()),
            (ATTEMPTS_HEADER, str(letter.attempts).encode()),
            *version,
        ],
    }


def tombstone(id: str, why: str) -> dict[str, Any]:
    """What `produce` takes, besides the topic, to say that this letter is open no more: resolved or discarded."""
    return {"key": id.encode(), "value": None, "headers": [SCHEMA_VERSION, (RESOLUTION_HEADER, why.encode())]}


def read_letter(key: str, value: bytes, at: tuple[int, int]) -> Letter:
    """The letter of a record; one that is not ours is a letter all the same, so that it can be seen and discarded."""
    try:
        return replace(msgspec.json.decode(value, type=Letter), letter_id=key, at=at)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Letter(key, "unknown", f"this letter cannot be read: {error}", at=at)


def _base64(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


def _plain(value: str | None) -> bytes | None:
    return None if value is None else base64.b64decode(value)


class OpenLetters:
    """The letters that are open, as far as their topic was read: all of it once this is made. Safe across threads.

    Raises LogFailed or KafkaException if it cannot be read. Keeps no messages, only what a list shows.
    """

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._topic = topic
        self._open: dict[str, Letter] = {}
        self._next: dict[int, int] = {}
        self._discarded = 0
        # Who asks what is open need not wait for who waits for the log.
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._reader: Any = consumer(bootstrap, "twin-letters", **READING)
        ended: set[int] = set()
        try:
            partitions = partitions_of(self._reader, topic)
            self._reader.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
            self._read(lambda: len(ended) == len(partitions), ended)
        except BaseException:
            self.close()
            raise
        self._discarded = 0

    def __contains__(self, id: str) -> bool:
        with self._lock:
            return id in self._open

    def found(self) -> list[Letter]:
        """The open letters, the oldest failure first."""
        with self._lock:
            return sorted(self._open.values(), key=lambda letter: (letter.failed_at, letter.letter_id))

    def follow(self, offsets: Mapping[int, int]) -> None:
        """Read on until these offsets, by partition, were read: what was published is then known here."""
        self._read(lambda: all(self._next.get(number, 0) > offset for number, offset in offsets.items()), set())

    def refresh(self) -> None:
        """Take in what others published meanwhile, as far as it has arrived; left to whoever is reading already."""
        if not self._reading.acquire(blocking=False):
            return
        try:
            while self._reader is not None and (messages := self._reader.consume(100, 0)):
                for message in messages:
                    self._take(message)
        finally:
            self._reading.release()

    def discarded(self) -> int:
        """How many letters were discarded since this was last asked."""
        with self._lock:
            discarded, self._discarded = self._discarded, 0
            return discarded

    def close(self) -> None:
        with self._reading:
            if self._reader is not None:
                self._reader.close()
            self._reader = None

    def _read(self, done: Callable[[], bool], ended: set[int]) -> None:
        with self._reading:
            patience = time.monotonic() + PATIENCE
            while not done():
                message = self._reader.poll(POLL_SECONDS)
                if message is not None and self._take(message):
                    ended.add(message.partition() or 0)
                elif message is not None and message.error() is None:
                    patience = time.monotonic() + PATIENCE
                elif time.monotonic() > patience:
                    raise LogFailed(f"the log does not tell where {self._topic} ends")

    def _take(self, message: LogMessage) -> bool:
        """Whether this says that a partition has no more."""
        error = message.error()
        partition, offset = message.partition() or 0, message.offset() or 0
        if error is not None:
            if error.code() != KafkaError._PARTITION_EOF:
                return False
            self._next[partition] = max(offset, self._next.get(partition, 0))
            return True
        self._next[partition] = offset + 1
        id = _text(message.key())
        # By the value itself: a message with an empty value is falsy.
        value = message.value()
        if id is None:
            return False
        with self._lock:
            if value:
                self._open[id] = read_letter(id, _encoded(value), (partition, offset))
            elif self._open.pop(id, None) is not None:
                self._discarded += (RESOLUTION_HEADER, b"discarded") in (message.headers() or ())
        return False


def values(bootstrap: str, topic: str, letters: Iterable[Letter]) -> Iterator[tuple[Letter, bytes]]:
    """Each of these letters with its whole value, read from the topic again; one that was settled meanwhile may lack.

    One of them is in memory at a time.
    """
    wanted = {letter.at: letter for letter in letters}
    if not wanted:
        return
    first = {number: min(at for part, at in wanted if part == number) for number, _ in wanted}
    reader = consumer(bootstrap, "twin-letters", **READING)
    try:
        reader.assign([TopicPartition(topic, number, offset) for number, offset in first.items()])
        patience = time.monotonic() + PATIENCE
        ended: set[int] = set()
        while wanted and len(ended) < len(first):
            message = reader.poll(POLL_SECONDS)
            error = message.error() if message is not None else None
            if message is not None and error is None:
                patience = time.monotonic() + PATIENCE
                letter = wanted.pop((message.partition() or 0, message.offset() or 0), None)
                if letter is not None:
                    yield letter, _encoded(message.value() or b"")
            elif message is not None and error is not None and error.code() == KafkaError._PARTITION_EOF:
                ended.add(message.partition() or 0)
            elif time.monotonic() > patience:
                raise LogFailed(f"the log does not hand over the letters of {topic}")
    finally:
        reader.close()


def _text(key: str | bytes | None) -> str | None:
    return key.decode("utf-8", "replace") if isinstance(key, bytes) else key


def _encoded(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
