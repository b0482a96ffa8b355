"""The command line as a person uses it, over a MongoDB that really runs, and a web site on this machine."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from corpus.documents import Document
from corpus.settings import Settings
from corpus.warehouse import Warehouse, connect
from embedded import cli


@dataclass
class Twin:
    """`twin` in a database of its own."""

    warehouse: Warehouse
    captured: pytest.CaptureFixture[str]

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, output and errors of a command."""
        self.captured.readouterr()
        code = cli.main(arguments)
        shown = self.captured.readouterr()
        return code, shown.out, shown.err

    def ingest(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """The result of `twin ingest ... --json`, whose exit code must be `code`."""
        found, out, err = self.run("ingest", "--json", *arguments)
        assert found == code, (found, out, err)
        result: dict[str, Any] = json.loads(out)
        return result

    def documents(self) -> list[Document]:
        """What is in the warehouse, by URL."""
        stamps = sorted(self.warehouse.stamps(), key=lambda stamp: stamp.url)
        found = [self.warehouse.get(stamp.id) for stamp in stamps]
        return [document for document in found if document is not None]

    def only(self) -> Document:
        (document,) = self.documents()
        return document


@pytest.fixture
def twin(
    mongodb_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Twin]:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    database = f"test-{uuid.uuid4()}"
    for name, value in {"HOME": str(tmp_path / "home"), "MONGODB_URI": mongodb_uri, "DATABASE": database}.items():
        monkeypatch.setenv(f"TWIN_{name}", value)
    with connect(Settings(mongodb_uri=mongodb_uri, database=database)) as warehouse:
        yield Twin(warehouse, capsys)


Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Site:
    """A web site on 127.0.0.1. `pages`: answers by path; what is not there is a 404. `asked`: the requests' headers."""

    address: str
    pages: dict[str, Answer] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def url(self, path: str) -> str:
        return self.address + path

    def put(self, path: str, body: str | bytes, kind: str = "text/html; charset=utf-8", **headers: str) -> str:
        """Serve a page; its URL."""
        self.pages[path] = answer(200, body, {"Content-Type": kind, **headers})
        return self.url(path)

    @staticmethod
    def answer(status: int, body: str | bytes = b"", headers: dict[str, str] | None = None) -> Answer:
        """What a path answers when asked."""
        return answer(status, body, headers or {})

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]


def answer(status: int, body: str | bytes, headers: dict[str, str]) -> Answer:
    content = body.encode() if isinstance(body, str) else body

    def write(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(content)

    return write


@pytest.fixture
def site() -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown.asked.append((self.path, dict(self.headers.items())))
            shown.pages.get(self.path, answer(404, "no such page", {}))(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        shown = Site(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield shown
        server.shutdown()
        thread.join()
