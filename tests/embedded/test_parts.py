"""A part is ready only when its own process says so, and takes a port that is its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from corpus.settings import InvalidSettings, load
from embedded.checks import refuse
from embedded.home import MODULE
from embedded.parts import PREFERRED_PORT, PortTaken, answers, app_part, app_port, capture_part, documents_part
from embedded.supervisor import Running, Supervisor


@pytest.fixture
def foreign_app() -> Iterator[str]:
    """An app that is ready, of a process that says it is this one."""

    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"ready": True, "parts": {}, "pid": os.getpid()}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Ready)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_another_homes_app_on_the_port_does_not_pass_for_ours(foreign_app: str) -> None:
    assert answers(f"{foreign_app}/health/ready", os.getpid())
    assert not answers(f"{foreign_app}/health/ready", os.getpid() + 1)


def test_what_is_no_app_is_not_ready() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert not answers(f"http://127.0.0.1:{port}/health/ready", 1)


def test_a_port_that_was_asked_for_and_is_taken_is_named_with_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = load({"TWIN_PORT": str(port), "TWIN_HOME": str(tmp_path)})
        with pytest.raises(PortTaken, match=f"port {port} .* set TWIN_PORT to another"):
            app_port(settings)


def test_without_a_wish_the_port_is_the_preferred_one_or_a_free_one(tmp_path: Path) -> None:
    assert app_port(load({"TWIN_PORT": "0", "TWIN_HOME": str(tmp_path)})) not in (0, PREFERRED_PORT)


@pytest.mark.parametrize("asked", [False, True])
def test_an_app_whose_port_was_taken_since_gets_another_unless_it_was_asked_for(tmp_path: Path, asked: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other_home:
        port = other_home.getsockname()[1]
        settings = load({"TWIN_HOME": str(tmp_path), **({"TWIN_PORT": str(port)} if asked else {})})
        supervisor = Supervisor(settings)
        supervisor._running["app"] = Running(app_part(f"http://127.0.0.1:{port}"))

        supervisor._find_port()

    address = supervisor._running["app"].part.address
    assert (address == f"http://127.0.0.1:{port}") is asked
    assert supervisor._addresses.get("app_url", address) == address


def test_a_part_given_by_address_is_told_without_its_password(tmp_path: Path) -> None:
    supervisor = Supervisor(load({"TWIN_HOME": str(tmp_path)}))
    supervisor._given["documents"] = "mongodb://ada:hunter2@db:27017/?replicaSet=rs0"

    (part,) = supervisor._status()

    assert part.address == "mongodb://***@db:27017/?replicaSet=rs0"


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"TWIN_APP_URL": "http://127.0.0.1:9"}, "TWIN_APP_URL"),
        ({"TWIN_CONNECT_URL": "http://127.0.0.1:9"}, "TWIN_KAFKA_BOOTSTRAP_SERVERS"),
    ],
)
def test_addresses_that_cannot_go_together_are_refused_before_anything_starts(
    variables: dict[str, str], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidSettings, match=reason):
        refuse(load({**variables, "TWIN_HOME": str(tmp_path)}))


def test_a_folder_whose_files_are_named_as_modules_is_no_danger(tmp_path: Path) -> None:
    for name in ("queue.py", "embedded.py", "corpus.py"):
        (tmp_path / name).write_text("raise SystemExit('not ours')")
    done = subprocess.run(
        [*MODULE, "embedded.cli", "--version"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    settings = load({"TWIN_HOME": str(tmp_path)})
    parts = documents_part(tmp_path, 1), capture_part(settings), app_part("http://127.0.0.1:1")
    assert all(tuple(part.command()[:3]) == MODULE for part in parts)
