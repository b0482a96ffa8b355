"""The sample with real processes: a folder is changed at random while any part of the stack is killed.

What is compared is what a person could see: the program's own `twin wait`, its documents, and its search.
"""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PARTS = ("documents", "log", "capture", "app", "supervisor")
TOGETHER = 4


def sample(seed: int, rounds: int) -> Counter[str]:
    """Rounds of a few operations and a kill each; how often what was done. Raises AssertionError at a difference."""
    stack = _stack()
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory) / "home"
        home.mkdir()
        _build_model(home)
        twin = stack.Twin(home)
        notes = stack.Notes(Path(directory) / "notes", seed)
        try:
            twin.up()
            return changed(twin, notes, random.Random(seed), rounds)
        finally:
            twin.run("down", code=None)


def changed(twin: Any, notes: Any, source: random.Random, rounds: int) -> Counter[str]:
    """Change the folder and kill a part, again and again; after each round the index is what the folder is."""
    counts: Counter[str] = Counter()
    for number in range(rounds):
        for _ in range(source.randint(1, TOGETHER)):
            counts[_operation(notes, source, number)] += 1
        ingest = twin.start("ingest", str(notes.folder), "--prune", "--author", "Test Author")
        part = source.choice(PARTS)
        if source.random() < 0.5:
            # Else it is killed while the documents come in.
            ingest.communicate(timeout=120)
        twin.kill(part)
        counts[f"killed {part}"] += 1
        ingest.communicate(timeout=120)
        if part == "supervisor":
            twin.up()
        while twin.run("ingest", str(notes.folder), "--prune", "--author", "Test Author", code=None).returncode:
            pass
        failed = twin.wait()["failed"]
        assert failed == [], f"round {number}, killed {part}: {failed}"
        try:
            twin.must_hold(notes)
        except AssertionError as error:
            raise AssertionError(f"round {number}, killed {part}: {error}") from error
    return counts


def _operation(notes: Any, source: random.Random, number: int) -> str:
    what = source.choice(["added", "added", "edited", "edited", "edited", "truncated", "removed", "renamed"])
    title = source.choice(sorted(notes.words)) if notes.words else ""
    if what == "added" or not title:
        notes.add(f"Note {number} {source.randrange(10**6)}", sections=source.randint(1, 5))
        return "added"
    words = notes.words[title]
    if what == "edited":
        place = source.randrange(len(words))
        notes.write(title, [*words[:place], notes.word(), *words[place + 1 :]])
    elif what == "truncated":
        notes.write(title, words[: max(1, len(words) - 1)])
    else:
        notes.remove(title)
        if what == "renamed":
            notes.write(f"{title} again", words)
    return what


def _stack() -> Any:
    """The integration tests' own way to run the program."""
    spec = importlib.util.spec_from_file_location("stack", ROOT / "tests" / "integration" / "conftest.py")
    if spec is None or spec.loader is None:
        raise ImportError("the integration tests are not here")
    module = importlib.util.module_from_spec(spec)
    sys.modules["stack"] = module
    spec.loader.exec_module(module)
    return module


def _build_model(home: Path) -> None:
    build = "from corpus.embedding import load_embedder; from corpus.settings import load; load_embedder(load())"
    variables = {**os.environ, "TWIN_HOME": str(home), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", build], cwd=home, env=variables, check=True)
