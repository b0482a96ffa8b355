"""What tests of several packages share: an embedded MongoDB of their own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def mongodb_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A MongoDB that lives as long as the tests; each test takes a database of its own."""
    directory = tmp_path_factory.mktemp("mongodb")
    command = [sys.executable, "-m", "embedded.mongodb", "--port", "0", "--directory", str(directory)]
    root = Path(__file__).parent.parent
    with subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        told = []
        for line in process.stderr:
            told.append(line)
            found = re.search(r"mongodb://\S+", line)
            if found:
                break
        else:
            pytest.fail("the embedded MongoDB did not start: " + "".join(told)[-2000:])
        yield found.group()
        process.terminate()
