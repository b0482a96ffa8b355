"""The sample with real processes: a folder is changed at random while any part of the stack is killed.

What is compared is what a person could see: the program's own `twin wait`, its documents, its search, `twin verify`.
"""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
EMBEDDED = ("documents", "log", "capture", "app", "supervisor")
# With a Kafka and a Connect of one's own; `task` is the connector's, restarted over Connect's REST interface.
OVER_KAFKA = ("documents", "app", "supervisor", "broker", "connect", "task")
TOGETHER = 4


def sample(seed: int, rounds: int, over_kafka: bool = False) -> Counter[str]:
    """Rounds of a few operations and a fault each; how often what was done. Raises AssertionError at a difference."""
    stack = _stack()
    if over_kafka and not stack.KAFKA.exists():
        raise SystemExit(f"there is no Kafka and Connect at {stack.KAFKA}")
    with tempfile.TemporaryDirectory() as directory, ExitStack() as ending:
        home = Path(directory) / "home"
        home.mkdir()
        _build_model(home)
        cluster = stack.Cluster(Path(directory) / "kafka", *stack.free_ports()) if over_kafka else None
        if cluster is not None:
            ending.callback(cluster.run, "stop")
            cluster.start()
        twin = stack.Twin(home, cluster.settings if cluster is not None else {})
        notes = stack.Notes(Path(directory) / "notes", seed)
        ending.callback(twin.run, "down", code=None)
        twin.up()
        return changed(twin, notes, random.Random(seed), rounds, cluster)


def changed(twin: Any, notes: Any, source: random.Random, rounds: int, cluster: Any = None) -> Counter[str]:
    """Change the folder and strike a part, again and again; after each round the index is what the folder is."""
    counts: Counter[str] = Counter()
    for number in range(rounds):
        for _ in range(source.randint(1, TOGETHER)):
            counts[_operation(notes, source, number)] += 1
        ingest = twin.start("ingest", str(notes.folder), "--prune", "--author", "Test Author")
        part = source.choice(EMBEDDED if cluster is None else OVER_KAFKA)
        if source.random() < 0.5:
            # Else it is struck while the documents come in.
            ingest.communicate(timeout=120)
        struck = _strike(part, twin, cluster)
        counts[struck] += 1
        ingest.communicate(timeout=120)
        if part == "supervisor":
            twin.up()
        elif part in ("broker", "connect"):
            cluster.start()
        while twin.run("ingest", str(notes.folder), "--prune", "--author", "Test Author", code=None).returncode:
            pass
        failed = twin.wait()["failed"]
        assert failed == [], f"round {number}, {struck}: {failed}"
        try:
            twin.must_hold(notes)
        except AssertionError as error:
            raise AssertionError(f"round {number}, {struck}: {error}") from error
    return counts


def _strike(part: str, twin: Any, cluster: Any) -> str:
    """What was done to the part."""
    if part == "task":
        cluster.restart_task()
        return "restarted task"
    if part in ("broker", "connect"):
        cluster.run("kill", part)
    else:
        twin.kill(part)
    return f"killed {part}"


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
