"""What a training run takes in: a dataset version, and a model that is on this machine. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from training.configuration import TrainingConfiguration

Kind = Literal["instructions", "preferences"]
# Of each kind, the columns that training reads: what is asked, then the answers.
COLUMNS: dict[Kind, tuple[str, ...]] = {
    "instructions": ("instruction", "answer"),
    "preferences": ("prompt", "chosen", "rejected"),
}


# Beside the weights of a tiny base model.
BASE_RECORD = "base.json"


class UnusableInput(RuntimeError):
    """A dataset or a model that this run cannot take; the message says why, and what to do."""


class AnotherGeneration(UnusableInput):
    """The dataset was made of another generation of the features than the one in use."""


class DatasetVersion(msgspec.Struct, frozen=True, kw_only=True):
    """What a run needs to know of a dataset version's `record.json`; `splits`: rows by name."""

    id: str
    kind: Kind
    generation: str
    splits: Mapping[str, int]
    document_ids: tuple[str, ...] = ()
    folder: str = ""


class _Named(msgspec.Struct, frozen=True):
    """What a `record.json` says of how the version is found."""

    name: str
    created_at: datetime


class BaseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`base.json`: the dataset whose texts to train on a base model was made of."""

    dataset: str


def meant(reference: str, listed: Sequence[tuple[str, str]]) -> list[str]:
    """The ids that `reference` may mean of these ids and names, newest first: the id itself, else the newest of that
    name, else all that begin so."""
    return (
        [id for id, _ in listed if id == reference]
        or [id for id, name in listed if name == reference][:1]
        or [id for id, _ in listed if reference and id.startswith(reference)]
    )


def dataset_folder(reference: str, datasets: Path) -> Path:
    """The folder of the dataset version that `reference` names: a folder, or in the folder `datasets` an id, the
    beginning of one, or a name, which is its newest version. Raises UnusableInput."""
    for place in (Path(reference), datasets / reference):
        if (place / "record.json").exists():
            return place
    found = meant(reference, _listed(datasets))
    if len(found) > 1:
        raise UnusableInput(f"{reference!r} is the beginning of {', '.join(found)}: give more of it")
    if not found:
        raise UnusableInput(
            f"there is no dataset {reference}, here or in {datasets}, or its files are not on this machine: "
            "`twin dataset list` tells which there are, and whether it can be built again"
        )
    return datasets / found[0]


def _listed(datasets: Path) -> list[tuple[str, str]]:
    """Id and name of every version in this folder, newest first; one whose record cannot be read is the
    oldest and named by its id."""
    named = []
    for path in datasets.glob("[!.]*/record.json"):
        try:
            record = msgspec.json.decode(path.read_bytes(), type=_Named)
        except (OSError, msgspec.DecodeError):
            record = _Named(path.parent.name, datetime.min.replace(tzinfo=UTC))
        named.append((record.created_at, path.parent.name, record.name))
    return [(id, name) for _, id, name in sorted(named, reverse=True)]


def dataset_version(reference: str, datasets: Path, kind: Kind, generation: str | None = None) -> DatasetVersion:
    """The dataset version that `reference` names, as `dataset_folder` finds it.

    `generation`: the one that it must be of, None for any. Raises UnusableInput and AnotherGeneration.
    """
    folder = dataset_folder(reference, datasets)
    try:
        version = msgspec.json.decode((folder / "record.json").read_bytes(), type=DatasetVersion)
    except (OSError, msgspec.DecodeError) as error:
        raise UnusableInput(f"{folder / 'record.json'} is not a dataset's record ({error}): build it anew") from error
    if version.kind != kind:
        needed = {"instructions": "SFT trains on instructions", "preferences": "DPO trains on preferences"}
        raise UnusableInput(f"dataset {version.id} holds {version.kind}; {needed[kind]}: name a dataset of these")
    if generation is not None and version.generation != generation:
        raise AnotherGeneration(
            f"dataset {version.id} was made of generation {version.generation}, and {generation} is in use: "
            "build it anew (twin dataset build), or name the generation that is meant (--generation)"
        )
    return msgspec.structs.replace(version, folder=str(folder))


def rows(version: DatasetVersion, split: str) -> list[dict[str, str]]:
    """The rows of a split, only the columns that are trained on; [] of a split that the version was made without.

    Raises UnusableInput.
    """
    import pyarrow as pa
    import pyarrow.parquet as parquet

    path = Path(version.folder) / f"{split}.parquet"
    if not version.splits.get(split):
        return []
    columns = list(COLUMNS[version.kind])
    try:
        table = parquet.read_table(path, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise UnusableInput(f"{path} cannot be read ({error}): rebuild dataset {version.id}") from error
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise UnusableInput(f"{path} has no column {', '.join(missing)}: rebuild dataset {version.id}")
    if table.num_rows != version.splits[split]:
        told = f"{path} has {table.num_rows} rows, and its record says {version.splits[split]}"
        raise UnusableInput(f"{told}: rebuild dataset {version.id}")
    found: list[dict[str, str]] = table.to_pylist()
    return found


def model_folder(name: str) -> Path:
    """The folder of a model: a folder with a `config.json`, a finished run's `model/`, or a model of the hub's cache.

    Raises UnusableInput.
    """
    for place in (Path(name), Path(name) / "model"):
        if (place / "config.json").exists():
            return place
    if (Path(name) / "run.json").exists():
        raise UnusableInput(f"the run in {name} has no model yet: let it finish, or take its base model")
    if Path(name).exists() or name.startswith((".", "/", "~")):
        raise UnusableInput(f"{name} holds no model (no config.json): name a model's folder")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except Exception as error:
        raise UnusableInput(
            f"the model {name} is not on this machine and nothing is downloaded unasked: `hf download {name}`, "
            f"name the folder that holds it, or make a tiny one (`twin train base --from DATASET --output {name}`)"
        ) from error


def source_dataset(folder: Path) -> str | None:
    """The dataset whose texts the base model in this folder was made of, as `twin train base` noted it; None for any
    other model. Raises UnusableInput."""
    try:
        return msgspec.json.decode((folder / BASE_RECORD).read_bytes(), type=BaseRecord).dataset
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise UnusableInput(f"{folder / BASE_RECORD} cannot be read ({error}): make the base anew") from error


def tokenizer_of(configuration: TrainingConfiguration, folder: Path) -> Any:
    """The model's tokenizer, with its chat template. Raises UnusableInput where there is none."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if configuration.chat_template is not None:
        try:
            tokenizer.chat_template = Path(configuration.chat_template).read_text(encoding="utf-8")
        except OSError as error:
            told = f"chat_template: {configuration.chat_template} cannot be read ({error.strerror})"
            raise UnusableInput(told) from error
    if not tokenizer.chat_template:
        raise UnusableInput(
            f"{configuration.model} has no chat template, so that nobody could talk to what comes of it: take the "
            "variant of it that was made for chats, or name a Jinja file as chat_template"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
