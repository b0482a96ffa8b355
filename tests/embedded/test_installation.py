"""What the plain installation holds, and what starting it does not do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PACKAGES = ("corpus", "ingestion", "streaming", "serving", "embedded")
HEAVY = ("torch", "torchvision", "transformers", "sentence-transformers", "trl", "peft", "triton")
# Imports every module of ours and tells what that did: connections of anybody, and what our own code did besides.
IMPORT_ALL = """
import importlib, json, sys, threading
acts = []
def ours():
    frame = sys._getframe(2)
    while frame is not None:
        if "site-packages" in frame.f_code.co_filename:
            return False
        if frame.f_code.co_filename.startswith(sys.argv[2]):
            return True
        frame = frame.f_back
    return False
def writes(arguments):
    mode, flags = arguments[1], arguments[2]
    return (isinstance(mode, str) and bool(set(mode) & set("wax+"))) or bool((flags or 0) & 3)
def audit(event, arguments):
    acting = event.startswith(("os.", "subprocess.", "shutil.")) and event not in ("os.listdir", "os.scandir")
    if event.startswith("socket.") or (acting or (event == "open" and writes(arguments))) and ours():
        acts.append([event, str(arguments)[:200]])
sys.dont_write_bytecode = True
sys.addaudithook(audit)
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
print(json.dumps({"acts": acts, "threads": threads, "modules": sorted(sys.modules)}))
"""
RUN_COMMAND = """
import json, sys
from embedded import cli
try:
    code = cli.main(json.loads(sys.argv[1]))
except SystemExit as ended:
    code = ended.code
sys.stdout.write("\\n" + json.dumps({"code": code, "modules": sorted(sys.modules)}))
"""


def modules() -> list[str]:
    """The name of every module of ours but those that run when they are named (`__main__`)."""
    files = [path.relative_to(ROOT) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in files]
    return [name for name in names if not name.endswith("__main__")]


def requirements(name: str, extras: frozenset[str], met: dict[str, str]) -> dict[str, str]:
    """Every distribution that `name` with these extras brings along: by name, who asked for it first."""
    try:
        wanted = distribution(name).requires or []
    except PackageNotFoundError:
        return met
    for line in wanted:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in extras or {""}):
            continue
        other = canonicalize_name(requirement.name)
        if other not in met:
            met[other] = name
            requirements(other, frozenset(requirement.extras), met)
    return met


def python(code: str, *arguments: str, home: Path) -> str:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("TWIN_")}
    variables |= {"PYTHONPATH": str(ROOT), "TWIN_HOME": str(home / ".twin"), "HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=home, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_plain_installation_asks_for_neither_torch_nor_cuda() -> None:
    found = requirements("llm-twin", frozenset(), {})

    assert {"bytewax", "onnxruntime", "qdrant-edge-py", "unstructured", "litestar"} <= set(found)
    heavy = {name: by for name, by in found.items() if name in HEAVY or name.startswith(("nvidia-", "cuda"))}
    assert heavy == {}


def test_the_extra_is_where_torch_comes_from() -> None:
    assert {"torch", "sentence-transformers"} <= set(requirements("llm-twin", frozenset({"torch"}), {}))


def test_importing_every_module_does_nothing(tmp_path: Path) -> None:
    names = modules()
    assert {"corpus.index", "streaming.dataflow", "serving.app", "embedded.supervisor", "embedded.cli"} <= set(names)

    done = json.loads(python(IMPORT_ALL, json.dumps(names), f"{ROOT}/", home=tmp_path))

    assert done["acts"] == []
    assert done["threads"] == []
    assert set(names) <= set(done["modules"])
    assert "torch" not in done["modules"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--help"], ["status", "--json"], ["down"], ["search", "anything"]])
def test_a_command_loads_only_what_it_uses(tmp_path: Path, arguments: list[str]) -> None:
    *_, last = python(RUN_COMMAND, json.dumps(arguments), home=tmp_path).splitlines()

    loaded = {name.partition(".")[0] for name in json.loads(last)["modules"]}
    heavy = {"litestar", "uvicorn", "onnxruntime", "onnx", "tokenizers", "numpy", "pymongo", "bson", "bytewax", "jpype"}
    heavy |= {"confluent_kafka", "qdrant_client", "qdrant_edge", "unstructured", "rich", "huggingface_hub", "torch"}
    assert loaded & heavy == set()
