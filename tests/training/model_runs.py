"""Runs, evaluations and a warehouse in memory, for the tests of what comes after training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from corpus.warehouse import AlreadyBuilt, BuiltKind, BuiltMeanwhile, Erasure
from training.configuration import TrainingConfiguration, dump
from training.evaluation.figures import Comparison, Evaluation, Metric, model_folder, model_name, served_digest
from training.evaluation.held_out import trained_on
from training.runs import RunRecord

BUILT, LATER = datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 6, 9, tzinfo=UTC)


@dataclass
class Shelf:
    """A warehouse in memory, as far as models are concerned."""

    held: dict[str, dict[str, dict[str, Any]]] = field(default_factory=lambda: {"datasets": {}, "models": {}})
    erased: list[Erasure] = field(default_factory=list)
    said: list[dict[str, Any]] = field(default_factory=list)

    def built(self, kind: BuiltKind, id: str | None = None) -> list[dict[str, Any]]:
        return [record for key, record in self.held[kind].items() if id in (None, key)]

    def record_built(self, kind: BuiltKind, record: Mapping[str, Any]) -> None:
        self.held[kind][record["_id"]] = dict(record)

    def add_built(self, kind: BuiltKind, record: Mapping[str, Any]) -> None:
        if record["_id"] in self.held[kind]:
            raise AlreadyBuilt(record["_id"])
        self.record_built(kind, record)

    def replace_built(self, kind: BuiltKind, record: Mapping[str, Any], *, decisions: int) -> None:
        if len(self.held[kind][record["_id"]]["decisions"]) != decisions:
            raise BuiltMeanwhile(record["_id"])
        self.record_built(kind, record)

    def erasures(self, condition: Mapping[str, Any]) -> list[Erasure]:
        return self.erased

    def feedback(self) -> list[dict[str, Any]]:
        return self.said

    def add_dataset(self, id: str, *documents: str, **more: Any) -> None:
        record = {"_id": id, "document_ids": documents, "created_at": BUILT, "generation": "g1", "kind": "instructions"}
        self.record_built("datasets", {**record, **more})

    def erase(self, *documents: str, at: datetime) -> None:
        self.erased.append(Erasure(id="e1", document_ids=documents, author_ids=(), erased_at=at))


def make_model(folder: Path, weights: str) -> Path:
    """A model as far as its identity goes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text(weights)
    return folder


def make_run(
    folder: Path, base: Path, *, weights: str = "tuned", steps: int = 3, base_run: str | None = None, **changed: Any
) -> Path:
    """A run that has finished, unless `changed` says other."""
    make_model(folder / "model", weights)
    record = RunRecord(
        **{
            "state": "finished",
            "stage": "sft",
            "method": "lora",
            "base_model": str(base),
            "base_run": base_run,
            "dataset": "d1",
            "generation": "g1",
            "documents": 2,
            "rows": 40,
            "seed": 0,
            "devices": 1,
            "device": "cpu",
            "code_revision": "abc+",
            "versions": {"torch": "2"},
            "started_at": "2026-06-02T10:00:00+00:00",
            "ended_at": "2026-06-02T11:00:00+00:00",
            "step": steps,
            "steps": steps,
            "tokens": 900,
            "seconds": 30.0,
            "tokens_per_second": 30.0,
            **changed,
        }
    )
    (folder / "run.json").write_bytes(msgspec.json.encode(record))
    (folder / "configuration.yaml").write_text(
        dump(TrainingConfiguration(model=str(base), dataset="d1", output=str(folder)))
    )
    lines = [{"step": step, "loss": 4.0 - step, "seconds": 10.0 * step} for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    return folder


def evaluated(model: Path, against: Path | None, gain: float = 0.2, **changed: Any) -> Evaluation:
    """An evaluation in which the model needs `gain` bits per byte less than the other, and knows as much."""
    metrics = [
        Metric(name="bits_per_byte", better="lower", value=1.5, low=1.4, high=1.6, n=60),
        Metric(name="general", better="higher", value=0.5, low=0.4, high=0.6, n=60),
    ]
    comparisons = [
        Comparison(name="bits_per_byte", difference=-gain, low=-gain - 0.1, high=-gain + 0.1, n=60),
        Comparison(name="general", difference=0.0, low=-0.05, high=0.05, n=60),
    ]
    return Evaluation(
        **{
            "model": model_name(model),
            "against": None if against is None else model_name(against),
            "dataset": "d1",
            "generation": "g1",
            "created_at": LATER,
            "seed": 0,
            "metrics": {metric.name: metric for metric in metrics},
            "comparisons": {each.name: each for each in comparisons} if against else {},
            "files": served_digest(model_folder(model)),
            "against_files": "" if against is None else served_digest(model_folder(against)),
            "questions": 60,
            **({} if "trained_on" in changed else {"trained_on": tuple(trained_on(model_folder(model)))}),
            **changed,
        }
    )
