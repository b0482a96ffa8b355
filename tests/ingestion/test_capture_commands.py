"""`twin capture`: what a person and a program see."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from corpus.settings import InvalidSettings, Settings
from ingestion import capture, capture_commands


def run(settings: Settings, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    capture_commands.register(parser.add_subparsers())
    namespace = parser.parse_args(["capture", *arguments])
    return int(namespace.handler(namespace, settings))


def running(home: Path) -> Settings:
    settings = Settings(home=home)
    now = datetime.now(UTC).isoformat()
    capture.status_file(settings).parent.mkdir()
    capture.status_file(settings).write_text(
        json.dumps({"connector": "c", "state": "running", "reason": None, "last_heartbeat_at": now, "written_at": now})
    )
    return settings


def test_a_running_capture_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(running(tmp_path), "status") == 0
    assert capsys.readouterr().out == "capture is running (connector c)\n"


def test_programs_get_the_state_and_the_last_heartbeat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(running(tmp_path), "status", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["connector"], shown["state"], shown["reason"]) == ("c", "running", None)
    assert datetime.fromisoformat(shown["last_heartbeat"]).tzinfo is not None


def test_a_capture_that_does_not_run_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Settings(home=tmp_path), "status") == 1
    assert "twin up" in capsys.readouterr().out


def test_registering_needs_the_addresses_of_connect_and_kafka() -> None:
    with pytest.raises(InvalidSettings, match="set TWIN_CONNECT_URL and TWIN_KAFKA_BOOTSTRAP_SERVERS"):
        run(Settings(), "register")


def test_registering_without_a_warehouse_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(connect_url="http://127.0.0.1:1", kafka_bootstrap_servers="127.0.0.1:1")

    assert run(settings, "register") == 1
    assert "TWIN_MONGODB_URI" in capsys.readouterr().err


def test_the_commands_load_nothing_heavy() -> None:
    heavy = ["confluent_kafka", "pymongo", "jpype", "urllib.request"]
    program = f"import ingestion.capture_commands, sys; print([name for name in {heavy} if name in sys.modules])"

    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    assert loaded.strip() == "[]"
