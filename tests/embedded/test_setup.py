"""Set-up on a machine that cannot have it: one sentence that says what to do, and nothing is made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def program(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def python(tmp_path: Path, refuses: str) -> Path:
    """A Python like this one, but for the check whose code holds `refuses`."""
    return program(tmp_path / "python3", f'case "$*" in *{refuses}*) exit 1;; esac\nexec {sys.executable} "$@"')


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    place = tmp_path / "checkout"
    (place / "scripts").mkdir(parents=True)
    for name in ("scripts/setup", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, place / name)
    return place


def refusal(checkout: Path, interpreter: Path, path: str = "") -> str:
    environment = {**os.environ, "PYTHON": str(interpreter), "PATH": f"{path}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "scripts/setup"], cwd=checkout, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert not (checkout / ".venv").exists()
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def test_a_python_that_is_too_old_or_too_new(checkout: Path, tmp_path: Path) -> None:
    said = refusal(checkout, python(tmp_path, refuses="version_info"))

    assert "Python 3.11 or 3.12 is needed" in said
    assert "PYTHON=/path/to/python3.12" in said


def test_no_python_at_all(checkout: Path, tmp_path: Path) -> None:
    assert "no Python was found" in refusal(checkout, tmp_path / "nothing")


def test_a_python_without_its_venv_module(checkout: Path, tmp_path: Path) -> None:
    assert "apt install python3-venv" in refusal(checkout, python(tmp_path, refuses="ensurepip"))


def test_a_disk_that_is_full(checkout: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    program(tools / "df", 'echo "Filesystem 1024-blocks Used Available"; echo "/dev/disk 100 90 100000 99% /"')

    said = refusal(checkout, Path(sys.executable), path=str(tools))

    assert "97 MB are free here and 3000 MB are needed" in said
