"""Capture: one connector configuration, its registration at Connect, and a state that never looks idle by mistake."""

from __future__ import annotations

import json
import threading
from base64 import b64encode
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from corpus.settings import Settings
from ingestion import capture
from ingestion.capture import CaptureFailed, CaptureStatus

WAREHOUSE = "0123abcd-0000-5000-8000-000000000000"
NAME = "twin-0123abcd"
SETTINGS = Settings(mongodb_uri="mongodb://me:secret@127.0.0.1:27017/?replicaSet=rs0")
NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


class Connect:
    """Kafka Connect as its REST interface shows it: connectors, their configuration and the states of their tasks."""

    def __init__(self) -> None:
        self.configurations: dict[str, dict[str, str]] = {}
        self.requests: list[tuple[str, str]] = []
        self.authorised: list[str | None] = []
        self.states = ["RUNNING"]
        self.trace = ""
        self.conflicts = 0
        self.position: dict[str, Any] = {}

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        self.requests.append((method, path))
        name, _, verb = path.removeprefix("/connectors/").partition("/")
        if method != "GET" and self.conflicts:
            self.conflicts -= 1
            return 409, {"error_code": 409, "message": "Cannot complete request momentarily due to stale configuration"}
        if (method, verb) == ("PUT", "config"):
            self.configurations[name] = json.loads(body)
            return 201, {}
        if name not in self.configurations:
            return 404, {"error_code": 404, "message": f"Connector {name} not found"}
        if verb == "status":
            state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
            task = {"id": 0, "state": state, "worker_id": "w", "trace": self.trace}
            running = {"state": "RUNNING", "worker_id": "w"}
            return 200, {"name": name, "connector": running, "tasks": [] if state == "NONE" else [task]}
        if verb == "offsets":
            return 200, {"offsets": [{"partition": {}, "offset": self.position}] if self.position else []}
        if method == "DELETE":
            del self.configurations[name]
        return 202, None


@pytest.fixture
def connect() -> Iterator[tuple[Connect, str]]:
    worker = Connect()

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            worker.authorised.append(self.headers.get("Authorization"))
            status, answer = worker.answer(self.command, self.path, body)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"" if answer is None else json.dumps(answer).encode())

        do_GET = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield worker, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def registered(worker: Connect) -> None:
    worker.configurations[NAME] = {}


# The configuration


def test_the_connector_reads_the_documents_and_watermarks_of_one_database_and_marks_them() -> None:
    configuration = capture.connector_configuration(SETTINGS, WAREHOUSE)

    assert configuration["name"] == NAME
    assert configuration["mongodb.connection.string"] == SETTINGS.mongodb_uri
    assert configuration["collection.include.list"] == r"twin\.documents,twin\.watermarks"
    assert configuration["transforms.warehouse.header"] == "twin.warehouse"
    assert configuration["transforms.warehouse.value.literal"] == WAREHOUSE


def test_connect_runs_the_same_connector_with_more_for_its_worker() -> None:
    common = capture.connector_configuration(SETTINGS, WAREHOUSE)
    at_connect = capture.connect_configuration(SETTINGS, WAREHOUSE)

    assert common.items() <= at_connect.items()
    assert all(name.startswith(("tasks.", "producer.override.")) for name in at_connect.keys() - common.keys())


def test_without_a_mongodb_there_is_nothing_to_capture() -> None:
    with pytest.raises(CaptureFailed, match="TWIN_MONGODB_URI"):
        capture.connector_configuration(Settings(), WAREHOUSE)


# Registration


def test_a_connector_is_registered_and_runs(connect: tuple[Connect, str]) -> None:
    worker, url = connect
    worker.states = ["NONE", "UNASSIGNED", "RUNNING"]
    configuration = capture.connect_configuration(SETTINGS, WAREHOUSE)

    capture.register(url, configuration)

    assert worker.configurations == {NAME: configuration}
    assert capture.connector_status(url, NAME) == CaptureStatus(NAME, "running")


def test_a_connect_that_asks_who_it_is_gets_user_and_password(connect: tuple[Connect, str]) -> None:
    worker, url = connect
    registered(worker)

    status = capture.connector_status(url.replace("://", "://ada:p%40ss@"), NAME)

    assert status.state == "running"
    assert worker.authorised == [f"Basic {b64encode(b'ada:p@ss').decode()}"]


def test_registering_again_is_harmless(connect: tuple[Connect, str]) -> None:
    worker, url = connect
    configuration = capture.connect_configuration(SETTINGS, WAREHOUSE)

    for _ in range(2):
        capture.register(url, configuration)

    assert worker.configurations == {NAME: configuration}
    assert not any("restart" in path for _, path in worker.requests)


def test_a_stopped_connector_is_resumed(connect: tuple[Connect, str]) -> None:
    worker, url = connect
    worker.states = ["PAUSED", "RUNNING"]

    capture.register(url, capture.connect_configuration(SETTINGS, WAREHOUSE))

    assert ("PUT", f"/connectors/{NAME}/resume") in worker.requests


def test_a_rebalancing_worker_is_asked_again(connect: tuple[Connect, str]) -> None:
    worker, url = connect
    worker.conflicts = 2

    capture.register(url, capture.connect_configuration(SETTINGS, WAREHOUSE))

    assert NAME in worker.configurations


def test_a_task_that_failed_before_is_restarted_once(connect: tuple[Connect, str]) -> None:
    worker, url = connect
    worker.states = ["FAILED", "RUNNING"]

    capture.register(url, capture.connect_configuration(SETTINGS, WAREHOUSE))

    assert sum("restart" in path for _, path in worker.requests) == 1


def test_a_failing_task_is_reported_with_its_reason_and_without_passwords(connect: tuple[Connect, str]) -> None:
    worker, url = connect
    worker.states = ["FAILED"]
    worker.trace = (
        "org.apache.kafka.connect.errors.ConnectException: An exception occurred\n\tat io.debezium.Some(Some.java:1)\n"
        "Caused by: com.mongodb.MongoSecurityException: mongodb://me:secret@db/ refused\n\t... 5 more\n"
    )

    with pytest.raises(CaptureFailed, match="MongoSecurityException") as failure:
        capture.register(url, capture.connect_configuration(SETTINGS, WAREHOUSE))

    assert "secret" not in str(failure.value)


def test_a_task_that_never_runs_is_given_up(connect: tuple[Connect, str]) -> None:
    worker, url = connect
    worker.states = ["UNASSIGNED"]

    with pytest.raises(CaptureFailed, match="still starting after 0 s"):
        capture.register(url, capture.connect_configuration(SETTINGS, WAREHOUSE), timeout=0.3)


def test_a_connect_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(CaptureFailed, match=r"does not answer .* TWIN_CONNECT_URL"):
        capture.register("http://127.0.0.1:1", capture.connect_configuration(SETTINGS, WAREHOUSE))


@pytest.mark.parametrize("address", ["http://me:secret@127.0.0.1:1", "me:secret@127.0.0.1:1", "secret"])
def test_an_address_that_cannot_be_asked_is_told_without_its_password(address: str) -> None:
    with pytest.raises(CaptureFailed, match="TWIN_CONNECT_URL") as failure:
        capture.stop(address, NAME)

    assert "secret" not in str(failure.value)


def test_a_connector_is_stopped_restarted_and_deleted(connect: tuple[Connect, str]) -> None:
    worker, url = connect
    registered(worker)

    capture.stop(url, NAME)
    capture.restart(url, NAME)
    capture.delete(url, NAME)
    capture.delete(url, NAME)

    assert worker.configurations == {}
    assert ("PUT", f"/connectors/{NAME}/stop") in worker.requests


# The state


@pytest.mark.parametrize(
    ("task", "state"),
    [("RUNNING", "running"), ("PAUSED", "stopped"), ("STOPPED", "stopped"), ("FAILED", "failed"), ("NONE", "starting")],
)
def test_the_state_is_that_of_the_task(connect: tuple[Connect, str], task: str, state: str) -> None:
    worker, url = connect
    registered(worker)
    worker.states = [task]

    assert capture.connector_status(url, NAME).state == state


def test_a_connector_that_nobody_registered_says_what_to_do(connect: tuple[Connect, str]) -> None:
    status = capture.connector_status(connect[1], NAME)

    assert status.state == "stopped"
    assert "twin capture register" in (status.reason or "")


def test_an_unreachable_connect_is_a_state_of_its_own() -> None:
    assert capture.connector_status("http://127.0.0.1:1", NAME).state == "unreachable"


@pytest.mark.parametrize(
    ("silence", "position", "state"),
    [
        (timedelta(seconds=1), {"sec": 1}, "running"),
        (timedelta(seconds=11), {"sec": 1}, "stalled"),
        (None, {"sec": 1}, "stalled"),
        (None, {"sec": 1, "initsync": True}, "snapshotting"),
        (None, {}, "snapshotting"),
    ],
)
def test_a_task_that_runs_without_heartbeats_is_not_running(
    connect: tuple[Connect, str],
    monkeypatch: pytest.MonkeyPatch,
    silence: timedelta | None,
    position: dict[str, Any],
    state: str,
) -> None:
    worker, url = connect
    registered(worker)
    worker.position = position
    beat = NOW - silence if silence else None
    monkeypatch.setattr(capture, "last_heartbeat", lambda bootstrap, topic: beat)
    settings = Settings(connect_url=url, kafka_bootstrap_servers="127.0.0.1:1")

    status = capture.capture_status(settings, WAREHOUSE, NOW)

    assert (status.state, status.last_heartbeat) == (state, beat)


@pytest.mark.parametrize(
    ("written", "age", "beat_age", "state"),
    [
        ("running", 1, 1, "running"),
        ("running", 1, 11, "stalled"),
        ("running", 11, 11, "stalled"),
        ("snapshotting", 1, None, "snapshotting"),
        ("starting", 11, None, "stalled"),
        ("failed", 500, None, "failed"),
        ("stopped", 500, 500, "stopped"),
    ],
)
def test_an_embedded_capture_that_fell_silent_is_stalled(
    tmp_path: Path, written: str, age: int, beat_age: int | None, state: str
) -> None:
    settings = Settings(home=tmp_path)
    capture.status_file(settings).parent.mkdir()
    beat = (NOW - timedelta(seconds=beat_age)).isoformat() if beat_age else None
    content = {"connector": NAME, "state": written, "reason": None, "last_heartbeat_at": beat}
    content["written_at"] = (NOW - timedelta(seconds=age)).isoformat()
    capture.status_file(settings).write_text(json.dumps(content))

    assert capture.capture_status(settings, WAREHOUSE, NOW).state == state


def test_an_embedded_capture_that_never_ran_is_stopped(tmp_path: Path) -> None:
    assert capture.capture_status(Settings(home=tmp_path), WAREHOUSE, NOW).state == "stopped"
