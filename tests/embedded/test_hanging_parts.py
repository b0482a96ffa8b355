"""Parts whose process lives and does not answer (stopped, swapped out, stuck): commands say so, and in time."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from corpus.settings import ADDRESSES, load
from embedded import cli, commands, parts
from embedded.app import Repeated
from embedded.home import PartStatus, supervising, write_parts
from embedded.waiting import wait
from streaming.waiting import TimedOut


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def test_wait_ends_when_its_time_is_over_although_nobody_answers(silent: int, tmp_path: Path) -> None:
    addresses = {
        "mongodb_uri": f"mongodb://127.0.0.1:{silent}/?replicaSet=rs0",
        "kafka_bootstrap_servers": f"127.0.0.1:{silent}",
        "app_url": f"http://127.0.0.1:{silent}",
    }
    (tmp_path / ADDRESSES).write_text(json.dumps(addresses))
    with pytest.raises(TimedOut, match=r"^MongoDB does not answer"):
        wait(load(home=str(tmp_path)), 0.2)


def test_status_tells_which_parts_do_not_answer(
    silent: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def hangs(address: str) -> None:
        raise TimeoutError

    monkeypatch.setattr(parts, "_check_documents", hangs)
    monkeypatch.setattr(parts, "_check_log", hangs)
    monkeypatch.setattr(commands, "ANSWER_SECONDS", 0.1)
    monkeypatch.setenv("TWIN_HOME", str(tmp_path))
    with subprocess.Popen(["/bin/true"]) as gone:
        gone.wait()
    with supervising(tmp_path):
        noted = [PartStatus(name=name, state="ready", pid=os.getpid()) for name in ("documents", "log", "app")]
        write_parts(tmp_path, [*noted, PartStatus(name="capture", state="ready", pid=gone.pid)])
        addresses = {
            "mongodb_uri": "mongodb://127.0.0.1:1/",
            "kafka_bootstrap_servers": "127.0.0.1:1",
            "app_url": f"http://127.0.0.1:{silent}",
        }
        (tmp_path / ADDRESSES).write_text(json.dumps(addresses))
        assert load().app_url == addresses["app_url"]
        assert cli.main(["status"]) == cli.DONE

    told = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert told == [["documents", "stalled"], ["log", "stalled"], ["app", "stalled"], ["capture", "ended"]]


def test_a_supervisor_that_is_killed_while_it_starts_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TWIN_HOME", str(tmp_path / "home"))
    killed = tmp_path / "python"
    killed.write_text(f"#!/bin/sh\nkill -{signal.SIGKILL.value} $$\n")
    killed.chmod(0o700)
    monkeypatch.setattr("embedded.home.MODULE", (str(killed), "-m"))

    assert cli.main(["up", "--detach"]) == cli.FAILED
    assert capsys.readouterr().err.startswith("twin: the supervisor was ended by signal 9: see ")


def test_what_asks_a_database_that_hangs_does_not_keep_the_app_from_ending() -> None:
    asked, answered = threading.Event(), threading.Event()

    def look() -> None:
        asked.set()
        answered.wait()

    watch = Repeated("warehouse", look, 0.001)
    watch.start()
    asked.wait()

    watch.stop()

    answered.set()
