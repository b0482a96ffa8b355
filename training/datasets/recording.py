"""Following the topic of cleaned documents into the history: a consumer like any other team's.

How far each partition was followed stands in the history itself, in the same commit as the rows that came from it, so a
message is recorded once, whatever crashes. A log that was started anew is another source and is read from its start;
what it tells again is not recorded again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated

import msgspec

from corpus.history import DocumentState, Held, History, Overtaken, Told, open_history
from corpus.settings import Settings, running_addresses

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Message

logger = logging.getLogger(__name__)
# Messages of one commit. A commit takes some ten milliseconds, whatever it holds, so what comes within WAIT_SECONDS
# shares one; whoever only catches up looks more often.
TOGETHER = 500
WAIT_SECONDS, LOOK_SECONDS = 1.0, 0.1
# Without a message from a broker that still has some.
PATIENCE = 30.0
Moment = Annotated[datetime, msgspec.Meta(tz=True)]
ASK_SECONDS = 10.0


class FeaturesUnavailable(ConnectionError):
    """The topic of cleaned documents cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Features:
    """Where cleaned documents are told. `life()`: which life of the log it is, if that is known."""

    bootstrap: str
    topic: str
    life: Callable[[], str]


def open_recorder(settings: Settings) -> Recorder:
    """What records the topic of these settings into the history of this home, which is opened when it is needed."""
    features = Features(
        settings.kafka_bootstrap_servers or "",
        settings.feature_documents_topic,
        lambda: running_addresses(settings.home).get("log_epoch", ""),
    )
    return Recorder(features, partial(open_history, settings))


@dataclass
class Recorder:
    """Records what the topic tells. `behind`: messages that were not recorded yet, None before the first look."""

    features: Features
    open: Callable[[], History]
    behind: int | None = None
    _history: History | None = None
    _held: dict[str, Held] | None = None
    _held_at: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _opening: threading.Lock = field(default_factory=threading.Lock)

    @property
    def history(self) -> History:
        """The history, opened by whoever needs it first. Raises HistoryUnavailable."""
        with self._opening:
            if self._history is None:
                self._history = self.open()
            return self._history

    def run(self, stop: threading.Event) -> None:
        """Record until stopped, or until the log is another one: call it again then.

        Raises FeaturesUnavailable or HistoryUnavailable.
        """
        life = self.features.life()
        with _Reader(self.features, life, self.history) as reader:
            while not stop.is_set() and self.features.life() == life:
                messages = reader.poll(WAIT_SECONDS)
                if messages and not self._record(messages):
                    reader.return_to(self.history)
                self.behind = reader.behind()

    def catch_up(self) -> int:
        """Record all that the topic holds now; the number of rows. Raises FeaturesUnavailable or HistoryUnavailable."""
        with _Reader(self.features, self.features.life(), self.history) as reader:
            before = self.history.last()
            heard = time.monotonic()
            while reader.open:
                messages = reader.poll(LOOK_SECONDS)
                if messages:
                    heard = time.monotonic()
                    if not self._record(messages):
                        reader.return_to(self.history)
                elif time.monotonic() - heard > PATIENCE:
                    raise FeaturesUnavailable(
                        f"topic {self.features.topic} does not come to its end: see `twin status`"
                    )
        return self.history.last() - before

    def end(self, ids: Collection[str], now: datetime) -> int:
        """Note that these documents are gone, of which no message told: the log lost it. How many were noted."""
        with self._lock:
            for _ in range(2):
                try:
                    told = [Told(document_id=id, at=now, state=None) for id in sorted(ids)]
                    noted = self.history.record(told, {}, self._known())
                    self._held_at = self.history.last()
                    return noted
                except Overtaken:
                    self._held = None
        return 0

    def live(self) -> set[str]:
        """Ids of the documents that the history holds as there."""
        with self._lock:
            return {id for id, held in self._known().items() if not held.gone}

    def _record(self, heard: Iterable[_Heard]) -> bool:
        """Whether it is recorded; else another process recorded meanwhile."""
        with self._lock:
            # Another reader of this very process may have been faster.
            new = [each for each in heard if each.offset > self._recorded(each.source)]
            told = [each.told for each in new if each.told is not None]
            try:
                if new:
                    self.history.record(told, {each.source: each.offset for each in new}, self._known())
                    self._held_at = self.history.last()
            except Overtaken:
                self._held = None
                return False
        return True

    def _recorded(self, source: str) -> int:
        position = self.history.position(source)
        return -1 if position is None else position

    def _known(self) -> dict[str, Held]:
        # Others record too, also in this very process, and then it is known only by the number of the last row.
        if self._held is None or self._held_at != self.history.last():
            self.history.refresh()
            self._held, self._held_at = self.history.held(), self.history.last()
        return self._held


@dataclass(frozen=True, slots=True)
class _Heard:
    """A message; `told` is None for one that is no document's state."""

    source: str
    offset: int
    told: Told | None


class _Reader:
    """A consumer of every partition from where the history is; `open`: partitions whose end was not met yet."""

    def __init__(self, features: Features, life: str, history: History) -> None:
        from confluent_kafka import Consumer

        self._features = features
        self._consumer: Consumer = Consumer(
            {
                "bootstrap.servers": features.bootstrap,
                "group.id": "twin-history",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 500,
                "reconnect.backoff.max.ms": 1000,
                "queued.max.messages.kbytes": 32_000,
                "log_level": 0,
            }
        )
        self.open: set[int] = set()
        try:
            self._life = life or _topic_id(features)
            self._partitions = self._found()
            self.return_to(history)
        except BaseException:
            self._consumer.close()
            raise

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def return_to(self, history: History) -> None:
        """Go on from where the history is."""
        from confluent_kafka import OFFSET_BEGINNING, TopicPartition

        history.refresh()
        offsets = {number: history.position(self._source(number)) for number in self._partitions}
        self.open = set(self._partitions)
        self._consumer.assign(
            [
                TopicPartition(self._features.topic, number, OFFSET_BEGINNING if offset is None else offset + 1)
                for number, offset in offsets.items()
            ]
        )

    def poll(self, seconds: float) -> list[_Heard]:
        """What came within this time, by partition in order."""
        from confluent_kafka import KafkaError

        heard = []
        for message in self._consumer.consume(TOGETHER, seconds):
            error, partition = message.error(), message.partition() or 0
            if error is None:
                self.open.add(partition)
                heard.append(_Heard(self._source(partition), message.offset() or 0, self._told(message)))
            elif error.code() == KafkaError._PARTITION_EOF:
                self.open.discard(partition)
            elif error.fatal():
                raise FeaturesUnavailable(f"topic {self._features.topic} cannot be read: {error.str()}")
        return heard

    def _told(self, message: Message) -> Told | None:
        try:
            return as_told(message.key(), message.value(), message.timestamp()[1])
        except (ValueError, TypeError) as error:
            logger.warning("a message of %s is no document and is passed over: %s", self._features.topic, error)
            return None

    def behind(self) -> int:
        """Messages between what was read and the ends that the last fetch told."""
        total = 0
        for partition in self._consumer.position(self._consumer.assignment()):
            _, end = self._consumer.get_watermark_offsets(partition, cached=True)
            total += max(0, end - partition.offset) if partition.offset >= 0 else max(0, end)
        return total

    def _found(self) -> list[int]:
        from confluent_kafka import KafkaException

        topic = self._features.topic
        try:
            found = self._consumer.list_topics(topic, timeout=ASK_SECONDS).topics[topic]
        except KafkaException as error:
            raise FeaturesUnavailable(f"the log does not answer: see `twin status` ({error.args[0].str()})") from error
        if found.error is not None or not found.partitions:
            raise FeaturesUnavailable(f"there is no topic {topic}: start the parts with `twin up`")
        return sorted(found.partitions)

    def _source(self, partition: int) -> str:
        return f"{self._features.topic}/{self._life}/{partition}"


def as_told(key: str | bytes | None, value: str | bytes | None, milliseconds: int) -> Told:
    """What a message of the topic says. Raises ValueError or TypeError for one that is not as the contract says."""
    id = (key.encode() if isinstance(key, str) else key or b"").decode()
    at = datetime.fromtimestamp(milliseconds / 1000, UTC)
    if value is None:
        return Told(document_id=id, at=at, state=None)
    state = msgspec.json.decode(value, type=DocumentState)
    # Erasures compare this moment, so one that is none may not come in.
    crawled_at = msgspec.convert(state.crawled_at, Moment)
    plain = {**msgspec.structs.asdict(state), "crawled_at": crawled_at.isoformat()}
    return Told(document_id=id, at=at, state=plain)


def _topic_id(features: Features) -> str:
    """The id of the topic itself: one that was deleted and made anew is another source."""
    from confluent_kafka import KafkaException, TopicCollection
    from confluent_kafka.admin import AdminClient

    admin = AdminClient({"bootstrap.servers": features.bootstrap, "log_level": 0})
    asked = admin.describe_topics(TopicCollection([features.topic]), request_timeout=ASK_SECONDS)[features.topic]
    try:
        return str(asked.result().topic_id)
    except KafkaException as error:
        raise FeaturesUnavailable(f"topic {features.topic} cannot be read: {error.args[0].str()}") from error
