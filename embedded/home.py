"""A home directory at run time: who supervises it, which parts run there and under which addresses."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from corpus.files import replace_file
from corpus.settings import ADDRESSES

LOCK, PARTS = "supervisor.lock", "parts.json"
PART_NAMES = ("documents", "log", "capture", "app")
# How to start a module of ours: without the current folder, whose files may have the names of modules.
MODULE = (sys.executable, "-P", "-m")


class HomeUnusable(RuntimeError):
    """The home directory cannot be used; the message says why and what to do."""


class HomeTaken(RuntimeError):
    """Another supervisor runs in this home; `pid` is its process."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"already running (process {pid})")
        self.pid = pid


class PartStatus(msgspec.Struct, kw_only=True):
    """One part as `twin status` shows it. `pid` is None for a part given by address; times are seconds."""

    name: str
    state: str
    pid: int | None = None
    address: str | None = None
    restarts: int = 0
    ready_seconds: float | None = None
    reason: str | None = None


@contextmanager
def supervising(home: Path) -> Iterator[None]:
    """Hold the home's lock; raises HomeTaken, or HomeUnusable where nothing can be written.

    The kernel lets go of the lock whatever ends the process, so a crash leaves no stale one.
    """
    make(home)
    with (home / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HomeTaken(supervisor(home) or 0) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            yield
        finally:
            forget(home)
            lock.truncate(0)


def forget(home: Path) -> None:
    """Remove what a supervisor told of its parts; without one it is not true."""
    for name in (ADDRESSES, PARTS):
        with suppress(FileNotFoundError, NotADirectoryError):
            (home / name).unlink()


def make(home: Path) -> None:
    """Create the home, readable by its owner only, and make sure that it can be written."""
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        (home / "logs").mkdir(exist_ok=True)
        probe = home / ".writable"
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
    except OSError as error:
        raise HomeUnusable(
            f"{home} cannot be written ({error.strerror or error}): mend its permissions or space, or set TWIN_HOME"
        ) from error


def supervisor(home: Path) -> int | None:
    """The process that supervises this home; None if there is none."""
    try:
        with (home / LOCK).open("r") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                # Its holder writes its id right after taking it.
                for _ in range(100):
                    lock.seek(0)
                    if text := lock.read().strip():
                        return int(text)
                    time.sleep(0.01)
                return 0
            return None
    except (FileNotFoundError, NotADirectoryError):
        return None


def renew_log(home: Path) -> None:
    """Ask this home's supervisor to start its log anew, without what it holds. Raises HomeUnusable if there is none."""
    pid = supervisor(home)
    if not pid:
        raise HomeUnusable(f"nothing supervises {home}: run `twin up`")
    os.kill(pid, signal.SIGUSR1)


def write_parts(home: Path, parts: list[PartStatus]) -> None:
    replace_file(home / PARTS, msgspec.json.encode(parts))


def read_parts(home: Path) -> list[PartStatus]:
    """The parts of the running home; [] when it is not running. Raises HomeUnusable."""
    try:
        return msgspec.json.decode((home / PARTS).read_bytes(), type=list[PartStatus])
    except FileNotFoundError:
        return []
    except msgspec.DecodeError as error:
        raise HomeUnusable(f"{home / PARTS} cannot be read ({error}): `twin down`, then `twin up`") from error


def exists(pid: int) -> bool:
    """Whether there is a process of this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_addresses(home: Path, addresses: dict[str, str]) -> None:
    replace_file(home / ADDRESSES, msgspec.json.encode(addresses))


def tail(path: Path, lines: int = 8, since: int = 0) -> str:
    """The last lines of a log file from byte `since` on, "" if there is none."""
    try:
        return "\n".join(path.read_bytes()[since:].decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
