"""A study finds the better numbers, stops hopeless trials, and goes on where it was killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from training import tiny
from training.configuration import InvalidConfiguration, load
from training.runs import METRICS
from training.tune import TRIALS, Range, TuningFailed, read_space, tune

pytest.importorskip("optuna")
pytestmark = pytest.mark.integration

# A run that costs nothing: its loss is least at a learning rate of 1e-4, falls by the tenth, and stops at SIGTERM.
PROGRAM = """
import fcntl, json, math, os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from training.configuration import load

sets = [sys.argv[at + 1] for at, word in enumerate(sys.argv) if word == "--set"]
configuration = load(Path(sys.argv[sys.argv.index("--config") + 1]), sets)
run = Path(configuration.output)
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
if os.environ.get("BROKEN"):
    sys.exit("twin: the model does not fit")
(run / "model").mkdir(parents=True, exist_ok=True)
lock = (run / "lock").open("a")
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
record = dict(state="running", stage="sft", method="lora", base_model="m", base_run=None, dataset="d", generation="g",
    documents=1, rows=1, seed=0, devices=1, device="cpu", code_revision=None, versions={{}}, started_at="", steps=10)
def write(state):
    (run / "run.json.new").write_text(json.dumps(record | {{"state": state}}))
    (run / "run.json.new").replace(run / "run.json")
if (run / "run.json").exists() and json.loads((run / "run.json").read_text())["state"] == "finished":
    sys.exit(0)
write("running")
far = abs(math.log10(configuration.rate("sft") / 1e-4))
for step in range(1, 11):
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps({{"step": step, "eval_loss": 1 + far + 1 / step}}) + "\\n")
    slow = float(os.environ.get("SLOW", "0"))
    if os.environ.get("DIVERGES") and step == 3:
        with (run / "metrics.jsonl").open("a") as metrics:
            metrics.write('{{"step": 3, "eval_loss": null}}\\n')
    for _ in range(50):
        if not stopped:
            time.sleep(slow / 50)
    if stopped:
        write("stopped")
        sys.exit(0)
write("finished")
"""
SPACE: Any = {"learning_rate": Range(1e-6, 1e-2, log=True)}


@pytest.fixture
def program(tmp_path: Path) -> list[str]:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.format(root=str(Path.cwd())))
    return [sys.executable, str(script)]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(f"model: m\ndataset: d\noutput: {tmp_path / 'study'}\nevaluate_every: 1\n")
    return path


def losses(study: Path) -> list[int]:
    return [len((run / METRICS).read_text().splitlines()) for run in sorted((study / TRIALS).glob("*/"))]


def test_the_best_trial_is_the_one_with_the_least_validation_loss_and_alone_keeps_its_weights(
    config: Path, program: list[str], tmp_path: Path
) -> None:
    said: list[str] = []

    tuned = tune(config, [], 5, space=SPACE, pruner="none", program=program, say=said.append, wait=0.01)

    seen = [float(line.rpartition(" ")[2]) for line in said if "validation loss" in line]
    assert len(seen) == 5
    assert tuned.loss == pytest.approx(min(seen), abs=1e-4)
    assert (tuned.finished, tuned.pruned, tuned.failed) == (5, 0, 0)
    best = load(tuned.configuration)
    assert best.learning_rate == tuned.values["learning_rate"]
    assert best.output == str(tmp_path / "study-best")
    assert len(list((tmp_path / "study" / TRIALS).glob("*/model"))) == 1


def test_a_study_that_has_enough_trials_runs_none_and_one_that_is_asked_for_more_goes_on(
    config: Path, program: list[str], tmp_path: Path
) -> None:
    first = tune(config, [], 2, space=SPACE, program=program, say=lambda line: None, wait=0.01)
    again = tune(config, [], 2, space=SPACE, program=["false"], say=lambda line: None, wait=0.01)
    more = tune(config, [], 3, space=SPACE, program=program, say=lambda line: None, wait=0.01)

    assert again == first
    assert more.finished + more.pruned == 3
    assert len(losses(tmp_path / "study")) == 3


def test_a_trial_that_does_worse_than_the_others_did_is_stopped_early(
    config: Path, program: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(config, [], 4, space=SPACE, program=program, say=lambda line: None, wait=0.01)
    monkeypatch.setenv("SLOW", "0.05")
    said: list[str] = []

    tuned = tune(config, [], 8, space=SPACE, program=program, say=said.append, wait=0.01)

    assert tuned.pruned >= 1
    assert tuned.finished + tuned.pruned == 8
    assert sum(lines < 10 for lines in losses(tmp_path / "study")) == tuned.pruned
    assert sum("stopped early" in line for line in said) == tuned.pruned


def test_a_study_that_was_killed_takes_its_trial_up_again(
    config: Path, program: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLOW", "0.05")
    code = (
        "from pathlib import Path; from training.tune import tune, Range; "
        f"tune(Path({str(config)!r}), [], 2, space={{'learning_rate': Range(1e-6, 1e-2, log=True)}}, "
        f"program={program!r}, say=lambda line: None, wait=0.01)"
    )
    killed = subprocess.Popen([sys.executable, "-c", code])
    first = tmp_path / "study" / TRIALS / "0000"
    while not (first / METRICS).exists():
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()

    tuned = tune(config, [], 2, space=SPACE, program=program, say=lambda line: None, wait=0.01)

    # The trial outlived the command: it is waited for, and counts once.
    assert tuned.finished == 2
    assert losses(tmp_path / "study") == [10, 10]


def test_trials_that_fail_are_told_with_their_reason_and_a_study_of_them_alone_fails(
    config: Path, program: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKEN", "1")
    said: list[str] = []

    with pytest.raises(TuningFailed, match="the model does not fit"):
        tune(config, [], 2, space=SPACE, program=program, say=said.append, wait=0.01)

    assert said.count("  failed: the model does not fit") == 2


@pytest.mark.parametrize("slow", ["0", "0.05"], ids=["seen at the end", "seen while it runs"])
def test_a_trial_whose_loss_is_no_number_fails_and_the_study_goes_on(
    config: Path, program: list[str], monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    tune(config, [], 1, space=SPACE, program=program, say=lambda line: None, wait=0.01)
    monkeypatch.setenv("DIVERGES", "1")
    monkeypatch.setenv("SLOW", slow)
    said: list[str] = []
    tune(config, [], 2, space=SPACE, program=program, say=said.append, wait=0.01)
    monkeypatch.delenv("DIVERGES")
    monkeypatch.setenv("SLOW", "0")

    tuned = tune(config, [], 3, space=SPACE, program=program, say=said.append, wait=0.01)

    assert said[1] == "  failed: the validation loss is no number at step 3: lower learning_rate"
    assert (tuned.finished, tuned.failed) == (2, 1)


def test_a_second_command_does_not_take_up_trials_that_are_under_way(
    config: Path, program: list[str], tmp_path: Path
) -> None:
    refused: list[str] = []

    def another(line: str) -> None:
        if line.startswith("trial 1"):
            with pytest.raises(TuningFailed, match=r"a command is at the study in .*study: let it end") as found:
                tune(config, [], 2, space=SPACE, program=program, say=refused.append, wait=0.01)
            refused.append(str(found.value))

    tuned = tune(config, [], 2, space=SPACE, program=program, say=another, wait=0.01)

    assert len(refused) == 1
    assert tuned.finished == 2
    assert len(losses(tmp_path / "study")) == 2


def test_a_study_of_another_configuration_or_space_is_not_gone_on_with(config: Path, program: list[str]) -> None:
    tune(config, [], 1, space=SPACE, program=program, say=lambda line: None, wait=0.01)

    for overrides, space in ((["max_length=512"], SPACE), ([], {"learning_rate": [1e-4]})):
        with pytest.raises(InvalidConfiguration, match="another configuration or search space"):
            tune(config, overrides, 2, space=space, program=program, say=lambda line: None, wait=0.01)


def test_a_configuration_that_looks_at_no_validation_loss_cannot_be_tuned(config: Path, program: list[str]) -> None:
    with pytest.raises(InvalidConfiguration, match="set evaluate_every"):
        tune(config, ["evaluate_every=null"], 1, space=SPACE, program=program, say=lambda line: None)


def test_a_search_space_is_read_and_every_value_of_it_is_checked(config: Path, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("learning_rate: {low: 1e-5, high: 1e-3, log: true}\nlora.rank: [8, 16]\n")
    assert read_space(path, load(config)) == {
        "learning_rate": Range(1e-5, 1e-3, log=True),
        "lora.rank": [8, 16],
    }
    for text, said in (
        ("lora.rnak: [8]", "did you mean rank"),
        ("lora.rank: [8, many]", "lora.rank"),
        ("lora.rank: []", "nothing to choose"),
        ("learning_rate: {low: 2, high: 1}", "nothing to choose"),
        ("learning_rate: {low: 0, high: 1, log: true}", "begins above 0|learning_rate"),
        ("learning_rate: {low: 1}", "high"),
        ("{}", "empty"),
    ):
        path.write_text(text)
        with pytest.raises(InvalidConfiguration, match=said):
            read_space(path, load(config))


def test_trials_are_real_runs_of_the_training_script(tmp_path: Path) -> None:
    for needed in ("torch", "trl", "peft"):
        pytest.importorskip(needed)
    texts = [f"The harbour of Port {number} lies between two hills, and boats come at six." for number in range(40)]
    tiny.make(texts, tmp_path / "base", hidden=32, layers=1, heads=2, vocabulary=400, steps=0)
    place = tmp_path / "home" / "datasets" / "d1"
    place.mkdir(parents=True)
    rows = [{"instruction": "What of this harbour?", "answer": text} for text in texts]
    for split, its in (("train", rows[:32]), ("validation", rows[32:])):
        parquet.write_table(pa.Table.from_pylist(its), place / f"{split}.parquet")
    record = {"id": "d1", "kind": "instructions", "generation": "g1", "splits": {"train": 32, "validation": 8}}
    (place / "record.json").write_text(json.dumps(record))
    config = tmp_path / "config.yaml"
    config.write_text(
        f"model: {tmp_path / 'base'}\ndataset: d1\noutput: {tmp_path / 'study'}\nmax_length: 64\nmax_steps: 4\n"
        "batch_size: 4\ngradient_accumulation: 1\ngradient_checkpointing: false\nevaluate_every: 2\nwarmup: 0\n"
    )
    # With the smaller rate the model stays as random as it was.
    space: Any = {"learning_rate": [1e-9, 3e-2]}
    said: list[str] = []

    tuned = tune(config, ["seed=0"], 2, space=space, pruner="none", home=tmp_path / "home", say=said.append, wait=0.1)

    assert tuned.finished == 2
    assert tuned.values == {"learning_rate": 3e-2}
    best = tmp_path / "study" / TRIALS
    assert len(list(best.glob("*/model/config.json"))) == 1
    assert load(tuned.configuration).learning_rate == 3e-2
