"""Files that others read while they are written."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def replace_file(path: Path, content: bytes, *, lasting: bool = False, private: bool = False) -> None:
    """Write so that a reader sees the old content or the new, never half. Raises OSError.

    `lasting`: a power failure after this returned does not undo it; `private`: only its owner may read it, at any
    moment.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        if private:
            beside.unlink(missing_ok=True)
            beside.touch(mode=0o600)
        beside.write_bytes(content)
        if lasting:
            _to_disk(beside)
        beside.replace(path)
        if lasting:
            _to_disk(path.parent)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def folder_beside(folder: Path) -> Path:
    """Where this process writes a folder that is to appear as a whole; nobody else's has this name."""
    return folder.with_name(f".{folder.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}")


def abandoned_folders(directory: Path) -> list[Path]:
    """Folders of `folder_beside` whose process was killed while it wrote."""
    found = (path for path in directory.glob(".*-*-*") if path.is_dir())
    return [path for path in found if not Path("/proc", path.name.split("-")[-2]).exists()]


def _to_disk(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
