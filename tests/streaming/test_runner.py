"""A dataflow whose dependency is away: it waits, says so for as long as it lasts, and goes on by itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from bytewax.dataflow import Dataflow

from streaming import log
from streaming import runner as running
from streaming.progress import Progress
from streaming.runner import DataflowRunner


class Part:
    """What the dataflow needs: away for some runs, then it works until the stop."""

    def __init__(self, progress: Progress, away: int, failure: BaseException) -> None:
        self.progress, self.away, self.failure = progress, away, failure
        self.states: list[tuple[str, str | None]] = []
        self.worked = threading.Event()

    def build(self, stop: threading.Event, stack: ExitStack) -> Dataflow:
        self.stop = stop
        return Dataflow("test")

    def run(self, flow: Dataflow, *_: object, **__: object) -> None:
        self.states.append((self.progress.state, self.progress.reason))
        if len(self.states) <= self.away:
            raise self.failure
        self.progress.report("running", None)
        self.worked.set()
        self.stop.wait()


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Part, Progress]]:
    monkeypatch.setattr(running, "FIRST_DELAY", 0.001)

    def run(away: int, failure: BaseException) -> tuple[Part, Progress]:
        progress = Progress()
        part = Part(progress, away, failure)
        monkeypatch.setattr(running, "cluster_main", part.run)
        runner = DataflowRunner(part.build, progress)
        runner.start()
        assert part.worked.wait(60)
        state = progress.state
        runner.stop()
        assert state == "running"
        return part, progress

    return run


def test_while_it_tries_again_it_still_says_what_it_waits_for(
    ran: Callable[..., tuple[Part, Progress]],
) -> None:
    failure = RuntimeError("wrapped")
    failure.__cause__ = ConnectionError("the index is away")
    part, progress = ran(3, failure)

    assert part.states[0] == ("running", None)
    assert part.states[1:] == [("waiting", "ConnectionError: the index is away")] * 3
    assert progress.state == "stopped"


class Panic(BaseException):
    """As the runtime's own, which is no Exception."""


def test_a_panic_of_the_runtime_is_one_more_failure(
    ran: Callable[..., tuple[Part, Progress]],
) -> None:
    part, progress = ran(1, Panic("unable to receive panic error from channel"))

    assert part.states[1:] == [("waiting", "Panic: unable to receive panic error from channel")]
    assert progress.state == "stopped"


class EmptyLog:
    """A consumer of a log in which nothing is new."""

    def committed(self, partitions: list[Any], timeout: float) -> list[Any]:
        return partitions

    def assign(self, partitions: list[Any]) -> None:
        return

    def poll(self, seconds: float) -> None:
        return

    def get_watermark_offsets(self, partition: Any, cached: bool) -> tuple[int, int]:
        return 0, 0

    def close(self) -> None:
        return


def test_where_nothing_comes_again_there_is_nothing_left_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "consumer", lambda *_: EmptyLog())
    monkeypatch.setattr(log, "life_of", lambda *_: "a life")
    monkeypatch.setattr(log, "partitions_of", lambda *_: [0])
    progress = Progress()
    progress.report("waiting", "the log is away")
    changes = log.Log("", "changes", "", "", "", "an index", lambda: "")
    reader = log.ChangeReader(changes, log.Member(changes, progress, 0, 1), progress, threading.Event())

    for _ in range(log.IDLE_POLLS - 1):
        reader.next_batch()
    assert progress.state == "waiting"
    reader.next_batch()

    assert (progress.state, progress.reason) == ("running", None)
    reader.close()
