"""What `make demo` tells at its end."""

from __future__ import annotations

from embedded.demo import measured


def test_every_figure_of_a_demo_says_what_it_covers() -> None:
    status = {
        "index": {"documents": 74, "chunks": 1290},
        "stream": {"counts": {"chunks_embedded": 1290}},
        "freshness": {"p50": 11.0, "p95": 13.0},
        "parts": [{"name": "app", "ready_seconds": 6.1}],
    }
    assert measured(status, 2.7, 4.0) == [
        "74 documents, 1290 chunks searchable",
        "in this run: ingest to searchable 2.7 s, start to answer 4.0 s",
        "since the app started: 1290 chunks embedded; source commit to searchable, last 5 min, p50 11.0 s, p95 13.0 s",
        "parts ready after: app 6.1 s",
    ]
