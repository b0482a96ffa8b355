"""What tests of several packages share: a MongoDB of their own, the default model, what downstream was promised."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker

from corpus.embedding import Embedder, load_embedder
from corpus.settings import Settings

CONTRACTS = Path(__file__).parents[1] / "docs" / "contracts"
RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


MEMORY, ENOUGH = Path("/dev/shm"), 4_000_000_000
APART = ("integration", "benchmark")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Hundreds of tests make an index of their own, whose files are synced one by one: in memory, if there is enough.

    Tests that start the whole stack have it on disk, as users do.
    """
    quick = "not integration" in (config.option.markexpr or "")
    if quick and config.option.basetemp is None and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ENOUGH:
        made = tempfile.mkdtemp(prefix="twin-tests-", dir=MEMORY)
        config.option.basetemp = f"{made}/base"
        config.add_cleanup(lambda: shutil.rmtree(made, ignore_errors=True))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A module whose every test the chosen marks leave out is not imported: some of them import torch."""
    marks = "|".join(mark for mark in APART if f"not {mark}" in (config.option.markexpr or ""))
    if not marks or collection_path.suffix != ".py":
        return None
    module = rf"^pytestmark = (\[\s*)?pytest\.mark\.({marks})\b"
    return re.search(module, collection_path.read_text("utf-8"), re.MULTILINE) is not None or None


@pytest.fixture(scope="session")
def home_with_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the default model has been built, once for all processes that test."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    home = shared / "home-with-model"
    home.mkdir(exist_ok=True)
    with (shared / "home-with-model.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        load_embedder(Settings(home=home))
    return home


@pytest.fixture(scope="session")
def embedder(home_with_model: Path) -> Embedder:
    return load_embedder(Settings(home=home_with_model))


@pytest.fixture(scope="session")
def formats() -> FormatChecker:
    """Every format that a contract names; the library alone would pass any date and time."""
    checker = FormatChecker(["uuid"])

    @checker.checks("date-time", raises=ValueError)
    def is_a_moment(value: object) -> bool:
        return not isinstance(value, str) or (RFC_3339.fullmatch(value) and datetime.fromisoformat(value)) is not None

    return checker


@pytest.fixture(scope="session")
def promised(formats: FormatChecker) -> Callable[[str, Any], None]:
    """`promised(contract, value)`: the value is as every released revision of the contract's schema says."""
    checkers: dict[str, list[Draft202012Validator]] = {}
    for path in sorted((CONTRACTS / "released").glob("*.json")):
        checker = Draft202012Validator(json.loads(path.read_bytes()), format_checker=formats)
        checkers.setdefault(path.name.partition(".v")[0], []).append(checker)

    def holds(contract: str, value: Any) -> None:
        for checker in checkers[contract]:
            checker.validate(value)

    return holds


@pytest.fixture(scope="session")
def mongodb_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A MongoDB that lives as long as the tests; each test takes a database of its own."""
    directory = tmp_path_factory.mktemp("mongodb")
    command = [sys.executable, "-m", "embedded.mongodb", "--port", "0", "--directory", str(directory)]
    root = Path(__file__).parent.parent
    with subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        told = []
        for line in process.stderr:
            told.append(line)
            found = re.search(r"mongodb://\S+", line)
            if found:
                break
        else:
            pytest.fail("the embedded MongoDB did not start: " + "".join(told)[-2000:])
        yield found.group()
        process.terminate()
