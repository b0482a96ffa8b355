"""Dataset versions for other programs: as other files, or on a hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from training.datasets.store import Record

Format = Literal["parquet", "arrow", "jsonl"]


class CannotExport(RuntimeError):
    """A version cannot be written there; the message says why and what to do."""


def export(folder: Path, record: Record, place: Path, format: Format, *, home: Path) -> None:
    """Write a version into a new folder outside of the home, with its card and its record. Raises CannotExport."""
    if place.resolve().is_relative_to(home.resolve()):
        # What is in the home is erased with its documents, and nobody would look for copies there.
        raise CannotExport(f"{place} is in the home {home}: name a folder outside of it")
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise CannotExport(f"{place} is there already and not empty: name a new folder")
    try:
        place.mkdir(parents=True, exist_ok=True)
        for split in record.splits:
            _write(folder / f"{split}.parquet", place / f"{split}.{format}", format)
        for name in ("README.md", "record.json"):
            shutil.copyfile(folder / name, place / name)
    except OSError as error:
        raise CannotExport(f"{place} cannot be written ({error.strerror or error})") from error
    if format != "parquet":
        # The card names the files to the `datasets` library.
        card = place / "README.md"
        card.write_text(card.read_text("utf-8").replace(".parquet", f".{format}"), "utf-8")


def _write(source: Path, target: Path, format: Format) -> None:
    import msgspec
    import pyarrow.feather as feather
    import pyarrow.parquet as parquet

    if format == "parquet":
        shutil.copyfile(source, target)
        return
    table = parquet.read_table(source)
    if format == "arrow":
        feather.write_feather(table, target, compression="uncompressed")
        return
    with target.open("wb") as file:
        for batch in table.to_batches():
            file.writelines(msgspec.json.encode(row) + b"\n" for row in batch.to_pylist())


def push(folder: Path, name: str) -> str:
    """Put a version into a dataset repository of the hub, private if it is new; its address. Raises CannotExport.

    The one command that sends documents away: with the user's own login, to the hub that HF_ENDPOINT names.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi()
    try:
        api.create_repo(name, repo_type="dataset", private=True, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=name, repo_type="dataset")
    except LocalTokenNotFoundError as error:
        raise CannotExport("nobody is logged in at the hub: `hf auth login`, then again") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise CannotExport(
            f"the hub did not take {name} ({type(error).__name__}): check the name and the login"
        ) from error
    return f"{api.endpoint}/datasets/{name}"
