"""Evaluations for real, of models of 0.1 million parameters: what they say, and what they refuse."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from corpus.prompts import Message
from corpus.settings import load
from training import sft, tiny
from training.configuration import read
from training.datasets.building import Recipe
from training.datasets.samples import InstructionSample, Split
from training.datasets.store import Lineage, Record, statistics, write_folder
from training.datasets.wordsmith import Request
from training.evaluation import commands as evaluate_command
from training.evaluation.figures import UnreadableFigures, model_name, read_evaluation
from training.evaluation.held_out import Seen
from training.inputs import UnusableInput
from training.runs import quiet

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
PORTS = [
    f"Port {name}" for name in ("Amber", "Birch", "Cedar", "Dune", "Elm", "Fern", "Gale", "Heath", "Ivy", "Juniper")
]


def told(line: str) -> None:
    """Progress that nobody reads."""


def text_of(port: str, hour: str) -> str:
    return (
        f"The harbour of {port} lies between green hills. Boats come at {hour}, and the keeper writes their names into "
        "the book of the old house. When it rains, the boats stay where they are, and the keeper reads."
    )


def sample(port: str, hour: str) -> InstructionSample:
    answer = text_of(port, hour)
    return InstructionSample(
        instruction=f"What happens at {hour} in {port}?",
        answer=answer,
        method="backtranslation",
        document_id=port,
        version=1,
        start=0,
        end=len(answer),
        author="Ada",
        category="article",
        language="en",
        generator="templates",
        prompt_version="templates-1",
        family=port,
    )


def dataset(folder: Path, id: str, ports: dict[Split, Sequence[str]]) -> Path:
    splits: dict[Split, list[InstructionSample]] = {
        split: [sample(port, hour) for port in found for hour in ("six", "seven", "nine")]
        for split, found in ports.items()
    }
    record = Record(
        id=id,
        name="harbours",
        kind="instructions",
        hash="0" * 64,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        generation="g1",
        as_of=None,
        sequence=1,
        recipe=Recipe(),
        splits={split: len(found) for split, found in splits.items()},
        document_ids=tuple(PORTS),
        documents=tuple(Lineage(port, 1, port, port) for port in PORTS),
        code_revision=None,
        statistics=statistics(splits, "instructions"),
    )
    write_folder(folder / id, record, splits)
    return folder / id


class World:
    """A home with a dataset of harbours, a base model, and a run that was taught by the dataset."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.base, self.run = folder / "base", folder / "home" / "runs" / "taught"
        self.datasets = self.home / "datasets"
        dataset(self.datasets, "harbours", {"train": PORTS[:6], "validation": PORTS[6:7], "test": PORTS[7:]})
        texts = [text_of(port, hour) for port in PORTS[:6] for hour in ("six", "seven")]
        tiny.make(texts, self.base, seed=1, hidden=64, layers=2, heads=4, vocabulary=500, steps=60, length=64)
        values: dict[str, Any] = {
            "model": str(self.base),
            "dataset": "harbours",
            "output": str(self.run),
            "method": "full",
            "max_length": 160,
            "batch_size": 4,
            "gradient_accumulation": 1,
            "max_steps": 60,
            "learning_rate": 3e-3,
            "checkpoint_every": 60,
        }
        assert sft.train(read(values), datasets=self.datasets, say=told).state == "finished"

    def evaluate(self, *arguments: str, **settings: Any) -> int:
        parser = argparse.ArgumentParser()
        evaluate_command.register(parser.add_subparsers())
        namespace = parser.parse_args(["evaluate", *arguments])
        chosen = msgspec.structs.replace(load({}, self.folder), home=self.home, **settings)
        return int(namespace.handler(namespace, chosen))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    quiet()
    yield World(tmp_path_factory.mktemp("evaluation"))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base(world: World) -> Iterator[Any]:
    from training.local_model import LocalModel

    model = LocalModel(world.base)
    yield model
    model.close()


@pytest.fixture(scope="module")
def taught(world: World) -> Iterator[Any]:
    from training.local_model import LocalModel

    model = LocalModel(world.run)
    yield model
    model.close()


def asking(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


# A model on this machine


def test_an_answer_is_as_likely_as_its_own_tokens_alone(base: Any) -> None:
    question, answer = "What happens at six in Port Amber?", text_of("Port Amber", "six")

    (found,) = base.nll([(asking(question), answer)])

    head = f"<|begin|><|user|>{question}<|end|><|assistant|>"
    ids = base.tokenizer(head + answer, add_special_tokens=False, return_tensors="pt")["input_ids"]
    first = len(base.tokenizer(head, add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        chances = base._model(ids).logits[0].log_softmax(-1)
    expected = -sum(chances[at - 1, ids[0, at]].item() for at in range(first, ids.shape[1]))
    assert found.nll == pytest.approx(expected, rel=1e-4)
    assert (found.tokens, found.bytes, found.whole) == (ids.shape[1] - first, len(answer.encode()), True)


def test_likelihoods_and_answers_do_not_depend_on_their_neighbours(taught: Any) -> None:
    pairs = [
        (asking(f"What happens at six in {port}?"), text_of(port, "six")[: 30 * at + 20])
        for at, port in enumerate(PORTS)
    ]

    together, alone = taught.nll(pairs), [taught.nll([pair])[0] for pair in pairs]
    prompts = [messages for messages, _ in pairs]
    written = taught.answers(prompts, 24)

    assert [each.nll for each in together] == pytest.approx([each.nll for each in alone], rel=1e-4)
    assert written == [taught.answers([prompt], 24)[0] for prompt in prompts]


def test_bytes_are_those_of_utf_8_and_of_the_answer_without_the_space_around_it(base: Any) -> None:
    (found,) = base.nll([(asking("Tee?"), "  grüner Tee, 80 °C 🍵\n")])

    assert found.bytes == len("grüner Tee, 80 °C 🍵".encode())


def test_an_answer_beyond_the_context_is_counted_as_far_as_it_goes_and_said_to_be_cut(base: Any) -> None:
    long = text_of("Port Amber", "six") * 40

    (found,) = base.nll([(asking("All of it?"), long)])

    assert not found.whole
    assert 0 < found.bytes < len(long)
    assert found.tokens < base.context


def test_a_prompt_without_room_for_an_answer_is_refused_with_the_numbers(base: Any) -> None:
    from training.local_model import TooLong

    with pytest.raises(TooLong, match=r"tokens, and the context of base@.* is 1,024: shorten it"):
        base.answers([asking("harbour " * 2_000)], 20)


def test_a_chance_answer_is_the_same_by_its_seed(taught: Any) -> None:
    prompt = [asking("What happens at six in Port Amber?")]

    first, again, other = (taught.answers(prompt, 24, greedy=False, seed=seed) for seed in (1, 1, 2))

    assert first == again
    assert first != other


def test_a_model_writes_the_answers_that_preferences_reject(taught: Any, world: World) -> None:
    from training.local_model import LocalWordsmith

    wordsmith = LocalWordsmith(taught, max_tokens=48)
    asked = [Request("a", "v", tuple(asking("What happens at six in Port Fern?")))]
    asked.append(Request("b", "v", tuple(asking("harbour " * 2_000))))

    first, second = wordsmith.write(asked)

    assert wordsmith.name == model_name(world.run)
    assert wordsmith.name.startswith("taught@")
    assert first
    assert second is None


def test_a_folder_without_a_usable_model_is_refused_in_words(world: World, tmp_path: Path) -> None:
    from training.local_model import LocalModel, UnusableModel

    with pytest.raises(UnreadableFigures, match="there is no model at"):
        LocalModel(tmp_path)
    mute = tmp_path / "mute"
    shutil.copytree(world.base, mute)
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        path = mute / name
        if name.endswith("json"):
            kept = {key: value for key, value in json.loads(path.read_text()).items() if key != "chat_template"}
            path.write_text(json.dumps(kept))
        else:
            path.unlink(missing_ok=True)
    with pytest.raises(UnusableModel, match="has no chat template"):
        LocalModel(mute)
    damaged = tmp_path / "damaged"
    shutil.copytree(world.base, damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UnusableModel, match="cannot be read"):
        LocalModel(damaged)


def test_weights_that_are_no_numbers_are_said_to_be_damaged(world: World, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from training.local_model import LocalModel, UnusableModel

    broken = tmp_path / "broken"
    shutil.copytree(world.base, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    model = LocalModel(broken)

    with pytest.raises(UnusableModel, match="gives no numbers"):
        model.nll([(asking("Why?"), "Because.")])
    model.close()


def test_a_model_larger_than_the_memory_is_refused_before_it_is_loaded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training import local_model
    from training.planning.hardware import Room

    monkeypatch.setattr(local_model, "room", lambda environment: Room(100_000, "memory (no GPU is seen)"))

    with pytest.raises(local_model.UnusableModel, match=r"needs 0\.\d GB for its weights"):
        local_model.LocalModel(world.base)


def test_a_template_that_takes_no_system_message_is_told_apart(world: World, tmp_path: Path) -> None:
    from training.local_model import LocalModel, NoSystemMessages

    strict = tmp_path / "strict"
    shutil.copytree(world.base, strict)
    model = LocalModel(strict)
    model.tokenizer.chat_template = (
        "{% for message in messages %}{% if message['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}{{ message['content'] + eos_token }}{% endfor %}"
    )
    with pytest.raises(NoSystemMessages, match="takes no system message"):
        model.count([{"role": "system", "content": "Be brief."}, *asking("Why?")])
    assert model.count(asking("Why?")) > 0
    model.close()


# Whole evaluations


def test_a_taught_model_is_better_than_its_base_and_a_page_says_so(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = world.evaluate(str(world.run), "--against", str(world.base), "--max-tokens", "60")

    shown = capsys.readouterr().out
    found = read_evaluation(world.run / "evaluation")
    page = (world.run / "evaluation" / "report.html").read_text()
    assert code == 0
    assert (found.model, found.against) == (model_name(world.run), model_name(world.base))
    assert (found.dataset, found.generation, found.seed) == ("harbours", "g1", 7)
    assert found.comparisons["perplexity"].high < 0
    assert found.comparisons["bits_per_byte"].high < 0
    assert found.comparisons["bits_per_byte"].n == 9
    for metric in found.metrics.values():
        assert metric.low <= metric.value <= metric.high
        assert math.isfinite(metric.value)
    assert {"groundedness", "correctness", "markers", "general"} <= found.comparisons.keys()
    # The base may say nothing at all, of which there is no style.
    measured = "style_vocabulary" in found.comparisons
    assert measured or f"answers of {found.against} are empty" in found.notes["style_distances"]
    assert found.metrics["general"].n == 60
    assert len(found.samples) == 8
    assert found.samples[0].author.startswith("The harbour of Port")
    assert found.notes["win_rate"].startswith("not measured: no judge is set")
    assert "perplexity, bits per byte" in shown
    assert "there are too few samples to say" in shown
    assert "Perplexity" in shown
    assert str(world.run / "evaluation" / "report.html") in shown
    assert found.samples[0].question in page.replace("&#39;", "'")


def test_the_same_seed_gives_the_same_evaluation(world: World, tmp_path: Path) -> None:
    for name in ("one", "two"):
        world.evaluate(str(world.run), "--questions", "4", "--max-tokens", "20", "--output", str(tmp_path / name))

    one, two = (read_evaluation(tmp_path / name) for name in ("one", "two"))

    assert msgspec.structs.replace(one, created_at=two.created_at) == two
    assert one.against is None
    assert one.comparisons == {}
    assert one.notes["questions"].startswith("4 of 9")


def test_by_itself_a_run_is_told_from_the_answers_of_its_base(world: World, tmp_path: Path) -> None:
    texts = [text_of(port, hour) for port in PORTS[:6] for hour in ("six", "seven")]
    tiny.make(texts, tmp_path / "fluent", seed=1, hidden=64, layers=2, heads=4, vocabulary=500, steps=150, length=64)
    shutil.copytree(world.run, tmp_path / "run")
    record = json.loads((world.run / "run.json").read_text()) | {"base_model": str(tmp_path / "fluent")}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))

    world.evaluate(str(tmp_path / "run"), "--max-tokens", "40")

    found = read_evaluation(tmp_path / "run" / "evaluation")
    assert "answers of fluent@" in found.notes["style_author"]
    assert found.metrics["style_author"].n == 9


def test_an_evaluation_by_a_dataset_that_the_model_has_seen_is_refused(world: World, tmp_path: Path) -> None:
    other = dataset(tmp_path, "other", {"train": PORTS[7:], "validation": PORTS[6:7], "test": PORTS[:2]})

    with pytest.raises(Seen, match="2 of 2 documents that other tests by were trained on in harbours"):
        world.evaluate(str(world.run), "--dataset", str(other), "--output", str(tmp_path / "out"))
    with pytest.raises(Seen):
        world.evaluate(str(world.base), "--against", str(world.run), "--dataset", str(other))
    assert not (tmp_path / "out").exists()


def test_a_bare_model_needs_a_dataset_by_name(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.evaluate(str(world.base)) == 2
    assert "name the dataset (--dataset ID)" in capsys.readouterr().err


def test_what_is_not_there_is_refused_before_a_model_is_loaded(world: World, tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match="holds no model"):
        world.evaluate(str(tmp_path))
    with pytest.raises(UnusableInput, match="there is no dataset nothing"):
        world.evaluate(str(world.run), "--dataset", "nothing")


def test_json_is_all_that_a_program_reads(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world.evaluate(str(world.run), "--json", "--questions", "4", "--max-tokens", "8", "--output", str(tmp_path))

    told = capsys.readouterr()
    assert json.loads(told.out)["metrics"]["perplexity"]["n"] == 9
    assert told.err == ""


class Judging(BaseHTTPRequestHandler):
    """A chat server that always prefers the answer that speaks of a harbour."""

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        first = request["messages"][-1]["content"].partition('is="answer-1"')[2].partition('is="answer-2"')
        one, two = ("harbour" in part for part in (first[0], first[2]))
        said = "0" if one == two else "1" if one else "2"
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice]}
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def test_a_judge_over_http_prefers_the_answers_of_the_taught_model(world: World, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Judging) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            address = f"http://127.0.0.1:{server.server_port}"
            judge = ("--judge-url", address, "--judge-model", "judge")
            models = (str(world.run), "--against", str(world.base))
            world.evaluate(*models, *judge, "--max-tokens", "40", "--output", str(tmp_path))
        finally:
            server.shutdown()
            thread.join()

    found = read_evaluation(tmp_path)
    assert found.metrics["win_rate"].value > 0.8
    assert found.comparisons["win_rate"].low > 0
    assert found.notes["win_rate"].startswith("9 of 9 pairs judged by judge")


def test_a_judge_that_is_away_leaves_the_rest_of_the_evaluation(world: World, tmp_path: Path) -> None:
    models = (str(world.run), "--against", str(world.base))
    world.evaluate(*models, "--judge-url", "http://127.0.0.1:9", "--max-tokens", "20", "--output", str(tmp_path))

    found = read_evaluation(tmp_path)
    assert "win_rate" not in found.metrics
    assert "cannot be reached" in found.notes["win_rate"]
    assert "perplexity" in found.comparisons
