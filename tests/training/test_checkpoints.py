"""A checkpoint is whole or is none, whatever was cut off, and what a run takes in is looked at before it begins."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from training import checkpoints
from training.checkpoints import MANIFEST, disk_is_full, flaw, last_whole, remove_all_but, seal
from training.inputs import AnotherGeneration, UnusableInput, dataset_folder, dataset_version, model_folder, rows
from training.runs import cut_metrics


def saved(folder: Path, step: int, content: bytes = b"weights") -> Path:
    path = folder / f"checkpoint-{step}"
    (path / "shards").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(content * 1000)
    (path / "shards" / "optimizer.pt").write_bytes(content)
    return path


def sealed(folder: Path, step: int) -> Path:
    path = saved(folder, step)
    seal(path, step=step, steps=9, tokens=step * 10, seconds=1.5)
    return path


def test_the_whole_checkpoint_of_the_most_steps_is_found(tmp_path: Path) -> None:
    for step in (3, 12, 6):
        sealed(tmp_path, step)

    found, passed = last_whole(tmp_path)

    assert found is not None
    assert (found.folder.name, found.manifest.step, found.manifest.tokens) == ("checkpoint-12", 12, 120)
    assert passed == {}


def changed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda path: (path / MANIFEST).unlink(), "it was cut off before it was whole"),
        (lambda path: (path / "model.safetensors").write_bytes(b"wei"), "model.safetensors has 3 bytes of 7000"),
        (lambda path: changed(path / "model.safetensors"), "model.safetensors has another content than was written"),
        (lambda path: (path / "shards" / "optimizer.pt").unlink(), "shards/optimizer.pt is missing"),
        (lambda path: (path / MANIFEST).write_bytes(b'{"step": 6'), f"its {MANIFEST} cannot be read"),
    ],
    ids=["no manifest", "shorter", "a bit", "a file less", "half a manifest"],
)
def test_a_harmed_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, harm: Callable[[Path], object], told: str
) -> None:
    sealed(tmp_path, 3)
    harm(sealed(tmp_path, 6))

    found, passed = last_whole(tmp_path)

    assert found is not None
    assert found.manifest.step == 3
    ((path, reason),) = passed.items()
    assert path.name == "checkpoint-6"
    assert reason.startswith(told)


def test_a_changed_block_of_a_large_file_is_seen_without_reading_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WHOLE", 5_000), ("BLOCK", 100), ("BLOCKS", 5)):
        monkeypatch.setattr(checkpoints, name, value)
    path = sealed(tmp_path, 3)
    assert flaw(path) is None

    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content[:-50] + bytes(50))

    assert flaw(path) == "model.safetensors has another content than was written"


def test_only_whole_checkpoints_are_counted_when_old_ones_go(tmp_path: Path) -> None:
    for step in (3, 6, 9):
        sealed(tmp_path, step)
    for step in (5, 12):
        saved(tmp_path, step)

    remove_all_but(tmp_path, 2)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-12", "checkpoint-6", "checkpoint-9"]


def test_a_full_disk_is_known_by_what_each_library_raises(tmp_path: Path) -> None:
    def nested(error: Exception) -> Exception:
        outer = RuntimeError("could not write")
        outer.__cause__ = error
        return outer

    assert disk_is_full(OSError(errno.ENOSPC, "x"), tmp_path)
    assert disk_is_full(nested(OSError(errno.EDQUOT, "x")), tmp_path)
    assert disk_is_full(ValueError('I/O error: No space left on device (os error 28) at path "/x"'), tmp_path)
    assert not disk_is_full(OSError(errno.EACCES, "x"), tmp_path)
    assert not disk_is_full(RuntimeError("unexpected pos 64 vs 0"), tmp_path)


def test_metrics_of_steps_that_no_checkpoint_kept_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step":1,"loss":3}\n{"step":2,"loss":2}\n{"step":3,"loss":1}\n{"step":4,"lo')

    cut_metrics(path, 2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]

    cut_metrics(path, 0)
    assert path.read_text() == ""


def dataset(folder: Path, **changes: Any) -> Path:
    record = {"id": "d1", "kind": "instructions", "name": "notes", "generation": "g1", "document_ids": ["a", "b"]}
    record |= {"splits": {"train": 2}, "created_at": "2026-01-01T00:00:00+00:00"} | changes
    place = folder / "datasets" / "d1"
    place.mkdir(parents=True)
    (place / "record.json").write_text(json.dumps(record))
    table = pa.Table.from_pylist(
        [{"instruction": f"What is {n}?", "answer": f"It is {n}.", "scores": "{}"} for n in "ab"]
    )
    parquet.write_table(table, place / "train.parquet")
    return place


def test_a_dataset_is_named_by_id_or_by_folder(tmp_path: Path) -> None:
    place = dataset(tmp_path)

    by_id = dataset_version("d1", tmp_path / "datasets", "instructions", "g1")
    by_folder = dataset_version(str(place), tmp_path / "elsewhere", "instructions")

    assert by_id.folder == by_folder.folder == str(place)
    assert rows(by_id, "train")[1] == {"instruction": "What is b?", "answer": "It is b."}
    assert rows(by_id, "validation") == []


def test_a_dataset_is_named_by_its_name_or_the_beginning_of_its_id(tmp_path: Path) -> None:
    def named(id: str, name: str, month: int) -> None:
        place = tmp_path / id
        place.mkdir()
        (place / "record.json").write_text(json.dumps({"name": name, "created_at": f"2026-0{month}-01T00:00:00+00:00"}))

    for id, name, month in (("notes-1a", "mine", 2), ("notes-2b", "mine", 3), ("notes-2c", "notes-1a", 1)):
        named(id, name, month)
    # What another process writes just now, and a record that nobody can read.
    named(".notes-3d", "mine", 4)
    (tmp_path / "notes-4e").mkdir()
    (tmp_path / "notes-4e" / "record.json").write_text("{")

    found = {each: dataset_folder(each, tmp_path).name for each in ("mine", "notes-1a", "notes-1", "notes-4")}

    assert found == {"mine": "notes-2b", "notes-1a": "notes-1a", "notes-1": "notes-1a", "notes-4": "notes-4e"}
    with pytest.raises(UnusableInput, match="beginning of notes-2b, notes-2c: give more"):
        dataset_folder("notes-2", tmp_path)
    for nobodys in ("", ".", "mine-too"):
        with pytest.raises(UnusableInput, match="not on this machine: `twin dataset list`"):
            dataset_folder(nobodys, tmp_path)


def test_a_dataset_of_another_generation_is_refused(tmp_path: Path) -> None:
    dataset(tmp_path)

    with pytest.raises(AnotherGeneration, match="made of generation g1, and g2 is in use"):
        dataset_version("d1", tmp_path / "datasets", "instructions", "g2")


def test_a_dataset_that_cannot_be_trained_on_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match="there is no dataset d9"):
        dataset_version("d9", tmp_path / "datasets", "instructions")
    place = dataset(tmp_path, splits={"train": 3})
    with pytest.raises(UnusableInput, match="DPO trains on preferences"):
        dataset_version("d1", tmp_path / "datasets", "preferences")
    version = dataset_version("d1", tmp_path / "datasets", "instructions")
    with pytest.raises(UnusableInput, match="has 2 rows, and its record says 3"):
        rows(version, "train")
    (place / "train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UnusableInput, match=r"train.parquet cannot be read"):
        rows(version, "train")
    (place / "record.json").write_text("{}")
    with pytest.raises(UnusableInput, match="is not a dataset's record"):
        dataset_version("d1", tmp_path / "datasets", "instructions")


def test_a_model_is_a_folder_or_a_finished_runs_folder(tmp_path: Path) -> None:
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")

    assert model_folder(str(model)) == model_folder(str(tmp_path / "run")) == model


def test_a_model_that_is_not_here_is_refused_and_never_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "run.json").write_text("{}")

    with pytest.raises(UnusableInput, match="has no model yet"):
        model_folder(str(tmp_path))
    with pytest.raises(UnusableInput, match="holds no model"):
        model_folder("./nothing")
    with pytest.raises(UnusableInput, match="hf download example/model-that-nobody-has"):
        model_folder("example/model-that-nobody-has")
