"""What a run takes is told before it starts, and a run that cannot fit is refused with the numbers."""

from __future__ import annotations

import argparse
import json
import math
import re
import warnings
from pathlib import Path
from typing import Any

import msgspec
import pytest

from corpus.settings import load as settings
from training.configuration import InvalidConfiguration, Lora, TrainingConfiguration, load
from training.planning.architecture import Shape, UnknownShape, known_shapes, read_shape, shape_of
from training.planning.commands import register_plan
from training.planning.hardware import GPUS, Room, UnknownGpu, _free_memory, gpu_named
from training.planning.memory import memory, targets, trained
from training.planning.plan import DoesNotFit, SizeNotChecked, operations, plan, refuse_if_too_large, told

CONFIGS = sorted(Path("training/configs").glob("*.yaml"))
FAMILY_CONFIGS = [path for path in CONFIGS if path.read_text().startswith("# Meant for")]
H100, L4, T4 = GPUS["H100"], GPUS["L4"], GPUS["T4"]


def configuration(**changes: Any) -> TrainingConfiguration:
    values = {"model": "llama-3.1-8b", "dataset": "d", "output": "o", "batch_size": 1, **changes}
    return msgspec.convert(values, TrainingConfiguration)


def llama() -> Shape:
    return shape_of("meta-llama/Llama-3.1-8B")


def test_the_parameters_of_every_known_model_are_the_published_number() -> None:
    for known in known_shapes():
        assert read_shape(known.configuration, known.hub[0]).parameters == known.parameters


def test_a_model_is_known_by_its_names_its_folder_and_its_run(tmp_path: Path) -> None:
    known = next(shape for shape in known_shapes() if "qwen2.5-0.5b" in shape.names)
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "model" / "config.json").write_text(json.dumps(known.configuration))

    found = {shape_of(name).parameters for name in ("Qwen/Qwen2.5-0.5B", "QWEN2.5-0.5b", str(run), str(run / "model"))}

    assert found == {known.parameters}


def test_a_shape_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    for text, said in (
        ('{"model_type": "gpt2"}', "architecture gpt2"),
        ('{"model_type": "llama", "num_hidden_layers": 2}', "hidden_size"),
        ("[]", "no model's configuration"),
        ("{", "cannot be read"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UnknownShape, match=said):
            shape_of(str(tmp_path))
    with pytest.raises(UnknownShape, match="nobody/knows-this"):
        shape_of("nobody/knows-this")


def test_a_full_run_holds_sixteen_bytes_a_parameter_beside_its_activations() -> None:
    used = memory(configuration(method="full"), llama())

    state = used.weights + used.gradients + used.optimiser
    assert state / llama().parameters == pytest.approx(16, abs=1e-3)


def test_four_bits_take_an_eighth_more_with_plain_constants_and_a_thirtieth_with_double_quantisation() -> None:
    linear = sum(weight.numbers for weight in llama().weights() if weight.role == "linear")
    double = memory(configuration(method="qlora"), llama())
    single = memory(configuration(method="qlora", qlora={"double_quant": False}), llama())

    # Dettmers et al., 2023: from 0.5 to 0.127 bits a parameter.
    assert 8 * single.constants / linear == pytest.approx(0.5, abs=0.001)
    assert 8 * double.constants / linear == pytest.approx(0.127, abs=0.001)
    assert double.weights == single.weights


def test_an_adapter_has_rank_times_inputs_and_outputs_of_each_of_its_layers() -> None:
    # The published count for rank 16 on all linear layers of Llama 3.1 8B.
    assert sum(tensor.numbers for tensor in trained(configuration(method="lora"), llama())) == 41_943_040

    only = configuration(method="lora", lora={"rank": 8, "target_modules": ["q_proj", "v_proj"]})
    assert sum(tensor.numbers for tensor in trained(only, llama())) == 32 * 8 * (4096 + 4096 + 4096 + 1024)


def test_a_layer_that_the_model_does_not_have_is_named_with_those_that_it_has() -> None:
    with pytest.raises(InvalidConfiguration, match=r"no layer c_attn; there are q_proj"):
        targets(configuration(lora=Lora(target_modules=("c_attn",))), llama())


def test_each_saving_saves_and_each_burden_costs() -> None:
    usual = memory(configuration(method="lora"), llama())

    assert memory(configuration(method="qlora"), llama()).total < usual.total
    assert memory(configuration(method="full"), llama()).total > usual.total
    assert memory(configuration(method="lora", gradient_checkpointing=False), llama()).total > usual.total
    assert memory(configuration(method="lora", batch_size=4), llama()).total > usual.total
    assert memory(configuration(method="lora", lora={"dropout": 0.1}), llama()).total > usual.total
    assert memory(configuration(method="lora"), llama(), stage="dpo").total > usual.total
    assert memory(configuration(method="lora"), llama(), devices=4).total < usual.total
    assert memory(configuration(method="lora", precision="fp32"), llama()).weights > usual.weights


def test_dpo_of_a_whole_model_holds_the_reference_besides_and_of_an_adapter_does_not() -> None:
    whole = memory(configuration(method="full"), llama(), stage="dpo")
    before = memory(configuration(method="full", dpo={"precompute_reference": True}), llama(), stage="dpo")

    assert whole.reference == 4 * llama().parameters
    assert before.reference == 0
    assert memory(configuration(method="lora"), llama(), stage="dpo").reference == 0


def test_an_eight_bit_optimiser_holds_a_quarter() -> None:
    usual = memory(configuration(method="lora"), llama()).optimiser
    small = memory(configuration(method="lora", optimiser="adamw_8bit"), llama()).optimiser

    assert small / usual == pytest.approx(0.254, abs=0.002)


def test_a_token_costs_six_operations_a_parameter_whole_and_four_with_an_adapter() -> None:
    # Long models and short sequences: attention is nothing beside the weights.
    shape = llama()
    multiplied = shape.parameters - shape.vocabulary * shape.hidden
    head = 2 * shape.vocabulary * shape.hidden  # computed twice
    plain = configuration(method="full", gradient_checkpointing=False)
    adapter = configuration(method="lora", gradient_checkpointing=False, lora={"rank": 1})

    assert (operations(plain, shape, 1) - head) / multiplied == pytest.approx(6, abs=0.01)
    assert (operations(adapter, shape, 1) - head) / multiplied == pytest.approx(4, abs=0.01)
    assert operations(configuration(method="full"), shape, 1) / operations(plain, shape, 1) == pytest.approx(
        1.29, abs=0.05
    )


def test_a_window_bounds_what_a_token_attends_to() -> None:
    gemma = shape_of("gemma-3-1b")
    brute = sum(
        sum(min(place, 512) for place in range(1, 2049)) / 2048 if layer < gemma.windowed else 2049 / 2
        for layer in range(gemma.layers)
    )

    assert (gemma.windowed, gemma.layers) == (22, 26)
    assert gemma.attended(2048) == pytest.approx(brute / gemma.layers)
    assert gemma.attended(256) == 257 / 2
    assert shape_of("qwen2.5-7b").window is None


def test_a_plan_counts_steps_time_and_price() -> None:
    run = configuration(method="qlora", packing=True, batch_size=2, gradient_accumulation=4, epochs=3)

    found = plan(run, llama(), H100, 4_096_000, devices=2, price=2.0)

    assert found.sequences == 2000
    assert found.tokens_per_step == 2 * 4 * 2 * 2048
    assert found.steps == 3 * 125
    assert found.tokens == 3 * 4_096_000
    assert found.seconds is not None
    assert found.operations is not None
    assert found.seconds == pytest.approx(found.operations / (2 * 989e12 * 0.35), rel=0.01)
    assert found.cost == pytest.approx(found.seconds / 3600 * 2 * 2.0)
    assert "at 2 a device and hour" in told(found)


def test_without_a_price_no_cost_is_told_and_without_tokens_no_time() -> None:
    found = plan(configuration(), llama(), H100, None)

    assert (found.cost, found.steps, found.seconds) == (None, None, None)
    assert "a step" in told(found)
    assert "not told" in told(plan(configuration(), llama(), H100, 1_000_000))


def test_sequences_that_are_not_packed_are_as_long_as_they_are() -> None:
    found = plan(configuration(gradient_accumulation=8), llama(), H100, 64_000, samples=640)

    assert found.steps == 80
    assert found.tokens_per_step == 8 * 100


def test_a_pair_of_preferences_is_two_sequences() -> None:
    found = plan(configuration(gradient_accumulation=8), llama(), H100, 128_000, samples=640, stage="dpo")

    assert found.steps == 80
    assert found.tokens_per_step == 8 * 2 * 100
    with pytest.raises(InvalidConfiguration, match="packing"):
        plan(configuration(packing=True), llama(), H100, 1, stage="dpo")


def test_more_utilisation_is_less_time_until_memory_is_the_limit() -> None:
    slow, fast = (
        plan(configuration(method="lora"), llama(), H100, 1_000_000, utilisation=share).seconds_per_step
        for share in (0.2, 0.4)
    )
    one = plan(configuration(method="lora", max_length=8, gradient_accumulation=1), llama(), H100, 1000)

    assert slow == pytest.approx(2 * fast)
    assert one.seconds_per_step == pytest.approx(3 * one.memory["weights"] / 3350e9)


def test_a_gpu_without_bf16_computes_in_fp32_and_says_when_it_was_asked_otherwise() -> None:
    found = plan(configuration(method="qlora", precision="bf16"), llama(), T4, None)

    assert found.peak == 8.1
    assert any("bf16" in note for note in found.notes)
    assert plan(configuration(method="qlora"), llama(), T4, None).notes == ()


def test_a_gpu_is_found_as_people_write_it() -> None:
    assert gpu_named("a100 80gb") is GPUS["A100-80GB"]
    assert gpu_named("rtx 4090").name == "RTX4090"
    with pytest.raises(UnknownGpu, match=r"did you mean H100\?"):
        gpu_named("H10")
    with pytest.raises(UnknownGpu, match="there are T4"):
        gpu_named("")


def test_a_run_that_does_not_fit_is_refused_with_the_numbers_and_what_would_help() -> None:
    there = Room(int(24e9), "GPU memory (L4)", bf16=True, gpu=True)

    with pytest.raises(DoesNotFit) as refused:
        refuse_if_too_large(configuration(method="full", batch_size=4), there=there)

    said = str(refused.value)
    needed = memory(configuration(method="full", batch_size=4), llama())
    assert f"needs {needed.total / 1e9:.2f} GB, and there are 24.00 GB of GPU memory (L4)" in said
    assert f"weights {needed.weights / 1e9:.2f}" in said
    offered = re.findall(r"^  (.+?) needs? ([\d.]+) GB", said, re.MULTILINE)
    assert [name for name, _ in offered][:2] == ["all of these together", "method: qlora"]
    assert all(float(size) * 1e9 < needed.total for _, size in offered)
    assert re.search(r"\d+ such devices with FSDP", said)
    fitting = configuration(method="qlora", batch_size=4)
    refuse_if_too_large(fitting, there=there)


def test_a_run_that_fits_by_a_byte_is_let_through_and_one_byte_less_refuses_it() -> None:
    run = configuration(method="lora")
    needed = memory(run, llama(), bf16=False, gpu=False).total

    refuse_if_too_large(run, there=Room(needed, "memory"))
    with pytest.raises(DoesNotFit):
        refuse_if_too_large(run, there=Room(needed - 1, "memory"))


def test_devices_that_divide_a_model_count_as_such() -> None:
    run = configuration(method="full")

    refuse_if_too_large(run, there=Room(int(80e9), "GPU memory", devices=4, bf16=True, gpu=True))
    with pytest.raises(DoesNotFit, match="on each of 2 devices"):
        refuse_if_too_large(run, there=Room(int(60e9), "GPU memory", devices=2, bf16=True, gpu=True))


def test_a_model_that_nobody_knows_is_not_refused_and_that_is_said() -> None:
    with pytest.warns(SizeNotChecked, match="not checked whether it fits: the shape of nobody/knows-this"):
        refuse_if_too_large(configuration(model="nobody/knows-this"), there=Room(1, "memory"))


def test_a_known_model_is_checked_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refuse_if_too_large(configuration(method="qlora"), there=Room(10**12, "memory"))


def test_free_memory_is_what_the_control_group_leaves_with_the_pages_of_files(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    assert _free_memory(tmp_path) == 8000 * 1024

    (group / "memory.max").write_text("5000\n")
    (group / "memory.current").write_text("4000\n")
    (group / "memory.stat").write_text("anon 1000\ninactive_file 2500\n")
    assert _free_memory(tmp_path) == 3500

    (group / "memory.max").write_text("max\n")
    assert _free_memory(tmp_path) == 8000 * 1024
    assert _free_memory(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("path", FAMILY_CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_fits_the_gpu_that_it_names(path: Path) -> None:
    meant = re.match(r"# Meant for (one|\d+) ([\w-]+)[, ]", path.read_text())
    assert meant is not None
    run = load(path)
    devices = 1 if meant[1] == "one" else int(meant[1])

    found = plan(run, shape_of(run.model), GPUS[meant[2]], None, devices=devices)

    assert found.fits
    assert found.method == path.stem.rpartition("-")[2]
    assert found.tokens_per_step == 32_768
    assert path.stem.removesuffix(f"-{found.method}") in {name for known in known_shapes() for name in known.names}


def test_every_known_model_has_a_configuration() -> None:
    models = {load(path).model for path in FAMILY_CONFIGS}

    assert models == {known.hub[0] for known in known_shapes()}


def command(*arguments: str, home: Path) -> int:
    parser = argparse.ArgumentParser()
    register_plan(parser.add_subparsers(required=True))
    namespace = parser.parse_args(["plan", *arguments])
    code: int = namespace.handler(namespace, settings({"TWIN_HOME": str(home)}))
    return code


def dataset(home: Path, answers: list[str]) -> str:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    folder = home / "datasets" / "d1"
    folder.mkdir(parents=True)
    rows = [{"instruction": "Tell of tea.", "answer": answer} for answer in answers]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    record = {"id": "d1", "kind": "instructions", "generation": "g1", "splits": {"train": len(rows)}}
    (folder / "record.json").write_text(json.dumps(record))
    return "d1"


def test_the_command_tells_of_one_gpu_from_the_dataset_that_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = dataset(tmp_path, ["x" * 388] * 100)
    arguments = ("--config", "training/configs/llama-3.1-8b-qlora.yaml", "--set", f"dataset={name}", "--gpu", "l4")

    assert command(*arguments, "--price", "0.8", home=tmp_path) == 0
    out = capsys.readouterr().out
    assert "qlora on one L4 of 24 GB" in out
    assert "at 0.8 a device and hour" in out
    assert "10,000 tokens of dataset d1 estimated as 40,000 characters by 4" in out

    assert command(*arguments, "--json", home=tmp_path) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["gpu"] == "L4"
    assert found["tokens"] == 10_000
    assert math.isclose(sum(found["memory"].values()), found["needed"])


def test_the_command_compares_all_gpus_and_says_which_are_too_small(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--config", "training/configs/llama-3.1-70b-qlora.yaml", "--tokens", "1000000", home=tmp_path) == 0

    lines = {line.split("  ")[0].strip(): line for line in capsys.readouterr().out.splitlines()}
    assert lines["L4"].endswith("does not fit")
    assert not lines["H200"].endswith("does not fit")
    assert set(GPUS) <= set(lines)


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ("--config", "training/configs/llama-3.1-8b-qlora.yaml")

    assert command(*config, "--gpu", "A10", home=tmp_path) == 2
    assert "did you mean A10G?" in capsys.readouterr().err
    assert command(*config, "--price", "1", home=tmp_path) == 2
    assert "--gpu" in capsys.readouterr().err
    assert command(*config, "--set", "lorra.rank=8", home=tmp_path) == 2
    assert "did you mean lora" in capsys.readouterr().err
    assert command(*config, "--set", "model=nobody/knows-this", home=tmp_path) == 1
    assert "nobody/knows-this" in capsys.readouterr().err
    assert command(*config, "--gpu", "L4", home=tmp_path) == 0
    assert "--tokens" in capsys.readouterr().out
