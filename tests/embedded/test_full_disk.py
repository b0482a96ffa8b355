"""A full disk: the supervisor looks after its parts all the same, and tells of them as soon as there is room."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from corpus.settings import load
from embedded import supervisor as supervising
from embedded.home import PartStatus, make, read_parts
from embedded.parts import Part
from embedded.supervisor import Running, Supervisor


def full(*arguments: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_part_that_ends_on_a_full_disk_is_started_again_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    make(home)
    told: list[list[PartStatus]] = []
    watching = Supervisor(load({"TWIN_HOME": str(home)}), told.append)
    asleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    part = Part("documents", "mongodb://127.0.0.1:1/", lambda: asleep, ready=lambda pid: True)
    ended = watching._running["documents"] = Running(part, failures=1)

    with monkeypatch.context() as disk:
        disk.setattr(supervising, "write_addresses", full)
        disk.setattr(supervising, "write_parts", full)
        watching._watch()
        assert (ended.process, ended.failures, ended.restarts) == (None, 2, 0)
    assert (told, read_parts(home)) == ([], [])

    ended.next_start = 0.0
    watching._watch()
    try:
        assert [(part.name, part.restarts) for part in read_parts(home)] == [("documents", 1)]
        assert told[-1] == read_parts(home)
    finally:
        assert ended.process is not None
        ended.process.kill()
        ended.process.wait()


def test_a_state_that_could_not_be_told_is_told_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)
    told: list[list[PartStatus]] = []
    watching = Supervisor(load({"TWIN_HOME": str(tmp_path)}), told.append)
    watching._given["documents"] = "mongodb://db/"

    with monkeypatch.context() as disk:
        disk.setattr(supervising, "write_parts", full)
        watching._watch()
    assert told == []
    watching._watch()
    watching._watch()

    assert [part.name for part in read_parts(tmp_path)] == ["documents"]
    assert len(told) == 1
