"""What `twin status` tells a person of the dataflow: nothing while all is well, else what it waits for or refused."""

from __future__ import annotations

from typing import Any

import pytest

from embedded.commands import _status_text


def status(state: str = "running", reason: str | None = None, **letters: int) -> dict[str, Any]:
    counts = {"documents": 2, "chunks": 5}
    stream = {"state": state, "reason": reason, "group": "", "counts": {}, "letters": letters}
    return {
        "parts": [],
        "warehouse": counts,
        "index": counts,
        "lag": 0,
        "freshness": {},
        "verified": None,
        "stream": stream,
        "generations": {"live": {"frozen": None}, "candidate": None, "note": None},
    }


def test_a_dataflow_that_runs_and_refused_nothing_is_not_mentioned() -> None:
    assert not {"dataflow", "refused"} & set(_status_text(status()).split())


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (
            status("waiting", "ConnectionError: the index is away"),
            "dataflow   waiting     ConnectionError: the index is away",
        ),
        (status("starting"), "dataflow   starting"),
        (status(decode=2, embed=1), "refused    3 dead letters: see `twin dead-letters list`"),
        (status(decode=1), "refused    1 dead letter: see `twin dead-letters list`"),
    ],
)
def test_what_it_waits_for_and_what_is_refused_is_a_line(found: dict[str, Any], line: str) -> None:
    assert _status_text(found).splitlines()[-1] == line
