"""The main job of one machine: documents come in, are found, quoted, edited and deleted, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.integration


def test_documents_are_found_quoted_edited_and_deleted(
    homes: Callable[..., Any], notes: Callable[..., Any], ended: Callable[..., None]
) -> None:
    twin, folder = homes(), notes("Notes on alpha", "Notes on bravo", "Notes on charlie", "Notes on delta")
    twin.up()

    # Every word of every document that came in is found.
    result = twin.ingest(str(folder.folder))
    assert result == {"seen": 4, "inserted": 4, "updated": 0, "unchanged": 0, "failed": [], "deleted": 0}
    assert twin.wait()["failed"] == []
    twin.must_hold(folder)
    assert twin.json("search", folder.words["Notes on bravo"][2], "--limit", "1")[0]["title"] == "Notes on bravo"

    # An answer quotes what was asked for, letter for letter.
    asked = folder.words["Notes on bravo"][3]
    answer = twin.json("ask", f"What does the {asked} station report?")
    bravo = twin.shown("Notes on bravo")
    assert answer["mode"] == "extractive"
    assert any(asked in citation["quote"] for citation in answer["citations"])
    versions = {document["document_id"]: document["version"] for document in twin.listed().values()}
    texts = {id: twin.json("documents", "show", id)["text"] for id in {c["document_id"] for c in answer["citations"]}}
    for citation in answer["citations"]:
        assert citation["version"] == versions[citation["document_id"]]
        assert citation["quote"]
        assert citation["quote"] in texts[citation["document_id"]]
    assert asked in bravo["text"]

    # The same again writes nothing.
    assert twin.ingest(str(folder.folder))["unchanged"] == 4

    # An edit of one word embeds one chunk; the others keep their points.
    before = [chunk["chunk_id"] for chunk in bravo["chunks"]]
    words = folder.words["Notes on bravo"]
    folder.write("Notes on bravo", [*words[:3], folder.word(), *words[4:]])
    embedded = twin.json("status")["stream"]["counts"]["chunks_embedded"]
    result = twin.ingest(str(folder.folder))
    assert (result["updated"], result["unchanged"]) == (1, 3)
    twin.wait()
    after = [chunk["chunk_id"] for chunk in twin.shown("Notes on bravo")["chunks"]]
    assert len(after) == len(before) > 2
    assert len(set(before) - set(after)) == 1
    assert twin.json("status")["stream"]["counts"]["chunks_embedded"] == embedded + 1
    assert not twin.finds(asked)
    twin.must_hold(folder)

    # What is deleted, or pruned because its file is gone, is gone everywhere.
    twin.run("documents", "delete", twin.listed()["Notes on charlie"]["document_id"])
    lost = folder.words["Notes on charlie"] + folder.words["Notes on delta"]
    kept = {title: folder.words[title] for title in ("Notes on charlie", "Notes on delta")}
    for title in kept:
        folder.remove(title)
    assert twin.ingest(str(folder.folder), "--prune")["deleted"] == 1
    twin.wait()
    assert [word for word in lost if twin.finds(word)] == []
    twin.must_hold(folder)

    # What comes back is found again.
    for title, words in kept.items():
        folder.write(title, words)
    assert twin.ingest(str(folder.folder))["inserted"] == 2
    twin.wait()
    twin.must_hold(folder)

    # A home that is up says so; one that went down leaves no process and no lock, and comes back as it was.
    again = twin.run("up", "--detach")
    pids = twin.pids()
    assert f"already running in {twin.home} (process {pids['supervisor']})" in again.stdout
    held = {title: document["version"] for title, document in twin.listed().items()}
    counts = twin.json("status")["index"]
    twin.down()
    ended(pids)
    assert (twin.home / "supervisor.lock").read_text() == ""
    assert not (twin.home / "addresses.json").exists()
    assert {part["state"] for part in twin.parts().values()} == {"stopped"}
    twin.up()
    twin.wait()
    assert {title: document["version"] for title, document in twin.listed().items()} == held
    assert twin.json("status")["index"] == counts
    twin.must_hold(folder)


def test_two_homes_never_meet(homes: Callable[..., Any], notes: Callable[..., Any]) -> None:
    first, second = homes(), homes()
    one, other = notes("Notes on the first"), notes("Notes on the second")
    first.up()
    second.up()

    first.ingest(str(one.folder))
    second.ingest(str(other.folder))
    first.wait()
    second.wait()

    first.must_hold(one)
    second.must_hold(other)
    ports = [part["address"] for twin in (first, second) for part in twin.parts().values() if part["name"] != "capture"]
    assert len(set(ports)) == 6

    first.down()
    second.must_hold(other)
