"""The main job over a real Kafka broker and a real Kafka Connect worker, by their addresses alone."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymongo import MongoClient

pytestmark = pytest.mark.integration
GIVEN = ("log", "capture")


@pytest.fixture(scope="module")
def over_kafka(cluster: Any, module_homes: Callable[..., Any]) -> Any:
    twin = module_homes(**cluster.settings)
    twin.up()
    return twin


def test_the_main_job_and_what_downstream_is_told(over_kafka: Any, cluster: Any, folder: Any) -> None:
    twin = over_kafka
    parts = twin.parts()
    assert {name: parts[name]["pid"] for name in GIVEN} == {"log": None, "capture": None}
    assert {part["state"] for part in parts.values()} == {"ready"}

    folder.add("Notes on alpha", "Notes on bravo", "Notes on charlie")
    assert twin.ingest(str(folder.folder))["inserted"] == 3
    assert twin.wait()["failed"] == []
    twin.must_hold(folder)
    before = {chunk["chunk_id"] for chunk in twin.shown("Notes on bravo")["chunks"]}
    words = folder.words["Notes on bravo"]
    folder.write("Notes on bravo", [words[0], folder.word(), *words[2:]])
    gone = twin.listed()["Notes on charlie"]["document_id"]
    folder.remove("Notes on charlie")
    assert twin.ingest(str(folder.folder), "--prune")["deleted"] == 1
    twin.wait()
    twin.must_hold(folder)
    assert len(before - {chunk["chunk_id"] for chunk in twin.shown("Notes on bravo")["chunks"]}) == 1

    # The newest message of each key is the document as the index has it; a deleted one is a tombstone.
    documents, chunks = cluster.newest("twin.features.documents"), cluster.newest("twin.features.chunks")
    shown = {title: twin.shown(title) for title in folder.words}
    identities = {document["document_id"] for document in shown.values()}
    assert set(documents) == set(chunks) == {*identities, gone}
    assert documents[gone] is chunks[gone] is None
    generation = twin.json("status")["index"]["generation"]
    for document in shown.values():
        told = json.loads(documents[document["document_id"]] or b"")
        for name in ("document_id", "version", "title", "url", "author", "category", "platform", "text"):
            assert told[name] == document[name], name
        points = json.loads(chunks[document["document_id"]] or b"")
        assert (points["version"], points["generation"]) == (document["version"], generation)
        assert [
            {name: chunk[name] for name in ("chunk_id", "position", "heading_path", "text")}
            for chunk in points["chunks"]
        ] == document["chunks"]
        vectors = np.array([np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in points["chunks"]])
        assert vectors.shape == (len(document["chunks"]), 384)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)


def struck_while_documents_come_in(
    twin: Any, folder: Any, eventually: Callable[..., Any], strike: Callable[[], None]
) -> None:
    known = twin.asked("/api/status")["warehouse"]["documents"]
    ingest = twin.start("ingest", str(folder.folder), "--author", "Test Author")
    eventually(lambda: twin.asked("/api/status")["warehouse"]["documents"] > known, "the first documents")
    strike()
    _, err = ingest.communicate(timeout=120)
    assert ingest.returncode == 0, err


@pytest.mark.parametrize("part", ["connect", "broker"])
def test_a_connect_or_broker_that_is_killed_loses_nothing(
    over_kafka: Any, cluster: Any, folder: Any, eventually: Callable[..., Any], part: str
) -> None:
    twin = over_kafka
    folder.add(*(f"Killed {part} {number:02}" for number in range(40)), sections=3)

    struck_while_documents_come_in(twin, folder, eventually, lambda: cluster.run("kill", part))
    state = twin.parts()[{"connect": "capture", "broker": "log"}[part]]
    assert (state["state"], state["pid"]) == ("unreachable", None)
    assert state["reason"]
    cluster.start()

    assert twin.wait()["failed"] == []
    # Capture is told by its heartbeats, the first of which may come after the changes.
    eventually(lambda: {state["state"] for state in twin.parts().values()} == {"ready"}, "every part")
    twin.must_hold(folder)


def test_a_connector_task_that_is_restarted_while_documents_come_in_loses_nothing(
    over_kafka: Any, cluster: Any, folder: Any, eventually: Callable[..., Any]
) -> None:
    twin = over_kafka
    folder.add(*(f"Restarted task {number:02}" for number in range(40)), sections=3)

    struck_while_documents_come_in(twin, folder, eventually, cluster.restart_task)

    assert twin.wait()["failed"] == []
    twin.must_hold(folder)


def test_an_erased_document_has_a_tombstone_in_every_topic_and_downstream_is_told(
    over_kafka: Any, cluster: Any, folder: Any, tmp_path: Path
) -> None:
    folder.add("Kept beside it", "Erased")
    over_kafka.ingest(str(folder.folder))
    over_kafka.wait()
    id = over_kafka.listed()["Erased"]["document_id"]
    (word, *_), path, file = folder.words["Erased"], folder.path("Erased"), tmp_path / "receipt.json"
    with over_kafka_database(over_kafka) as database:
        # A version that is refused makes a dead letter, of which the log has the text too.
        database["documents"].update_one({"_id": id}, {"$set": {"title": ["refused"]}})
        over_kafka.wait()

    over_kafka.run("erase", "--document", str(path), "--receipt", str(file), "--yes")

    folder.remove("Erased")
    receipt = json.loads(file.read_text())
    places = {place["place"]: place for place in receipt["places"]}
    assert [name for name, place in places.items() if place["left"] != 0] == []
    topics = [f"twin.{name}" for name in ("twin.documents", "features.documents", "features.chunks", "dead-letters")]
    for topic in topics:
        place = places[f"log: {topic}"]
        assert place["found"] > 0, topic
        assert "cleanup.policy=compact" in place["check"], topic
        newest = cluster.newest(topic)
        assert any(id in key for key in newest), topic
        assert [key for key, value in newest.items() if value is not None and (id in key or id.encode() in value)] == []
    told = json.loads(cluster.newest("twin.features.erasures")[id] or b"")
    assert told["erasure_id"] == receipt["erasure_id"]
    assert not over_kafka.finds(word)
    over_kafka.wait()
    over_kafka.must_hold(folder)


@contextmanager
def over_kafka_database(twin: Any) -> Iterator[Any]:
    """The warehouse of a running home, as any MongoDB client sees it."""
    with MongoClient[dict[str, Any]](json.loads((twin.home / "addresses.json").read_text())["mongodb_uri"]) as client:
        yield client["twin"]


def test_a_database_that_is_dropped_gets_a_connector_of_its_new_identity(
    over_kafka: Any, cluster: Any, notes: Callable[..., Any]
) -> None:
    (before,) = cluster.connectors()
    later = notes("Notes after the drop")

    with MongoClient[dict[str, Any]](json.loads((over_kafka.home / "addresses.json").read_text())["mongodb_uri"]) as db:
        db.drop_database("twin")

    assert over_kafka.wait()["failed"] == []
    assert over_kafka.listed() == {}
    assert over_kafka.json("status")["index"]["chunks"] == 0
    over_kafka.ingest(str(later.folder))
    assert over_kafka.wait()["failed"] == []
    over_kafka.must_hold(later)
    ((after, state),) = cluster.connectors().items()
    assert (after != before, state) == (True, "RUNNING")


def test_down_stops_the_connector_alone_and_the_next_home_sees_nothing_of_the_first(
    over_kafka: Any, cluster: Any, homes: Callable[..., Any], notes: Callable[..., Any]
) -> None:
    (first,) = cluster.connectors()

    over_kafka.down()

    assert cluster.connectors() == {first: "STOPPED"}
    second, other = homes(**cluster.settings), notes("Notes of the second home")
    second.up()
    second.wait()
    assert second.listed() == {}
    assert second.json("status")["index"]["documents"] == 0
    second.ingest(str(other.folder))
    second.wait()
    second.must_hold(other)
    assert sorted(cluster.connectors().values()) == ["RUNNING", "STOPPED"]
