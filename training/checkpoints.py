"""Checkpoints that are whole or are none: a manifest with every file's size and hash is written last."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from corpus.files import replace_file

MANIFEST = "manifest.json"
_NAME = re.compile(r"checkpoint-(\d+)")
# Of a larger file, as many blocks spread over it are hashed: optimiser states of 100 GB would take minutes each time.
WHOLE, BLOCK, BLOCKS = 256_000_000, 1_000_000, 64


class Fingerprint(msgspec.Struct, frozen=True):
    """A file's size in bytes, and the SHA-256 of its content (of BLOCKS blocks of it where it is larger than WHOLE)."""

    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a whole checkpoint holds: after `step` of `steps`, `tokens` seen in `seconds` since the run's first step."""

    step: int
    steps: int
    tokens: int
    seconds: float
    files: dict[str, Fingerprint]


class Checkpoint(msgspec.Struct, frozen=True):
    """A whole checkpoint on disk."""

    folder: Path
    manifest: Manifest


def seal(folder: Path, *, step: int, steps: int, tokens: int, seconds: float) -> Checkpoint:
    """Bring every file of a checkpoint to disk, then write its manifest: from now on it is whole. Raises OSError."""
    files = {}
    for path in _files(folder):
        with path.open("rb") as opened:
            os.fsync(opened.fileno())
        files[path.relative_to(folder).as_posix()] = fingerprint(path)
    manifest = Manifest(step=step, steps=steps, tokens=tokens, seconds=seconds, files=files)
    replace_file(folder / MANIFEST, msgspec.json.encode(manifest), lasting=True)
    return Checkpoint(folder, manifest)


def flaw(folder: Path) -> str | None:
    """Why this checkpoint is not whole; None if it is."""
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError:
        return "it was cut off before it was whole"
    except (OSError, msgspec.DecodeError) as error:
        return f"its {MANIFEST} cannot be read ({error})"
    for name, expected in manifest.files.items():
        try:
            found = (folder / name).stat().st_size
            if found != expected.bytes:
                return f"{name} has {found} bytes of {expected.bytes}"
            if fingerprint(folder / name) != expected:
                return f"{name} has another content than was written"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def last_whole(folder: Path) -> tuple[Checkpoint | None, dict[Path, str]]:
    """The whole checkpoint of the most steps in `folder`, if any, and those after it that are not, with the flaw."""
    passed: dict[Path, str] = {}
    for step, path in sorted(_checkpoints(folder), reverse=True):
        told = flaw(path)
        if told is None:
            manifest = msgspec.json.decode((path / MANIFEST).read_bytes(), type=Manifest)
            if manifest.step == step:
                return Checkpoint(path, manifest), passed
            told = f"its {MANIFEST} is of step {manifest.step}"
        passed[path] = told
    return None, passed


def remove_all_but(folder: Path, keep: int) -> None:
    """Leave the `keep` whole checkpoints of the most steps, and nothing before them.

    Called after sealing, so that a whole one is always there. A manifest goes first: what a crash leaves of the rest is
    no checkpoint, and goes the next time.
    """
    found = [path for _, path in sorted(_checkpoints(folder), reverse=True)]
    sealed = [path for path in found if (path / MANIFEST).exists()]
    for path in found[found.index(sealed[0]) :] if sealed else ():
        if path not in sealed[:keep]:
            (path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


def fingerprint(path: Path) -> Fingerprint:
    """Raises OSError."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        if size <= WHOLE:
            while block := opened.read(BLOCK):
                digest.update(block)
        else:
            for number in range(BLOCKS):
                opened.seek((size - BLOCK) * number // (BLOCKS - 1))
                digest.update(opened.read(BLOCK))
    return Fingerprint(size, digest.hexdigest())


def disk_is_full(error: BaseException, folder: Path) -> bool:
    """Whether this is what a full disk looks like: libraries tell of it by errors of their own."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    if any(isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT) for each in causes):
        return True
    if any("No space left" in str(each) or "os error 28" in str(each) for each in causes):
        return True
    # torch says only that its writer failed, and has freed nothing by then.
    return isinstance(error, RuntimeError) and shutil.disk_usage(folder).free < BLOCK


def _checkpoints(folder: Path) -> Iterator[tuple[int, Path]]:
    if folder.is_dir():
        for path in folder.iterdir():
            if path.is_dir() and (found := _NAME.fullmatch(path.name)):
                yield int(found[1]), path


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
