"""A source, its capture, a log and the processes of the dataflow, all in this process, so that any of it can fail.

Of our own are the source and the log; what becomes of a message is the real code: decode, index_batch, the index over
Qdrant Edge, and the feature messages.
"""

from __future__ import annotations

import base64
import copy
import random
import struct
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import qdrant_edge
from model import GENERATION, DigestEmbedder, Expected, expected, vector_of

from corpus.agreement import compare
from corpus.documents import Document, source_version, to_record
from corpus.index import QdrantIndex, Record, open_index
from corpus.points import IndexUnavailable
from corpus.settings import load
from streaming.changes import Message, decode, delete_envelope, upsert_envelope
from streaming.indexing import Outcome, index_batch
from streaming.log import Log, features
from streaming.reconcile import strays

HERE = "11111111-2222-4333-8444-555555555555"
ELSEWHERE = "99999999-2222-4333-8444-555555555555"
DATABASE = "twin"
PARTITIONS = 3
READS = frozenset({"retrieve", "scroll", "nearest", "count"})
CLOSE_ENOUGH = 1e-5
FORMER = 100
KEPT = 300
LOG = Log("", "changes", "documents", "chunks", "letters", "index", lambda: "")


class Killed(BaseException):
    """The process ended here, as by kill -9. Of BaseException, so that nothing that catches errors goes on."""


class Effects:
    """What one process does to the world outside it, one by one.

    `kill=(n, "before" | "after")`: it dies at its n-th effect; `away=n`: from the n-th on the index does not answer;
    `turn` is called before every effect and every read, where another process may come in between; `look` after every
    effect, for somebody who reads meanwhile.
    """

    def __init__(self) -> None:
        self.done: list[str] = []
        self.kill: tuple[int, str] | None = None
        self.away: int | None = None
        self.turn: Callable[[], None] = lambda: None
        self.look: Callable[[], None] = lambda: None

    def read(self, act: Callable[[], Any]) -> Any:
        self.turn()
        return act()

    def do(self, name: str, act: Callable[[], Any]) -> Any:
        self.turn()
        number = len(self.done) + 1
        if self.kill == (number, "before"):
            raise Killed
        if self.away is not None and number >= self.away and not name.startswith(("publish", "commit")):
            raise IndexUnavailable("the index is away")
        result = act()
        self.done.append(name)
        self.look()
        if self.kill == (number, "after"):
            raise Killed
        return result


class ObservedPoints:
    """A collection as one process sees it."""

    def __init__(self, points: Any, effects: Effects, name: str) -> None:
        self._points, self._effects, self._name = points, effects, name

    def __getattr__(self, method: str) -> Any:
        act = getattr(self._points, method)
        if not callable(act):
            return act
        if method in READS:
            return lambda *given, **named: self._effects.read(lambda: act(*given, **named))
        return lambda *given, **named: self._effects.do(f"{method} {self._name}", lambda: act(*given, **named))


@dataclass
class Held:
    """A document of the warehouse: its record; what it can become, None where it is refused; what it was before.

    `former`: the contents since the document was last new that could be indexed: any of them may stay while the newest
    is refused, since several changes of a batch are one.
    """

    record: dict[str, Any]
    document: Document | None
    former: tuple[Document, ...] = ()


@dataclass
class World:
    """`documents`: the warehouse. `log`: messages by partition; `life` names the log's; `committed`: by partition.

    `held`: changes that capture keeps back while it takes a snapshot; `gap`: whether changes were lost, so that only
    a comparison finds deletions; `buried`: the contents of documents deleted since everything was last at rest.
    """

    directory: Path
    random: random.Random = field(default_factory=lambda: random.Random(0))
    documents: dict[str, Held] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)
    log: list[list[Message | None]] = field(default_factory=lambda: [[] for _ in range(PARTITIONS)])
    committed: list[int] = field(default_factory=lambda: [0] * PARTITIONS)
    life: int = 1
    topics: dict[str, dict[bytes | None, bytes | None]] = field(default_factory=dict)
    letters: set[str] = field(default_factory=set)
    milliseconds: int = 1_700_000_000_000
    order: int = 0
    held: list[tuple[str, Mapping[str, Any] | None]] | None = None
    dropping: bool = False
    gap: bool = False
    buried: dict[str, tuple[Document, ...]] = field(default_factory=dict)
    embedder: DigestEmbedder = field(default_factory=DigestEmbedder)

    def __post_init__(self) -> None:
        self._index = self._opened()

    # The source

    def version(self) -> int:
        """The version of the next change; several fall into one millisecond."""
        if self.random.random() < 0.5:
            self.milliseconds, self.order = self.milliseconds + self.random.randint(1, 50), 0
        self.order += 1
        return source_version(self.milliseconds, self.order)

    def put(self, document: Document, **wrong: Any) -> None:
        """Insert or update; `wrong` are fields of the record that make it one that is refused."""
        record = {**to_record(document), **wrong}
        held = self.documents.get(document.id)
        former = held.former if held else self.buried.get(document.id, ()) if self.gap else ()
        good = document if not wrong and indexable(document) else None
        self.documents[document.id] = Held(record, good, (*former[-FORMER:], document) if good else former)
        self.known.add(document.id)
        self._captured(document.id, upsert_envelope(record, self.version(), DATABASE, HERE))

    def remove(self, id: str) -> None:
        self.buried[id] = self.documents.pop(id).former
        self._captured(id, delete_envelope(id, self.version(), DATABASE, HERE))
        self._captured(id, None)

    def _captured(self, id: str, envelope: Mapping[str, Any] | None) -> None:
        if self.dropping:
            self.gap = True
        elif self.held is not None:
            self.held.append((id, envelope))
        else:
            self._append(id, envelope)

    def _append(self, id: str, envelope: Mapping[str, Any] | None) -> None:
        fields = envelope or {"key": delete_envelope(id, 0, DATABASE, HERE)["key"], "value": None}
        partition = int(id[:8], 16) % PARTITIONS
        messages = self.log[partition]
        messages.append(Message("changes", partition, len(messages), log=f"life-{self.life}", **fields))

    def append_read(self, id: str) -> None:
        """A snapshot's read of the document as it is."""
        self._append(id, _as_read(upsert_envelope(self.documents[id].record, 0, DATABASE, HERE)))

    def append_foreign(self, document: Document) -> None:
        """A change of another warehouse in the same log."""
        self._append(document.id, upsert_envelope(to_record(document), self.version(), DATABASE, ELSEWHERE))

    def snapshot(self, meanwhile: Callable[[], None]) -> None:
        """Read the warehouse into the log; `meanwhile` changes it, and capture tells of that after the snapshot."""
        self.held = []
        for id in list(self.documents):
            if id in self.documents:
                self.append_read(id)
            if self.random.random() < 0.05:
                meanwhile()
        kept, self.held = self.held, None
        for id, envelope in kept:
            self._append(id, envelope)

    def lose_log(self) -> None:
        """The log starts anew without a message, the features' topics too."""
        self.life += 1
        self.log, self.committed = [[] for _ in range(PARTITIONS)], [0] * PARTITIONS
        self.topics.clear()
        self.letters.clear()
        self.gap = True
        for id, held in self.documents.items():
            # That it was deleted in between and is another document now is nowhere to be read any more.
            held.former = (*self.buried.get(id, ()), *held.former)

    def compact_log(self) -> None:
        """Of every key only the newest message is kept, and no tombstone that was applied."""
        for partition, messages in enumerate(self.log):
            newest = {message.key: message.offset for message in messages if message is not None}
            for offset in range(self.committed[partition]):
                message = messages[offset]
                if message is not None and (newest[message.key] != offset or message.value is None):
                    messages[offset] = None

    def reconcile(self) -> int:
        """What the app does about changes that never arrived; how many it sent again."""
        stamps: list[Any] = [
            SimpleNamespace(id=id, content_hash=held.record["content_hash"], crawled_at=held.record["crawled_at"])
            for id, held in self.documents.items()
        ]
        # The warehouse's clock is its last write, not a moment after it.
        version = source_version(self.milliseconds, self.order)
        records = list(self._index.scan())
        difference = compare(stamps, records)
        found = dict.fromkeys((*difference.behind, *difference.leftover, *strays(records, self._index, version)))
        for id in found:
            held = self.documents.get(id)
            self._append(
                id,
                delete_envelope(id, version, DATABASE, HERE)
                if held is None
                else upsert_envelope(held.record, version, DATABASE, HERE),
            )
        return len(found)

    # Processes

    def process(self) -> Process:
        return Process(self)

    def reopen(self) -> None:
        """As a process that starts after one that was killed."""
        self._index.close()
        self._index = self._opened()

    def close(self) -> None:
        self._index.close()

    def index_of(self, effects: Effects) -> QdrantIndex:
        """The one index as a process of its own sees it."""
        seen = copy.copy(self._index)
        seen._chunks = ObservedPoints(self._index._chunks, effects, "chunks")
        seen._ledger = ObservedPoints(self._index._ledger, effects, "ledger")
        return seen

    def _opened(self) -> QdrantIndex:
        return open_index(load({"TWIN_HOME": str(self.directory)}), GENERATION, DigestEmbedder.dimensions)

    def ends(self) -> list[int]:
        return [len(messages) for messages in self.log]

    # The comparison

    def at_rest(self) -> None:
        """Everything was delivered, and what was lost was found."""
        self.gap = False
        self.buried.clear()
        for messages, committed in zip(self.log, self.committed, strict=True):
            # Farther back nobody starts again: let it go, as retention does.
            old = max(0, committed - KEPT)
            messages[max(0, old - KEPT) : old] = [None] * (old - max(0, old - KEPT))

    def records(self) -> dict[str, Record]:
        """Every record of the ledger, tombstones among them."""
        return self._index.records(sorted(self.known))

    def difference(self, only: Iterable[str] | None = None) -> str | None:
        """The first thing in which index, ledger or topics are not what the warehouse says; None if they are equal.

        `only`: of these documents alone, for a world with many that a test is done with.
        """
        ids = sorted(self.known if only is None else only)
        records = self._index.records(ids)
        points = _all_points(self._index._chunks, None if only is None else ids)
        owners: dict[str, dict[str, Any]] = {}
        for point in points:
            owners.setdefault(str(point.payload["document_id"]), {})[str(point.id)] = point
        for id in ids:
            found = self._of_document(id, records.get(id), owners.pop(id, {}))
            if found:
                return f"document {id}: {found}"
        if owners:
            return f"points of documents that never were: {sorted(owners)}"
        if only is None and (count := self._index._ledger.count(_everything())) != len(records):
            return f"the ledger has {count} records, known are {len(records)}"
        return None

    def _of_document(self, id: str, record: Record | None, points: dict[str, Any]) -> str | None:
        held = self.documents.get(id)
        messages = [self.topics.get(topic, {}).get(id.encode()) for topic in (LOG.documents, LOG.chunks)]
        if held is None:
            if record is not None and not (record.deleted and record.version is None and not record.text):
                return f"is deleted, the ledger has {_brief(record)}"
            if points:
                return f"is deleted, points are left: {sorted(points)}"
            return "is deleted, its messages are left" if messages != [None, None] else None
        if record is None:
            return "is not in the ledger"
        if record.deleted:
            return f"is alive, the ledger has {_brief(record)}"
        if held.document is None:
            if record.failure is None:
                return f"is refused, the ledger does not say so: {_brief(record)}"
            if id not in self.letters:
                return "is refused, and there is no letter"
            if record.version is None:
                if points or messages != [None, None]:
                    return f"has no version, but points {sorted(points)} or messages {messages != [None, None]}"
                return None
            return _was(held.former, record, points, messages)
        if record.failure is not None:
            return f"can be indexed, the ledger says {record.failure}"
        wanted = expected_of(held.document)
        return (
            _in_ledger(record, wanted)
            or _in_index(record, wanted, points)
            or _downstream(record, wanted, messages[0], messages[1])
        )


def _was(
    former: Sequence[Document], record: Record, points: Mapping[str, Any], messages: Sequence[bytes | None]
) -> str | None:
    """While the newest content is refused, the index is a former one; downstream may be told of one before that."""
    found: str | None = f"is refused, and what is shown it never was: {_brief(record)}"
    for document in former:
        if document.content_hash == record.content_hash and found is not None:
            wanted = expected_of(document)
            found = _in_ledger(record, wanted) or _in_index(record, wanted, points)
    told, parts = (msgspec.json.decode(message) if message else None for message in messages)
    if told and told["content_hash"] not in {document.content_hash for document in former}:
        return f"is refused, and downstream is told what it never was: {told}"
    known = [[each.id for each in expected_of(document).passages] for document in former]
    if parts and [part["chunk_id"] for part in parts["chunks"]] not in known:
        return "is refused, and downstream has chunks that it never had"
    return found


def _in_ledger(record: Record, wanted: Expected) -> str | None:
    places = [(place.chunk_id, place.start, place.end, place.heading_path) for place in record.places]
    if places != [(each.id, each.start, each.end, each.heading_path) for each in wanted.passages]:
        return f"has other places in the ledger: {places}"
    for name, value in wanted.told.items():
        if getattr(record, name) != value:
            return f"ledger's {name} is {getattr(record, name)!r}, not {value!r}"
    if record.version is None or record.version > record.seen:
        return f"ledger's version {record.version} is not within what was seen, {record.seen}"
    return None


def _in_index(record: Record, wanted: Expected, points: Mapping[str, Any]) -> str | None:
    if set(points) != {each.id for each in wanted.passages}:
        missing = [each.id for each in wanted.passages if each.id not in points]
        left = sorted(set(points) - {each.id for each in wanted.passages})
        versions = [points[id].payload["version"] for id in left]
        return f"missing points {missing}, left over {left} of versions {versions}, indexed is {record.version}"
    for each in wanted.passages:
        point = points[each.id]
        payload = {**each.payload, "version": record.version, "generation": GENERATION}
        for name in sorted({*payload, *point.payload}):
            if point.payload.get(name) != payload.get(name):
                return f"point {each.id}: {name} is {point.payload.get(name)!r}, not {payload.get(name)!r}"
        if not _close(point.vector["dense"], vector_of(each.payload["text"])):
            return f"point {each.id}: another text's vector"
        sparse = point.vector["sparse"]
        if dict(zip(sparse.indices, sparse.values, strict=True)) != _words(each.words):
            return f"point {each.id}: other words than {each.words[:60]!r}"
    return None


def _downstream(record: Record, wanted: Expected, document: bytes | None, chunks: bytes | None) -> str | None:
    if document is None or chunks is None:
        return "downstream was not told"
    told = msgspec.json.decode(document)
    for name, value in wanted.told.items():
        plain = msgspec.to_builtins(value)
        if told.get(name) != plain:
            return f"documents topic: {name} is {told.get(name)!r}, not {plain!r}"
    parts = msgspec.json.decode(chunks)
    if (told["version"], parts["version"]) != (record.version, record.version):
        return f"topics tell versions {told['version']} and {parts['version']}, the ledger {record.version}"
    if [part["chunk_id"] for part in parts["chunks"]] != [each.id for each in wanted.passages]:
        return "chunks topic: other chunks"
    for part, each in zip(parts["chunks"], wanted.passages, strict=True):
        own = {name: each.payload[name] for name in ("position", "heading_path", "text")}
        if {name: part[name] for name in own} != own:
            return f"chunks topic: {part['chunk_id']} is not {own}"
        vector = struct.unpack(f"<{DigestEmbedder.dimensions}f", base64.b64decode(part["embedding"]))
        if not _close(vector, vector_of(own["text"])):
            return f"chunks topic: {part['chunk_id']} has another text's vector"
    return None


def _close(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(abs(a - b) < CLOSE_ENOUGH for a, b in zip(one, other, strict=True))


class Process:
    """One run of the dataflow: it reads from the committed offsets on, applies, publishes and commits."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.effects = Effects()
        self.index = world.index_of(self.effects)
        self.positions = list(world.committed)
        self.life = world.life

    def read(self, limit: int) -> list[Message]:
        """Up to so many messages from any partitions; order is kept within a partition."""
        received: list[Message] = []
        for partition in self.world.random.sample(range(PARTITIONS), PARTITIONS):
            messages = self.world.log[partition]
            while self.positions[partition] < len(messages) and len(received) < limit:
                message = messages[self.positions[partition]]
                self.positions[partition] += 1
                if message is not None:
                    received.append(message)
        return received

    def indexed(self, messages: Sequence[Message]) -> list[Outcome]:
        return index_batch([decode(message, HERE) for message in messages], self.index, self.world.embedder)

    def apply(self, messages: Sequence[Message]) -> list[Outcome]:
        outcomes = self.indexed(messages)
        self.publish(outcomes)
        self.commit()
        return outcomes

    def publish(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            for topic, key, value in features(outcome, LOG, GENERATION):
                self.effects.do(f"publish {topic}", lambda t=topic, k=key, v=value: self._published(t, k, v))

    def _published(self, topic: str, key: bytes | None, value: bytes | None) -> None:
        if self.life != self.world.life:
            return
        if topic == LOG.dead_letters:
            self.world.letters.add((key or b"").decode())
            return
        self.world.topics.setdefault(topic, {})[key] = value

    def commit(self) -> None:
        self.effects.do("commit", self._committed)

    def _committed(self) -> None:
        if self.life == self.world.life:
            self.world.committed = list(self.positions)

    def catch_up(self, limit: int = 32) -> None:
        """Apply everything that the log has."""
        while self.positions != self.world.ends():
            self.apply(self.read(limit))


class Turns:
    """Two processes in turn: at each of their effects and reads a seeded choice says who goes on."""

    def __init__(self, source: random.Random) -> None:
        self._random = source
        self._changed = threading.Condition()
        self._alive: set[int] = set()
        self._now = 0

    def run(self, *acts: tuple[Effects, Callable[[], None]]) -> None:
        """Run all to their end. What one raises is raised when all have ended, Killed and an index away apart."""
        errors: list[BaseException] = []
        self._alive = set(range(len(acts)))

        def one(number: int, effects: Effects, act: Callable[[], None]) -> None:
            effects.turn = lambda: self._turn(number)
            try:
                self._wait_for(number)
                act()
            except (Killed, IndexUnavailable):
                pass
            except BaseException as error:
                errors.append(error)
            finally:
                effects.turn = lambda: None
                with self._changed:
                    self._alive.discard(number)
                    self._now = self._choose()
                    self._changed.notify_all()

        threads = [threading.Thread(target=one, args=(number, *act)) for number, act in enumerate(acts)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def _turn(self, number: int) -> None:
        with self._changed:
            self._now = self._choose()
            self._changed.notify_all()
        self._wait_for(number)

    def _choose(self) -> int:
        return self._random.choice(sorted(self._alive)) if self._alive else -1

    def _wait_for(self, number: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._now == number)


def indexable(document: Document) -> bool:
    try:
        expected_of(document)
    except ValueError:
        return False
    return True


@lru_cache(5_000)
def _expected_of_fields(content: tuple[Any, ...]) -> Expected:
    return expected(Document(*content[:-1], dict(content[-1])))


def expected_of(document: Document) -> Expected:
    fields = tuple(getattr(document, name) for name in Document.__dataclass_fields__ if name != "metadata")
    return _expected_of_fields((*fields, tuple(sorted(document.metadata.items()))))


@lru_cache(20_000)
def _words(text: str) -> dict[int, float]:
    vector = _bm25().embed_document(text)
    return dict(zip(vector.indices, vector.values, strict=True))


@lru_cache(1)
def _bm25() -> Any:
    return qdrant_edge.Bm25(qdrant_edge.Bm25Config(language="english"))


def _all_points(chunks: Any, ids: Sequence[str] | None) -> Iterable[Any]:
    condition = (
        None
        if ids is None
        else qdrant_edge.Filter(
            must=[qdrant_edge.FieldCondition(key="document_id", match=qdrant_edge.MatchAny(any=list(ids)))]
        )
    )
    offset = None
    while True:
        request = qdrant_edge.ScrollRequest(
            offset=offset, limit=1_000, filter=condition, with_payload=True, with_vector=True
        )
        points, offset = chunks._shard.scroll(request)
        yield from points
        if offset is None:
            return


def _everything() -> Any:
    from corpus.points import Where

    return Where()


def _as_read(envelope: Mapping[str, Any]) -> Mapping[str, Any]:
    """A change as a snapshot's read: within the document's own JSON the quotes are escaped."""
    value = envelope["value"].replace(b'"op":"u"', b'"op":"r"').replace(b'"ord":0', b'"ord":-1')
    return {**envelope, "value": value}


def _brief(record: Record) -> str:
    return str(replace(record, text=record.text[:30], places=record.places[:1]))
