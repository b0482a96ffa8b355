"""Dataset versions: named by their samples, built again from their records, and never of what was erased."""

from __future__ import annotations

import argparse
import json
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as parquet
import pytest

from corpus.history import DocumentVersion, History, Told, open_history
from corpus.settings import Settings, load
from corpus.warehouse import Erasure, Warehouse, connect
from tests.training.texts import article, module
from training.datasets import exporting
from training.datasets.building import Recipe, TooFewSamples
from training.datasets.commands import _embedder, register
from training.datasets.gates import Thresholds
from training.datasets.instructions import METHODS, Made, NoWordsmith
from training.datasets.preferences import NotFeedback
from training.datasets.ranges import InvalidRecipe
from training.datasets.store import (
    CannotRebuild,
    Record,
    Store,
    UnknownDataset,
    difference,
    read_recipe,
)
from training.datasets.wordsmith import Request
from training.inputs import dataset_folder

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DOCUMENTS = [*map(article, range(8)), *map(module, range(4))]
FEEDBACK = {
    "at": "2026-06-01T10:00:00Z",
    "author": "Ada",
    "answer": "It was grey and it rained for most of the day, as it does.",
    "model": "twin-1",
    "verdict": "edit",
    "citations": [{"document_id": "doc-001"}, {"document_id": "doc-002"}],
}
# A few pairs of a model's words, in one split.
WRITTEN = Recipe(kind="preferences", wordsmith="echo", categories=("code",), validation=0, test=0)


@dataclass
class Home:
    """A home with a history, a warehouse of its own, and a clock."""

    settings: Settings
    warehouse: Warehouse
    history: History
    now: datetime = NOW

    @property
    def store(self) -> Store:
        return Store(self.settings, self.warehouse, self.history, now=lambda: self.now)

    def tell(self, *documents: DocumentVersion) -> None:
        self.now += timedelta(minutes=1)
        states = [{**msgspec.structs.asdict(each), "crawled_at": self.now.isoformat()} for each in documents]
        told = [Told(document_id=each["document_id"], at=self.now, state=each) for each in states]
        self.history.record(told, {}, self.history.held())

    def erase(self, *ids: str) -> None:
        self.now += timedelta(minutes=1)
        erasure = Erasure(id=str(uuid.uuid4()), document_ids=ids, author_ids=(), erased_at=self.now)
        self.warehouse.record_erasure(erasure)
        self.history.erase(lambda id, read: id in ids)

    def build(self, recipe: Recipe | None = None, **more: object) -> Record:
        self.now += timedelta(minutes=1)
        return self.store.build(recipe or Recipe(), name="ours", **more)  # type: ignore[arg-type]


@pytest.fixture
def home(tmp_path: Path, mongodb_uri: str) -> Iterator[Home]:
    settings = load({"TWIN_HOME": str(tmp_path), "TWIN_MONGODB_URI": mongodb_uri})
    settings = msgspec.structs.replace(settings, database=f"test-{uuid.uuid4()}")
    with connect(settings) as warehouse:
        made = Home(settings, warehouse, open_history(settings))
        made.tell(*DOCUMENTS)
        yield made


class Echo:
    """A model that answers with the question and a number that rises with every request that it is sent."""

    name = "echo"

    def __init__(self) -> None:
        self.asked = 0

    def write(self, requests: Sequence[Request]) -> list[str | None]:
        self.asked += len(requests)
        return [f"I would say this much about it, for the time being: number {self.asked}" for _ in requests]


def twin(home: Home, *words: str) -> int:
    """The exit code of `twin dataset` with these words."""
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())
    arguments = parser.parse_args(["dataset", *words])
    code: int = arguments.handler(arguments, home.settings)
    return code


def test_a_version_is_named_by_its_samples_and_lies_there_whole(home: Home) -> None:
    record = home.build()

    assert record.id == f"instructions-{record.hash[:12]}"
    samples = home.store.samples(record)
    assert {split: len(found) for split, found in samples.items()} == record.splits
    assert set(record.document_ids) == {sample.document_id for found in samples.values() for sample in found}
    assert [(each.document_id, each.version) for each in record.documents] == [
        (each.document_id, each.version) for each in sorted(DOCUMENTS, key=lambda each: each.document_id)
    ]
    folder = home.store.folder(record)
    assert msgspec.json.decode((folder / "record.json").read_bytes(), type=Record) == record
    assert record.hash in (folder / "README.md").read_text()
    assert [path.name for path in folder.parent.iterdir()] == [record.id]


def test_the_same_documents_and_recipe_are_the_same_version(home: Home) -> None:
    first = home.build()
    again = home.build()

    assert again == first
    assert [each.id for each in home.store.listed()] == [first.id]
    assert home.store.record(first.id) == first


def test_an_old_version_is_built_again_after_edits_with_the_same_hash(home: Home) -> None:
    old = home.build()
    files = {path.name: path.read_bytes() for path in home.store.folder(old).iterdir()}
    home.tell(article(1, version=2, seed=1), article(99))
    home.now += timedelta(minutes=1)
    home.history.record([Told(document_id="doc-002", at=home.now, state=None)], {}, home.history.held())
    new = home.build()
    assert new.hash != old.hash
    for path in home.store.folder(old).iterdir():
        path.unlink()

    assert home.store.rebuild(old.id) == old

    assert {path.name: path.read_bytes() for path in home.store.folder(old).iterdir()} == files
    assert home.store.rebuild(new.id).hash == new.hash


def test_documents_are_taken_as_they_were_at_a_time(home: Home) -> None:
    before = home.now
    old = home.build()
    home.tell(article(1, version=2, seed=1))

    assert home.build(as_of=before).id == old.id
    assert home.build().id != old.id


def test_a_time_before_all_documents_is_refused_with_the_time_since_when_there_are_some(home: Home) -> None:
    since = home.now

    with pytest.raises(TooFewSamples, match=rf"the history has some since {since.isoformat()[:19]}"):
        home.build(as_of=since - timedelta(days=1))


def test_a_version_with_an_erased_document_is_refused_and_the_others_are_not(home: Home) -> None:
    others = home.build(Recipe(categories=("code",)))
    record = home.build()
    home.erase("doc-003")

    with pytest.raises(CannotRebuild, match=r"rests on document doc-003, which was erased for good on 2026-06-01"):
        home.store.rebuild(record.id)

    assert home.store.states([record]) == ["erased"]
    assert home.store.rebuild(others.id) == others
    new = home.build()
    assert "doc-003" not in new.document_ids
    assert home.store.rebuild(new.id) == new


def test_a_document_erased_while_a_version_was_built_is_in_none(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.datasets import store as datasets

    whole = datasets.write_folder

    def meanwhile(*arguments: object) -> None:
        home.erase("doc-003")
        whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(datasets, "write_folder", meanwhile)

    with pytest.raises(CannotRebuild, match="doc-003"):
        home.build()
    assert list(home.settings.datasets_directory.iterdir()) == []


def test_an_erasure_that_began_before_a_build_is_not_missed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.datasets import store

    # It was asked for, and comes to the history only when the build has read it.
    whole, begun = store.write_folder, home.now

    def meanwhile(*arguments: object) -> None:
        erasure = Erasure(id="early", document_ids=("doc-003",), author_ids=(), erased_at=begun)
        home.warehouse.record_erasure(erasure)
        home.history.erase(lambda id, read: id == "doc-003")
        whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "write_folder", meanwhile)
    model = Echo()

    with pytest.raises(CannotRebuild, match=r"doc-003.*erasure early"):
        home.build(Recipe(kind="preferences", wordsmith="echo"), wordsmith=model)
    assert list(home.settings.datasets_directory.iterdir()) == []
    # What was written meanwhile goes with the next build.
    monkeypatch.undo()
    home.build(Recipe(kind="preferences", wordsmith="echo"), wordsmith=model)
    assert home.warehouse.count_told(["doc-003"]) == 0


def test_a_folder_that_a_killed_process_left_is_removed(home: Home) -> None:
    left = home.settings.datasets_directory / ".instructions-0123456789ab-999999999-abcdef01"
    left.mkdir(parents=True)
    (left / "train.parquet").write_text("half")

    home.build()

    assert not left.exists()


def test_the_same_samples_under_another_name_are_found_by_it(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    first = home.build()
    second = home.store.build(Recipe(), name="another")

    assert (second.id, home.store.record("another").id) == (first.id, first.id)
    # Training reads the folders alone.
    assert dataset_folder("another", home.store.directory) == home.store.folder(first)
    assert "# another (" in (home.store.folder(first) / "README.md").read_text()
    twin(home, "check", "another", "--no-embedding")
    assert capsys.readouterr().out.startswith(f"{home.store.folder(first)}: {sum(first.splits.values())} instructions")


def test_the_same_samples_keep_their_name_unless_another_is_asked_for(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []
    for words in (["--name", "ours"], [], ["--name", "another"]):
        assert twin(home, "build", "--no-embedding", *words) == 0
        told.append(capsys.readouterr().out)

    (listed,) = home.store.listed()
    assert listed.name == "another"
    assert f"{listed.id} built: " in told[0]
    assert f"{listed.id} is there already, as ours: " in told[1]
    assert f"{listed.id} is there already, now called another, until now ours: " in told[2]
    # Of 12 documents.
    assert "document families: the release gate asks for 20 of 5; hold more out (--test)" in told[0]


def test_options_that_would_do_nothing_are_refused(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wrong.yaml").write_text("validation: 0.6\n")
    (tmp_path / "wrong.jsonl").write_text('{"feedback_id": "f2"}\n')
    wrong = {
        "--from x --size 9 --test 0 --seed 0 --no-embedding": "leave out --size, --test, --seed, --no-embedding, or",
        "--kind preferences --rewrite": "--rewrite and --judge are for instructions",
        "--kind preferences": "preferences need a model",
        f"--feedback {tmp_path / 'wrong.jsonl'}": "--feedback is for preferences",
        f"--kind preferences --feedback {tmp_path / 'wrong.jsonl'}": "line 1",
        f"--recipe {tmp_path / 'wrong.yaml'}": "validation",
    }

    for words, told in wrong.items():
        assert twin(home, "build", *words.split()) == 2
        assert told in capsys.readouterr().err

    for option in ("--rewrite", "--judge"):
        with pytest.raises(NoWordsmith, match="set TWIN_LLM_URL"):
            twin(home, "build", option)
    with pytest.raises(SystemExit, match="2"):
        twin(home, "build", "--as-of", "9026-01-01")
    assert "is in the future" in capsys.readouterr().err
    assert home.store.listed() == []


def test_feedback_stays_taken_in_where_nothing_was_built_of_it_and_that_is_said(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {**FEEDBACK, "feedback_id": "f0", "question": "How was it?", "edited": "Wet, all day long, and cold."}
    (tmp_path / "feedback.jsonl").write_text(json.dumps(row) + "\n")

    with pytest.raises(TooFewSamples):
        twin(home, "build", "--no-embedding", "--kind", "preferences", "--feedback", str(tmp_path / "feedback.jsonl"))

    assert "feedback.jsonl says is taken in all the same" in capsys.readouterr().err
    assert home.store.take_in(None) == ("f0",)


def test_a_version_is_shown_with_its_folder_and_one_of_an_erased_document_as_erased(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    record = home.build()
    twin(home, "show", "ours")
    card = capsys.readouterr().out

    assert card.startswith("# ours (instructions)\n")
    assert f"load_dataset('{home.store.folder(record)}')" in card

    home.erase("doc-003")
    twin(home, "show", "ours")
    told = f"rests on document doc-003, which was erased for good on {home.now:%Y-%m-%d}"
    assert told in capsys.readouterr().out
    for words in (["diff", "ours", record.id], ["export", "ours", "--to", "elsewhere"]):
        with pytest.raises(UnknownDataset, match=told):
            twin(home, *words)
    with pytest.raises(UnknownDataset, match="build a new version"):
        home.store.folder(record)


def test_meanings_are_counted_to_the_whole(monkeypatch: pytest.MonkeyPatch, home: Home) -> None:
    class Counted:
        def embed(self, texts: Sequence[str]) -> np.ndarray:
            return np.zeros((len(texts), 2), np.float32)

    monkeypatch.setattr("corpus.embedding.load_embedder", lambda settings: Counted())
    told: list[str] = []

    embed = _embedder(home.settings, "words", told.append, 600)
    assert embed is not None
    for count in (300, 300):
        embed(["so"] * count)

    assert [line.split(": ")[1] for line in told] == [f"{n} of 600 texts" for n in (256, 300, 556, 600)]


def test_what_a_model_wrote_is_asked_once_and_a_rebuild_asks_nothing(home: Home) -> None:
    model = Echo()
    recipe = Recipe(kind="preferences", wordsmith="echo", size=20)
    record = home.build(recipe, wordsmith=model)
    asked = model.asked
    assert asked == 20

    assert home.build(recipe, wordsmith=model).id == record.id
    assert home.store.rebuild(record.id).hash == record.hash
    assert model.asked == asked
    # The words of the model go with their document.
    home.warehouse.delete_told([record.document_ids[0]])
    with pytest.raises(LookupError, match="not in the record"):
        home.store.rebuild(record.id)


def test_of_two_builds_that_ask_at_once_both_take_what_was_written_first(home: Home) -> None:
    records = []

    class Slow(Echo):
        """A model during whose first answers the other build asks the same, and is done."""

        def write(self, requests: Sequence[Request]) -> list[str | None]:
            if not records:
                records.append(home.build(WRITTEN, wordsmith=Echo()))
            return [f"What came later, and says another thing: {text}" for text in super().write(requests)]

    records.append(home.build(WRITTEN, wordsmith=Slow()))

    assert records[0].id == records[1].id
    assert [home.store.rebuild(record.id).hash for record in records] == [record.hash for record in records]


def test_words_that_were_replaced_are_named_as_what_makes_another_version(home: Home) -> None:
    record = home.build(WRITTEN, wordsmith=Echo())
    key, written = next(iter(home.warehouse.written("echo").items()))
    home.warehouse.record_told("written", {key: {**written, "text": "It is another thing altogether, to be sure."}})

    with pytest.raises(CannotRebuild, match="what echo wrote for it was replaced since; build a new version"):
        home.store.rebuild(record.id)


def test_feedback_that_was_replaced_is_named_as_what_makes_another_version(home: Home, tmp_path: Path) -> None:
    file = tmp_path / "feedback.jsonl"
    rows = [
        {**FEEDBACK, "feedback_id": f"f{n}", "question": f"What of day {n}?", "edited": edited}
        for n, edited in enumerate(["Wet, all day long, and cold by evening.", "Dry and bright until the storm came."])
    ]

    def take_in() -> tuple[str, ...]:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return home.store.take_in(file)

    record = home.build(Recipe(kind="preferences", feedback=take_in(), validation=0, test=0))
    before, rows[0] = rows[0], {**rows[0], "edited": "Snow, and much of it, from early morning on."}
    take_in()

    with pytest.raises(CannotRebuild, match=r"feedback that it rests on was replaced since.*--feedback"):
        home.store.rebuild(record.id)
    rows[0] = before
    take_in()
    assert home.store.rebuild(record.id) == record


def test_a_program_that_makes_other_samples_says_so(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    record = home.build()
    makes = METHODS["code"]
    monkeypatch.setitem(METHODS, "code", lambda *of: Made(makes(*of).samples[1:], Counter()))

    with pytest.raises(CannotRebuild, match="the program that makes samples has changed"):
        home.store.rebuild(record.id)


def test_an_evaluation_set_is_kept_out_and_may_not_change(home: Home) -> None:
    from training.datasets.store import evaluation_sets

    asked_before = home.build()
    sample = home.store.samples(asked_before)["train"][0]
    folder = home.settings.home / "evaluation"
    folder.mkdir()
    (folder / "mine.jsonl").write_text(json.dumps({"question": "What?", "answer": sample.answer}), "utf-8-sig")  # type: ignore[union-attr]
    recipe = Recipe(evaluation_sets=evaluation_sets(home.settings))

    record = home.build(recipe)

    assert sum(record.splits.values()) == sum(asked_before.splits.values()) - 1
    (folder / "mine.jsonl").write_text("{}\n")
    with pytest.raises(CannotRebuild, match="the evaluation set mine has changed"):
        home.store.rebuild(record.id)


def test_what_people_said_becomes_preferences(home: Home, tmp_path: Path) -> None:
    file = tmp_path / "feedback.jsonl"
    rows = [
        {**FEEDBACK, "feedback_id": f"f{n}", "question": f"How was the weather on day {n}?", "edited": edited}
        for n, edited in enumerate(
            ["Wet, all day long, and cold by the evening.", "Dry and bright until the storm came."]
        )
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    ids = home.store.take_in(file)
    record = home.build(Recipe(kind="preferences", feedback=ids, validation=0, test=0))

    assert (ids, record.splits["train"]) == (("f0", "f1"), 2)
    # Every document that an answer cited: an erasure of any of them must find the dataset.
    assert record.document_ids == ("doc-001", "doc-002")
    with pytest.raises(ValueError, match="none of the 12 documents is of Bob"):
        home.build(Recipe(kind="preferences", feedback=ids, authors=("Bob",)))
    assert home.store.rebuild(record.id) == record
    file.write_text('{"feedback_id": "f2"}\n')
    with pytest.raises(NotFeedback, match="line 1"):
        home.store.take_in(file)


def test_a_version_is_found_by_id_beginning_and_name(home: Home) -> None:
    first, second = home.build(), home.build(Recipe(categories=("code",)))

    assert home.store.record("ours") == second
    assert home.store.record(first.id[:18]) == first
    with pytest.raises(UnknownDataset, match="give more of it"):
        home.store.record("instructions-")
    with pytest.raises(UnknownDataset, match="twin dataset list"):
        home.store.record("nobody's")


def test_a_list_reads_no_documents_of_versions_that_no_erasure_has_touched(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = home.build()
    home.erase("of nobody")
    monkeypatch.setattr(Warehouse, "built", lambda *of: pytest.fail("the lineage was read"))

    (listed,) = home.store.listed()

    assert (listed.id, listed.document_count) == (record.id, len(record.document_ids))
    assert home.store.states([listed]) == ["here"]


def test_a_version_whose_recipe_no_file_may_have_any_more_is_listed_and_says_so_where_it_is_read(home: Home) -> None:
    record = home.build()
    (stored,) = home.warehouse.built("datasets", record.id)
    home.warehouse.record_built("datasets", {**stored, "recipe": {**stored["recipe"], "validation": 0.6}})

    assert [each.recipe["validation"] for each in home.store.listed()] == [0.6]
    with pytest.raises(InvalidRecipe, match=rf"{record.id} cannot be read.*recipe.validation.*build a new version"):
        home.store.record("ours")
    home.erase("doc-003")
    assert home.store.states(home.store.listed()) == ["erased"]


def test_two_versions_are_compared(home: Home) -> None:
    one = home.build()
    home.tell(article(1, version=2, seed=1), article(50))
    other = home.build(Recipe(seed=8, thresholds=Thresholds(judge=0.7)))

    found = difference(one, other, {each.id: home.store.samples(each) for each in (one, other)})

    assert found["documents"] == {"added": ["doc-050"], "removed": [], "changed": ["doc-001"]}
    assert found["recipe"] == {"seed": [7, 8], "thresholds.judge": [Thresholds().judge, 0.7]}
    assert sum(counts["added"] for counts in found["samples"].values()) > 0


def test_an_export_into_the_home_is_refused_since_no_erasure_would_find_it(home: Home) -> None:
    record = home.build()

    with pytest.raises(exporting.CannotExport, match="outside of it"):
        exporting.export(
            home.store.folder(record), record, home.settings.home / "out", "jsonl", home=home.settings.home
        )


@pytest.mark.parametrize("format", ["parquet", "arrow", "jsonl"])
def test_an_export_holds_every_sample(home: Home, tmp_path: Path, format: exporting.Format) -> None:
    record = home.build()

    exporting.export(home.store.folder(record), record, tmp_path / "out", format, home=tmp_path / "home")

    path = tmp_path / "out" / f"train.{format}"
    rows = {
        "parquet": lambda: parquet.read_table(path).to_pylist(),
        "arrow": lambda: feather.read_table(path).to_pylist(),
        "jsonl": lambda: [json.loads(line) for line in path.read_text().splitlines()],
    }[format]()
    expected = [sample.answer for sample in home.store.samples(record)["train"]]  # type: ignore[union-attr]
    assert [row["answer"] for row in rows] == expected
    assert f"train.{format}" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(exporting.CannotExport, match="not empty"):
        exporting.export(home.store.folder(record), record, tmp_path / "out", format, home=tmp_path / "home")


def test_files_that_are_gone_are_built_again_from_the_record(home: Home) -> None:
    record = home.build()
    for path in sorted(home.store.folder(record).iterdir()):
        path.unlink()

    with pytest.raises(UnknownDataset, match=f"--from {record.id}"):
        home.store.folder(record)
    home.store.rebuild(record.id)
    assert parquet.read_table(home.store.folder(record) / "train.parquet").schema.field("version").type == pa.int64()


def test_a_recipe_is_read_as_the_card_shows_it_and_a_wrong_one_names_what_is_wrong(home: Home, tmp_path: Path) -> None:
    record = home.build(Recipe(size=20, categories=("code",)))
    shown = (home.store.folder(record) / "README.md").read_text().split("```yaml\n")[1].split("```")[0]
    file = tmp_path / "recipe.yaml"
    file.write_text(shown)
    assert read_recipe(file) == record.recipe

    file.write_text("sise: 20\n")
    with pytest.raises(InvalidRecipe, match="sise"):
        read_recipe(file)
