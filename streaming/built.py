"""What rests on documents beside themselves: datasets, evaluations of models, what models wrote and people said.

An erasure takes what rests on the documents as they were. What was made of the same address ingested again since is
told from it by the document history, once the former versions are out of that. Names of authors leave the records of
datasets, which stay.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from corpus.files import abandoned_folders
from corpus.warehouse import Named, TextKind, Warehouse

if TYPE_CHECKING:
    from corpus.history import History
    from corpus.settings import Settings

ERASED = "(erased)"


@dataclass(frozen=True, slots=True)
class Anew:
    """What the document history has of documents that were erased, once their former versions are out of it: that which
    was ingested again since. `rows`: the first row by id and version, `begun`: when downstream was told, by id."""

    rows: Mapping[tuple[str, int], int]
    begun: Mapping[str, datetime]

    def holds_all(self, ids: Collection[str], dataset: Mapping[str, Any]) -> bool:
        """Whether a dataset rests, of these documents, on what was ingested again alone; its record says on what."""
        lineage = [row for row in dataset.get("documents") or () if row["document_id"] in ids]
        # Of what feedback cites and the history did not have, no version is noted.
        cited = (set(ids) & set(dataset.get("document_ids") or ())) - {row["document_id"] for row in lineage}
        first = [self.rows.get((row["document_id"], row["version"])) for row in lineage]
        return all(row is not None and row <= dataset.get("sequence", 0) for row in first) and all(
            self._is_later(id, dataset.get("created_at")) for id in cited
        )

    def holds_text(self, kind: TextKind, text: Mapping[str, Any]) -> bool:
        """Whether what a model wrote, or a person said, rests on what was ingested again alone, as far as `begun`
        goes."""
        if kind == "written":
            return self._is_later(text["document_id"], text.get("kept_at"))
        return all(
            self._has(cited["document_id"], cited.get("version"), text.get("at"))
            for cited in text["citations"]
            if cited["document_id"] in self.begun
        )

    def _has(self, id: str, version: object, said: object) -> bool:
        if isinstance(version, int) and version:
            return version >= min(known for document, known in self.rows if document == id)
        try:
            return self._is_later(id, datetime.fromisoformat(str(said)))
        except ValueError:
            return False

    def _is_later(self, id: str, moment: object) -> bool:
        begun = self.begun.get(id)
        return begun is not None and isinstance(moment, datetime) and moment.tzinfo is not None and moment >= begun


def ingested_again(history: History, ids: Sequence[str]) -> Anew:
    """What there is of these documents once their former versions are out of the history."""
    wanted = set(ids)
    begun = {id: at for id, at in history.begun().items() if id in wanted}
    rows = {row: first for row, first in history.versions().items() if row[0] in begun} if begun else {}
    return Anew(rows, begun)


def resting(warehouse: Warehouse, anew: Anew, ids: Sequence[str]) -> dict[str, list[str]]:
    """Data sets and models that rest on what these documents were, not on what was ingested again alone."""
    found, of = warehouse.built_from(ids), set(ids)
    if not anew.begun:
        return found
    newer = {
        id for id in found["datasets"] if all(anew.holds_all(of, record) for record in warehouse.built("datasets", id))
    }

    def is_newer(model: Mapping[str, Any]) -> bool:
        made = set(model.get("datasets") or ()) & set(found["datasets"])
        return bool(made) and made <= newer

    return {
        "datasets": [id for id in found["datasets"] if id not in newer],
        "models": [id for id in found["models"] if not all(map(is_newer, warehouse.built("models", id)))],
    }


def delete_texts(warehouse: Warehouse, anew: Anew, ids: Sequence[str]) -> int:
    """Delete what models wrote from these documents and people said of answers that rest on them; how many texts."""
    whole, keys = _texts(warehouse, anew, ids)
    return warehouse.delete_told(whole) + sum(warehouse.delete_texts(kind, each) for kind, each in keys.items())


def count_texts(warehouse: Warehouse, anew: Anew, ids: Sequence[str]) -> int:
    """How many texts `delete_texts` would delete."""
    whole, keys = _texts(warehouse, anew, ids)
    return warehouse.count_told(whole) + sum(map(len, keys.values()))


def _texts(warehouse: Warehouse, anew: Anew, ids: Sequence[str]) -> tuple[list[str], dict[TextKind, list[str]]]:
    """Documents of which every text rests on what they were; and of the others, the keys of those texts that do."""
    keys: dict[TextKind, list[str]] = {"written": [], "feedback": []}
    for kind, text in warehouse.told_of(sorted(anew.begun)):
        if not anew.holds_text(kind, text):
            keys[kind].append(text["_id"])
    return [id for id in ids if id not in anew.begun], keys


def dataset_folders(settings: Settings, warehouse: Warehouse, stale: Iterable[str]) -> list[Path]:
    """Where samples of erased documents, or names of erased authors, lie: the files of these datasets, and of those
    that name somebody whom their record names no more."""
    directory = settings.datasets_directory
    naming = (
        id
        for id, named in warehouse.named_by_datasets().items()
        if (ERASED in named.asked_for or ERASED in named.samples) and _named_in(directory / id) != named
    )
    found = [directory / id for id in dict.fromkeys((*stale, *naming))]
    # Those that a process was writing when it was killed; whoever is still writing finds the history without its rows.
    return [*(folder for folder in found if folder.is_dir()), *abandoned_folders(directory)]


class _Recipe(msgspec.Struct, frozen=True):
    authors: tuple[str, ...] = ()


class _Statistics(msgspec.Struct, frozen=True):
    author: dict[str, int] = {}


class _DatasetRecord(msgspec.Struct, frozen=True):
    """Whom the record among a dataset's files names."""

    recipe: _Recipe = _Recipe()
    statistics: _Statistics = _Statistics()


def _named_in(folder: Path) -> Named | None:
    """Whom the files of a dataset name; None where they do not say."""
    try:
        record = msgspec.json.decode((folder / "record.json").read_bytes(), type=_DatasetRecord)
    except (OSError, msgspec.DecodeError):
        return None
    return Named(record.recipe.authors, record.statistics.author)


class _Evaluated(msgspec.Struct):
    """What an evaluation says of the dataset that its samples are of."""

    dataset: str = ""


def evaluations(home: Path, stale: Collection[str]) -> tuple[list[Path], list[Path]]:
    """Evaluations of models in this home that quote these datasets, as their own files and as copies for MLflow; and
    those that cannot be read, so that nobody knows."""
    quoting: list[Path] = []
    unread: list[Path] = []
    for path in home.rglob("evaluation.json") if stale else ():
        try:
            if msgspec.json.decode(path.read_bytes(), type=_Evaluated).dataset in stale:
                quoting.append(path)
        except FileNotFoundError:
            continue
        except (OSError, msgspec.DecodeError):
            unread.append(path)
    return quoting, unread


def delete_datasets(settings: Settings, warehouse: Warehouse, stale: Collection[str]) -> dict[str, int]:
    """Delete the files of these datasets and of those that name erased authors, and evaluations that quote them; how
    many of each, with the evaluations that cannot be read. Their records stay, which have no word of them."""
    folders, (quoting, unread) = dataset_folders(settings, warehouse, stale), evaluations(settings.home, stale)
    for path in quoting:
        for report in path.parent.glob("*.html"):
            report.unlink()
        path.unlink()
    for folder in folders:
        shutil.rmtree(folder)
    return {"datasets": len(folders), "evaluations": len(quoting) + len(unread)}


# Authors


def forget_authors(warehouse: Warehouse, is_leaving: Callable[[str], bool]) -> dict[str, int]:
    """Take authors out of the records of datasets, and delete what people said of answers in their name; how many of
    each."""
    renamed, said = naming_authors(warehouse, is_leaving)
    for dataset, named in renamed.items():
        warehouse.rename_authors(dataset, named)
    return {"named": len(renamed), "said": warehouse.delete_texts("feedback", said)}


def naming_authors(warehouse: Warehouse, is_leaving: Callable[[str], bool]) -> tuple[dict[str, Named], list[str]]:
    """Whom the records of datasets should name, by id of those that name authors who leave; and the keys of what people
    said of answers in the name of these."""
    pairs = ((id, named, without_authors(named, is_leaving)) for id, named in warehouse.named_by_datasets().items())
    said = [row["_id"] for row in warehouse.feedback() if row.get("author") and is_leaving(str(row["author"]))]
    return {id: unnamed for id, named, unnamed in pairs if unnamed != named}, said


def without_authors(named: Named, is_leaving: Callable[[str], bool]) -> Named:
    """Whom a dataset's record names without those who leave; they stay as one nobody, with the samples of all."""
    samples: dict[str, int] = {}
    for name, number in named.samples.items():
        shown = ERASED if is_leaving(name) else name
        samples[shown] = samples.get(shown, 0) + number
    return Named(tuple(dict.fromkeys(ERASED if is_leaving(name) else name for name in named.asked_for)), samples)
