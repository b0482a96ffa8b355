"""Nothing connects outside: the main job where there is no outside, and where every attempt is refused and told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import which
from typing import Any

import pytest

pytestmark = pytest.mark.integration
# Holds a network namespace with nothing but loopback open until its input ends.
HOLDER = """
import fcntl, socket, struct, sys
with socket.socket() as probe:
    fcntl.ioctl(probe, 0x8914, struct.pack("16sH14x", b"lo", 0x41))  # SIOCSIFFLAGS: up and running
print([name for _, name in socket.if_nameindex()], flush=True)
sys.stdin.read()
"""
# Runs at the start of every Python process: tells that it watches, refuses and tells every way out.
GUARD = """
import ipaddress, os, sys
place = os.environ["SOCKET_GUARD"]
def tell(name, text):
    with open(os.path.join(place, name), "a") as told:
        told.write(f"{os.getpid()} {text}\\n")
def inside(host):
    host = host.decode() if isinstance(host, bytes) else host
    if host in (None, "", "localhost", "0.0.0.0", "::"):
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
def guard(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        out = isinstance(address, tuple) and not inside(address[0])
    else:
        out = event in ("socket.getaddrinfo", "socket.gethostbyname") and not inside(arguments[0])
    if out:
        tell("attempts", f"{event} {arguments[1:] if event.startswith('socket.c') else arguments} {sys.argv}")
        raise PermissionError(f"the test allows loopback only: {event} {arguments}")
tell("watched", " ".join(sys.orig_argv))
sys.addaudithook(guard)
"""


def main_job(twin: Any, folder: Any) -> None:
    """From `up` to an answer, by the command line alone."""
    (title,) = folder.words
    word = folder.words[title][1]
    twin.up()
    assert twin.ingest(str(folder.folder))["inserted"] == 1
    assert twin.wait()["failed"] == []
    assert any(word in hit["text"] for hit in twin.json("search", f"the {word} station", "--limit", "3"))
    answer = twin.json("ask", f"What does the {word} station report?")
    assert any(word in citation["quote"] for citation in answer["citations"])
    assert {part["state"] for part in twin.parts().values()} == {"ready"}


@pytest.fixture
def without_network() -> Iterator[tuple[str, ...]]:
    """The start of a command that runs where no interface but loopback exists."""
    if not which("unshare") or not which("nsenter"):
        pytest.skip("unshare and nsenter (util-linux) are missing")
    command = ["unshare", "--map-root-user", "--net", sys.executable, "-c", HOLDER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != "['lo']\n":
            pytest.skip(f"network namespaces are not permitted here: {holder.stderr.read().strip()}")
        yield ("nsenter", "--target", str(holder.pid), "--user", "--net", "--preserve-credentials")
        holder.communicate("")


def test_the_main_job_where_there_is_no_network(
    without_network: tuple[str, ...], homes: Callable[..., Any], notes: Callable[..., Any]
) -> None:
    outside = [*without_network, sys.executable, "-c", "import socket; socket.create_connection(('192.0.2.1', 80), 5)"]
    refused = subprocess.run(outside, capture_output=True, text=True, check=False)
    assert "Network is unreachable" in refused.stderr
    twin = homes(*without_network)

    main_job(twin, notes("Notes without a network"))

    spaces = {Path(f"/proc/{pid}/ns/net").readlink() for pid in twin.pids().values()}
    assert len(spaces) == 1
    assert spaces != {Path("/proc/self/ns/net").readlink()}
    twin.down()


def test_no_python_process_asks_for_anything_outside(
    tmp_path: Path, homes: Callable[..., Any], notes: Callable[..., Any]
) -> None:
    place = tmp_path / "guard"
    place.mkdir()
    (place / "sitecustomize.py").write_text(GUARD)
    twin = homes(SOCKET_GUARD=str(place))
    twin.environment["PYTHONPATH"] = f"{place}:{twin.variables()['PYTHONPATH']}"
    for asked in ("socket.create_connection(('192.0.2.1', 80), 5)", "socket.getaddrinfo('example.org', 80)"):
        refused = subprocess.run(
            [sys.executable, "-c", f"import socket; {asked}"],
            env=twin.variables(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert "the test allows loopback only" in refused.stderr
    assert len((place / "attempts").read_text().splitlines()) == 2
    (place / "attempts").unlink()

    main_job(twin, notes("Notes under guard"))

    watched = {int(line.split()[0]) for line in (place / "watched").read_text().splitlines()}
    pids = twin.pids()
    # The log is no Python program; the test without a network covers it.
    assert {pid for name, pid in pids.items() if name != "log"} <= watched
    twin.down()
    assert not (place / "attempts").exists(), (place / "attempts").read_text()
