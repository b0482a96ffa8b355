"""The parts of one machine: how each is started, when it is ready, and how one given by address is checked."""

from __future__ import annotations

import contextlib
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from corpus.settings import Settings, credentials, without_password
from embedded import log
from embedded.home import MODULE
from embedded.mongodb import connection_string
from ingestion.capture import CaptureStatus, read_status, status_file

PREFERRED_PORT = 8787


class PortTaken(RuntimeError):
    """The port that was asked for is in use."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part that we start. `command` and `environment` are asked anew for each start.

    `ready(pid)` tells whether the process of this id is ready, within milliseconds.

    `reason` tells why the part says it failed, if it does.
    """

    name: str
    address: str
    command: Callable[[], list[str]]
    ready: Callable[[int], bool]
    environment: Callable[[], Mapping[str, str] | None] = lambda: None
    reason: Callable[[], str | None] = lambda: None


def documents_part(home: Path, port: int) -> Part:
    directory = home / "documents"
    return Part(
        name="documents",
        address=connection_string(port),
        command=lambda: [*MODULE, "embedded.mongodb", "--port", str(port), "--directory", str(directory)],
        ready=lambda pid: accepts(port),
    )


def log_part(port: int) -> Part:
    return Part(
        name="log",
        address=f"127.0.0.1:{port}",
        command=lambda: log.command(port),
        environment=log.environment,
        ready=lambda pid: log.ready(port),
    )


def capture_part(settings: Settings) -> Part:
    status = status_file(settings)

    def command() -> list[str]:
        # What the process before wrote says nothing about this one.
        status.unlink(missing_ok=True)
        return [*MODULE, "embedded.capture", "--status", str(status)]

    def told() -> CaptureStatus:
        return read_status(status, datetime.now(UTC))

    return Part(
        name="capture",
        address=f"debezium:{settings.database}",
        command=command,
        ready=lambda pid: told().state == "running",
        reason=lambda: told().reason,
    )


def app_part(address: str) -> Part:
    port = address.rpartition(":")[2]
    return Part(
        name="app",
        address=address,
        command=lambda: [*MODULE, "embedded.cli", "serve", "--stream", "--port", port],
        ready=lambda pid: answers(f"{address}/health/ready", pid),
    )


def accepts(port: int) -> bool:
    """Whether a server accepts connections on 127.0.0.1:`port`."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.5):
            return True
    except OSError:
        return False


def answers(url: str, pid: int) -> bool:
    """Whether the app of this process answers within a second that it is ready; another's on the same port does not."""
    # No proxy of the environment: the address is this machine's.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=1) as response:
            return bool(json.loads(response.read())["pid"] == pid)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def free_port() -> int:
    """A port of 127.0.0.1 that nothing uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def app_port(settings: Settings) -> int:
    """The port for the app: the one that was asked for, else the preferred one, else any that is free."""
    if settings.port:
        if taken(settings.host, settings.port):
            raise PortTaken(
                f"port {settings.port} of {settings.host} is in use: stop what uses it, or set TWIN_PORT to another"
            )
        return settings.port
    if settings.port is None and not taken(settings.host, PREFERRED_PORT):
        return PREFERRED_PORT
    return free_port()


def taken(host: str, port: int) -> bool:
    """Whether something else listens on this port."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
        return False


def reachable(name: str, settings: Settings) -> str | None:
    """Why what is given by address cannot be used; None if it can, or if it is not given. Passwords are left out."""
    variable, address, check = {
        "documents": ("TWIN_MONGODB_URI", settings.mongodb_uri, _check_documents),
        "log": ("TWIN_KAFKA_BOOTSTRAP_SERVERS", settings.kafka_bootstrap_servers, _check_log),
        "capture": ("TWIN_CONNECT_URL", settings.connect_url, _check_http),
        "index": ("TWIN_QDRANT_URL", settings.qdrant_url, _check_http),
        "language model": ("TWIN_LLM_URL", settings.llm_url, _check_http),
    }[name]
    try:
        if address is not None:
            check(address)
    except Exception as error:  # three client libraries; whatever they raise means that it cannot be used
        shown = without_password(address or "")
        reason = getattr(error, "reason", error)
        why = (isinstance(reason, OSError) and reason.strerror) or type(error).__name__
        return f"{shown} does not answer ({why}): start it, or correct {variable}"
    return None


def _check_documents(uri: str) -> None:
    from pymongo import MongoClient

    with MongoClient[dict[str, object]](uri, serverSelectionTimeoutMS=3000) as client:
        client.admin.command("ping")


def _check_log(bootstrap: str) -> None:
    from ingestion.topics import admin_client

    admin_client(bootstrap).list_topics(timeout=5)


def _check_http(url: str) -> None:
    """Any answer will do: what a server refuses without a key or a path, it still serves."""
    address, told = credentials(url)
    request = urllib.request.Request(address, headers=told)  # noqa: S310
    with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(request, timeout=3):  # noqa: S310
        return
