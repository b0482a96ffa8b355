"""Clients of the log with the settings that this program relies on."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicCollection
from confluent_kafka.admin import AdminClient

from corpus.documents import LARGEST_CHANGE, LARGEST_MESSAGE


class LogFailed(RuntimeError):
    """The log refused what it must do; the message says what."""


def consumer_group(index_id: str, epoch: str, term: str = "") -> str:
    """The group whose committed offsets say how far this index has followed this log, in this term of being live."""
    return "-".join(("twin-features", index_id[:8], *(part[:8] for part in (epoch, term) if part)))


def consumer(bootstrap: str, group: str, **further: Any) -> Consumer:
    """A consumer that reads what it is told to and commits only what it is told to."""
    return Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 100,
            "fetch.error.backoff.ms": 100,
            "reconnect.backoff.max.ms": 1000,
            "fetch.message.max.bytes": LARGEST_MESSAGE,
            "receive.message.max.bytes": 2 * LARGEST_MESSAGE,
            "queued.max.messages.kbytes": LARGEST_MESSAGE // 1024,
            "log_level": 3,
            **further,
        }
    )


def partitions_of(reader: Consumer, topic: str, timeout: float = 10.0) -> list[int]:
    """The partitions of a topic; LogFailed if there is no such topic."""
    found = reader.list_topics(topic, timeout=timeout).topics[topic]
    if found.error is not None or not found.partitions:
        raise LogFailed(f"topic {topic} cannot be read: {found.error or 'it has no partitions'}")
    return sorted(found.partitions)


def life_of(bootstrap: str, topic: str, timeout: float = 10.0) -> str:
    """The id of the topic itself: another one when a log lost its messages and the topic was made anew."""
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 3})
    return str(admin.describe_topics(TopicCollection([topic]), request_timeout=timeout)[topic].result().topic_id)


def producer(bootstrap: str, *, transactional: bool = False) -> Producer:
    """A producer that keeps the order of messages and gives a key the partition that Java's clients give it."""
    # Its own name: the consumer group tells who may write, not the name of a transaction. One whose worker was killed
    # in the middle of it holds up the next owner of its partitions until this time is over.
    own = {"transactional.id": f"twin-{uuid.uuid4()}", "transaction.timeout.ms": 15_000}
    transactions = own if transactional else {}
    return Producer(
        {
            **transactions,
            "bootstrap.servers": bootstrap,
            "acks": "all",
            # In order without idempotence: an idempotent producer does not survive a log that was started anew.
            "max.in.flight.requests.per.connection": 1,
            "compression.type": "lz4",
            "partitioner": "murmur2_random",
            "linger.ms": 1,
            "message.max.bytes": LARGEST_CHANGE,
            "message.timeout.ms": 15_000 if transactional else 60_000,
            "reconnect.backoff.max.ms": 1000,
            "log_level": 3,
        }
    )


def delivery_failure(error: KafkaError | None, message: Message) -> str | None:
    """Why the log did not take a message; None if it did."""
    if error is not None:
        return error.str()
    # A broker that lost its state may acknowledge what it did not write.
    return None if (message.offset() or 0) >= 0 and message.offset() is not None else "acknowledged without an offset"


def noting(failed: list[str]) -> Callable[[KafkaError | None, Message], None]:
    """What a producer calls for each message: why the log did not take it goes into `failed`."""

    def delivered(error: KafkaError | None, message: Message) -> None:
        reason = delivery_failure(error, message)
        if reason is not None:
            failed.append(reason)

    return delivered
