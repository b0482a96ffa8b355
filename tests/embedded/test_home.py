"""A home at run time: one supervisor, a lock that no crash leaves behind, and files that are true or gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from embedded import home
from embedded.home import HomeTaken, HomeUnusable, PartStatus, read_parts

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, pathlib
from embedded import home
place = pathlib.Path(sys.argv[1])
with home.supervising(place):
    home.write_addresses(place, {"app_url": "http://127.0.0.1:1"})
    home.write_parts(place, [home.PartStatus(name="app", state="ready", pid=1)])
    print("held", flush=True)
    sys.stdin.read()
"""


def held(place: Path) -> subprocess.Popen[str]:
    """Another process that supervises the home until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(place)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_home_has_one_supervisor_and_names_it(tmp_path: Path) -> None:
    with held(tmp_path) as other:
        assert home.supervisor(tmp_path) == other.pid
        with pytest.raises(HomeTaken) as taken, home.supervising(tmp_path):
            pass
        assert taken.value.pid == other.pid
        assert [part.name for part in home.read_parts(tmp_path)] == ["app"]
        other.communicate("")
    assert home.supervisor(tmp_path) is None


def test_a_supervisor_that_ends_takes_what_it_told_along(tmp_path: Path) -> None:
    with held(tmp_path) as other:
        other.communicate("")
    assert home.read_parts(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", home.LOCK]
    assert (tmp_path / home.LOCK).read_text() == ""


def test_a_supervisor_that_was_killed_leaves_files_but_no_lock(tmp_path: Path) -> None:
    with held(tmp_path) as other:
        other.send_signal(signal.SIGKILL)
    assert (tmp_path / home.LOCK).read_text() == str(other.pid)
    assert home.supervisor(tmp_path) is None
    assert home.read_parts(tmp_path) != []

    home.forget(tmp_path)

    assert home.read_parts(tmp_path) == []
    assert not (tmp_path / home.ADDRESSES).exists()
    with home.supervising(tmp_path):
        assert home.supervisor(tmp_path) == os.getpid()


def test_a_home_that_was_never_used_has_neither_supervisor_nor_parts(tmp_path: Path) -> None:
    assert home.supervisor(tmp_path / "never") is None
    assert home.read_parts(tmp_path / "never") == []
    assert not (tmp_path / "never").exists()


def test_a_home_is_its_owners_alone(tmp_path: Path) -> None:
    home.make(tmp_path / "deep" / "home")

    assert (tmp_path / "deep" / "home").stat().st_mode & 0o777 == 0o700
    assert [path.name for path in (tmp_path / "deep" / "home").iterdir()] == ["logs"]


@pytest.mark.parametrize("place", ["/proc/twin", "a file", "a file/below"])
def test_a_home_that_cannot_be_made_says_what_to_do(tmp_path: Path, place: str) -> None:
    (tmp_path / "a file").touch()

    with pytest.raises(
        HomeUnusable, match=r"cannot be written \(.+\): mend its permissions or space, or set TWIN_HOME"
    ):
        home.make(tmp_path / place)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_home_that_is_not_writable_says_so(tmp_path: Path) -> None:
    home.make(tmp_path)
    tmp_path.chmod(0o500)

    with pytest.raises(HomeUnusable, match="Permission denied"):
        home.make(tmp_path)


def test_parts_are_read_as_they_were_written(tmp_path: Path) -> None:
    parts = [
        PartStatus(name="documents", state="ready", pid=7, address="mongodb://x", restarts=2, ready_seconds=0.5),
        PartStatus(name="log", state="given", address="127.0.0.1:9092"),
        PartStatus(name="capture", state="failed", reason="it broke"),
    ]
    home.write_parts(tmp_path, parts)

    assert home.read_parts(tmp_path) == parts
    assert [path.name for path in tmp_path.iterdir()] == [home.PARTS]


def test_the_end_of_a_log_is_its_last_lines(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"\xff first\n" + b"".join(b"line %d\n" % number for number in range(20)))

    assert home.tail(tmp_path / "log", 2) == "line 18\nline 19"
    assert home.tail(tmp_path / "no log") == ""


@pytest.mark.parametrize("left", [b"", b"[{", b"[3]"])
def test_parts_that_cannot_be_read_are_named_with_what_to_do(tmp_path: Path, left: bytes) -> None:
    (tmp_path / "parts.json").write_bytes(left)

    with pytest.raises(HomeUnusable, match=r"parts\.json cannot be read .*: `twin down`, then `twin up`"):
        read_parts(tmp_path)
