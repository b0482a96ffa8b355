"""Parts that are killed while documents come in, and a supervisor that ends: nothing is lost, doubled or left over."""

from __future__ import annotations

import os
import signal
import urllib.error
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.integration
PARTS = ("documents", "log", "capture", "app")


def came_in(twin: Any) -> int:
    """Documents in the warehouse now; 0 while nobody can tell."""
    try:
        return int(twin.asked("/api/status")["warehouse"]["documents"])
    except urllib.error.HTTPError:
        return 0


def ingested(twin: Any, folder: Any) -> None:
    """Ingest until it succeeds, as a person would whose documents' part was restarting."""
    while twin.run("ingest", str(folder.folder), "--author", "Test Author", code=None).returncode != 0:
        pass


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_killed_while_documents_come_in_loses_nothing(
    running: Any, folder: Any, eventually: Callable[..., Any], part: str
) -> None:
    known = came_in(running)
    folder.add(*(f"Killed {part} {number:02}" for number in range(40)), sections=4)

    ingest = running.start("ingest", str(folder.folder), "--author", "Test Author")
    eventually(lambda: came_in(running) > known, "the first documents")
    pid = running.kill(part)
    ingest.communicate(timeout=120)
    ingested(running, folder)

    assert running.wait()["failed"] == []
    assert running.parts()[part]["restarts"] >= 1
    assert running.pids()[part] != pid
    running.must_hold(folder)


def test_a_delete_while_the_log_is_dead_is_applied(running: Any, folder: Any) -> None:
    folder.add("Deleted without a log", "Kept without a log")
    ingested(running, folder)
    running.wait()
    words = folder.words["Deleted without a log"]

    running.kill("log")
    running.run("documents", "delete", running.listed()["Deleted without a log"]["document_id"])
    folder.remove("Deleted without a log")

    running.wait()
    assert [word for word in words if running.finds(word)] == []
    running.must_hold(folder)


def test_an_app_that_is_stopped_while_it_embeds_ends_cleanly(
    running: Any, folder: Any, eventually: Callable[..., Any]
) -> None:
    folder.add(*(f"Stopped {number:02}" for number in range(40)), sections=8)
    ingested(running, folder)
    eventually(lambda: running.asked("/api/status")["lag"], "changes that wait to be embedded")
    said = running.log("supervisor")

    os.kill(running.pids()["app"], signal.SIGTERM)

    eventually(lambda: "app ended with" in running.log("supervisor")[len(said) :], "the end of the app")
    assert "app ended with 0 " in running.log("supervisor")[len(said) :]
    for trace in ("Fatal Python error", "Aborted", "terminate called", "panicked"):
        assert trace not in running.log("app")
    running.wait()
    running.must_hold(folder)


def test_a_supervisor_that_is_killed_leaves_no_process_and_its_home_comes_up_again(
    running: Any, folder: Any, ended: Callable[..., None]
) -> None:
    pids = running.pids()
    assert set(pids) == {"supervisor", *PARTS}

    running.kill("supervisor")

    ended(pids)
    assert {part["state"] for part in running.parts().values()} == {"stopped"}
    running.up()
    assert not set(pids.values()) & set(running.pids().values())
    running.wait()
    running.must_hold(folder)


@pytest.mark.parametrize("moment", ["documents ", "ready: http://127.0.0.1:"], ids=["while it starts", "when it is up"])
def test_ctrl_c_ends_everything(homes: Callable[..., Any], ended: Callable[..., None], moment: str) -> None:
    twin = homes()
    up = twin.start("up", process_group=0)
    assert up.stdout is not None
    line = ""
    while not line.startswith(moment):
        line = up.stdout.readline()
        assert line, up.communicate()[1]
    pids = twin.pids()
    assert pids["supervisor"] == up.pid
    assert "documents" in pids

    os.killpg(up.pid, signal.SIGINT)

    _, err = up.communicate(timeout=60)
    assert (up.returncode, "Traceback" in err) == (0, False)
    ended(pids)
    assert twin.processes() == []
    assert (twin.home / "supervisor.lock").read_text() == ""
