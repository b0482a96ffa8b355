"""Files that others read while they are written."""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(path: Path, content: bytes, *, lasting: bool = False) -> None:
    """Write so that a reader sees the old content or the new, never half. Raises OSError.

    `lasting`: a power failure after this returned does not undo it.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        if lasting:
            _to_disk(beside)
        beside.replace(path)
        if lasting:
            _to_disk(path.parent)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def _to_disk(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
