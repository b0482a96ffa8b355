"""What `wait` takes as evidence: an empty log is none when it is not the one that the mark was seen in."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import pytest
from confluent_kafka import TopicPartition

from corpus.agreement import Disagreement
from streaming import waiting
from streaming.clients import LogFailed
from streaming.waiting import Wait


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


def waiting_for(app: App, monkeypatch: pytest.MonkeyPatch) -> Wait:
    """A wait whose mark came through, over a log that is empty afterwards."""
    monkeypatch.setattr(Wait, "_until_marked", lambda self: None)
    monkeypatch.setattr(waiting, "consumer", lambda bootstrap, group: Reader())
    monkeypatch.setattr(waiting, "partitions_of", lambda reader, topic: [0, 1])
    monkeypatch.setattr(waiting, "_ends", lambda bootstrap, committed, pause: {0: 0, 1: 0})
    return Wait(lambda: pytest.fail("no warehouse"), app, lambda: "", "changes", "marks", time.monotonic() + 1)


def test_an_empty_log_that_was_started_since_the_mark_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LogFailed, match="started anew"):
        waiting_for(App("old", "new"), monkeypatch)._until_applied()


def test_an_empty_log_that_is_still_the_same_has_nothing_left(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting_for(App("one", "one"), monkeypatch)._until_applied()
