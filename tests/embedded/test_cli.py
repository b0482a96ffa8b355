"""The command line as a whole: what it says of itself, what it refuses, and with which exit code."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from embedded import cli


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own in which nothing runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TWIN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("command", ["up", "down", "status", "wait", "search", "ask"])
def test_a_command_says_in_its_own_help_what_it_does(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    whole, _, own = " ".join(capsys.readouterr().out.split()).partition("usage: twin " + command)
    said = own.partition("options:")[0].partition("positional arguments:")[0].rpartition("] ")[2].strip()
    assert said.removeprefix("QUESTION ")
    assert f"{command} {said.removeprefix('QUESTION ')}" in whole


@pytest.mark.parametrize(
    "variable", ["MONGODB_URI", "KAFKA_BOOTSTRAP_SERVERS", "CONNECT_URL", "QDRANT_URL", "LLM_URL", "OTLP_URL"]
)
@pytest.mark.parametrize("value", ["user:hunter2@host", "hunter2 pasted", "mongo://user:hunter2"])
@pytest.mark.parametrize("dotenv", [False, True])
def test_doctor_refuses_what_is_no_address_without_repeating_it(
    variable: str,
    value: str,
    dotenv: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if dotenv:
        (tmp_path / ".env").write_text(f"TWIN_{variable}='{value}'\n")
    else:
        monkeypatch.setenv(f"TWIN_{variable}", value)

    assert cli.main(["doctor"]) == cli.USAGE

    told = capsys.readouterr()
    assert told.err.startswith(f"twin: TWIN_{variable}: expected an address like ")
    assert "hunter2" not in told.out + told.err


def test_doctor_shows_addresses_without_their_passwords(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable in ("CONNECT_URL", "QDRANT_URL", "LLM_URL"):
        monkeypatch.setenv(f"TWIN_{variable}", "http://user:hunter2@127.0.0.1:1/?api_key=hunter2")

    assert cli.main(["doctor"]) == cli.FAILED

    told = capsys.readouterr()
    assert "hunter2" not in told.out + told.err
    assert "FAIL index: http://***@127.0.0.1:1/?api_key=*** does not answer" in told.out


def test_an_unforeseen_error_is_told_without_passwords(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(**_: object) -> None:
        raise RuntimeError("http://user:hunter2@host/ broke")

    monkeypatch.setattr(cli, "load", broken)

    assert cli.main(["status"]) == cli.FAILED
    assert capsys.readouterr().err == "twin: http://***@host/ broke\n"


def test_the_version_is_that_of_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]

    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])

    assert ended.value.code == cli.DONE
    assert capsys.readouterr().out == f"twin {project['version']}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "COMMAND"),
        (["wait", "--timeout", "-1"], "is not a number of seconds"),
        (["wait", "--timeout", "nan"], "is not a number of seconds"),
        (["wait", "--timeout", "soon"], "'soon' is not a number of seconds"),
        (["serve", "--port", "99999"], "is not a port"),
        (["stream", "--workers", "0"], "is not a number of workers"),
        (["ingest"], "SOURCE"),
        (["ingest", " "], "a SOURCE is empty"),
        (["ingest", ".", "--category", "poem"], "'poem' is not known"),
        (["search", "tides", "--limit", "abc"], "--limit"),
        (["documents", "show"], "ID"),
        (["serve"], "set TWIN_QDRANT_URL"),
        (["stream"], "set TWIN_QDRANT_URL"),
        (["capture", "register"], "set TWIN_CONNECT_URL and TWIN_KAFKA_BOOTSTRAP_SERVERS"),
    ],
)
def test_what_was_asked_wrongly_is_usage(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = cli.main(arguments)
    except SystemExit as ended:
        code = int(ended.code or 0)

    assert (code, said in capsys.readouterr().err) == (cli.USAGE, True)


@pytest.mark.parametrize(
    "arguments", [["wait"], ["ingest", "."], ["documents", "delete", "unknown"], ["documents", "show", "unknown"]]
)
def test_what_cannot_be_done_now_is_a_failure(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == cli.FAILED
    assert "`twin up`" in capsys.readouterr().err
