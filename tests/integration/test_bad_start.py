"""What keeps a home from starting is told in one sentence that says what to do, and nothing is left running."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration


def refused(twin: Any, code: int) -> str:
    """What `twin up` says on its way out; detached or not, it is the same."""
    here = twin.run("up", code=code)
    detached = twin.run("up", "--detach", code=code)
    assert here.stdout == detached.stdout == ""
    assert here.stderr == detached.stderr
    assert here.stderr.count("\n") == 1
    assert here.stderr.startswith("twin: ")
    assert twin.processes() == []
    assert {part["state"] for part in twin.parts().values()} == {"stopped"}
    return str(here.stderr)


def test_a_port_in_use(homes: Callable[..., Any]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]

        said = refused(homes(TWIN_PORT=str(port)), 1)

    assert f"port {port} of 127.0.0.1 is in use" in said
    assert "set TWIN_PORT to another" in said


@pytest.mark.parametrize(
    ("variable", "value", "advice"),
    [
        ("TWIN_PORT", "abc", "TWIN_PORT: expected a whole number"),
        ("TWIN_PORT", "65536", "TWIN_PORT: expected a whole number <= 65535"),
        ("TWIN_RECONCILE_INTERVAL", "0", "TWIN_RECONCILE_INTERVAL: expected a number > 0"),
        ("TWIN_EMBEDDING_MODEL", "no-such-model", "'no-such-model' is not known: choose one of minilm-l6"),
        ("TWIN_HOST", "0.0.0.0", "set TWIN_API_KEYS to a secret of your own, or TWIN_HOST=127.0.0.1"),
    ],
)
def test_a_setting_that_cannot_be_used(homes: Callable[..., Any], variable: str, value: str, advice: str) -> None:
    twin = homes(**{variable: value})
    here, detached = twin.run("up", code=2), twin.run("up", "--detach", code=2)

    assert here.stderr == detached.stderr
    assert here.stderr.count("\n") == 1
    assert variable in here.stderr
    assert advice in here.stderr
    assert twin.processes() == []


def test_a_home_that_cannot_be_made(homes: Callable[..., Any]) -> None:
    twin = homes()
    twin.environment["TWIN_HOME"] = "/proc/twin"

    done = twin.run("up", "--detach", code=1)

    assert done.stderr.startswith("twin: /proc/twin cannot be written (")
    assert "mend its permissions or space, or set TWIN_HOME" in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_home_that_is_not_writable(homes: Callable[..., Any]) -> None:
    twin = homes()
    Path(twin.home).chmod(0o500)

    assert "cannot be written (Permission denied)" in refused(twin, 1)


def test_a_given_part_that_does_not_answer(homes: Callable[..., Any]) -> None:
    said = refused(homes(TWIN_KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1"), 1)

    assert "127.0.0.1:1 does not answer" in said
    assert "start it, or correct TWIN_KAFKA_BOOTSTRAP_SERVERS" in said


def test_a_part_that_does_not_become_ready_is_named_with_the_end_of_its_log(
    homes: Callable[..., Any],
) -> None:
    twin = homes()
    (twin.home / "documents").write_text("in the way of the documents' folder")

    done = twin.run("up", "--detach", code=1)

    assert "documents does not become ready" in done.stderr
    assert str(twin.home / "logs" / "documents.log") in done.stderr
    assert "Traceback" not in done.stderr
    assert {part["state"] for part in twin.parts().values()} == {"stopped"}
    assert twin.processes() == []
