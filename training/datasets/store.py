"""Dataset versions: a folder of Parquet files and a record for each, named by the hash of their samples.

The record holds the recipe, the place in the document history, and each document with its version, so the same version
can be built again from it. It lies beside the files, and in the warehouse, where an erasure finds what it touches.
"""

from __future__ import annotations

import codecs
import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from corpus.files import abandoned_folders, folder_beside, replace_file
from corpus.history import DocumentVersion, History
from corpus.settings import Settings
from corpus.warehouse import Erasure, Warehouse
from training.datasets.building import Built, Ingredients, Kind, Recipe, TooFewSamples, build, digest
from training.datasets.preferences import Feedback, length_bias, read_feedback
from training.datasets.ranges import InvalidRecipe, fault
from training.datasets.samples import SPLITS, InstructionSample, PreferenceSample, Sample, Split, answered, asked
from training.datasets.wordsmith import Recorded, Request, Wordsmith, Written, key
from training.inputs import meant
from training.runs import code_revision

if TYPE_CHECKING:
    import pyarrow as pa

    from training.datasets.likeness import Embed

RECORD, CARD = "record.json", "README.md"
KINDS: Mapping[Kind, type[InstructionSample] | type[PreferenceSample]] = {
    "instructions": InstructionSample,
    "preferences": PreferenceSample,
}
DIGITS = 12
ROWS_TOGETHER = 1_000


class UnknownDataset(LookupError):
    """There is no such dataset version; the message says where they are listed."""


class CannotRebuild(RuntimeError):
    """A version cannot be built again as it was; the message says what is in the way."""


class Lineage(msgspec.Struct, frozen=True):
    """A document that samples were made from, as it was."""

    document_id: str
    version: int
    content_hash: str
    family: str


class Outline(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a dataset version but for its documents and its recipe.

    `id`: kind and the first digits of `hash`; `as_of`, `sequence`: the time asked for, if any, and the last row of the
    document history that was seen; `generation`: which recipes cleaned the documents; `left_out`: by reason; `notes`:
    what a gate could not look at; `read`: SHA-256 of the feedback that it rests on, of what a model was asked for it
    (`requests`) and of what that wrote (`words`).
    """

    id: str
    name: str
    kind: Kind
    hash: str
    created_at: datetime
    generation: str
    as_of: datetime | None
    sequence: int
    splits: dict[str, int]
    code_revision: str | None
    statistics: dict[str, Any]
    left_out: dict[str, int] = {}
    notes: dict[str, str] = {}
    read: dict[str, str] = {}


class _Sources(msgspec.Struct, frozen=True):
    """What a version rests on, of its record."""

    sequence: int
    documents: tuple[Lineage, ...]


class Listed(Outline, frozen=True, kw_only=True):
    """A version in a list. `document_count`: documents that it rests on; `recipe`: as it is stored."""

    document_count: int
    recipe: dict[str, Any]


class Record(Outline, frozen=True, kw_only=True):
    """All that is known of a version. `documents`: those that samples rest on; `document_ids`: the same by id, and what
    was cited and is not in the history."""

    recipe: Recipe
    document_ids: tuple[str, ...]
    documents: tuple[Lineage, ...]


class Store:
    """The dataset versions of a home. `say` is told what is being done."""

    def __init__(
        self,
        settings: Settings,
        warehouse: Warehouse,
        history: History,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        say: Callable[[str], None] = lambda told: None,
    ) -> None:
        self._settings, self._warehouse, self._history = settings, warehouse, history
        self._now, self._say = now, say
        self.directory = settings.datasets_directory

    def build(
        self,
        recipe: Recipe,
        *,
        name: str | None = None,
        as_of: datetime | None = None,
        generation: str | None = None,
        wordsmith: Wordsmith | None = None,
        embed: Embed | None = None,
    ) -> Record:
        """Build a version from the documents as they are, or were at `as_of`; one that is there already is kept.

        `name`: None for the one that the version has, of a new one its kind. Raises what `building.build` does,
        HistoryUnavailable, WarehouseUnavailable.
        """
        self._history.refresh()
        sequence, began = self._history.last(), self._now()
        self._say("reading the document history")
        documents = self._history.documents(as_of=as_of, sequence=sequence, generation=generation)
        begun = min(self._history.begun().values(), default=None) if as_of is not None and not documents else None
        if as_of is not None and begun is not None:
            raise TooFewSamples(
                f"there were no documents at {as_of.isoformat()}: the history has some since {begun.isoformat()}, so "
                "name a time after that (--as-of)"
            )
        feedback = self._feedback(recipe.feedback)
        built, samples_hash, read = self._built(recipe, documents, feedback, wordsmith, embed)
        record = Record(
            id=f"{recipe.kind}-{samples_hash[:DIGITS]}",
            name=name or recipe.kind,
            kind=recipe.kind,
            hash=samples_hash,
            created_at=began,
            generation=documents[0].generation,
            as_of=as_of,
            sequence=sequence,
            recipe=recipe,
            splits={split: len(samples) for split, samples in built.splits.items()},
            **_lineage(built, documents, feedback),
            code_revision=code_revision(),
            statistics=statistics(built.splits, recipe.kind),
            left_out=dict(built.left_out),
            notes=dict(built.notes),
            read=read,
        )
        known = self._known(record.id)
        if known is not None:
            record = msgspec.structs.replace(known, name=name or known.name, read=read)
        self._keep(record, built)
        return record

    def rebuild(self, id: str, embed: Embed | None = None) -> Record:
        """Build a version again from its record alone. Models are not asked: their words are in the warehouse.

        Raises UnknownDataset, and CannotRebuild where it would not be the same.
        """
        record = self.record(id)
        self._refuse_gone(record)
        documents = self._history.documents(as_of=record.as_of, sequence=record.sequence, generation=record.generation)
        feedback = self._feedback(record.recipe.feedback)
        built, samples_hash, read = self._built(record.recipe, documents, feedback, None, embed)
        if samples_hash != record.hash:
            other = f"what {record.id} is built to now has another hash ({samples_hash[:DIGITS]})"
            raise CannotRebuild(f"{other}: {_why_other(record, read)}")
        self._keep(record, built)
        return record

    def listed(self) -> list[Listed]:
        """Every version, newest first; which documents they rest on is not read."""
        return [msgspec.convert(each, Listed) for each in self._warehouse.datasets() if "recipe" in each]

    def record(self, id: str) -> Record:
        """The record that an id, the beginning of one, or a name (its newest version) means.

        Raises UnknownDataset, and InvalidRecipe where its recipe is none any more.
        """
        found = meant(id, [(each.id, each.name) for each in self.listed()])
        if len(found) > 1:
            raise UnknownDataset(f"{id!r} is the beginning of {', '.join(found)}: give more of it")
        record = self._known(found[0]) if found else None
        if record is None:
            raise UnknownDataset(f"there is no dataset {id!r}: `twin dataset list` shows them")
        return record

    def folder(self, record: Record) -> Path:
        """Where the files of a version lie. Raises UnknownDataset where they are not on this machine."""
        if told := self.without_files(record):
            raise UnknownDataset(told)
        return self.directory / record.id

    def without_files(self, record: Record) -> str:
        """Why there are no files of a version to be used, and what to do; "" where they are here."""
        if told := self._told_erased(record, self._gone(record)):
            return told
        if (self.directory / record.id / RECORD).is_file():
            return ""
        return (
            f"the files of {record.id} are not on this machine ({self.directory}): "
            f"`twin dataset build --from {record.id}` makes them again"
        )

    def _gone(self, record: Record) -> set[str]:
        """Ids of the documents of a version that the history, as it is now, does not have as they were."""
        self._history.refresh()
        return _gone(record, self._history.versions())

    def _told_erased(self, record: Record, gone: set[str]) -> str:
        """Which of these documents of a version was erased, and when; "" where none was."""
        found = _erased(gone, self._warehouse.erasures({})) if gone else None
        if found is None:
            return ""
        id, erasure = found
        return (
            f"{record.id} rests on document {id}, which was erased for good on {erasure.erased_at:%Y-%m-%d} "
            f"(erasure {erasure.id}): it is not built again; build a new version"
        )

    def states(self, records: Iterable[Outline]) -> list[str]:
        """Whether the files of each version are here: `here`, `record only`, or `erased` for good."""
        self._history.refresh()
        there, erasures = self._history.versions(), self._warehouse.erasures({})
        erased = sorted({id for erasure in erasures for id in erasure.document_ids})
        touched = set(self._warehouse.built_from(erased)["datasets"])

        def state(id: str) -> str:
            # The document may have come back since, and the version be built of it as it is now.
            found = self._warehouse.built("datasets", id) if id in touched else []
            if any(_erased(_gone(msgspec.convert(each, _Sources), there), erasures) for each in found):
                return "erased"
            return "here" if (self.directory / id / RECORD).is_file() else "record only"

        return [state(record.id) for record in records]

    def take_in(self, path: Path | None) -> tuple[str, ...]:
        """Keep the feedback in a file of JSON lines, if one is named; the ids of all there is. Raises NotFeedback."""
        if path is not None:
            rows = {row.feedback_id: msgspec.to_builtins(row) for row in read_feedback(path)}
            self._warehouse.record_told("feedback", rows)
        return tuple(str(row["feedback_id"]) for row in self._warehouse.feedback())

    def samples(self, record: Record) -> dict[Split, list[Sample]]:
        """The samples of each split, read from the files of a version."""
        folder = self.folder(record)
        return {split: list(read_split(folder / f"{split}.parquet", record.kind)) for split in SPLITS}

    def _built(
        self,
        recipe: Recipe,
        documents: Sequence[DocumentVersion],
        feedback: Sequence[Feedback],
        wordsmith: Wordsmith | None,
        embed: Embed | None,
    ) -> tuple[Built, str, dict[str, str]]:
        """What the recipe makes, the hash of its samples, and SHA-256 of what was read for it."""
        recorded = (
            _Heard(Recorded(wordsmith, _Kept(self._warehouse, recipe.wordsmith), recipe.wordsmith))
            if recipe.wordsmith
            else None
        )
        texts = evaluation_texts(self._settings, recipe.evaluation_sets)
        self._say(f"making samples of {_count(len(documents), 'document')}")
        try:
            built = build(recipe, Ingredients(documents, recorded, embed, texts, feedback))
        finally:
            self._forget_erased()
        said = recorded.said if recorded is not None else {}
        return built, digest(recipe.kind, built.splits), _read(feedback, said)

    def _feedback(self, ids: Sequence[str]) -> list[Feedback]:
        found = {each["feedback_id"]: each for each in self._warehouse.feedback()} if ids else {}
        missing = set(ids) - set(found)
        if missing:
            raise CannotRebuild(
                f"{_count(len(missing), 'line')} of feedback are not in the warehouse any more: build a new version"
            )
        return sorted((msgspec.convert(found[id], Feedback) for id in ids), key=lambda row: (row.at, row.feedback_id))

    def _known(self, id: str) -> Record | None:
        plain = next(iter(self._warehouse.built("datasets", id)), None)
        try:
            return msgspec.convert(plain, Record) if plain is not None else None
        except msgspec.ValidationError as error:
            raise InvalidRecipe(f"the record of {id} cannot be read ({error}): build a new version") from error

    def _keep(self, record: Record, built: Built) -> None:
        """The record first: a folder without one would be hidden from an erasure. An erasure takes the rows of the
        history before it looks for folders, so it finds this one, or the rows are found to be gone."""
        self._warehouse.record_built("datasets", {**_plain(record), "_id": record.id})
        folder = self.directory / record.id
        if not (folder / RECORD).is_file():
            self._say(f"writing {folder}")
            for abandoned in abandoned_folders(self.directory):
                shutil.rmtree(abandoned, ignore_errors=True)
            write_folder(folder, record, built.splits)
        else:
            # It may have another name now.
            _describe(folder, record)
        try:
            self._refuse_gone(record)
        except CannotRebuild:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _refuse_gone(self, record: Record) -> None:
        gone = self._gone(record)
        if told := self._told_erased(record, gone):
            raise CannotRebuild(told)
        if gone:
            raise CannotRebuild(
                f"{record.id} rests on {_count(len(gone), 'document')} whose versions the history does not hold "
                f"({min(gone)}): build a new version"
            )

    def _forget_erased(self) -> None:
        """Delete what models wrote from documents that were erased while they wrote."""
        erased = {id for erasure in self._warehouse.erasures({}) for id in erasure.document_ids}
        if erased:
            self._history.refresh()
            self._warehouse.delete_told(sorted(erased - {id for id, _ in self._history.versions()}))


def _gone(record: Record | _Sources, there: Mapping[tuple[str, int], int]) -> set[str]:
    """Ids of the documents of a version whose rows the history, which has these states, does not have any more."""
    first = [(each.document_id, there.get((each.document_id, each.version))) for each in record.documents]
    return {id for id, sequence in first if sequence is None or sequence > record.sequence}


def _erased(gone: set[str], erasures: Sequence[Erasure]) -> tuple[str, Erasure] | None:
    """One of these documents and the newest erasure of it; None where none of them was erased."""
    found = ((gone & set(erasure.document_ids), erasure) for erasure in reversed(erasures))
    return next(((min(ids), erasure) for ids, erasure in found if ids), None)


class _Kept(dict[str, Written]):
    """What a model wrote, read from the warehouse once, and kept there."""

    def __init__(self, warehouse: Warehouse, model: str) -> None:
        super().__init__((key, msgspec.convert(each, Written)) for key, each in warehouse.written(model).items())
        self._warehouse = warehouse

    def __setitem__(self, key: str, written: Written) -> None:
        # Two builds at once may ask the same: both take what came first.
        kept = self._warehouse.keep_written(key, msgspec.to_builtins(written))
        super().__setitem__(key, msgspec.convert(kept, Written))


class _Heard:
    """A wordsmith that notes what it said to each request; `said`: by the request's key."""

    def __init__(self, inner: Wordsmith) -> None:
        self.said: dict[str, str | None] = {}
        self._inner, self.name = inner, inner.name

    def write(self, requests: Sequence[Request]) -> list[str | None]:
        texts = self._inner.write(requests)
        self.said.update(zip((key(request, self.name) for request in requests), texts, strict=True))
        return texts


def _read(feedback: Sequence[Feedback], said: Mapping[str, str | None]) -> dict[str, str]:
    """SHA-256 of what a version was made of beside documents, by what it is; nothing of what there is none of."""
    parts: dict[str, Any] = {"feedback": feedback, "requests": sorted(said), "words": sorted(said.items())}
    return {name: hashlib.sha256(msgspec.json.encode(part)).hexdigest() for name, part in parts.items() if part}


def _why_other(record: Record, read: Mapping[str, str]) -> str:
    """Why a version, built again, has other samples, and what to do."""
    other = {name for name, digest in record.read.items() if read.get(name) != digest}
    if "feedback" in other:
        return (
            "feedback that it rests on was replaced since, under the same ids; take in the former lines (--feedback), "
            "or build a new version"
        )
    if "words" in other and "requests" not in other:
        return f"what {record.recipe.wordsmith} wrote for it was replaced since; build a new version"
    here = code_revision()
    by = f" (built by {record.code_revision}, here is {here})" if here != record.code_revision else ""
    return f"the program that makes samples has changed{by}; take that version of it, or build a new version"


# Files


def write_folder(folder: Path, record: Record, splits: Mapping[Split, Sequence[Sample]]) -> None:
    """Write the files of a version so that the folder is there as a whole or not at all. Raises OSError."""
    import pyarrow.parquet as parquet

    beside = folder_beside(folder)
    beside.mkdir(parents=True)
    try:
        for split, samples in splits.items():
            parquet.write_table(as_table(samples, record.kind), beside / f"{split}.parquet", compression="zstd")
        _describe(beside, record)
        if folder.exists():
            shutil.rmtree(folder)
        beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _describe(folder: Path, record: Record) -> None:
    """Write the card and the record of a version into its folder."""
    from training.datasets.cards import card

    replace_file(folder / CARD, card(record).encode())
    replace_file(folder / RECORD, msgspec.json.format(msgspec.json.encode(record), indent=1))


def as_table(samples: Sequence[Sample], kind: Kind) -> pa.Table:
    """The samples as a table: a column for each field, `scores` as JSON text."""
    import pyarrow as pa

    names = KINDS[kind].__struct_fields__
    types = {name: pa.int64() if name in ("version", "start", "end") else pa.string() for name in names}
    rows = [
        {**{name: getattr(sample, name) for name in names}, "scores": msgspec.json.encode(sample.scores).decode()}
        for sample in samples
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema([(name, types[name]) for name in names]))


def read_split(path: Path, kind: Kind) -> Iterator[Sample]:
    """The samples of a file that `write_folder` wrote."""
    import pyarrow.parquet as parquet

    for batch in parquet.ParquetFile(path).iter_batches(ROWS_TOGETHER):
        for row in batch.to_pylist():
            yield msgspec.convert({**row, "scores": msgspec.json.decode(row["scores"])}, KINDS[kind])


def read_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file. Raises InvalidRecipe."""
    try:
        return msgspec.yaml.decode(path.read_bytes(), type=Recipe)
    except OSError as error:
        raise InvalidRecipe(f"{path} cannot be read ({error.strerror}): name a recipe") from error
    except msgspec.ValidationError as error:
        known = ", ".join(Recipe.__struct_fields__)
        raise InvalidRecipe(f"{path}: {fault(error)}; a recipe has {known}") from error
    except msgspec.DecodeError as error:
        raise InvalidRecipe(f"{path} is not YAML ({error}): a dataset's card shows its recipe") from error


# Evaluation sets


def evaluation_sets(settings: Settings) -> dict[str, str]:
    """Every registered evaluation set: SHA-256 of its file by its name."""
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in _evaluation_files(settings).items()}


def evaluation_texts(settings: Settings, wanted: Mapping[str, str]) -> dict[str, list[str]]:
    """The texts of these evaluation sets. Raises CannotRebuild where one is gone or has changed."""
    files = _evaluation_files(settings)
    texts: dict[str, list[str]] = {}
    for name, expected in wanted.items():
        content = files[name].read_bytes() if name in files else None
        if content is None or hashlib.sha256(content).hexdigest() != expected:
            raise CannotRebuild(
                f"the evaluation set {name} {'is gone' if content is None else 'has changed'}: put the file back as it "
                f"was ({settings.home / 'evaluation'}), or build a new version"
            )
        lines = content.removeprefix(codecs.BOM_UTF8).splitlines()
        texts[name] = [text for line in lines if line.strip() for text in _texts(line, name)]
    return texts


def _evaluation_files(settings: Settings) -> dict[str, Path]:
    """Those that come with the program, and the JSON lines in the home's folder `evaluation`."""
    ours, own = Path(__file__).parents[1] / "evaluation" / "sets", settings.home / "evaluation"
    files = {path.stem: path for path in sorted(ours.glob("*.jsonl"))}
    for path in sorted(own.glob("*.jsonl")):
        if path.stem in files:
            raise CannotRebuild(f"{path} has the name of a set that comes with the program: give it another")
        files[path.stem] = path
    return files


def _texts(line: bytes, name: str) -> list[str]:
    try:
        row = msgspec.json.decode(line)
    except msgspec.DecodeError as error:
        raise CannotRebuild(f"the evaluation set {name} has a line that is not JSON ({error})") from error
    return list(_strings(row))


def _strings(value: Any) -> Iterator[str]:
    """The texts in a row at any depth: chats are lists of turns."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(each)


# What a version is, in figures


def statistics(splits: Mapping[Split, Sequence[Sample]], kind: Kind) -> dict[str, Any]:
    """Counts by split, method, author, category and language; lengths in words; of preferences the length bias."""
    everything = [sample for samples in splits.values() for sample in samples]
    lengths = sorted(len(answered(sample).split()) for sample in everything)
    found: dict[str, Any] = {
        name: dict(Counter(str(getattr(sample, name) or "unknown") for sample in everything).most_common())
        for name in ("method", "author", "category", "language", "generator")
    }
    found["answer_words"] = {
        "least": lengths[0],
        "median": lengths[len(lengths) // 2],
        "most": lengths[-1],
        "all": sum(lengths),
    }
    found["question_words"] = {"all": sum(len(asked(sample).split()) for sample in everything)}
    found["families"] = len({sample.family for sample in everything})
    grounding = [sample.scores["grounding"] for sample in everything if "grounding" in sample.scores]
    if grounding:
        found["ungrounded"] = sum(score == 0 for score in grounding)
    if kind == "preferences":
        pairs = [sample for sample in everything if isinstance(sample, PreferenceSample)]
        found["length_bias"] = msgspec.json.decode(msgspec.json.encode(length_bias(pairs)))
    return found


def _lineage(built: Built, documents: Sequence[DocumentVersion], feedback: Iterable[Feedback]) -> dict[str, Any]:
    """What was built from which documents: those of the samples, and every other that an answer cited."""
    used = {sample.document_id for samples in built.splits.values() for sample in samples}
    used |= {cited.document_id for row in feedback for cited in row.citations}
    lineage = tuple(
        Lineage(
            each.document_id, each.version, each.content_hash, built.families.get(each.document_id, each.document_id)
        )
        for each in sorted(documents, key=lambda each: each.document_id)
        if each.document_id in used
    )
    return {"documents": lineage, "document_ids": tuple(sorted(used - {""}))}


def difference(one: Record, other: Record, samples: Mapping[str, Mapping[Split, Sequence[Sample]]]) -> dict[str, Any]:
    """What the second version has and the first has not, and the other way round. `samples`: by the ids of both."""
    before, after = ({each.document_id: each for each in record.documents} for record in (one, other))
    texts = [
        {(split, asked(sample), answered(sample)) for split, found in samples[record.id].items() for sample in found}
        for record in (one, other)
    ]
    recipes = [_fields(msgspec.to_builtins(record.recipe)) for record in (one, other)]
    return {
        "documents": {
            "added": sorted(set(after) - set(before)),
            "removed": sorted(set(before) - set(after)),
            "changed": sorted(id for id in set(before) & set(after) if before[id].version != after[id].version),
        },
        "samples": {
            split: {
                "added": len({text for text in texts[1] - texts[0] if text[0] == split}),
                "removed": len({text for text in texts[0] - texts[1] if text[0] == split}),
                "same": len({text for text in texts[0] & texts[1] if text[0] == split}),
            }
            for split in SPLITS
        },
        "recipe": {
            name: [recipes[0].get(name), recipes[1].get(name)]
            for name in dict.fromkeys([*recipes[0], *recipes[1]])
            if recipes[0].get(name) != recipes[1].get(name)
        },
        "generation": None if one.generation == other.generation else [one.generation, other.generation],
    }


def _fields(plain: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The values at any depth, each by the names that lead to it."""
    found: dict[str, Any] = {}
    for name, value in plain.items():
        found |= _fields(value, f"{above}{name}.") if isinstance(value, Mapping) else {f"{above}{name}": value}
    return found


def _plain(record: Record) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(record, builtin_types=(datetime,))
    return plain


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
