"""Another embedding model in a running home: built beside the live one under edits, promoted, rolled back, killed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streaming.clients import consumer, partitions_of

pytestmark = pytest.mark.integration
HANDBOOK = Path(__file__).parents[3] / "shared" / "data" / "handbook" / "articles.json"
FEATURES = ("twin.features.documents", "twin.features.chunks")


@contextmanager
def meanwhile(act: Callable[[int], object]) -> Iterator[list[str]]:
    """`act(number)` again and again while the block runs, beside it; what went wrong is listed."""
    ended, wrong = threading.Event(), list[str]()

    def run() -> None:
        number = 0
        while not ended.is_set():
            try:
                act(number)
            except Exception as error:  # it is listed and fails the test
                wrong.append(f"{type(error).__name__}: {error}")
            number += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield wrong
    finally:
        ended.set()
        thread.join()


def searching(twin: Any, words: list[str]) -> Callable[[int], None]:
    """A client that asks for documents nobody edits, and each time must get them."""

    def ask(number: int) -> None:
        word = words[number % len(words)]
        hits = twin.asked("/api/search", {"question": f"What does the {word} station report?", "limit": 3})
        assert any(word in hit["text"] for hit in hits), f"{word} is not among {len(hits)} hits"

    return ask


def downstream(twin: Any) -> dict[str, dict[str, tuple[str, int]]]:
    """By topic and document, the generation and the version that a reader of the compacted topics ends with."""
    bootstrap = json.loads((twin.home / "addresses.json").read_text())["kafka_bootstrap_servers"]
    found: dict[str, dict[str, tuple[str, int]]] = {}
    for topic in FEATURES:
        reader = consumer(bootstrap, "a-reader", **{"enable.partition.eof": True})
        left = set(partitions_of(reader, topic))
        from confluent_kafka import OFFSET_BEGINNING, TopicPartition

        reader.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in left])
        state: dict[str, tuple[str, int]] = {}
        while left:
            message = reader.poll(1.0)
            if message is None:
                continue
            if message.error() is not None:
                left.discard(message.partition())
                continue
            key, value = message.key(), message.value()
            assert key is not None
            id = key.decode() if isinstance(key, bytes) else key
            if value is None:
                state.pop(id, None)
            else:
                told = msgspec.json.decode(value)
                assert state.get(id, ("", 0))[1] <= told["version"], "a message of an earlier version came later"
                state[id] = (told["generation"], told["version"])
        reader.close()
        found[topic] = state
    return found


def told_of_all(twin: Any, generation: str) -> bool:
    """Whether downstream ends with this generation's state of every document and no other."""
    listed = {each["document_id"]: each["version"] for each in twin.json("documents", "list")}
    return all(state == {id: (generation, listed[id]) for id in listed} for state in downstream(twin).values())


def test_a_model_changes_under_edits_and_searches_and_changes_back(
    homes: Callable[..., Any], notes: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    twin = homes()
    kept, edited = notes(*(f"Kept {number}" for number in range(8))), notes(*(f"Edited {n}" for n in range(4)))
    twin.up()
    twin.ingest(str(kept.folder))
    twin.ingest(str(edited.folder))
    twin.wait()
    words = [word for words in kept.words.values() for word in words]

    def edit(number: int) -> None:
        edited.write(f"Edited {number % 4}", [edited.word() for _ in range(6)])
        if number % 5 == 4:
            edited.remove("Edited 3")
        twin.ingest(str(edited.folder), "--prune")

    with meanwhile(searching(twin, words)) as unanswered, meanwhile(edit) as unwritten:
        old = twin.json("reindex", "status")["live"]["generation"]
        plan = twin.json("reindex", "plan", "--model", "minilm-l6")
        assert plan["generation"] != old
        new = twin.json("reindex", "start", "--model", "minilm-l6")["candidate"]["generation"]
        assert new == plan["generation"]
        eventually(lambda: twin.run("reindex", "promote", code=None).returncode == 0, "the promotion")
        assert twin.json("status")["index"]["generation"] == new
        time.sleep(1)
    twin.wait()
    assert (unanswered, unwritten) == ([], [])
    assert twin.json("verify", "--sample", "100")["generation"] == new
    assert twin.run("verify", "--generation", old).stdout.endswith("the index is what the warehouse says\n")
    eventually(lambda: twin.json("reindex", "status")["republish"] is None, "downstream to be told")
    twin.wait()
    eventually(lambda: told_of_all(twin, new), "the promoted generation downstream")

    with meanwhile(searching(twin, words)) as unanswered, meanwhile(edit) as unwritten:
        eventually(lambda: twin.run("reindex", "rollback", code=None).returncode == 0, "the rollback")
        assert twin.json("status")["index"]["generation"] == old
        time.sleep(1)
    twin.wait()
    assert (unanswered, unwritten) == ([], [])
    eventually(lambda: twin.json("reindex", "status")["republish"] is None, "downstream to be told")
    twin.wait()
    eventually(lambda: told_of_all(twin, old), "the former generation downstream")
    twin.run("reindex", "cancel")
    both = {**kept.words, **edited.words}
    kept.words.update(edited.words)
    assert set(both) == set(twin.listed())
    twin.must_hold(kept)
    assert [path.name for path in (twin.home / "index").iterdir() if path.is_dir()] == [old]


def test_an_app_that_is_killed_while_it_builds_and_right_after_a_promotion_loses_nothing(
    homes: Callable[..., Any],
    notes: Callable[..., Any],
    eventually: Callable[..., Any],
    ended: Callable[..., None],
) -> None:
    twin = homes()
    folder = notes(*(f"Note {number}" for number in range(120)))
    twin.up()
    twin.ingest(str(folder.folder))
    twin.wait()
    old = twin.json("status")["index"]["generation"]
    new = twin.json("reindex", "start", "--model", "minilm-l6")["candidate"]["generation"]
    eventually(lambda: twin.asked("/api/reindex")["candidate"]["documents"] >= 1, "a part of the build")
    half = twin.asked("/api/reindex")["candidate"]["documents"]

    ended({"app": twin.kill("app")})
    folder.write("Note 1", [folder.word() for _ in range(6)])
    folder.remove("Note 2")
    twin.ingest(str(folder.folder), "--prune")
    twin.wait()
    found = twin.json("reindex", "status")
    assert (found["live"]["generation"], found["candidate"]["generation"]) == (old, new)
    assert half < 120

    eventually(lambda: twin.asked("/api/reindex")["candidate"]["documents"] == 119, "the build")
    eventually(lambda: twin.asked("/api/reindex/promote", {"generation": new})["done"], "the promotion")
    ended({"app": twin.kill("app")})
    eventually(lambda: twin.parts()["app"]["state"] == "ready", "the app")
    twin.wait()

    assert twin.json("status")["index"]["generation"] == new
    assert twin.run("verify", "--generation", "former").stdout.endswith("the index is what the warehouse says\n")
    eventually(lambda: twin.json("reindex", "status")["republish"] is None, "downstream to be told")
    twin.wait()
    eventually(lambda: told_of_all(twin, new), "the promoted generation downstream")
    with suppress(OSError):
        twin.asked("/api/reindex/rollback", {"generation": old})
    ended({"app": twin.kill("app")})
    eventually(lambda: twin.parts()["app"]["state"] == "ready", "the app")
    assert twin.asked("/api/reindex/rollback", {"generation": old})["done"]
    twin.wait()
    assert twin.json("status")["index"]["generation"] == old
    eventually(lambda: twin.json("reindex", "status")["republish"] is None, "downstream to be told")
    twin.wait()
    eventually(lambda: told_of_all(twin, old), "the former generation downstream")
    twin.must_hold(folder)


@pytest.mark.long
@pytest.mark.skipif(not HANDBOOK.exists(), reason="the handbook's articles are not beside this project")
def test_the_76_articles_change_their_model_under_edits(
    homes: Callable[..., Any], notes: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    twin = homes()
    edited = notes("Edited")
    twin.up()
    twin.ingest(str(HANDBOOK))
    twin.ingest(str(edited.folder))
    twin.wait()

    def edit(number: int) -> None:
        edited.write("Edited", [edited.word() for _ in range(6)])
        twin.ingest(str(edited.folder))

    def ask(number: int) -> None:
        assert len(twin.asked("/api/search", {"question": "How is a large language model tuned?", "limit": 5})) == 5

    with meanwhile(ask) as unanswered, meanwhile(edit) as unwritten:
        new = twin.json("reindex", "start", "--model", "minilm-l6")["candidate"]["generation"]
        eventually(lambda: twin.asked("/api/reindex")["candidate"]["documents"] == 77, "the build")
        eventually(lambda: twin.run("reindex", "promote", code=None).returncode == 0, "the promotion")
    twin.wait()

    assert (unanswered, unwritten) == ([], [])
    verified = twin.json("verify")
    assert (verified["generation"], verified["documents"]) == (new, 77)
    assert twin.run("reindex", "rollback").returncode == 0
    twin.wait()
    assert twin.json("verify")["documents"] == 77
