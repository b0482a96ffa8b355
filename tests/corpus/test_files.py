"""A file that is replaced is whole for its readers, whatever happens to its writer."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from corpus.files import replace_file


def test_a_reader_sees_the_old_content_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    contents = [letter * 1_000_000 for letter in (b"a", b"b")]
    replace_file(path, contents[0])
    done = threading.Event()

    def write() -> None:
        for turn in range(50):
            replace_file(path, contents[turn % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(path.read_bytes())
    writer.join()

    assert seen <= set(contents)
    assert [each.name for each in tmp_path.iterdir()] == ["status.json"]


def test_what_cannot_be_written_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "status.json"
    replace_file(path, b"old")

    def full(self: Path, content: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"new")

    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["status.json"]
