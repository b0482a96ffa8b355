"""Training runs, for real, of a model of 0.1 million parameters: what they leave, and how they are hurt and go on."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from pyarrow import parquet

from corpus.settings import load as load_settings
from training import commands, dpo, sft, tiny
from training.checkpoints import last_whole
from training.configuration import TrainingConfiguration, dump, read
from training.inputs import UnusableInput, source_dataset
from training.runs import DiskFull, LossNotFinite, RunRecord, RunRefused, quiet, read_record

torch = pytest.importorskip("torch")
for needed in ("transformers", "trl", "peft", "bitsandbytes"):
    pytest.importorskip(needed)

pytestmark = [
    pytest.mark.integration,
    # peft and TRL call what transformers has renamed.
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated:FutureWarning"),
    # torch's own, of its JIT and of a loader that pins no memory.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:bitsandbytes.*"),
]
ROOT = Path(__file__).parents[2]
STEPS = 12
NO = "I cannot say anything about a harbour of this kind, I am afraid."


def told(text: str) -> None:
    """Progress that nobody reads."""


class World:
    """A folder with a base model, a dataset of instructions and one of preferences."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = folder / "base"
        self.datasets = folder / "home" / "datasets"
        self.texts = [
            f"The harbour of Port {number} lies between {hills} hills. Boats come at {hour}, and the keeper writes "
            f"their names into the book of the {house} house."
            for number in range(6)
            for hills in ("green", "bare")
            for hour in ("six", "seven", "nine")
            for house in ("old", "red")
        ]
        questions = [f"What do you know of harbour {number}?" for number in range(len(self.texts))]
        pairs = list(zip(questions, self.texts, strict=True))
        self.dataset("instructions", [{"instruction": q, "answer": a} for q, a in pairs])
        self.dataset("preferences", [{"prompt": q, "chosen": a, "rejected": NO} for q, a in pairs])

    def dataset(self, kind: str, samples: list[dict[str, str]], name: str = "") -> None:
        place = self.datasets / (name or kind)
        place.mkdir(parents=True)
        cut = max(1, len(samples) * 8 // 10)
        splits = {"train": samples[:cut], "validation": samples[cut:]}
        for split, its in splits.items():
            parquet.write_table(pa.Table.from_pylist(its), place / f"{split}.parquet")
        record = {"id": place.name, "kind": kind, "name": kind, "generation": "g1", "document_ids": ["a", "b"]}
        record |= {"created_at": "2026-01-01T00:00:00+00:00", "splits": {s: len(its) for s, its in splits.items()}}
        (place / "record.json").write_text(json.dumps(record))

    def configuration(self, output: str, **changes: Any) -> TrainingConfiguration:
        values: dict[str, Any] = {
            "model": str(self.base),
            "dataset": "instructions",
            "output": str(self.folder / output),
            "method": "lora",
            "max_length": 160,
            "batch_size": 2,
            "gradient_accumulation": 1,
            "max_steps": STEPS,
            "learning_rate": 2e-3,
            "log_every": 1,
            "checkpoint_every": 4,
            "lora": {"rank": 4, "alpha": 8, "dropout": 0.1},
        }
        return read(values | changes)

    def sft(self, output: str, say: Callable[[str], None] = told, anew: bool = False, **changes: Any) -> RunRecord:
        return sft.train(self.configuration(output, **changes), datasets=self.datasets, anew=anew, say=say)

    def dpo(self, output: str, say: Callable[[str], None] = told, **changes: Any) -> RunRecord:
        taught = {"model": str(self.folder / "taught"), "dataset": "preferences"} | changes
        return dpo.train(self.configuration(output, **taught), datasets=self.datasets, say=say)

    def command(self, module: str, configuration: TrainingConfiguration) -> list[str]:
        path = Path(f"{configuration.output}.yaml")
        path.write_text(dump(configuration))
        return [sys.executable, "-m", module, "--config", str(path)]

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"TWIN_HOME": str(self.folder / "home"), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """With an SFT run, `taught`, that DPO can go on from."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    quiet()
    made = World(tmp_path_factory.mktemp("training"))
    tiny.make(made.texts, made.base, seed=1, hidden=64, layers=2, heads=4, vocabulary=500, steps=20, length=64)
    assert made.sft("taught").state == "finished"
    yield made
    torch.set_num_threads(threads)


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(run / "model" / "model.safetensors"))


def logits(model: Any, tokenizer: Any) -> Any:
    with torch.no_grad():
        return model(**tokenizer("The harbour of Port 3", return_tensors="pt")).logits


def same(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.allclose(ours[key], theirs[key], atol=1e-6) for key in ours)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_each_method_leaves_a_model_that_stands_alone(
    world: World, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    record = world.sft(method, method=method, evaluate_every=4)

    run = world.folder / method
    lines = metrics(run)
    assert (record.state, record.step, record.steps) == ("finished", STEPS, STEPS)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[-1]["eval_loss"] < lines[3]["eval_loss"]
    assert lines[-1]["num_tokens"] == record.tokens > 0
    assert record.tokens_per_second > 0
    assert (record.dataset, record.generation, record.documents) == ("instructions", "g1", 2)
    with monkeypatch.context() as without_peft:
        without_peft.setitem(sys.modules, "peft", None)
        alone = AutoModelForCausalLM.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Well?"}], tokenize=False) == (
        "<|begin|><|user|>Well?<|end|>"
    )
    found = logits(alone, tokenizer)
    base = AutoModelForCausalLM.from_pretrained(world.base)
    assert not torch.allclose(found, logits(base, tokenizer), atol=1e-2)
    if method != "full":
        adapted = PeftModel.from_pretrained(base, str(run / "adapter"))
        adapted.eval()
        assert torch.allclose(found, logits(adapted, tokenizer), atol=1e-4)


def test_a_tiny_base_is_there_when_it_is_whole_and_not_before(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedTokenizerFast

    def full(self: Any, folder: Path) -> None:
        raise OSError("no space left on device")

    small: dict[str, Any] = {"hidden": 32, "layers": 1, "heads": 2, "vocabulary": 400, "steps": 0, "dataset": "d0"}
    with monkeypatch.context() as hurt:
        hurt.setattr(PreTrainedTokenizerFast, "save_pretrained", full)
        with pytest.raises(OSError, match="no space left"):
            tiny.make(world.texts, tmp_path / "base", **small)
    assert list(tmp_path.iterdir()) == []

    tiny.make(world.texts, tmp_path / "base", **small)

    assert source_dataset(tmp_path / "base") == "d0"
    assert (tmp_path / "base" / "tokenizer.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_model_that_was_removed_is_written_again_without_a_step(world: World) -> None:
    world.sft("removed")
    run = world.folder / "removed"
    before = weights(run)
    shutil.rmtree(run / "model")
    lines: list[str] = []

    record = world.sft("removed", lines.append)

    after = weights(run)
    assert (record.state, record.step) == ("finished", STEPS)
    assert not any(line.startswith("step ") for line in lines)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_base_of_4_bits_is_merged_in_its_own_precision(world: World) -> None:
    if not (world.folder / "qlora" / "model").exists():
        world.sft("qlora", method="qlora", evaluate_every=4)
    from safetensors.torch import load_file

    adapter = load_file(world.folder / "qlora" / "adapter" / "adapter_model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    pair = (adapter[f"base_model.model.{name}.lora_{part}.weight"].float() for part in "BA")
    learned = 8 / 4 * torch.matmul(*pair)  # alpha / rank

    before = load_file(world.base / "model.safetensors")[f"{name}.weight"]
    after = weights(world.folder / "qlora")[f"{name}.weight"]

    assert learned.abs().max() > 1e-4
    assert torch.allclose(after - before, learned, atol=1e-6)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def asked(url: str, body: dict[str, Any], process: subprocess.Popen[bytes], log: Path) -> Any:
    request = urllib.request.Request(  # noqa: S310 - our own address
        url, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
                return json.load(answer)
        except urllib.error.URLError as error:
            if isinstance(error, urllib.error.HTTPError):
                break
            time.sleep(0.1)
    return pytest.fail(f"the server did not answer: {log.read_text()[-3000:]}")


def test_what_was_trained_is_served_to_any_client_of_chat_completions(world: World, tmp_path: Path) -> None:
    pytest.importorskip("openai", reason="transformers serve needs transformers[serving]")
    model, port = str(world.folder / "taught" / "model"), free_port()
    (tmp_path / "hub").mkdir()
    # Its command line asks the package index for its own newest version, unless it is told not to.
    quietly = {"HF_HOME": str(tmp_path), "DO_NOT_TRACK": "true", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    environment = world.environment | quietly
    program = str(Path(sys.executable).with_name("transformers"))
    command = [program, "serve", model, "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    log = tmp_path / "log"
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output, env=environment) as process:
        try:
            body = {"model": model, "messages": [{"role": "user", "content": "What do you know of harbour 3?"}]}
            answer = asked(f"http://127.0.0.1:{port}/v1/chat/completions", body | {"max_tokens": 12}, process, log)
        finally:
            process.terminate()

    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]


def learned(world: World, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[list[str], list[str], float]:
    """What a run of one step over everything learns to write, what it only reads, and the loss."""
    from transformers import AutoTokenizer
    from trl import SFTTrainer

    batches: list[dict[str, Any]] = []
    compute = SFTTrainer.compute_loss

    def watched(self: Any, model: Any, inputs: dict[str, Any], *rest: Any, **options: Any) -> Any:
        batches.append({key: inputs[key].clone() for key in ("input_ids", "labels")})
        return compute(self, model, inputs, *rest, **options)

    name = f"step-{'packed' if changes.get('packing') else 'plain'}"
    with monkeypatch.context() as watching:
        watching.setattr(SFTTrainer, "compute_loss", watched)
        world.sft(name, dataset="few", batch_size=8, max_steps=1, lora={"rank": 4}, **changes)
    tokenizer = AutoTokenizer.from_pretrained(world.base)
    ids = torch.cat([batch["input_ids"].flatten() for batch in batches])
    labels = torch.cat([batch["labels"].flatten() for batch in batches])
    written = tokenizer.decode(labels[labels != -100]).split("<|end|>")
    seen = tokenizer.decode(ids[(labels == -100) & (ids != tokenizer.pad_token_id)]).split("<|begin|>")
    return sorted(written), sorted(seen), metrics(world.folder / name)[0]["loss"]


def test_only_answers_are_learned_and_packed_ones_do_not_see_each_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [{"instruction": f"Where is {n}?", "answer": world.texts[n]} for n in range(10)]
    world.dataset("instructions", samples, "few")

    plain = learned(world, monkeypatch)
    packed = learned(world, monkeypatch, packing=True)

    for written, seen, _ in (plain, packed):
        assert written == sorted(["", *world.texts[:8]])
        assert seen == sorted(["", *(f"<|user|>Where is {n}?<|end|><|assistant|>" for n in range(8))])
    assert packed[2] == pytest.approx(plain[2], abs=1e-4)


def killed(world: World, module: str, configuration: TrainingConfiguration) -> Path:
    """A run that was killed (kill -9) when it had gone some steps beyond its first checkpoint."""
    run = Path(configuration.output)
    with subprocess.Popen(
        world.command(module, configuration), cwd=ROOT, env=world.environment, stderr=subprocess.PIPE
    ) as process:
        end = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < end:
            if (run / "checkpoints" / "checkpoint-4" / "manifest.json").exists() and len(metrics_text(run)) >= 6:
                process.kill()
            time.sleep(0.005)
        assert process.stderr is not None
        output = process.stderr.read().decode()
    assert process.returncode == -signal.SIGKILL, output
    return run


def metrics_text(run: Path) -> list[str]:
    path = run / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_run_that_was_killed_goes_on_and_ends_as_if_it_never_was(world: World, stage: str) -> None:
    many = {"max_steps": 40, "checkpoint_every": 4, "keep": 1}
    train = {"sft": world.sft, "dpo": world.dpo}[stage]
    if stage == "dpo":
        many |= {"model": str(world.folder / "taught"), "dataset": "preferences"}
    run = killed(world, f"training.{stage}", world.configuration(f"{stage}-killed", **many))
    record = read_record(run)
    assert record is not None
    assert record.state == "running"
    kept, _ = last_whole(run / "checkpoints")
    assert kept is not None
    lines: list[str] = []

    ended = train(f"{stage}-killed", lines.append, **many)
    unhurt = train(f"{stage}-unhurt", **many)

    assert lines[0] == f"going on after step {kept.manifest.step} of 40"
    assert lines[2].startswith(f"step {kept.manifest.step + 1}/40 ")
    assert (ended.state, ended.step) == (unhurt.state, unhurt.step) == ("finished", 40)
    assert ended.tokens == unhurt.tokens
    assert ended.started_at == record.started_at
    ours, theirs = metrics(run), metrics(world.folder / f"{stage}-unhurt")
    assert [line["step"] for line in ours] == list(range(1, 41))
    for key in ("loss", "num_tokens", *(("rewards/margins",) if stage == "dpo" else ())):
        assert [line[key] for line in ours] == pytest.approx([line[key] for line in theirs], abs=1e-5), key
    assert same(run, world.folder / f"{stage}-unhurt")


def signalled_at(step: int, lines: list[str], number: signal.Signals) -> Callable[[str], None]:
    def say(line: str) -> None:
        lines.append(line)
        if line.startswith(f"step {step}/"):
            os.kill(os.getpid(), number)

    return say


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_and_ctrl_c_save_at_the_end_of_a_step_and_the_next_start_goes_on(
    world: World, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    name = f"ended-by-{number.name}"
    lines: list[str] = []

    stopped = world.sft(name, signalled_at(5, lines, number), checkpoint_every=100)

    assert (stopped.state, stopped.step) == ("stopped", 6)
    assert lines[-1] == "stopped at step 6; run again to go on"
    assert not (world.folder / name / "model").exists()
    assert signal.getsignal(number) == before
    ended = world.sft(name, checkpoint_every=100)
    assert (ended.state, ended.step) == ("finished", STEPS)
    assert [line["step"] for line in metrics(world.folder / name)] == list(range(1, STEPS + 1))
    world.sft("not-terminated", checkpoint_every=100)
    assert same(world.folder / name, world.folder / "not-terminated")


def test_the_program_ends_with_0_when_it_was_terminated(world: World) -> None:
    configuration = world.configuration("program", max_steps=500, checkpoint_every=500)
    with subprocess.Popen(
        world.command("training.sft", configuration), cwd=ROOT, env=world.environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("step 3/"):
                process.terminate()

    assert process.returncode == 0, lines
    assert re.fullmatch(r"stopped at step \d+; run again to go on\n", lines[-2])
    record = read_record(world.folder / "program")
    assert record is not None
    assert (record.state, f"stopped at step {record.step} of 500\n") == ("stopped", lines[-1])


def test_a_checkpoint_that_was_cut_off_is_passed_over(world: World) -> None:
    world.sft("cut", signalled_at(9, [], signal.SIGTERM))
    cut = world.folder / "cut" / "checkpoints" / "checkpoint-10" / "optimizer.pt"
    cut.write_bytes(cut.read_bytes()[:-10])
    lines: list[str] = []

    ended = world.sft("cut", lines.append)

    assert lines[0].startswith("checkpoint-10 is passed over: optimizer.pt has ")
    assert lines[1] == f"going on after step 8 of {STEPS}"
    assert (ended.state, ended.step) == ("finished", STEPS)
    assert [line["step"] for line in metrics(world.folder / "cut")] == list(range(1, STEPS + 1))


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint_before(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl import SFTTrainer

    compute = SFTTrainer.compute_loss

    def broken(self: Any, *arguments: Any, **options: Any) -> Any:
        loss = compute(self, *arguments, **options)
        return loss * math.nan if self.state.global_step == 5 else loss

    with monkeypatch.context() as faulty:
        faulty.setattr(SFTTrainer, "compute_loss", broken)
        with pytest.raises(LossNotFinite, match=r"the loss is nan at step 6, .* the checkpoint of step 4 is kept"):
            world.sft("nan")

    record = read_record(world.folder / "nan")
    assert record is not None
    assert (record.state, record.step) == ("failed", 4)
    kept, _ = last_whole(world.folder / "nan" / "checkpoints")
    assert kept is not None
    assert kept.manifest.step == 4
    assert world.sft("nan").state == "finished"


def test_weights_that_burst_are_noticed_before_they_are_kept(world: World) -> None:
    with pytest.raises(LossNotFinite, match=r"at step [23], which is not taken"):
        world.sft("burst", method="full", learning_rate=1e35, warmup=0.0, scheduler="constant")


def test_a_full_disk_leaves_the_checkpoint_before_whole(world: World) -> None:
    if not shutil.which("unshare"):
        pytest.skip("unshare (util-linux) is missing")
    run = world.folder / "full-disk"
    run.mkdir()
    configuration = world.configuration("full-disk", method="full", checkpoint_every=2)
    trained = " ".join(world.command("training.sft", configuration))
    # The first checkpoint is 1.7 MB, the second finds no room; what lies there is copied away before the disk is gone.
    script = (
        f"mount -t tmpfs -o size=2500k none {run} || exit 77; {trained}; code=$?; cp -r {run} {run}-copy; exit $code"
    )
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        cwd=ROOT,
        env=world.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")

    assert done.returncode == 1, done.stderr
    assert "is full: the checkpoint of step 4 was not written; the checkpoint of step 2 is kept" in done.stderr
    assert "Traceback" not in done.stderr
    copy = Path(f"{run}-copy")
    kept, passed = last_whole(copy / "checkpoints")
    assert kept is not None
    assert (kept.manifest.step, passed) == (2, {})
    assert [path.name for path in (copy / "checkpoints").iterdir()] == ["checkpoint-2"]
    record = read_record(copy)
    assert record is not None
    assert record.state == "failed"
    assert "make room" in str(record.reason)


def test_no_room_for_the_model_is_told_and_the_next_start_trains_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(sft, "write_results", full)
        with pytest.raises(DiskFull, match=f"the model was not written; the checkpoint of step {STEPS} is kept"):
            world.sft("no-room")
    lines: list[str] = []

    ended = world.sft("no-room", lines.append)

    assert ended.state == "finished"
    assert not [line for line in lines if line.startswith("step ")]
    assert same(world.folder / "no-room", world.folder / "taught")


def test_a_finished_run_is_not_run_again_unless_anew(world: World) -> None:
    world.sft("once", max_steps=2)
    run = world.folder / "once"
    before = (run / "metrics.jsonl").read_bytes()

    again = world.sft("once", max_steps=2)
    assert again.state == "finished"
    assert (run / "metrics.jsonl").read_bytes() == before

    with pytest.raises(RunRefused, match=r"seed was 0 and is 1.*another output, or start --anew"):
        world.sft("once", max_steps=2, seed=1)
    anew = world.sft("once", max_steps=2, seed=1, anew=True)
    assert (anew.state, anew.seed, anew.step) == ("finished", 1, 2)
    assert (run / "metrics.jsonl").read_bytes() != before


def test_a_folder_that_holds_something_else_is_left_alone(world: World) -> None:
    (world.folder / "letters").mkdir()
    (world.folder / "letters" / "to-ada.txt").write_text("Dear Ada")

    with pytest.raises(RunRefused, match="holds something else"):
        world.sft("letters", anew=True)

    assert [path.name for path in (world.folder / "letters").iterdir()] == ["to-ada.txt"]


def test_two_runs_do_not_share_a_folder(world: World) -> None:
    refused: list[str] = []

    def meanwhile(line: str) -> None:
        if line.startswith("step 2/"):
            with pytest.raises(RunRefused, match="a run is under way") as error:
                world.sft("shared", max_steps=3)
            refused.append(str(error.value))

    assert world.sft("shared", meanwhile, max_steps=3).state == "finished"
    assert len(refused) == 1


def test_a_model_without_a_chat_template_is_refused_unless_one_is_named(world: World) -> None:
    shutil.copytree(world.base, world.folder / "bare")
    (world.folder / "bare" / "chat_template.jinja").unlink()
    template = world.folder / "own.jinja"
    template.write_text("{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}{% endfor %}")

    with pytest.raises(UnusableInput, match="has no chat template"):
        world.sft("bare-run", model=str(world.folder / "bare"), max_steps=1)
    world.sft("bare-run", model=str(world.folder / "bare"), chat_template=str(template), max_steps=1)

    assert (world.folder / "bare-run" / "model" / "chat_template.jinja").read_text() == template.read_text()


def test_samples_that_no_sequence_has_room_for_are_told(world: World) -> None:
    with pytest.raises(UnusableInput, match="no answer begins within max_length 8: raise it"):
        world.sft("short", max_length=8)
    with pytest.raises(UnusableInput, match="no prompt is shorter than max_length 8: raise it"):
        world.dpo("short-pairs", max_length=8)

    assert world.sft("short", max_steps=1).state == "finished"


def log_probability(model: Any, tokenizer: Any, question: str, answer: str) -> float:
    """Of an answer's tokens, its end among them, after the question."""
    turn = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    ids = tokenizer(f"{prompt}{answer}<|end|>", add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        told = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
    return float(told[start - 1 :].sum())


@pytest.mark.parametrize("method", ["lora", "full"])
def test_dpo_is_held_near_to_what_sft_made_and_not_to_its_base(world: World, method: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    few = [{"prompt": f"Where is {n}?", "chosen": world.texts[n], "rejected": NO} for n in range(5)]
    if not (world.datasets / "pairs").exists():
        world.dataset("preferences", few, "pairs")
    tokenizer = AutoTokenizer.from_pretrained(world.base)
    expected = {
        name: sum(log_probability(model, tokenizer, pair["prompt"], pair["chosen"]) for pair in few[:4]) / 4
        for name, folder in (("sft", world.folder / "taught" / "model"), ("base", world.base))
        for model in (AutoModelForCausalLM.from_pretrained(folder),)
    }

    record = world.dpo(f"pairs-{method}", dataset="pairs", method=method, batch_size=4, max_steps=8, learning_rate=1e-3)

    first, *_, last = metrics(world.folder / f"pairs-{method}")
    # As the reference sees them, at the first step, the chosen answers are as likely as the SFT model finds them.
    assert first["logps/chosen"] - first["rewards/chosen"] / 0.1 == pytest.approx(expected["sft"], abs=0.01)
    assert abs(expected["sft"] - expected["base"]) > 1
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert last["rewards/margins"] > 0.1
    assert last["rewards/accuracies"] == 1.0
    assert record.base_run == str(world.folder / "taught")
    assert (world.folder / f"pairs-{method}" / "model" / "model.safetensors").exists()


def twin(world: World, *arguments: str) -> int:
    root = argparse.ArgumentParser(prog="twin")
    commands.register(root.add_subparsers(dest="command", required=True))
    namespace = root.parse_args(["train", *arguments])
    return int(namespace.handler(namespace, load_settings({"TWIN_HOME": str(world.folder / "home")}, world.folder)))


def test_the_commands_make_a_base_train_it_and_teach_it_preferences(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    base, run, better = (str(world.folder / name) for name in ("c-base", "c-sft", "c-dpo"))
    small = ("--hidden", "32", "--layers", "1", "--heads", "2", "--vocabulary", "400", "--steps", "2")
    overrides = [f"{key}={value}" for key, value in (("max_steps", 2), ("max_length", 160), ("log_every", 1))]
    chosen = [word for override in overrides for word in ("--set", override)]
    configs = ROOT / "training" / "configs"

    assert twin(world, "base", "--from", "instructions", "--output", base, *small) == 0
    assert "million parameters" in capsys.readouterr().out
    sft_config = ("sft", "--config", str(configs / "tiny-sft-lora.yaml"), "--set", f"output={run}")
    assert twin(world, *sft_config, "--set", f"model={base}", *chosen) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("lora SFT finished: 2 steps")
    assert "step 2/2" in shown.err
    dpo_config = ("dpo", "--config", str(configs / "tiny-dpo.yaml"), "--set", f"output={better}", "--json")
    assert twin(world, *dpo_config, "--set", f"model={run}", *chosen) == 0
    shown = capsys.readouterr()
    record = msgspec.json.decode(shown.out, type=RunRecord)
    assert (record.state, record.stage, record.base_run, shown.err) == ("finished", "dpo", run, "")


def test_a_wrong_configuration_and_another_generation_are_told_in_a_line(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(ROOT / "training" / "configs" / "tiny-sft-lora.yaml")

    assert twin(world, "sft", "--config", config, "--set", "learning_rte=1") == 2
    assert "did you mean learning_rate?" in capsys.readouterr().err
    with pytest.raises(UnusableInput, match="made of generation g1, and g2 is in use"):
        twin(world, "sft", "--config", config, "--generation", "g2")
    assert twin(world, "dpo", "--config", config, "--set", "packing=true") == 2
    assert "packing: DPO compares whole answers" in capsys.readouterr().err
