"""A search index of your own from `twin.features.chunks` alone.

    python docs/examples/rebuild_index.py --bootstrap 127.0.0.1:9092 [--topic twin.features.chunks]
        [--nearest CHUNK_ID] [--check http://127.0.0.1:8787]

Reads the topic from its beginning to its end, keeps the newest state of each document in memory, and shows what is
nearest to a chunk. `--check` compares what was rebuilt with what the app has, chunk by chunk, and exits 1 if they
differ. It needs `confluent-kafka` and `numpy`, nothing of LLM Twin. docs/contracts/README.md says what it relies on.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from numpy.typing import NDArray

# The one that this program was written for: a new major version has its own schema.
SCHEMA_VERSION = b"1"
# What the topic may hold: see "Limits" in docs/contracts/README.md.
LARGEST_MESSAGE = 100_000_000
PATIENCE_SECONDS = 30.0
PAGE = 200


class UnknownSchema(RuntimeError):
    """A message has another schema version than this program reads; nothing is guessed."""


class LogUnreadable(RuntimeError):
    """The topic cannot be read to its end; the message says why."""


class NoSuchChunk(LookupError):
    """No chunk has this id in the generation that is served."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One passage. `heading_path`: the headings above it; `vector`: float32, of length 1."""

    chunk_id: str
    document_id: str
    heading_path: tuple[str, ...]
    text: str
    vector: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class State:
    """A document as its newest message tells it."""

    version: int
    generation: str
    chunks: tuple[Chunk, ...]


def read_topic(bootstrap: str, topic: str) -> Iterator[Message]:
    """Every message from the beginning of the topic to its end as it is now; in order within each partition.

    Belongs to no consumer group: it reads everything each time and leaves nothing behind. Raises LogUnreadable.
    """
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "rebuild-index",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "fetch.message.max.bytes": LARGEST_MESSAGE,
            "receive.message.max.bytes": 2 * LARGEST_MESSAGE,
            "log_level": 0,
        }
    )
    try:
        partitions = consumer.list_topics(topic, timeout=PATIENCE_SECONDS).topics[topic].partitions
        if not partitions:
            raise LogUnreadable(f"there is no topic {topic} at {bootstrap}")
        consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
        ended: set[int | None] = set()
        while len(ended) < len(partitions):
            message = consumer.poll(PATIENCE_SECONDS)
            if message is None:
                raise LogUnreadable(f"topic {topic} does not come to its end")
            error = message.error()
            if error is None:
                yield message
            elif error.code() == KafkaError._PARTITION_EOF:
                ended.add(message.partition())
            else:
                raise LogUnreadable(f"topic {topic} cannot be read: {error.str()}")
    except KafkaException as error:
        raise LogUnreadable(f"{bootstrap} does not answer: {error.args[0].str()}") from error
    finally:
        consumer.close()


def apply(states: dict[str, State], message: Message) -> None:
    """What a message changes: the whole new state of its document, or its end.

    A document's messages come in order, so the last one is its state, whatever its version says; the same one twice
    changes nothing. Raises UnknownSchema.
    """
    version = dict(message.headers() or ()).get("schema-version")
    if version != SCHEMA_VERSION:
        where = f"{message.topic()}/{message.partition()}/{message.offset()}"
        raise UnknownSchema(f"{where} has schema version {version!r}, this program reads {SCHEMA_VERSION!r}")
    document_id = bytes(message.key() or b"").decode()
    value = message.value()
    if value is None:
        states.pop(document_id, None)
        return
    states[document_id] = state_of(json.loads(value))


def state_of(told: Mapping[str, Any]) -> State:
    """The state in a message; fields that are not named here are ignored, as the contract asks."""
    chunks = tuple(
        Chunk(
            chunk_id=chunk["chunk_id"],
            document_id=told["document_id"],
            heading_path=tuple(chunk["heading_path"]),
            text=chunk["text"],
            vector=np.frombuffer(base64.b64decode(chunk["embedding"]), "<f4"),
        )
        for chunk in told["chunks"]
    )
    return State(told["version"], told["generation"], chunks)


class SearchIndex:
    """Vectors in memory, compared by cosine: they have length 1, so a product of matrices is all it takes."""

    def __init__(self, states: Mapping[str, State]) -> None:
        generations = {state.generation for state in states.values()}
        # Two models' vectors cannot be compared. A new generation is told of document by document: the one that most
        # documents have is served, the others wait.
        counts = {name: sum(state.generation == name for state in states.values()) for name in generations}
        self.generation = max(counts, key=lambda name: (counts[name], name), default="")
        self.chunks = [
            chunk for state in states.values() if state.generation == self.generation for chunk in state.chunks
        ]
        self._rows = np.array([chunk.vector for chunk in self.chunks], np.float32)

    def nearest(self, chunk_id: str, limit: int = 5) -> list[tuple[float, Chunk]]:
        """The chunks nearest to this one, best first, with their cosine. Raises NoSuchChunk."""
        place = next((at for at, chunk in enumerate(self.chunks) if chunk.chunk_id == chunk_id), None)
        if place is None:
            raise NoSuchChunk(f"there is no chunk {chunk_id}")
        cosines = self._rows @ self._rows[place]
        cosines[place] = -2
        best = np.argsort(-cosines, kind="stable")[: min(limit, len(self.chunks) - 1)]
        return [(float(cosines[at]), self.chunks[at]) for at in best]


def differences(states: Mapping[str, State], app: str, key: str | None) -> Iterator[str]:
    """Where the app's index is not what was rebuilt, one sentence each."""
    listed = {each["document_id"]: each for each in documents_of(app, key) if each["version"] is not None}
    yield from (f"{id} is not in the topic" for id in sorted(listed.keys() - states.keys()))
    yield from (f"{id} is not in the app" for id in sorted(states.keys() - listed.keys()))
    for id in sorted(listed.keys() & states.keys()):
        shown = asked(f"{app}/api/documents/{id}", key)
        if shown["version"] != states[id].version:
            yield f"{id} has version {states[id].version} in the topic, {shown['version']} in the app"
        theirs = [(each["chunk_id"], each["heading_path"], each["text"]) for each in shown["chunks"]]
        ours = [(each.chunk_id, list(each.heading_path), each.text) for each in states[id].chunks]
        if theirs != ours:
            yield f"{id} has other chunks in the topic than in the app"


def documents_of(app: str, key: str | None) -> Iterator[dict[str, Any]]:
    """Every document that the app lists, page by page."""
    offset = 0
    while True:
        page = asked(f"{app}/api/documents?limit={PAGE}&offset={offset}", key)["items"]
        yield from page
        offset += PAGE
        if len(page) < PAGE:
            return


def asked(address: str, key: str | None) -> Any:
    """The app's answer to a GET. OSError if it does not give one."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=60) as answer:  # noqa: S310
        return json.load(answer)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Rebuild a search index from twin.features.chunks alone.")
    parser.add_argument("--bootstrap", default="127.0.0.1:9092", help="the log's address")
    parser.add_argument("--topic", default="twin.features.chunks")
    parser.add_argument("--nearest", metavar="CHUNK_ID", help="show the passages nearest to this one")
    parser.add_argument("--check", metavar="URL", help="compare with the app here; its key in TWIN_KEY")
    given = parser.parse_args(arguments)
    states: dict[str, State] = {}
    messages = tombstones = 0
    try:
        for message in read_topic(given.bootstrap, given.topic):
            apply(states, message)
            messages += 1
            tombstones += message.value() is None
        index = SearchIndex(states)
        chunks = sum(len(state.chunks) for state in states.values())
        print(
            f"{messages} messages, {tombstones} of them tombstones: "
            f"{len(states)} documents, {chunks} chunks of generation {index.generation or 'none'}"
        )
        if given.nearest:
            for cosine, chunk in index.nearest(given.nearest):
                print(f"{cosine:.3f}  {chunk.chunk_id}  {' '.join(chunk.text.split())[:80]}")
        if given.check:
            found = list(differences(states, given.check.rstrip("/"), os.environ.get("TWIN_KEY")))
            print("\n".join(found) or f"equal to the app at {given.check}")
            return 1 if found else 0
    except OSError as error:
        print(f"rebuild_index: the app at {given.check} does not answer: {error}", file=sys.stderr)
        return 1
    except (UnknownSchema, LogUnreadable, NoSuchChunk) as error:
        print(f"rebuild_index: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
