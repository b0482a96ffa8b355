"""What downstream teams read of a running home: messages as promised, and an index rebuilt from them alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition
from pymongo import MongoClient

pytestmark = pytest.mark.integration
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "rebuild_index.py"
FEATURES = ("features.documents", "features.chunks")
CONTRACTS = (*FEATURES, "dead-letters")


def addresses(twin: Any) -> dict[str, str]:
    found: dict[str, str] = json.loads((twin.home / "addresses.json").read_text())
    return found


def sent(twin: Any, contract: str) -> list[Message]:
    """Every message of a topic, in order within each partition."""
    topic = f"twin.{contract}"
    reader = Consumer(
        {
            "bootstrap.servers": addresses(twin)["kafka_bootstrap_servers"],
            "group.id": "test-contracts",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "log_level": 0,
        }
    )
    partitions = reader.list_topics(topic, timeout=10).topics[topic].partitions
    reader.assign([TopicPartition(topic, number, 0) for number in partitions])
    messages: list[Message] = []
    ends: set[int | None] = set()
    while len(ends) < len(partitions):
        message = reader.poll(30)
        assert message is not None, f"{topic} does not come to its end"
        error = message.error()
        if error is None:
            messages.append(message)
        else:
            assert error.code() == KafkaError._PARTITION_EOF, error
            ends.add(message.partition())
    reader.close()
    return messages


def by_document(messages: list[Message]) -> dict[str, list[Message]]:
    found: dict[str, list[Message]] = defaultdict(list)
    for message in messages:
        found[bytes(message.key() or b"").decode()].append(message)
    return found


def rebuilt(twin: Any, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The example, as a downstream team would run it: by itself, with addresses alone."""
    told = addresses(twin)
    command = [sys.executable, str(EXAMPLE), "--bootstrap", told["kafka_bootstrap_servers"], *arguments]
    return subprocess.run(command, cwd=twin.home.parent, capture_output=True, text=True, timeout=120)


def must_equal(twin: Any) -> str:
    done = rebuilt(twin, "--check", addresses(twin)["app_url"])
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    first, last = done.stdout.splitlines()
    assert last == f"equal to the app at {addresses(twin)['app_url']}"
    return first


def test_every_message_of_all_three_topics_is_as_promised(
    running: Any, notes: Callable[..., Any], promised: Callable[[str, Any], None]
) -> None:
    twin, folder = running, notes("Notes on alpha", "Notes on bravo", "Notes on charlie")
    twin.ingest(str(folder.folder))
    twin.wait()
    bravo, charlie = (twin.listed()[f"Notes on {name}"]["document_id"] for name in ("bravo", "charlie"))
    folder.write("Notes on bravo", [folder.word() for _ in range(7)])
    folder.remove("Notes on charlie")
    twin.ingest(str(folder.folder), "--prune")
    with MongoClient[dict[str, Any]](addresses(twin)["mongodb_uri"]) as client:
        collection = client["twin"]["documents"]
        collection.insert_one({"_id": "without a title", "category": "article", "text": "It has no title."})
        copied = {**collection.find_one({"_id": bravo}), "_id": 7, "url": "https://example.org/7"}
        collection.insert_one(copied)
    assert [failed["document_id"] for failed in twin.wait()["failed"]] == ["without a title"]

    messages = {contract: sent(twin, contract) for contract in CONTRACTS}

    for contract, found in messages.items():
        for message in found:
            assert dict(message.headers() or ()).get("schema-version") == b"1"
            assert message.key() is not None
            if message.value() is not None:
                value = json.loads(message.value())
                assert bytes(message.key()).decode() == value.get("letter_id", value["document_id"])
                promised(contract, value)
    documents, chunks = (by_document(messages[contract]) for contract in FEATURES)
    assert {bravo, charlie, "7"} < set(documents) == set(chunks)
    for id in documents:
        # One partition in both topics, the same states in the same order, the newest last.
        assert {message.partition() for message in (*documents[id], *chunks[id])} == {documents[id][0].partition()}
        versions = [
            [json.loads(message.value())["version"] if message.value() is not None else None for message in found]
            for found in (documents[id], chunks[id])
        ]
        assert versions[0] == versions[1]
        living = [version for version in versions[0] if version is not None]
        assert living == sorted(living)
    assert len([message for message in chunks[bravo] if message.value() is not None]) >= 2
    assert documents[charlie][-1].value() is chunks[charlie][-1].value() is None
    (letter,) = by_document(messages["dead-letters"])["without a title"]
    assert json.loads(letter.value())["step"] == "validate"


def test_an_index_rebuilt_from_the_topic_alone_is_the_apps_also_after_the_log_was_lost(
    homes: Callable[..., Any], notes: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    twin, folder = homes(), notes("Notes on alpha", "Notes on bravo", "Notes on charlie", "Notes on delta")
    twin.up()
    must_equal(twin)

    twin.ingest(str(folder.folder))
    twin.wait()
    assert must_equal(twin).startswith("4 messages, 0 of them tombstones: 4 documents")

    words = folder.words["Notes on bravo"]
    folder.write("Notes on bravo", [words[0], folder.word(), *words[2:]])
    folder.remove("Notes on charlie")
    twin.ingest(str(folder.folder), "--prune")
    twin.wait()
    assert must_equal(twin).startswith("6 messages, 1 of them tombstones: 3 documents")

    chunk = twin.shown("Notes on bravo")["chunks"][1]
    done = rebuilt(twin, "--nearest", chunk["chunk_id"])
    assert done.returncode == 0, done.stderr
    _, *nearest = done.stdout.splitlines()
    cosines = [float(line.split()[0]) for line in nearest]
    assert len(nearest) == 5
    assert cosines == sorted(cosines, reverse=True)
    assert chunk["chunk_id"] not in done.stdout
    assert rebuilt(twin, "--nearest", "unknown").stderr == "rebuild_index: there is no chunk unknown\n"

    # The log of one machine is in memory: what it forgot is told again.
    epoch = addresses(twin)["log_epoch"]
    folder.remove("Notes on delta")
    twin.ingest(str(folder.folder), "--prune")
    twin.kill("log")
    eventually(lambda: addresses(twin)["log_epoch"] != epoch, "a new log")
    twin.wait()
    assert twin.json("status")["index"]["documents"] == 2
    assert must_equal(twin).endswith(twin.json("status")["index"]["generation"])


def test_the_example_tells_what_is_wrong(running: Any, unused_tcp_port: int) -> None:
    assert "there is no topic nothing" in rebuilt(running, "--topic", "nothing").stderr
    # Another topic has messages without the version that it asks for.
    done = rebuilt(running, "--topic", "__debezium-heartbeat.twin")
    assert (done.returncode, "has schema version None" in done.stderr) == (1, True), done.stderr
    away = rebuilt(running, "--check", f"http://127.0.0.1:{unused_tcp_port}")
    assert away.returncode == 1
    assert "refused" in away.stderr
