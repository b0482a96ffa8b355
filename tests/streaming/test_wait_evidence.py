"""What `wait` takes as evidence, and whom it names when there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from corpus.agreement import Disagreement
from corpus.warehouse import Warehouse
from streaming import waiting
from streaming.clients import LogFailed
from streaming.waiting import TimedOut, Wait


class Reader:
    """Of a log that was started anew: nothing is committed there."""

    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        return [TopicPartition(part.topic, part.partition, -1001) for part in partitions]

    def close(self) -> None:
        return


class App:
    """An app that names these groups, one after the other."""

    def __init__(self, *groups: str) -> None:
        self.groups: Iterator[str] = iter(groups)

    def stream(self) -> Mapping[str, str]:
        return {"group": next(self.groups)}

    def disagreement(self) -> Disagreement:
        return Disagreement((), (), ())

    def reconcile(self) -> None:
        raise AssertionError("nothing differs")


class Documents:
    """A MongoDB that answers."""

    def now(self) -> int:
        return 0


def waiting_for(app: App, monkeypatch: pytest.MonkeyPatch) -> Wait:
    """A wait whose mark came through, over a log that is empty afterwards."""
    monkeypatch.setattr(Wait, "_until_marked", lambda self: None)
    monkeypatch.setattr(waiting, "consumer", lambda bootstrap, group, **further: Reader())
    monkeypatch.setattr(waiting, "partitions_of", lambda reader, topic: [0, 1])
    monkeypatch.setattr(waiting, "_ends", lambda bootstrap, committed, pause: {0: 0, 1: 0})
    return Wait(lambda: cast(Warehouse, Documents()), app, lambda: "", "changes", "marks", time.monotonic() + 1)


def test_an_empty_log_that_was_started_since_the_mark_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LogFailed, match="started anew"):
        waiting_for(App("old", "new"), monkeypatch)._until_applied()


def test_an_empty_log_that_is_still_the_same_has_nothing_left(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting_for(App("one", "one"), monkeypatch)._until_applied()


class Hanging:
    """A part that is asked and does not answer in time; `told`: what the wait said meanwhile."""

    def __init__(self, error: Exception) -> None:
        self.error, self.told = error, ""
        self.behind: Callable[[], str] = lambda: ""

    def __getattr__(self, question: str) -> Any:
        def ask(*arguments: object, **options: object) -> Any:
            self.told = self.behind()
            raise self.error

        return ask


@pytest.mark.parametrize("part", ["MongoDB", "the app", "the log"])
def test_the_part_that_does_not_answer_is_named_while_it_is_asked(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = Hanging(ConnectionError("gone"))
    app = cast(waiting.App, hanging) if part == "the app" else App("one", "one")
    wait = waiting_for(cast(App, app), monkeypatch)
    if part == "MongoDB":
        wait.warehouse = lambda: cast(Warehouse, hanging)
    if part == "the log":
        monkeypatch.setattr(waiting, "partitions_of", hanging.list_topics)
    hanging.behind = lambda: wait.behind
    with pytest.raises(ConnectionError):
        wait._until_applied()
    assert hanging.told == f"{part} does not answer: see `twin status`"


def test_a_log_that_fails_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    failure = KafkaException(KafkaError(KafkaError._TRANSPORT, "Broker transport failure"))
    wait = waiting_for(App("one"), monkeypatch)
    wait.deadline = time.monotonic()
    monkeypatch.setattr(waiting, "partitions_of", Hanging(failure).list_topics)
    with pytest.raises(TimedOut, match=r"^the log does not answer \(Broker transport failure\)$"):
        wait.until_searchable()
