"""Tracking: MLflow shows what runs did and which models there are; away, it is told later, and training goes on."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from corpus.settings import load
from tests.training.model_runs import evaluated, make_model, make_run
from training.evaluation.figures import write_evaluation
from training.release import servers, tracking
from training.release.tracking import (
    Named,
    RegistryUnavailable,
    is_sent,
    send,
    send_unsent,
    tell,
    tell_versions,
    uri_of,
)
from training.runs import RunRecord, RunRefused

pytestmark = pytest.mark.integration
pytest.importorskip("mlflow")


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A local MLflow, which takes seconds to make."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@contextmanager
def opened(uri: str) -> Iterator[Any]:
    with tracking._told(uri, 10) as client:
        yield client


def runs_of(uri: str, name: str) -> list[Any]:
    with opened(uri) as client:
        experiment = client.get_experiment_by_name("twin")
        found = client.search_runs([experiment.experiment_id]) if experiment else []
        return [run for run in found if run.info.run_name == name]


def losses(uri: str, run: Any) -> list[tuple[int, float]]:
    with opened(uri) as client:
        return sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, "loss"))


def changed(run: Path, **fields: Any) -> None:
    record = msgspec.json.decode((run / "run.json").read_bytes(), type=RunRecord)
    (run / "run.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(record, **fields)))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_model(tmp_path / "base", "base")


def test_a_run_is_shown_with_its_numbers_its_lineage_and_its_files(tmp_path: Path, base: Path, uri: str) -> None:
    run = make_run(tmp_path / "shown", base)
    write_evaluation(run / "evaluation", evaluated(run, base))

    sent = send(run, uri)

    (found,) = runs_of(uri, "shown")
    assert found.info.status == "FINISHED"
    assert found.data.params["lora.rank"] == "16"
    assert found.data.params["dataset"] == "d1"
    assert found.data.tags["twin.code_revision"] == "abc+"
    assert found.data.tags["twin.device"] == "1 x cpu"
    assert found.data.metrics["system/tokens_per_second"] == 30.0
    assert found.data.metrics["evaluation/bits_per_byte.difference"] == pytest.approx(-0.2)
    assert losses(uri, found) == [(1, 3.0), (2, 2.0), (3, 1.0)]
    with opened(uri) as client:
        names = {each.path for each in client.list_artifacts(sent.id)}
        report = {each.path for each in client.list_artifacts(sent.id, "evaluation")}
    assert names == {"configuration.yaml", "metrics.jsonl", "run.json", "evaluation"}
    assert report == {"evaluation/evaluation.json"}
    assert Path(found.info.artifact_uri.removeprefix("file://")).is_relative_to(
        Path(uri.removeprefix("sqlite:///")).parent
    )


def test_what_was_sent_is_not_sent_again_and_what_is_new_is(tmp_path: Path, base: Path, uri: str) -> None:
    run = make_run(tmp_path / "grows", base, state="running", step=2, steps=3, ended_at=None)
    send(run, uri)
    (found,) = runs_of(uri, "grows")
    assert (found.info.status, losses(uri, found)) == ("RUNNING", [(1, 3.0), (2, 2.0)]), "step 3 is not kept yet"
    assert is_sent(run, uri)

    changed(run, state="finished", step=3, ended_at="2026-06-02T11:00:00+00:00")
    assert not is_sent(run, uri)
    send(run, uri)
    send(run, uri)

    (found,) = runs_of(uri, "grows")
    assert (found.info.status, losses(uri, found)) == ("FINISHED", [(1, 3.0), (2, 2.0), (3, 1.0)])


def test_a_crash_before_the_note_sends_nothing_twice(tmp_path: Path, base: Path, uri: str) -> None:
    run = make_run(tmp_path / "crashed", base)
    send(run, uri)
    (run / "sent.json").unlink()

    send(run, uri)

    (found,) = runs_of(uri, "crashed")
    assert len(losses(uri, found)) == 3


def test_a_run_that_was_started_anew_in_the_same_folder_is_another(tmp_path: Path, base: Path, uri: str) -> None:
    run = make_run(tmp_path / "anew", base)
    send(run, uri)

    changed(run, started_at="2026-06-05T10:00:00+00:00")
    send(run, uri)

    assert len(runs_of(uri, "anew")) == 2


def test_an_mlflow_that_lost_the_run_is_told_of_it_again(tmp_path: Path, base: Path, uri: str) -> None:
    run = make_run(tmp_path / "lost", base)
    sent = send(run, uri)
    noted = (run / "sent.json").read_bytes()
    (run / "sent.json").write_bytes(noted.replace(sent.id.encode(), b"0" * 32))

    send(run, uri)

    assert len(runs_of(uri, "lost")) == 1
    assert len(losses(uri, runs_of(uri, "lost")[0])) == 3


def test_a_folder_with_an_apostrophe_is_found_again(tmp_path: Path, base: Path, uri: str) -> None:
    run = make_run(tmp_path / "ada's run", base)
    send(run, uri)
    (run / "sent.json").unlink()

    send(run, uri)

    assert len(runs_of(uri, "ada's run")) == 1


def test_a_run_that_cannot_be_read_is_told_of_and_the_others_are_sent(tmp_path: Path, base: Path) -> None:
    broken = make_run(tmp_path / "elsewhere", base)
    (broken / "run.json").write_text("{")
    make_run(tmp_path / "runs" / "whole", base)
    settings, said = load({"TWIN_HOME": str(tmp_path)}), list[str]()

    tell(settings, say=said.append, also=broken)

    assert said[0].startswith("elsewhere is not sent to MLflow: ")
    assert len(runs_of(uri_of(settings), "whole")) == 1


def test_metrics_that_were_cut_off_in_a_line_wait_for_the_rest(tmp_path: Path, base: Path, uri: str) -> None:
    run = make_run(tmp_path / "cut", base)
    with (run / "metrics.jsonl").open("ab") as metrics:
        metrics.write(b'{"step": 4, "lo')

    assert send(run, uri).step == 3


def test_a_server_that_is_away_is_told_later(tmp_path: Path, base: Path, uri: str) -> None:
    run = make_run(tmp_path / "runs" / "later", base)
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "run.json").write_text("{")
    away = f"http://ada:hunter2@127.0.0.1:{servers.free_port()}"
    said: list[str] = []

    with pytest.raises(RegistryUnavailable, match="nothing is lost") as failed:
        send(run, away)
    assert "hunter2" not in str(failed.value)
    assert not is_sent(run, away)

    assert send_unsent(tmp_path / "runs", uri, say=said.append) == ["later"]
    assert send_unsent(tmp_path / "runs", uri, say=said.append) == []
    assert len(runs_of(uri, "later")) == 1
    assert "broken is not sent" in said[0]


def test_a_server_that_hangs_holds_nobody_up_for_longer_than_the_limit(tmp_path: Path, base: Path) -> None:
    run = make_run(tmp_path / "hangs", base)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        over = threading.Event()
        asking = threading.Thread(target=lambda: (_refused(run, f"http://127.0.0.1:{port}"), over.set()))
        asking.start()
        assert over.wait(30), "it tries for minutes"
        asking.join()


def _refused(run: Path, uri: str) -> None:
    with pytest.raises(RegistryUnavailable):
        send(run, uri, limit=1)


def test_training_goes_on_without_mlflow_and_says_so(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "elsewhere", base)
    monkeypatch.setattr(tracking, "uri_of", lambda settings: f"http://127.0.0.1:{servers.free_port()}")
    said: list[str] = []

    tell(load({"TWIN_HOME": str(tmp_path)}), say=said.append, also=run)

    assert "MLflow at http://127.0.0.1" in said[0]


def test_a_folder_without_a_run_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(RunRefused, match="there is no run"):
        send(tmp_path, uri)


def test_versions_their_states_and_their_aliases_are_shown_and_follow(tmp_path: Path, base: Path, uri: str) -> None:
    run = make_run(tmp_path / "registered", base)
    send(run, uri)
    first = Named(id="twin-1", folder=str(run / "model"), run=str(run), state="candidate", aliases=("candidate",))

    tell_versions(uri, [first])
    second = Named(id="twin-2", folder=str(run / "model"), run=str(run), state="champion", aliases=("champion",))
    first = msgspec.structs.replace(first, state="former", aliases=())
    for _ in range(2):
        tell_versions(uri, [first, second])

    with opened(uri) as client:
        found = {version.tags["twin.version"]: version for version in client.search_model_versions("name = 'twin'")}
        aliases = client.get_registered_model("twin").aliases
    assert {id: version.tags["twin.state"] for id, version in found.items()} == {
        "twin-1": "former",
        "twin-2": "champion",
    }
    assert found["twin-1"].source == f"runs:/{found['twin-1'].run_id}", "a server takes no folder of this machine"
    assert found["twin-1"].tags["twin.folder"] == str(run / "model")
    assert found["twin-1"].run_id == runs_of(uri, "registered")[0].info.run_id
    assert {alias: str(number) for alias, number in aliases.items()} == {"champion": str(found["twin-2"].version)}


def test_a_version_whose_run_mlflow_was_never_told_of_is_shown_and_does_not_hold_up_the_others(
    tmp_path: Path, base: Path, uri: str
) -> None:
    run = make_run(tmp_path / "never told", base)

    tell_versions(uri, [Named(id="twin-77", folder=str(run / "model"), run=str(run), state="candidate")])

    with opened(uri) as client:
        (found,) = client.search_model_versions("tags.`twin.version` = 'twin-77'")
    # A server of MLflow refuses folders of this machine, and what is no absolute path.
    assert (found.source, found.run_id) == ("twin:/twin-77", None)
    assert found.tags["twin.folder"] == str(run / "model")


def test_mlflow_does_not_print_addresses_into_a_command_s_result(uri: str) -> None:
    from mlflow.environment_variables import MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT

    with opened(uri):
        assert MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.get()


def test_mlflow_is_in_the_home_unless_an_address_is_set(tmp_path: Path) -> None:
    assert uri_of(load({"TWIN_HOME": str(tmp_path)})) == f"sqlite:///{tmp_path}/mlflow/mlflow.db"


WATCHED = """
import socket, sys
from pathlib import Path
from training.release.tracking import send, tell_versions

def refused(self, address, *_):
    print("connected to", address)
    raise OSError("nothing may connect out")

socket.socket.connect = socket.socket.connect_ex = refused
socket.getaddrinfo = lambda *asked, **_: refused(None, asked)
run, uri = Path(sys.argv[1]), sys.argv[2]
print(send(run, uri).step)
tell_versions(uri, [])
"""


def test_telling_a_local_mlflow_connects_to_nobody(tmp_path: Path, base: Path, uri: str) -> None:
    run = make_run(tmp_path / "quiet", base)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}

    ended = subprocess.run(
        [sys.executable, "-c", WATCHED, str(run), uri],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "3\n", "")
