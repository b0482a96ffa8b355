"""The history follows the topic of cleaned documents: each message once, whatever stops and starts again."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from corpus.history import HistoryUnavailable, open_history
from corpus.settings import load
from embedded.app import Twice, opened
from training.datasets.recording import Features, FeaturesUnavailable, Recorder, open_recorder

TOPIC = "twin.features.documents"


class Broker:
    """A broker within this process, to which documents are told."""

    def __init__(self) -> None:
        self._host = Producer({"bootstrap.servers": "", "test.mock.num.brokers": 1, "log_level": 0})
        # Asking for a topic makes it, with four partitions.
        (broker,) = self._host.list_topics(TOPIC, timeout=10).brokers.values()
        self.bootstrap = f"{broker.host}:{broker.port}"
        self._outlet = Producer({"bootstrap.servers": self.bootstrap, "log_level": 0})

    def tell(self, id: str, text: str | None, version: int = 1) -> None:
        self.send(id, None if text is None else json.dumps(state(id, text, version)).encode())

    def send(self, id: str, value: bytes | None) -> None:
        self._outlet.produce(TOPIC, value, id.encode())
        self._outlet.flush()


def state(id: str, text: str, version: int) -> dict[str, Any]:
    named = ("category", "platform", "author", "author_id", "url", "title", "crawl_id")
    return {
        **dict.fromkeys(named, "x"),
        "document_id": id,
        "version": version,
        "language": None,
        "published_at": None,
        "generation": "g1",
        "crawled_at": "2026-06-01T00:00:00Z",
        "content_hash": f"hash of {text}",
        "text": text,
        "new field": 1,
    }


@pytest.fixture(scope="module")
def brokers() -> list[Broker]:
    """Those that were started, which must outlive their clients."""
    return []


@pytest.fixture
def broker(brokers: list[Broker]) -> Broker:
    brokers.append(Broker())
    return brokers[-1]


@pytest.fixture
def recorder_of(tmp_path: Path) -> Callable[..., Recorder]:
    def made(broker: Broker, life: str = "first") -> Recorder:
        return Recorder(
            Features(broker.bootstrap, TOPIC, lambda: life), lambda: open_history(load({"TWIN_HOME": str(tmp_path)}))
        )

    return made


def texts(recorder: Recorder) -> dict[str, str]:
    recorder.history.refresh()
    return {each.document_id: each.text for each in recorder.history.documents()}


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


def test_all_that_was_told_is_recorded_once(broker: Broker, recorder_of: Callable[..., Recorder]) -> None:
    for id, text, version in (("a", "one", 1), ("b", "bee", 1), ("a", "two", 2)):
        broker.tell(id, text, version)
    broker.tell("b", None)

    assert recorder_of(broker).catch_up() == 4
    assert texts(recorder_of(broker)) == {"a": "two"}
    # Another process looks again.
    assert recorder_of(broker).catch_up() == 0
    broker.tell("a", "three", 3)
    assert recorder_of(broker).catch_up() == 1
    assert texts(recorder_of(broker)) == {"a": "three"}


def test_it_goes_on_while_it_runs_beside_one_that_catches_up(
    broker: Broker, recorder_of: Callable[..., Recorder]
) -> None:
    recorder, stop = recorder_of(broker), threading.Event()
    thread = threading.Thread(target=recorder.run, args=(stop,))
    thread.start()
    try:
        for version in range(1, 13):
            broker.tell("a", f"text {version}", version)
            if version % 5 == 0:
                # As an erasure does in the app, and a build of a dataset in a process of its own.
                recorder.catch_up()
                recorder_of(broker).catch_up()
        until(lambda: texts(recorder) == {"a": "text 12"} and recorder.behind == 0)
    finally:
        stop.set()
        thread.join()

    assert recorder.history.last() == 12


def test_a_log_that_was_started_anew_is_read_from_its_start_and_what_it_tells_again_is_known(
    brokers: list[Broker], broker: Broker, recorder_of: Callable[..., Recorder]
) -> None:
    for number in range(5):
        broker.tell(f"d{number}", "text")
    recorder_of(broker).catch_up()
    brokers.append(Broker())
    anew = brokers[-1]
    anew.tell("d0", "text")
    anew.tell("d1", "edited meanwhile", 2)

    assert recorder_of(anew, "second").catch_up() == 1
    assert texts(recorder_of(anew, "second"))["d1"] == "edited meanwhile"


def test_a_message_that_is_no_document_holds_nothing_up(
    broker: Broker, recorder_of: Callable[..., Recorder], caplog: pytest.LogCaptureFixture
) -> None:
    whole = state("a", "one", 1)
    odd = [{**whole, "text": 5}, {**whole, "content_hash": []}, {**whole, "version": 1 << 70}]
    odd += [{**whole, "crawled_at": moment} for moment in (None, "yesterday", "2026-06-01T00:00:00")]
    for value in (b"{", b"[]", b'{"document_id": "a"}', b"\xff", *(json.dumps(each).encode() for each in odd)):
        broker.send("a", value)
    broker.tell("a", "one")

    with caplog.at_level(logging.WARNING):
        assert recorder_of(broker).catch_up() == 1
    assert caplog.text.count("is no document and is passed over") == 10
    recorder_of(broker).history.erase(lambda id, read: id == "b")


def test_an_end_is_recorded_also_of_what_another_reader_recorded(
    broker: Broker, recorder_of: Callable[..., Recorder]
) -> None:
    recorder = recorder_of(broker)
    broker.tell("a", "one")
    recorder.catch_up()
    broker.tell("x", "from elsewhere")
    recorder_of(broker).catch_up()
    recorder.history.refresh()
    broker.tell("x", None)

    recorder.catch_up()

    assert texts(recorder) == {"a": "one"}
    assert recorder.live() == {"a"}


def test_a_log_that_is_away_is_told(
    broker: Broker, recorder_of: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.datasets.recording.ASK_SECONDS", 0.5)
    recorder = recorder_of(broker)
    away = Recorder(Features("127.0.0.1:9", TOPIC, lambda: "first"), lambda: recorder.history)

    with pytest.raises(FeaturesUnavailable, match="twin status"):
        away.catch_up()


def test_a_history_that_cannot_be_opened_ends_the_app_that_did_not_wait_for_it(tmp_path: Path) -> None:
    (tmp_path / "history").write_text("no table")
    recorder, ended = open_recorder(load({"TWIN_HOME": str(tmp_path)})), threading.Event()

    opening = opened(recorder, ended.set)

    assert ended.wait(30)
    with pytest.raises(HistoryUnavailable, match="check the disk's space and rights"):
        opening.result()


def test_the_end_of_a_document_that_no_message_tells_is_noted_when_it_is_certain(
    broker: Broker, recorder_of: Callable[..., Recorder]
) -> None:
    broker.tell("a", "one")
    broker.tell("b", "bee")
    recorder, strays = recorder_of(broker), Twice()
    recorder.catch_up()

    assert strays.found(recorder.live() - {"a"}) == set()
    assert strays.found(None) == set()
    assert strays.found(recorder.live() - {"a"}) == set()
    certain = strays.found(recorder.live() - {"a"})

    assert (certain, recorder.end(certain, datetime.now(UTC))) == ({"b"}, 1)
    assert texts(recorder) == {"a": "one"}
