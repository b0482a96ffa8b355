"""The log of one machine: what our topics, producers and consumers ask of it, asked of the real broker."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import psutil
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]

from corpus.documents import LARGEST_MESSAGE
from corpus.settings import Settings
from embedded import log
from embedded.capture import log_life
from ingestion.capture import last_heartbeat
from ingestion.topics import TopicsFailed, admin_client, create_topics, topic_settings, topics

pytestmark = pytest.mark.integration


@dataclass
class Broker:
    port: int
    process: subprocess.Popen[bytes] = field(init=False)

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self.process = subprocess.Popen(
            log.command(self.port), env=log.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        deadline = time.monotonic() + 10
        while not log.ready(self.port):
            assert time.monotonic() < deadline, "the broker answers"

    def kill(self) -> bytes:
        self.process.kill()
        return self.process.communicate()[0]


@pytest.fixture
def broker(unused_tcp_port: int) -> Iterator[Broker]:
    found = Broker(unused_tcp_port)
    found.start()
    yield found
    if found.process.returncode is None:
        found.kill()


def test_topics_are_created_once_with_their_settings(broker: Broker) -> None:
    settings = Settings(partitions=3)

    create_topics(broker.bootstrap, settings)
    create_topics(broker.bootstrap, settings)

    found = admin_client(broker.bootstrap).list_topics(timeout=5).topics
    assert {name: len(topic.partitions) for name, topic in found.items()} == {
        name: partitions for name, (partitions, _) in topic_settings(settings).items()
    }


def test_a_topic_with_another_cleanup_policy_is_left_alone_and_named(broker: Broker) -> None:
    name = topics(Settings()).documents
    admin = admin_client(broker.bootstrap)
    admin.create_topics([NewTopic(name, 4, 1, config={"cleanup.policy": "delete"})])[name].result()

    with pytest.raises(TopicsFailed, match=rf"{name} has cleanup.policy=delete and must have compact"):
        create_topics(broker.bootstrap, Settings())


def test_a_topic_with_too_few_partitions_is_left_alone_and_named(broker: Broker) -> None:
    create_topics(broker.bootstrap, Settings(partitions=2))

    with pytest.raises(TopicsFailed, match="2 partitions, fewer than TWIN_PARTITIONS=4"):
        create_topics(broker.bootstrap, Settings(partitions=4))


def test_a_log_that_does_not_answer_is_one_sentence(unused_tcp_port: int) -> None:
    with pytest.raises(TopicsFailed, match=f"127.0.0.1:{unused_tcp_port}"):
        create_topics(f"127.0.0.1:{unused_tcp_port}", Settings(), timeout=1.0)


def test_a_log_that_was_started_anew_is_told_from_the_one_before(broker: Broker) -> None:
    create_topics(broker.bootstrap, Settings())
    name, admin = topics(Settings()).documents, admin_client(broker.bootstrap)
    before = log_life(admin, name)

    broker.kill()
    while_away = log_life(admin, name)
    broker.start()
    empty = log_life(admin, name)
    create_topics(broker.bootstrap, Settings())

    assert before
    assert while_away is None
    assert empty == ""
    assert log_life(admin, name) not in ("", None, before)


def test_messages_of_the_largest_size_and_tombstones_pass(broker: Broker) -> None:
    create_topics(broker.bootstrap, Settings(partitions=1))
    name = topics(Settings()).documents
    producer = Producer({"bootstrap.servers": broker.bootstrap, "message.max.bytes": LARGEST_MESSAGE})
    consumer = Consumer(
        {
            "bootstrap.servers": broker.bootstrap,
            "group.id": "g",
            "fetch.message.max.bytes": LARGEST_MESSAGE,
            "receive.message.max.bytes": 2 * LARGEST_MESSAGE,
        }
    )
    large = os.urandom(40_000_000)

    producer.produce(name, large, b"k")
    producer.produce(name, None, b"k")
    producer.flush(30)
    consumer.assign([TopicPartition(name, 0, 0)])
    messages = [consumer.poll(20), consumer.poll(20)]
    consumer.close()

    assert [message.value() for message in messages if message is not None] == [large, None]


def test_the_last_heartbeat_is_found_within_a_batch_of_many(broker: Broker) -> None:
    create_topics(broker.bootstrap, Settings())
    name = topics(Settings()).heartbeat
    assert last_heartbeat(broker.bootstrap, name) is None

    producer = Producer({"bootstrap.servers": broker.bootstrap, "linger.ms": 50})
    for second in range(100):
        producer.produce(name, b"{}", b"k", timestamp=1_000_000_000_000 + 1_000 * second)
    producer.flush(10)

    assert last_heartbeat(broker.bootstrap, name) == datetime.fromtimestamp(1_000_000_099, UTC)


def test_it_listens_on_loopback_connects_nowhere_and_says_little(broker: Broker) -> None:
    create_topics(broker.bootstrap, Settings())

    links = psutil.Process(broker.process.pid).net_connections("inet")
    assert {link.laddr.ip for link in links} == {"127.0.0.1"}
    assert {link.laddr.port for link in links} == {broker.port}, "it only answers"

    assert len(broker.kill().splitlines()) < 10
