"""A configuration is checked as a whole before anything is loaded, and its errors say what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.configuration import InvalidConfiguration, TrainingConfiguration, dump, load, read

SHIPPED = sorted((Path(__file__).parents[2] / "training" / "configs").glob("tiny-*.yaml"))
LEAST = "model: base\ndataset: notes\noutput: run\n"


def written(folder: Path, more: str = "") -> Path:
    path = folder / "run.yaml"
    path.write_text(LEAST + more)
    return path


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(InvalidConfiguration) as error:
        load(path, overrides)
    return str(error.value)


def test_three_keys_are_enough_and_the_rest_has_defaults(tmp_path: Path) -> None:
    configuration = load(written(tmp_path))

    assert (configuration.model, configuration.method, configuration.lora.rank) == ("base", "lora", 16)
    assert configuration.rate("sft") > configuration.rate("dpo")


def test_what_is_resolved_and_written_out_is_read_as_the_same(tmp_path: Path) -> None:
    configuration = load(written(tmp_path, "learning_rate: 2e-4\nlora: {target_modules: [q_proj, v_proj]}\n"))
    (tmp_path / "resolved.yaml").write_text(dump(configuration))

    assert load(tmp_path / "resolved.yaml") == configuration
    assert "checkpoint_every: 100" in dump(configuration)


@pytest.mark.parametrize("number", ["2e-4", "2.0e-4", "0.0002", "2E-4"])
def test_a_learning_rate_is_a_number_however_it_is_written(tmp_path: Path, number: str) -> None:
    assert load(written(tmp_path, f"learning_rate: {number}\n")).learning_rate == 2e-4


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("learning_rte: 0.1", "learning_rte is not a key: did you mean learning_rate?"),
        ("lora: {rnak: 4}", "lora.rnak is not a key: did you mean rank?"),
        ("zzz: 1", "zzz is not a key\n"),
        ("method: qlroa", "method: there is no 'qlroa'"),
        ("epochs: many", "epochs: expected float, got str"),
        ("lora: {rank: 0}", "lora.rank: expected int >= 1"),
        ("lora: {dropout: 1.0}", "lora.dropout: expected float < 1"),
        ("lora: 4", "lora: expected object, got int"),
        ("packing: sometimes", "packing: expected bool, got str"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_path(tmp_path: Path, more: str, told: str) -> None:
    path = written(tmp_path, more)

    assert refused(path).startswith(f"{path}: {told}")


def test_the_keys_that_there_are_are_listed_once(tmp_path: Path) -> None:
    told = refused(written(tmp_path, "zzz: 1\nyyy: 1\n"))

    assert told.count("model, dataset, output") == 1


def test_every_unknown_key_is_told_at_once(tmp_path: Path) -> None:
    told = refused(written(tmp_path, "epoch: 1\ndpo: {betta: 0.2}\n")).splitlines()

    assert [line.partition(": ")[2] for line in told] == [
        "epoch is not a key: did you mean epochs?",
        "dpo.betta is not a key: did you mean beta?",
    ]


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: base\ndataset: notes\n")

    assert "output is missing" in refused(path)


@pytest.mark.parametrize(
    ("text", "line"),
    [("model: base\n  dataset: [\n", "line 2"), ("model: base\nseed: 1\nseed: 2\n", "line 3: seed stands here twice")],
)
def test_an_error_of_yaml_names_the_line(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)

    assert f"{path}, {line}" in refused(path)


@pytest.mark.parametrize("text", ["", "- model\n", "model"])
def test_a_file_that_is_no_keys_and_values_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)

    assert "keys and values" in refused(path)


def test_a_file_that_is_not_there_is_said_to_be_so(tmp_path: Path) -> None:
    assert "there is no such file" in refused(tmp_path / "none.yaml")


def test_the_command_line_goes_before_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "seed: 1\n")

    configuration = load(path, ["seed=7", "lora.rank=8", "learning_rate=1e-5", "packing=true", "max_steps=null"])

    assert (configuration.seed, configuration.lora.rank, configuration.learning_rate) == (7, 8, 1e-5)
    assert configuration.packing
    assert configuration.max_steps is None
    assert "did you mean lora?" in refused(path, "lroa.rank=8")
    assert "write KEY=VALUE" in refused(path, "seed")
    assert "seed has no keys of its own" in refused(path, "seed.more=1")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_configurations_that_are_shipped_can_be_read(path: Path) -> None:
    assert isinstance(load(path), TrainingConfiguration)


def test_a_shipped_configuration_was_found() -> None:
    assert {path.stem for path in SHIPPED} >= {"tiny-sft-full", "tiny-sft-lora", "tiny-sft-qlora", "tiny-dpo"}


def test_values_without_a_file_are_checked_alike() -> None:
    assert read({"model": "a", "dataset": "b", "output": "c"}).seed == 0
    with pytest.raises(InvalidConfiguration, match="configuration: sede is not a key"):
        read({"model": "a", "dataset": "b", "output": "c", "sede": 1})
