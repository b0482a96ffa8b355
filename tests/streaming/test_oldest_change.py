"""The oldest unprocessed change of each partition, asked of a log while the dataflow does nothing, or is not there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec
import pytest
from confluent_kafka import Producer, TopicPartition

from streaming import lag, log
from streaming.clients import consumer, producer
from streaming.lag import Head, Probe
from streaming.log import ChangeReader, Log, Member
from streaming.progress import Progress

NOW = 2_000_000_000.0


@dataclass
class Clock:
    now: float = NOW

    def __call__(self) -> float:
        return self.now


@dataclass
class Topic:
    """The changes topic of a log, and its life."""

    bootstrap: str
    epoch: list[str] = field(default_factory=lambda: ["one"])

    def log(self) -> Log:
        return Log(self.bootstrap, "changes", "documents", "chunks", "letters", "index-id", lambda: self.epoch[0])

    def add(self, partition: int, *values: bytes | None, **options: int) -> None:
        outlet = producer(self.bootstrap)
        for value in values:
            outlet.produce("changes", value, b"key", partition, **options)
        outlet.flush()

    def commit(self, partition: int, offset: int) -> None:
        committer = consumer(self.bootstrap, self.log().group(self.epoch[0]))
        committer.commit(offsets=[TopicPartition("changes", partition, offset)], asynchronous=False)
        committer.close()


def change(committed_at: float) -> bytes:
    """An envelope of a change that its source committed then."""
    return msgspec.json.encode({"op": "u", "after": "{}", "source": {"ts_ms": int(committed_at * 1000)}})


@pytest.fixture
def topic() -> Iterator[Topic]:
    """A topic of four partitions in librdkafka's own broker, which lives as long as its first client."""
    host = Producer({"bootstrap.servers": "", "test.mock.num.brokers": 1, "log_level": 0})
    (broker,) = host.list_topics("changes", timeout=10).brokers.values()
    yield Topic(f"{broker.host}:{broker.port}")
    host.flush()


@pytest.fixture
def probing(topic: Topic) -> Iterator[Callable[[Clock], Probe]]:
    made: list[Probe] = []

    def make(clock: Clock) -> Probe:
        made.append(Probe(topic.log(), clock))
        return made[-1]

    yield make
    for probe in made:
        probe.close()
        probe.look()


def test_an_empty_log_has_nothing_behind(topic: Topic, probing: Callable[[Clock], Probe]) -> None:
    probe = probing(Clock())
    assert (probe.told()["seconds"], probe.looked_ago()) == (None, None)

    probe.look()
    probe.look()

    assert probe.ages() == {0: 0.0, 1: 0.0, 2: 0.0, 3: 0.0}
    assert (probe.told()["seconds"], probe.told()["partitions"], probe.told()["stuck"]) == (0.0, [], False)


def test_the_first_uncommitted_change_is_as_old_as_its_source_says(
    topic: Topic, probing: Callable[[Clock], Probe]
) -> None:
    topic.add(1, change(NOW - 90), change(NOW - 30), change(NOW - 20))
    topic.add(2, change(NOW - 5))
    topic.commit(1, 1)
    clock = Clock()
    probe = probing(clock)

    probe.look()
    assert probe.ages() == {0: 0.0, 1: 30.0, 2: 5.0, 3: 0.0}
    assert [(each["partition"], each["offset"]) for each in probe.told()["partitions"]] == [(1, 1), (2, 0)]

    clock.now += 2
    topic.commit(1, 2)
    topic.commit(2, 1)
    probe.look()
    assert probe.ages() == {0: 0.0, 1: 22.0, 2: 0.0, 3: 0.0}

    topic.commit(1, 3)
    probe.look()
    assert probe.told()["partitions"] == []


@pytest.mark.parametrize("value", [b"\xff no envelope", None], ids=["poison", "a tombstone"])
def test_what_tells_no_time_is_as_old_as_its_place_in_the_log(
    topic: Topic, probing: Callable[[Clock], Probe], value: bytes | None
) -> None:
    topic.add(3, value, timestamp=int((NOW - 7) * 1000))
    probe = probing(Clock())

    probe.look()

    assert probe.ages()[3] == pytest.approx(7.0)


def test_a_message_of_16_mb_is_found_and_not_read_again_while_nothing_moves(
    topic: Topic, probing: Callable[[Clock], Probe], monkeypatch: pytest.MonkeyPatch
) -> None:
    large = change(NOW - 3)[:-1] + b',"before":"' + b"x" * 16_000_000 + b'"}'
    topic.add(0, large)
    topic.add(1, *([change(NOW - 4)] * 50))
    clock = Clock()
    probe = probing(clock)

    probe.look()
    assert (probe.ages()[0], probe.ages()[1]) == (3.0, 4.0)

    asked: list[list[int]] = []
    read = Probe._read

    def watched(self: Probe, reader: object, places: list[TopicPartition]) -> dict[int, Head]:
        asked.append([place.partition for place in places])
        return read(self, reader, places)  # type: ignore[arg-type]

    monkeypatch.setattr(Probe, "_read", watched)
    clock.now += 60
    probe.look()
    assert asked == [[2, 3]]
    assert (probe.ages()[0], probe.ages()[1]) == (63.0, 64.0)


def test_the_oldest_is_stuck_where_it_is_old_and_nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, offsets = Clock(), {0: 0, 1: 0}
    heads = lambda *_: {number: Head(at, at, NOW) for number, at in offsets.items()}  # noqa: E731 - stands for a method
    monkeypatch.setattr(Probe, "_found", heads)
    probe = Probe(Topic("127.0.0.1:1").log(), clock)
    stuck = []
    # One look every two seconds; with the fifth the dataflow has worked something off, of another partition.
    for number in range(14):
        clock.now = NOW + lag.LOOK_SECONDS * number
        offsets[1] += number == 4
        probe.look()
        stuck.append(probe.told()["stuck"])

    assert stuck.index(True) == 4 + lag.STILL_SECONDS / lag.LOOK_SECONDS + 1
    assert all(stuck[stuck.index(True) :])


def test_a_partition_that_never_moved_is_stuck_within_ten_seconds_of_its_change(
    topic: Topic, probing: Callable[[Clock], Probe]
) -> None:
    clock = Clock(NOW - 100)
    probe = probing(clock)
    probe.look()
    topic.add(2, change(NOW))

    clock.now = NOW + lag.LOOK_SECONDS
    probe.look()
    clock.now = NOW + lag.OLD_SECONDS + 0.1

    assert (probe.told()["stuck"], probe.told()["partitions"][0]["partition"]) == (True, 2)


def test_a_log_that_was_started_anew_is_asked_about_the_new_group(
    topic: Topic, probing: Callable[[Clock], Probe]
) -> None:
    topic.add(0, change(NOW - 50), change(NOW - 40))
    topic.commit(0, 2)
    probe = probing(Clock())
    probe.look()
    assert probe.ages()[0] == 0.0

    topic.epoch[0] = "two"
    probe.look()

    assert probe.ages()[0] == 50.0


def test_a_log_that_is_away_is_named_and_what_was_seen_grows_older(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lag, "ASK_SECONDS", 0.1)
    clock = Clock()
    probe = Probe(Topic("127.0.0.1:1").log(), clock)
    probe._epoch, probe._heads, probe._looked, probe._moved = "one", {2: Head(4, 4, NOW - 6)}, NOW, NOW - 1

    clock.now += 5
    probe.look()

    told = probe.told()
    assert (told["seconds"], told["looked"]) == (11.0, 5.0)
    assert told["reason"]


def test_the_lag_is_told_without_asking_the_readers_consumer(topic: Topic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "life_of", lambda bootstrap, changes: "one")
    topic.add(0, change(NOW), change(NOW), change(NOW))
    progress = Progress()
    member = Member(topic.log(), progress, 0, 1)
    reader = ChangeReader(topic.log(), member, progress, threading.Event())
    deadline = time.monotonic() + 30
    while not reader.next_batch():
        assert time.monotonic() < deadline, "no message came"
    own = member.consumer
    # It would be busy with the dataflow's poll, and both would wait for each other.
    member.consumer = None  # type: ignore[assignment]

    assert progress.lag() == 3
    own.close()
