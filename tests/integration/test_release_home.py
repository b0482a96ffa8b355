"""From documents to a champion, in one home: a worse model is refused, a better one passes, and back while asked."""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from corpus import warehouse
from corpus.settings import Settings

pytest.importorskip("trl", reason="training needs the extra `training`")
pytestmark = [pytest.mark.integration, pytest.mark.long]
ROOT = Path(__file__).parents[2]
SOURCES = [str(ROOT / name) for name in ("docs", "corpus", "streaming", "ingestion", "serving")]
CONFIG = str(ROOT / "training" / "configs" / "tiny-sft-full.yaml")
# A tiny model guesses at general knowledge, and few questions tell nothing of style.
RULES = ("--by", "Ada", "--rules", str(ROOT / "training" / "release" / "tiny.yaml"))
QUESTION = "Where does a document become chunks?"


def with_shuffled_words(folder: Path, place: Path) -> None:
    """A copy of a dataset whose answers to train on have their words in no order."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    shutil.copytree(folder, place)
    source = random.Random(7)
    table = parquet.read_table(place / "train.parquet")
    answers = [
        " ".join(source.sample(words, len(words))) for text in table["answer"].to_pylist() if (words := text.split())
    ]
    at = table.schema.get_field_index("answer")
    parquet.write_table(table.set_column(at, "answer", pa.array(answers)), place / "train.parquet")
    record = json.loads((place / "record.json").read_text())
    (place / "record.json").write_text(json.dumps({**record, "id": place.name}))


def test_only_a_better_model_becomes_champion_and_rolling_back_loses_no_question(
    homes: Callable[..., Any], tmp_path: Path
) -> None:
    # A model of this size goes on for ever, one answer at a time, and another waits for it.
    twin, runs = homes(TWIN_LLM_MAX_TOKENS="24", TWIN_LLM_TIMEOUT="240"), tmp_path / "runs"
    twin.up()
    twin.ingest(*SOURCES)
    twin.wait()
    dataset = twin.json("dataset", "build", "--no-embedding")
    shape = ("--hidden", "64", "--layers", "2", "--heads", "4", "--vocabulary", "1024", "--steps", "40")
    twin.run("train", "base", "--from", dataset["id"], "--output", str(tmp_path / "base"), *shape)

    def trained(name: str, model: Path, on: str, steps: int) -> Path:
        options = {"model": model, "dataset": on, "output": runs / name, "max_length": 256, "max_steps": steps}
        given = [part for key, value in options.items() for part in ("--set", f"{key}={value}")]
        twin.run("train", "sft", "--config", CONFIG, *given, "--set", "learning_rate=2e-3")
        return runs / name

    def candidate(run: Path, against: str) -> str:
        asked = ("--dataset", dataset["id"], "--questions", "8", "--max-tokens", "24")
        twin.run("evaluate", str(run), "--against", against, *asked)
        twin.run("model", "register", str(run))
        return str(twin.json("model", "list")[0]["id"])

    # The first is held against its base.
    first = candidate(trained("first", tmp_path / "base", dataset["id"], 40), str(tmp_path / "base"))
    assert twin.json("model", "approve", first, *RULES)["state"] == "champion"
    twin.run("model", "deploy", first, "--start", "--share", "1")
    answer = twin.json("ask", QUESTION)
    assert (answer["mode"], answer["model"]) == ("generated", first)

    # One that learned words in no order is worse than the champion.
    folder = Path(dataset["folder"])
    with_shuffled_words(folder, folder.with_name("instructions-shuffled"))
    address = json.loads((twin.home / "addresses.json").read_text())["mongodb_uri"]
    with warehouse.connect(Settings(home=twin.home, mongodb_uri=address)) as documents:
        record = documents.built("datasets", dataset["id"])[0]
        documents.record_built("datasets", {**record, "_id": "instructions-shuffled", "id": "instructions-shuffled"})
    worse = candidate(trained("worse", tmp_path / "base", "instructions-shuffled", 40), "champion")
    refused = twin.run("model", "approve", worse, *RULES, code=1).stderr
    assert "bits_per_byte" in refused
    assert {row["id"]: row["state"] for row in twin.json("model", "list")} == {first: "champion", worse: "candidate"}

    # One that learned longer is better.
    better = candidate(trained("better", runs / "first", dataset["id"], 80), "champion")
    assert twin.json("model", "approve", better, *RULES)["state"] == "champion"
    twin.run("model", "deploy", better, "--start", "--share", "1")
    assert twin.json("ask", QUESTION)["model"] == better

    # Back, while questions are asked without a pause.
    answered: Counter[tuple[str, str | None]] = Counter()
    failed: list[BaseException] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                found = twin.asked("/api/ask", {"question": QUESTION})
                answered[found["mode"], found["model"]] += 1
            except BaseException as error:
                failed.append(error)

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    try:
        restored = twin.json("model", "rollback", "--by", "Ada", "--reason", "shown on purpose")
    finally:
        over.set()
        for asker in askers:
            asker.join()
    assert failed == []
    assert {mode for mode, _ in answered} == {"generated"}
    assert {model for _, model in answered} <= {first, better}
    assert (restored["id"], restored["state"]) == (first, "champion")
    assert twin.json("ask", QUESTION)["model"] == first
    twin.down()
    assert twin.processes() == []
