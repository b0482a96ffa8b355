"""When to train again: enough that is new, feedback, drift, an erasure, or no model at all."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from corpus.history import History, Told, open_history
from corpus.settings import load
from corpus.warehouse import connect
from tests.training.model_runs import BUILT, LATER, Shelf, evaluated, make_model, make_run
from training.release.due import Due, Facts, UnreadableDrift, due, facts
from training.release.due_command import register_due
from training.release.gate import DueRules, load_rules
from training.release.registry import Registry

RULES = DueRules(documents=3, share=0.2, feedback=2)


def state(id: str, text: str, version: int) -> Mapping[str, Any]:
    named = ("category", "platform", "author", "author_id", "url", "title", "crawl_id")
    return {
        **dict.fromkeys(named, "x"),
        "document_id": id,
        "version": version,
        "language": None,
        "published_at": None,
        "generation": "g1",
        "crawled_at": "2026-06-01T00:00:00+00:00",
        "content_hash": f"hash of {text}",
        "text": text,
    }


@dataclass
class Studio:
    """A home whose documents change, with a registry of what was trained on them."""

    home: Path
    shelf: Shelf = field(default_factory=Shelf)
    version: int = 0

    def __post_init__(self) -> None:
        self.history: History = open_history(load({"TWIN_HOME": str(self.home)}))
        self.registry = Registry(self.home, self.shelf, told=lambda versions: None, live=lambda: "g1", now=self._now)
        self._looks = 0

    def _now(self) -> datetime:
        self._looks += 1
        return LATER + timedelta(minutes=self._looks)

    def write(self, **texts: str | None) -> None:
        self.version += 1
        told = [
            Told(document_id=id, at=LATER, state=None if text is None else state(id, text, self.version))
            for id, text in texts.items()
        ]
        self.history.record(told, {}, self.history.held())

    def build(self, id: str) -> None:
        """A dataset of all that there is now."""
        documents = self.history.documents()
        self.shelf.add_dataset(id, *(each.document_id for each in documents), sequence=self.history.last(), as_of=None)

    def train(self, name: str, dataset: str, *, approve: bool = True) -> None:
        base = self.home / "base"
        if not base.exists():
            make_model(base, "base")
        champion = self.registry.champion()
        run = make_run(self.home / "runs" / name, base, weights=name, dataset=dataset)
        version = self.registry.register(run, evaluated(run, Path(champion.folder) if champion else base))
        if approve:
            self.registry.approve(version.id, by="Ada", rules=load_rules())

    def due(self) -> Due:
        return due(facts(self.home, self.registry, self.shelf, self.history), RULES)  # type: ignore[arg-type]


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    studio = Studio(tmp_path)
    studio.write(**{f"doc{number}": f"text {number}" for number in range(10)})
    studio.build("d1")
    return studio


def test_without_documents_nothing_is_due(tmp_path: Path) -> None:
    found = Studio(tmp_path).due()

    assert not found.due
    assert "twin ingest" in found.not_due[0]


def test_without_any_champion_training_is_due_until_a_candidate_awaits_a_decision(studio: Studio) -> None:
    assert studio.due().reasons == ("there is no champion yet",)

    studio.train("first", "d1", approve=False)

    assert not studio.due().due
    assert "twin-1 awaits a decision" in studio.due().not_due[0]


def test_where_nothing_changed_nothing_is_due(studio: Studio) -> None:
    studio.train("first", "d1")

    found = studio.due()

    assert not found.due
    assert "0 documents are new, 0 changed and 0 gone" in found.not_due[0]


def test_enough_new_changed_and_deleted_documents_make_it_due(studio: Studio) -> None:
    studio.train("first", "d1")
    studio.write(doc0="text 0 as it is now", doc1=None)
    assert not studio.due().due

    studio.write(new="a new text")

    found = studio.due()
    assert found.due
    assert "1 documents are new, 1 changed and 1 gone since the dataset of twin-1" in found.reasons[0]


def test_a_document_that_was_edited_and_changed_back_does_not_count(studio: Studio) -> None:
    studio.train("first", "d1")
    studio.write(doc0="x", doc1="x", doc2="x")
    studio.write(doc0="text 0", doc1="text 1", doc2="text 2")

    assert not studio.due().due


def test_documents_that_gave_no_sample_are_not_new_for_ever(studio: Studio) -> None:
    record = studio.shelf.held["datasets"]["d1"]
    record["document_ids"] = record["document_ids"][:3]
    studio.train("first", "d1")
    studio.write(another="one")

    assert "1 documents are new" in studio.due().not_due[0]


def test_a_share_that_is_small_among_many_documents_is_not_enough(studio: Studio) -> None:
    studio.write(**{f"more{number}": f"more {number}" for number in range(40)})
    studio.build("d2")
    studio.train("first", "d2")
    studio.write(a="a", b="b", c="c", d="d")

    assert not studio.due().due


def test_what_a_later_candidate_has_seen_is_not_new(studio: Studio) -> None:
    studio.train("first", "d1")
    studio.write(a="a", b="b", c="c")
    assert studio.due().due

    studio.build("d2")
    studio.train("second", "d2", approve=False)

    found = studio.due()
    assert not found.due
    assert "since the dataset of twin-2" in found.not_due[0]


def test_what_a_rejected_candidate_has_seen_is_new_all_the_same(studio: Studio) -> None:
    studio.train("first", "d1")
    studio.write(a="a", b="b", c="c")
    studio.build("d2")
    studio.train("second", "d2", approve=False)

    studio.registry.reject("twin-2", by="Ada", reason="worse")

    assert "3 documents are new, 0 changed and 0 gone since the dataset of twin-1" in studio.due().reasons[0]


def test_without_a_champion_it_is_counted_since_what_was_not_rejected(studio: Studio) -> None:
    studio.train("first", "d1", approve=False)
    studio.write(a="a")
    studio.build("d2")
    studio.train("second", "d2", approve=False)
    studio.registry.reject("twin-2", by="Ada", reason="worse")
    assert any(
        "1 documents are new, 0 changed and 0 gone since the dataset of twin-1" in told for told in studio.due().not_due
    )

    studio.registry.reject("twin-1", by="Ada", reason="worse")

    assert studio.due().reasons == ("there is no champion yet",)
    assert not any("since the dataset" in told for told in studio.due().not_due)


def test_an_erased_document_is_gone_although_the_history_knows_it_no_more(studio: Studio) -> None:
    studio.train("first", "d1")
    record = studio.shelf.held["datasets"]["d1"]
    record["document_ids"] = (*record["document_ids"], "erased")

    assert any("0 documents are new, 0 changed and 1 gone" in told for told in studio.due().not_due)


def test_feedback_counts_from_when_it_was_taken_in(studio: Studio) -> None:
    studio.train("first", "d1")
    before, after = BUILT - timedelta(days=1), BUILT + timedelta(days=1)
    studio.shelf.said = [
        {"at": before.isoformat(), "kept_at": after},
        {"at": before.isoformat(), "kept_at": before},
        {"at": after.isoformat(), "kept_at": before},
    ]

    assert studio.due().reasons == ("2 lines of feedback since then (due from 2 on)",)


def test_feedback_since_the_dataset_makes_it_due(studio: Studio) -> None:
    studio.train("first", "d1")
    studio.shelf.said = [{"at": (BUILT - timedelta(days=1)).isoformat()}, {"at": LATER.isoformat()}]
    assert not studio.due().due

    studio.shelf.said.append({"at": LATER})

    assert studio.due().reasons == ("2 lines of feedback since then (due from 2 on)",)


def test_an_erasure_that_the_champion_should_follow_makes_it_due(studio: Studio) -> None:
    studio.train("first", "d1")
    studio.shelf.erase("doc3", at=LATER)

    assert studio.due().reasons == ("twin-1 rests on document doc3, which was erased on 2026-06-09",)


def test_a_report_of_drift_makes_it_due_and_one_of_none_does_not(studio: Studio) -> None:
    studio.train("first", "d1")
    report = studio.home / "drift.json"

    report.write_text('{"drift": false, "at": "2026-06-10T00:00:00Z"}')
    assert not studio.due().due
    report.write_text('{"drift": true, "at": "2026-06-10T00:00:00Z", "reason": "longer texts"}')
    assert studio.due().reasons == ("drift at 2026-06-10 00:00 (longer texts)",)
    report.write_text("{")
    with pytest.raises(UnreadableDrift, match=r"drift\.json cannot be read"):
        studio.due()


def test_drift_that_the_last_dataset_has_seen_is_no_reason_for_ever(studio: Studio) -> None:
    studio.train("first", "d1")
    (studio.home / "drift.json").write_text('{"drift": true, "at": "2026-06-10T00:00:00"}')
    assert studio.due().due

    studio.build("d2")
    studio.shelf.held["datasets"]["d2"]["created_at"] = datetime(2026, 6, 11, tzinfo=UTC)
    studio.train("second", "d2", approve=False)

    found = studio.due()
    assert not found.due
    assert "drift at 2026-06-10 00:00, before the dataset of twin-2 was built" in found.not_due


def test_an_erasure_that_a_later_candidate_has_followed_is_no_reason_for_ever(studio: Studio) -> None:
    studio.train("first", "d1")
    studio.shelf.erase("doc3", at=LATER)
    assert studio.due().due

    studio.write(doc3=None)
    studio.build("d2")
    champion = studio.registry.version("champion")
    run = make_run(studio.home / "runs" / "second", studio.home / "base", weights="second", dataset="d2")
    studio.registry.register(run, evaluated(run, Path(champion.folder), dataset="d2"))

    found = studio.due()
    assert not found.due
    assert any("twin-2 does not rest on it and awaits a decision" in told for told in found.not_due)

    studio.registry.reject("twin-2", by="Ada", reason="worse")
    assert studio.due().due, "nothing has followed it after all"


def test_several_reasons_are_all_told() -> None:
    known = Facts(champion="twin-1", measured="twin-1", waiting=None, documents=10, new=5, feedback=9, stale="erased")

    assert len(due(known, RULES).reasons) == 3


def test_the_command_answers_for_programs_and_for_people(
    tmp_path: Path, mongodb_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = load({"TWIN_HOME": str(tmp_path), "TWIN_MONGODB_URI": mongodb_uri, "TWIN_DATABASE": "due"})
    Studio(tmp_path).write(one="text")
    with connect(settings) as warehouse:
        warehouse.record_built("datasets", {"_id": "d1", "document_ids": ["one"], "created_at": datetime.now(UTC)})
    parser = argparse.ArgumentParser()
    register_due(parser.add_subparsers())

    def run(*arguments: str) -> tuple[int, str]:
        namespace = parser.parse_args(["due", *arguments])
        return namespace.handler(namespace, settings), capsys.readouterr().out

    assert run() == (0, "train again:\n  yes: there is no champion yet\n  no: nobody reports on drift\n")
    code, told = run("--json")
    assert (code, json.loads(told)["due"]) == (0, True)
    assert run("--rules", "none.yaml")[0] == 2
