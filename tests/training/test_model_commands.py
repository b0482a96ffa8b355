"""`twin model` from the command line: from a run to an approved model that the app asks, and back."""

from __future__ import annotations

import argparse
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from corpus.settings import Settings, load
from corpus.warehouse import connect
from tests.training.model_runs import BUILT, evaluated, make_model, make_run
from training.evaluation.figures import UnreadableFigures, write_evaluation
from training.release.commands import register
from training.release.deploying import CannotDeploy, read
from training.release.registry import CannotRegister, NotReleased, UnknownModel

pytestmark = pytest.mark.integration
pytest.importorskip("mlflow")


@dataclass
class Servers:
    """A language model's server and the app, as far as these commands ask them."""

    models: dict[str, Any] = field(default_factory=dict)
    url: str = ""

    def count(self, **counts: tuple[int, int]) -> None:
        for name, (asked, failed) in counts.items():
            told = {"seconds": {"p50": 0.5, "p95": 1.0}, "latest": [1.0] * (asked - failed)}
            self.models[name.replace("_", "-")] = {"answers": asked, "failed": failed, **told}


@pytest.fixture
def servers() -> Iterator[Servers]:
    told = Servers()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self._answer({"choices": [{"message": {}}]})

        def do_GET(self) -> None:
            self._answer({"models": told.models})

        def _answer(self, value: Any) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        told.url = f"http://127.0.0.1:{server.server_port}"
        yield told
        server.shutdown()
        thread.join()


@pytest.fixture
def settings(tmp_path: Path, mongodb_uri: str, servers: Servers) -> Settings:
    settings = load(
        {
            "TWIN_HOME": str(tmp_path),
            "TWIN_MONGODB_URI": mongodb_uri,
            "TWIN_DATABASE": f"model_{tmp_path.name}"[:60],
            "TWIN_APP_URL": servers.url,
        }
    )
    with connect(settings) as warehouse:
        record = {"_id": "d1", "document_ids": ["doc-1"], "created_at": BUILT, "generation": "g1"}
        warehouse.record_built("datasets", record)
    return settings


@pytest.fixture
def twin(settings: Settings, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())

    def run(*arguments: str) -> tuple[int, str]:
        namespace = parser.parse_args(["model", *arguments])
        return namespace.handler(namespace, settings), capsys.readouterr().out

    return run


def run_of(home: Path, name: str, against: Path, gain: float = 0.2) -> Path:
    run = make_run(home / "runs" / name, home / "base", weights=name)
    write_evaluation(run / "evaluation", evaluated(run, against, gain))
    return run


def test_a_run_becomes_champion_gives_way_to_a_better_one_and_comes_back(
    tmp_path: Path, twin: Callable[..., tuple[int, str]], servers: Servers
) -> None:
    assert "no model yet" in twin("list")[1]
    first = run_of(tmp_path, "first", make_model(tmp_path / "base", "base"))
    assert twin("register", str(first)) == (0, "twin-1 is registered, candidate\n")
    assert "gate        passes" in twin("show", "twin-1")[1]
    assert "twin-1 is champion" in twin("approve", "twin-1", "--by", "Ada")[1]
    assert twin("list")[1].splitlines()[0] == "VERSION    STATE      REGISTERED        MADE BY"
    told = twin("show", "champion")[1]
    assert "gate        as it was approved by Ada" in told
    assert "refuses" not in told, "it is not held against itself"

    # Told how to serve it, somebody does, and the app asks it at once: there is no other.
    code, told = twin("deploy", "twin-1", "--server", "vllm")
    assert (code, "vllm serve" in told, "/health" in told) == (0, True, True)
    assert read(tmp_path).champion is None
    assert twin("deploy", "twin-1", "--url", servers.url) == (0, "twin-1 gives the answers\n")

    # A worse one is refused, a better one becomes a canary.
    worse = run_of(tmp_path, "worse", first, gain=-0.4)
    twin("register", str(worse))
    with pytest.raises(NotReleased, match="bits_per_byte: worse"):
        twin("approve", "twin-2", "--by", "Ada")
    assert twin("reject", "2", "--by", "Ada", "--reason", "worse") == (0, "twin-2 is rejected\n")
    with pytest.raises(CannotDeploy, match="was rejected"):
        twin("deploy", "2")
    twin("register", str(run_of(tmp_path, "better", first)))
    twin("deploy", "twin-3", "--url", servers.url, "--share", "0.3")
    servers.count(twin_1=(100, 1), twin_3=(60, 0))
    code, told = twin("deploy", "--status")
    assert "canary    twin-3" in told
    assert "(in the registry: candidate)" in told
    with pytest.raises(CannotDeploy, match="deploy --rollback"):
        twin("reject", "3", "--by", "Ada", "--reason", "slow")
    assert "30% of the answers  60 answers, 0 failed" in told
    assert "promote: 0 of 60 answers failed" in told

    # It does well, and gives all answers once somebody has approved it.
    with pytest.raises(CannotDeploy, match="twin model approve twin-3"):
        twin("deploy", "--promote")
    twin("approve", "twin-3", "--by", "Grace")
    assert twin("deploy", "--promote") == (0, "twin-3 gives the answers\n")

    assert twin("rollback", "--by", "Ada", "--reason", "complaints") == (
        0,
        "twin-1 is champion again, twin-3 is rejected\n",
    )
    champion = read(tmp_path).champion
    assert champion is not None
    assert champion.version == "twin-1"
    states = {version["id"]: version["state"] for version in json.loads(twin("list", "--json")[1])}
    assert states == {"twin-1": "champion", "twin-2": "rejected", "twin-3": "rejected"}
    assert "restored by Ada" in twin("show", "twin-1")[1]


@pytest.mark.parametrize(("failed", "code", "told"), [(0, 0, "gives the answers"), (60, 1, "is taken back")])
def test_a_canary_that_is_waited_for_is_promoted_or_taken_back_by_its_answers(
    tmp_path: Path, twin: Callable[..., tuple[int, str]], servers: Servers, failed: int, code: int, told: str
) -> None:
    first = run_of(tmp_path, "first", make_model(tmp_path / "base", "base"))
    twin("register", str(first))
    twin("approve", "1", "--by", "Ada")
    twin("deploy", "1", "--url", servers.url)
    twin("register", str(run_of(tmp_path, "second", first)))
    twin("approve", "2", "--by", "Ada")
    asked = threading.Timer(0.5, lambda: servers.count(twin_1=(100, 1), twin_2=(60, failed)))
    asked.start()

    found = twin("deploy", "2", "--url", servers.url, "--wait", "30")

    asked.join()
    assert found == (code, f"twin-2 {told}\n")
    assert read(tmp_path).canary is None


def test_the_first_champion_can_be_undone(tmp_path: Path, twin: Callable[..., tuple[int, str]]) -> None:
    twin("register", str(run_of(tmp_path, "first", make_model(tmp_path / "base", "base"))))
    twin("approve", "1", "--by", "Ada")

    told = twin("reject", "1", "--by", "Ada", "--reason", "it swears")

    assert told == (0, "twin-1 is rejected; there is no champion now\n")
    assert [version["state"] for version in json.loads(twin("list", "--json")[1])] == ["rejected"]


def test_a_canary_without_answers_stays_one(
    tmp_path: Path, twin: Callable[..., tuple[int, str]], servers: Servers
) -> None:
    first = run_of(tmp_path, "first", make_model(tmp_path / "base", "base"))
    twin("register", str(first))
    twin("approve", "1", "--by", "Ada")
    twin("deploy", "1", "--url", servers.url)
    twin("register", str(run_of(tmp_path, "second", first)))

    code, told = twin("deploy", "2", "--url", servers.url, "--wait", "0", "--json")

    assert (code, json.loads(told)["verdict"]["what"]) == (0, "wait")
    assert "\nno verdict yet: " in twin("deploy", "--status")[1]
    assert twin("deploy", "--rollback") == (0, "twin-2 is taken back\n")


def test_a_password_in_a_server_s_address_is_kept_and_never_shown(
    tmp_path: Path, twin: Callable[..., tuple[int, str]], servers: Servers
) -> None:
    twin("register", str(run_of(tmp_path, "first", make_model(tmp_path / "base", "base"))))
    twin("approve", "1", "--by", "Ada")

    shown = twin("deploy", "1", "--url", servers.url.replace("://", "://ada:hunter2@"), "--json")[1]
    shown += twin("deploy", "--status")[1] + twin("deploy", "--status", "--json")[1]

    champion = read(tmp_path).champion
    assert champion is not None
    assert "hunter2" in champion.url
    assert "hunter2" not in shown


def test_what_was_typed_wrong_is_told(tmp_path: Path, twin: Callable[..., tuple[int, str]]) -> None:
    make_model(tmp_path / "base", "base")
    with pytest.raises(UnreadableFigures, match="twin evaluate"):
        twin("register", str(make_run(tmp_path / "runs" / "x", tmp_path / "base")))
    with pytest.raises(CannotRegister, match="there is no run in"):
        twin("register", str(tmp_path / "runs" / "nothing"))
    with pytest.raises(UnknownModel, match="twin model list"):
        twin("show", "twin-7")
    for wrong in (
        ("deploy",),
        ("deploy", "1", "--status"),
        ("deploy", "--promote", "--rollback"),
        ("deploy", "1", "--start", "--url", "http://127.0.0.1:1"),
        ("approve", "1", "--by", " "),
        ("approve", "1", "--by", "Ada", "--override", ""),
        ("approve", "1", "--by", "Ada", "--rules", str(tmp_path / "none.yaml")),
        ("reject", "1", "--by", "Ada", "--reason", " "),
        ("rollback", "--by", ""),
    ):
        assert twin(*wrong)[0] == 2, wrong
    with pytest.raises(SystemExit):
        twin("approve", "1")
