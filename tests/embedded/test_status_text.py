"""What `twin status` tells a person of the dataflow: nothing while all is well, else what it waits for or refused."""

from __future__ import annotations

from typing import Any

import pytest

from embedded.commands import _status_text
from embedded.index_commands import _examined, _told


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


@pytest.mark.parametrize(
    ("different", "generation", "end"),
    [
        ({}, None, "1 missing; mend with `twin verify --repair`"),
        ({}, "candidate", "1 missing; mend with `twin verify --repair --generation candidate`"),
        ({"repaired": 1}, None, "1 missing; 1 repaired"),
        (
            {"unsettled": "late"},
            None,
            "1 missing; changes are on their way, which these may be (--json names them): verify again later",
        ),
    ],
)
def test_faults_are_told_with_what_to_do(different: dict[str, Any], generation: str | None, end: str) -> None:
    none = {"stale": 0, "orphaned": 0, "wrong_generation": 0, "duplicate": 0, "repaired": 0, "unsettled": None}
    report = {"documents": 2, "chunks": 5, "seconds": 0.1, "found": 1, "missing": 1, "in_flight": 0, "faults": []}

    assert _told({**report, **none, **different}, generation).endswith(end)


def test_what_a_sample_found_is_mended_by_a_sample() -> None:
    found = {"stale": 1, "orphaned": 0, "missing": 0, "wrong_generation": 0, "duplicate": 0, "found": 1}
    report = {"documents": 2, "chunks": 5, "seconds": 0.1, "in_flight": 0, "faults": [], "repaired": 0}

    told = _told({**report, **found, "unsettled": None}, None, 2)

    assert told.endswith("1 stale; mend with `twin verify --repair --sample 2`, in a sample of all to meet them again")


def test_a_judgement_says_when_and_why() -> None:
    judged = {"at": "2026-05-01T10:00:00+00:00", "generation": "g", "verified": None, "recall": None}

    assert _examined({**judged, "reasons": []}) == ["examined   2026-05-01 10:00:00 UTC, g: may serve"]
    (line,) = _examined({**judged, "reasons": ["152 events are left"]})
    assert line == "examined   2026-05-01 10:00:00 UTC, g: could not serve: 152 events are left"
