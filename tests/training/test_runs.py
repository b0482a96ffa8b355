"""A run's folder before the first step: what it is noted to be built on, and when it may go on, be told, or begin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from training import dpo, runs, sft
from training.checkpoints import seal
from training.configuration import TrainingConfiguration, read
from training.inputs import BASE_RECORD, DatasetVersion
from training.runs import RunRecord, RunRefused, read_record, run_of, running

VERSION = DatasetVersion(id="d1", kind="instructions", generation="g1", splits={"train": 4})


def model(folder: Path, weights: str = "as it was") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text(weights)
    return folder


@pytest.fixture(autouse=True)
def without_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "LIBRARIES", ())


def configuration(base: Path | str, output: Path) -> TrainingConfiguration:
    return read({"model": str(base), "dataset": "d1", "output": str(output)})


def begun(base: Path | str, output: Path, *, steps: int = 0, **how: Any) -> RunRecord:
    """Start, or go on with, a run that takes so many steps of 4, and writes its model when that was the last."""
    with running(configuration(base, output), "sft", VERSION, say=lambda line: None, **how) as run:
        if not run.finished and steps:
            folder = run.checkpoints / f"checkpoint-{steps}"
            folder.mkdir(parents=True)
            (folder / "model.safetensors").write_text("learned")
            run.checkpoint = seal(folder, step=steps, steps=4, tokens=10, seconds=1.0)
        if not run.finished and run.trained:
            model(output / "model")
            run.write("finished")
        return run.record


def removed(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


@pytest.mark.parametrize("named", ["sft", "sft/model", "sft/checkpoints/checkpoint-4", "latest"])
def test_the_run_that_made_the_base_is_known_however_the_base_is_named(tmp_path: Path, named: str) -> None:
    first = tmp_path / "sft"
    begun(model(tmp_path / "base"), first, steps=4)
    (first / "checkpoints" / "checkpoint-4" / "config.json").write_text("{}")
    (tmp_path / "latest").symlink_to(first / "model")

    record = begun(tmp_path / named, tmp_path / "dpo")

    assert record.base_run == str(first.resolve())


def test_a_base_that_no_run_made_has_none(tmp_path: Path) -> None:
    record = begun(model(tmp_path / "model"), tmp_path / "run")

    assert record.base_run is None
    assert run_of(tmp_path) is None


def test_a_run_notes_which_texts_its_tiny_base_was_made_of(tmp_path: Path) -> None:
    base = model(tmp_path / "base")
    (base / BASE_RECORD).write_text('{"dataset": "d0"}')

    assert begun(base, tmp_path / "run").base_dataset == "d0"
    assert begun(model(tmp_path / "other"), tmp_path / "another").base_dataset is None


def test_a_run_does_not_go_on_with_other_weights_under_the_same_name(tmp_path: Path) -> None:
    base = model(tmp_path / "base")
    before = begun(base, tmp_path / "run", steps=2)
    (base / "model.safetensors").write_text("made anew since")

    with pytest.raises(RunRefused, match=r"was begun with other weights than those that .*base has now"):
        begun(base, tmp_path / "run")

    (base / "model.safetensors").write_text("as it was")
    assert begun(base, tmp_path / "run").base_weights == before.base_weights
    assert before.base_weights


def test_a_run_does_not_go_on_with_another_number_of_devices(tmp_path: Path) -> None:
    base = model(tmp_path / "base")
    begun(base, tmp_path / "run", steps=2, devices=4)

    with pytest.raises(RunRefused, match="was begun on 4 devices and would go on with 1"):
        begun(base, tmp_path / "run", devices=1)

    assert begun(base, tmp_path / "run", devices=4).step == 2
    begun(base, tmp_path / "ended", steps=4, devices=4)
    assert begun(base, tmp_path / "ended", devices=1).state == "finished"


def test_a_broken_record_does_not_keep_a_run_from_beginning_anew(tmp_path: Path) -> None:
    base, run = model(tmp_path / "base"), tmp_path / "run"
    begun(base, run, steps=2)
    (run / "run.json").write_text('{"state": "runn')

    with pytest.raises(RunRefused, match="start the run --anew"):
        begun(base, run)

    assert begun(base, run, anew=True).step == 0
    assert not (run / "checkpoints" / "checkpoint-2").exists()


def test_anew_removes_nothing_from_a_folder_that_holds_no_run(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.md").write_text("All of it.")

    with pytest.raises(RunRefused, match="holds something else"):
        begun(model(tmp_path / "base"), tmp_path / "notes", anew=True)

    assert (tmp_path / "notes" / "thesis.md").exists()


def test_a_finished_run_whose_model_is_gone_writes_it_again_from_its_checkpoint(tmp_path: Path) -> None:
    base, run = model(tmp_path / "base"), tmp_path / "run"
    began = begun(base, run, steps=4)
    removed(run / "model")

    with running(configuration(base, run), "sft", VERSION, say=lambda line: None) as again:
        assert not again.finished
        assert again.trained
        model(run / "model")
        again.write("finished")

    record = read_record(run)
    assert record is not None
    assert (record.state, record.step, record.started_at) == ("finished", 4, began.started_at)


def test_a_finished_run_without_model_and_checkpoints_is_not_trained_again_unasked(tmp_path: Path) -> None:
    base, run = model(tmp_path / "base"), tmp_path / "run"
    begun(base, run, steps=4)
    removed(run / "model")
    removed(run / "checkpoints" / "checkpoint-4")

    with pytest.raises(RunRefused, match="its model and its checkpoints are gone: start it --anew"):
        begun(base, run)

    assert begun(base, run, anew=True).step == 0


@pytest.mark.parametrize("program", [sft.main, dpo.main])
def test_a_wrong_setting_is_told_in_a_line(
    program: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_bytes(msgspec.yaml.encode({"model": "m", "dataset": "d1", "output": str(tmp_path / "run")}))
    monkeypatch.setenv("DO_NOT_TRACK", "true")
    monkeypatch.setenv("TWIN_PORT", "many")
    monkeypatch.setattr("sys.argv", ["program", "--config", str(config)])

    assert program() == 2
    assert capsys.readouterr().err.startswith("twin: TWIN_PORT: ")
