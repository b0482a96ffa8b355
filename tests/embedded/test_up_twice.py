"""Several `twin up` for one home: one starts it, the others wait with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from embedded import cli, commands
from embedded.home import PART_NAMES, PartStatus, read_parts, supervising, write_parts


def parts(state: str) -> list[PartStatus]:
    return [PartStatus(name=name, state=state) for name in PART_NAMES]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TWIN_HOME", str(tmp_path))
    return tmp_path


def instead_of_sleeping(act: Callable[[], object]) -> SimpleNamespace:
    """The command's own clock: other threads of the process, such as an earlier test's, go on sleeping."""
    return SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: act())


def test_a_second_up_returns_when_the_first_one_is_ready(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "time", instead_of_sleeping(lambda: write_parts(home, parts("ready"))))
    with supervising(home):
        write_parts(home, parts("starting"))
        assert cli.main(["up", "--detach"]) == cli.DONE
        assert [part.state for part in read_parts(home)] == ["ready"] * 4


def test_a_second_up_fails_with_the_first_one(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with ExitStack() as first:
        first.enter_context(supervising(home))
        write_parts(home, parts("starting"))
        monkeypatch.setattr(commands, "time", instead_of_sleeping(first.close))
        assert cli.main(["up", "--detach"]) == cli.FAILED
    assert "does not become ready" in capsys.readouterr().err
