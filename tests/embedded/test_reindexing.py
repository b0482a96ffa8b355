"""Generations change roles: a crash between any two steps is finished at the next start, and nothing is ever mixed."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from corpus import categories, generations
from corpus import index as index_module
from corpus.documents import Document, source_version, to_record
from corpus.embedding import EmbedderUnavailable
from corpus.generations import Alias, FileAliases, GenerationMismatch
from corpus.settings import Settings, load
from corpus.warehouse import Erasure, Stamp
from embedded import reindexing
from embedded.app import Stream
from embedded.reindexing import Generations
from streaming import erase
from streaming.changes import REPAIR_HEADER, Message, decode, delete_envelope, upsert_envelope
from streaming.indexing import Indexed, Removed, index_batch
from streaming.log import Log
from streaming.progress import Progress
from streaming.reconcile import Repaired
from tests.streaming.samples import HERE, BagEmbedder, WordEmbedder, document, story

MILLISECOND = 1_700_000_000_000
OLD, NEW, RANDOM = "old", "new", "random"


class Killed(BaseException):
    """The process ended here."""


@dataclass
class World:
    """A warehouse, the log of its changes and what downstream was told: all that outlives the process.

    `dies_at`: after how many effects it is killed, None for never; `effects`: what has been done since.
    """

    home: Path
    documents: dict[str, Document] = field(default_factory=dict)
    log: list[Message] = field(default_factory=list)
    offsets: dict[str, int] = field(default_factory=dict)
    told: dict[str, str | None] = field(default_factory=dict)
    running: list[Runner] = field(default_factory=list)
    clock: int = MILLISECOND
    dies_at: int | None = None
    effects: list[str] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)

    # As a warehouse

    def now(self) -> int:
        return source_version(self.clock, 0)

    def identity(self) -> str:
        return HERE

    def count(self) -> int:
        return len(self.documents)

    def stamps(self, ids: Iterable[str] | None = None) -> Iterator[Stamp]:
        for one in [
            self.documents[id] for id in (list(self.documents) if ids is None else ids) if id in self.documents
        ]:
            yield Stamp(
                one.id, one.content_hash, one.crawled_at, one.title, one.url, one.author_name, one.category, "p"
            )

    def raw_records(self, ids: Iterable[str]) -> Iterator[dict[str, Any]]:
        yield from (to_record(self.documents[id]) for id in ids if id in self.documents)

    # As its users

    def save(self, name: str, text: str) -> None:
        one = document(name, text)
        self.documents[one.id] = one
        self.change(one.id)

    def delete(self, name: str) -> None:
        id = document(name, "").id
        del self.documents[id]
        self.change(id)

    def change(self, id: str, headers: Sequence[tuple[str, bytes]] = ()) -> None:
        self.clock += 1
        one = self.documents.get(id)
        envelope = delete_envelope(id, self.now(), "twin", HERE)
        if one is not None:
            envelope = upsert_envelope(to_record(one), self.now(), "twin", HERE)
        told = (*envelope["headers"], *headers)
        self.log.append(Message("changes", 0, len(self.log), envelope["key"], envelope["value"], told, "life"))

    # As a machine

    def done(self, effect: str) -> None:
        """One more effect is lasting; the machine may die right after it."""
        self.effects.append(effect)
        if self.dies_at is not None and len(self.effects) > self.dies_at:
            raise Killed(effect)

    def settle(self) -> None:
        for runner in list(self.running):
            runner.step()

    def embedder(self, settings: Settings) -> Any:
        if settings.embedding_model in self.missing:
            raise EmbedderUnavailable(f"{settings.embedding_model} is not installed")
        return WordEmbedder() if settings.embedding_model == RANDOM else BagEmbedder(settings.embedding_model)

    def start(self, model: str = OLD, **settings: Any) -> Generations:
        """A process of the app."""
        given = {"TWIN_HOME": str(self.home), "TWIN_EMBEDDING_MODEL": model, **settings}
        chosen = load(given)
        app = Generations(
            chosen,
            self,  # type: ignore[arg-type]
            aliases=Watched(FileAliases(self.home / "index"), self),
            load=self.embedder,
            stream=partial(StreamOf, self),
            runner=partial(Runner, self),
            handed_over=self.hand_over,
        )
        try:
            app.open()
        except BaseException:
            self.end(app)
            raise
        return app

    def hand_over(self, former: Log, candidate: Log, successor: Log) -> None:
        begin = min(self.offsets.get(log.group(""), 0) for log in (former, candidate))
        self.offsets[successor.group("")] = begin
        self.done("offsets handed over")

    def end(self, app: Generations) -> None:
        """The process is gone, with whatever it had not done."""
        self.running.clear()
        for index in app._opened:
            index.close()
        app._opened.clear()


class Watched:
    """Aliases each of whose effects may be the last."""

    def __init__(self, aliases: FileAliases, world: World) -> None:
        self._aliases, self._world = aliases, world
        self.read, self.size = aliases.read, aliases.size

    def claim(self, first: Alias) -> Alias:
        return self._aliases.claim(first)

    def write(self, alias: Alias) -> None:
        self._world.done("before the alias")
        self._aliases.write(alias)
        self._world.done("alias written")

    def remove(self, name: str) -> None:
        self._aliases.remove(name)
        self._world.done("removed")


class StreamOf(Stream):
    def __init__(self, world: World, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.world, self.warehouse_id = world, HERE

    def settle(self) -> None:
        for runner in self.world.running:
            if runner.stream is self:
                runner.step()

    def send(self, ids: Iterable[str], *, repair: bool = False) -> Repaired:
        sent = list(ids)
        headers = [(REPAIR_HEADER, b"1")] if repair else []
        for id in sent:
            self.world.change(id, headers)
        self.world.done("sent")
        return Repaired(len(sent), 0)


class Runner:
    """A dataflow that does a batch when it is told to."""

    def __init__(
        self, world: World, build: Callable[..., Any], progress: Progress, workers: int, *, background: bool
    ) -> None:
        self.world, self.progress = world, progress
        self.stream: StreamOf = build.__self__  # type: ignore[attr-defined]
        self.busy = threading.Lock()

    def start(self) -> None:
        self.world.running.append(self)
        self.progress.report("running", None)
        self.progress.reads({0: len(self.world.log)})
        self.progress.committed(0, self.world.offsets.get(self.group(), 0))
        self.world.done("started")

    def stop(self) -> None:
        with self.busy:
            if self in self.world.running:
                self.world.running.remove(self)
        self.progress.report("stopped", None)
        self.world.done("stopped")

    def group(self) -> str:
        return self.stream.log().group("")

    def step(self) -> None:
        with self.busy:
            if self in self.world.running:
                self._apply()

    def _apply(self) -> None:
        begin, stream = self.world.offsets.get(self.group(), 0), self.stream
        while begin < len(self.world.log):
            messages = self.world.log[begin : begin + 7]
            events = [decode(message, HERE) for message in messages]
            if stream.frozen:
                events = [event for event in events if type(event).__name__ == "Delete"]
            for outcome in index_batch(events, stream.index, stream.embedder):
                if stream.publishes and isinstance(outcome, Indexed):
                    self.world.told[outcome.record.document_id] = stream.index.generation
                elif stream.publishes and isinstance(outcome, Removed):
                    self.world.told[outcome.change.document_id] = None
            begin += len(messages)
            self.world.offsets[self.group()] = begin
            self.progress.reads({0: len(self.world.log)})
            self.progress.committed(0, begin)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a place: the engine waits for the disk with every collection that it makes."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as made:
        yield Path(made)


@pytest.fixture(autouse=True)
def no_request_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reindexing, "GRACE_SECONDS", 0.0)


@pytest.fixture
def world(place: Path) -> World:
    made = World(place)
    for number in range(12):
        made.save(f"d{number}", story(number))
    return made


def name_of(model: str) -> str:
    return categories.generation(BagEmbedder(model) if model != RANDOM else WordEmbedder())


def looked(world: World, app: Generations) -> None:
    """Everything is applied, and downstream has been told."""
    world.settle()
    world_look = threading.Thread(target=app.look)
    world_look.start()
    while world_look.is_alive():
        world.settle()
        world_look.join(0.01)
    world.settle()


def must_hold(world: World, app: Generations) -> None:
    """What is served is whole, is one generation, is what the alias names and what downstream was told."""
    alias = FileAliases(world.home / "index").read()
    assert alias is not None
    assert alias == app.alias
    assert app.served.index.generation == alias.live.name
    assert app.served.embedder.name == alias.live.embedder  # type: ignore[attr-defined]
    assert app.served.index is app.live.index
    for stream in app.streams():
        report = stream.verify()
        assert (report.found, report.documents) == (0, len(world.documents))
    assert {path.name for path in (world.home / "index").iterdir() if path.is_dir()} == {
        generation.name for generation in (alias.live, alias.beside) if generation
    }
    assert {id for id, told in world.told.items() if told} == set(world.documents)
    assert {told for told in world.told.values() if told} == {alias.live.name}
    assert [runner.stream.publishes for runner in world.running].count(True) == 1


def test_another_generation_is_built_beside_the_live_one_promoted_and_rolled_back(world: World) -> None:
    app = world.start()
    looked(world, app)
    assert app.act("start", NEW)["done"]
    assert app.served.index.generation == name_of(OLD)
    assert set(world.told.values()) == {name_of(OLD)}

    looked(world, app)
    world.save("d1", story(100))
    world.delete("d2")
    promoted = app.act("promote", generation=name_of(NEW))
    looked(world, app)

    assert (promoted["done"], promoted["live"]["generation"]) == (True, name_of(NEW))
    assert promoted["examined"]["recall"]["questions"] > 10
    must_hold(world, app)
    assert world.told[document("d2", "").id] is None

    world.save("d3", story(101))
    world.delete("d4")
    assert app.act("rollback")["done"]
    looked(world, app)

    assert app.alias.live.name == name_of(OLD)
    must_hold(world, app)
    assert not app.act("rollback")["done"]
    assert app.act("cancel")["done"]
    must_hold(world, app)
    app.close()


def test_a_refused_document_is_nothing_to_wait_for(world: World) -> None:
    world.save("refused", "  \n ")
    app = world.start()
    looked(world, app)
    app.act("start", NEW)
    begun = app.status()["candidate"]
    looked(world, app)

    built = app.status()["candidate"]

    assert (begun["built"], begun["refused"]) == (False, 0)
    assert (built["built"], built["refused"], built["lag"]) == (True, 1, 0)
    assert built["documents"] == built["total"] - 1
    app.close()


def test_a_request_that_is_sent_twice_acts_once(world: World) -> None:
    app = world.start()
    for _ in range(2):
        assert app.act("start", NEW)["done"]
    looked(world, app)
    for _ in range(2):
        assert app.act("promote", generation=name_of(NEW))["done"]
    assert app.alias.live.name == name_of(NEW)
    for _ in range(2):
        assert app.act("rollback", generation=name_of(OLD))["done"]
    assert app.alias.live.name == name_of(OLD)
    assert app.act("promote", generation=name_of(NEW))["done"]
    for _ in range(2):
        assert app.act("drop", generation=name_of(OLD))["done"]
    app.close()


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        ("cancel", "no generation is being built: `twin reindex start`"),
        ("promote", "no generation is being built: `twin reindex start`"),
        ("rollback", "no former generation is kept"),
        ("drop", "no former generation is kept"),
        ("start", "is live: nothing would change"),
    ],
)
def test_what_cannot_be_done_says_why(world: World, action: str, sentence: str) -> None:
    app = world.start()

    answer = app.act(action, OLD if action == "start" else None)

    assert not answer["done"]
    assert sentence in answer["reasons"][0]
    app.close()


def test_generations_do_not_wait_for_an_erasure_without_a_word(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = Erasure(id="e", document_ids=(), author_ids=(), erased_at=datetime.now(UTC))
    reached, ended = threading.Event(), threading.Event()

    def finish(_: object, erasure: Erasure, went_on: Callable[[str], None]) -> dict[str, Any]:
        went_on("authors")
        reached.set()
        assert ended.wait(60)
        return {"left": 0}

    monkeypatch.setattr(erase, "finish", finish)
    monkeypatch.setattr(world, "erasures", lambda _: [begun], raising=False)
    app = world.start()
    erasing = threading.Thread(target=app.erase, args=("e", [], None))
    erasing.start()
    assert reached.wait(60)

    answer = app.act("start", NEW)

    ended.set()
    erasing.join()
    assert (answer["done"], answer["candidate"]) == (False, None)
    assert answer["reasons"] == [
        "erasure e is under way (waiting for the index to follow): ask again when it has ended"
    ]
    assert answer["erasing"] == {"id": "e", "doing": "waiting for the index to follow"}
    assert app.act("start", NEW)["done"]
    assert app.status()["erasing"] is None
    app.close()


def test_a_third_generation_waits_until_the_second_is_gone(world: World) -> None:
    app = world.start()
    app.act("start", NEW)
    assert "`twin reindex cancel` first" in app.act("start", "third")["reasons"][0]
    looked(world, app)
    app.act("promote")
    assert "`twin reindex drop`" in app.act("start", "third")["reasons"][0]
    assert "`twin reindex rollback`" in app.act("start", OLD)["reasons"][0]
    app.close()


def test_a_generation_that_finds_worse_is_not_promoted(world: World) -> None:
    app = world.start()
    looked(world, app)
    app.act("start", RANDOM)
    looked(world, app)

    answer = app.act("promote")

    assert not answer["done"]
    assert any("by meaning alone" in reason for reason in answer["reasons"])
    assert app.served.index.generation == name_of(OLD)
    app.close()


def test_a_generation_that_is_not_what_the_warehouse_says_is_not_promoted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = world.start()
    app.act("start", NEW)
    looked(world, app)
    candidate = app.beside
    assert candidate is not None
    record = next(candidate.index.scan())
    candidate.index.remove((), record.chunk_ids)
    monkeypatch.setattr(candidate, "send", lambda ids, repair=False: Repaired(0, 0))

    answer = app.act("promote")

    assert any("is not what the warehouse says" in reason for reason in answer["reasons"])
    app.close()


def test_what_the_log_no_longer_holds_is_brought_in_before_a_promotion(world: World) -> None:
    app = world.start()
    looked(world, app)
    kept = world.log[-1]
    world.log[:] = [replace(kept, value=None)] * len(world.log)
    app.act("start", NEW)
    looked(world, app)
    candidate = app.beside
    assert candidate is not None
    assert candidate.index.counts().documents == 0

    assert app.act("promote")["done"]

    looked(world, app)
    must_hold(world, app)
    app.close()


def test_a_deletion_that_only_the_candidate_has_applied_reaches_downstream(world: World) -> None:
    app = world.start()
    app.act("start", NEW)
    looked(world, app)
    world.delete("d5")
    candidate = app.beside
    assert candidate is not None
    candidate.settle()
    assert world.told[document("d5", "").id] == name_of(OLD)

    assert app.act("promote")["done"]
    world.settle()

    assert world.told[document("d5", "").id] is None
    app.close()


def start(app: Generations) -> None:
    app.act("start", NEW)


def cancel(app: Generations) -> None:
    app.act("cancel")


def promote(app: Generations) -> None:
    app.act("promote", generation=name_of(NEW))
    app._republish_some()


def roll_back(app: Generations) -> None:
    app.act("rollback", generation=name_of(OLD))
    app._republish_some()


def drop(app: Generations) -> None:
    app.act("drop")


@pytest.mark.integration
@pytest.mark.parametrize(
    ("before", "action", "live"),
    [
        ((), start, OLD),
        ((start,), cancel, OLD),
        ((start,), promote, NEW),
        ((start, promote), roll_back, OLD),
        ((start, promote), drop, NEW),
    ],
    ids=["start", "cancel", "promote", "rollback", "drop"],
)
def test_a_crash_after_any_effect_is_finished_by_the_next_start(
    place: Path, before: Sequence[Callable[..., None]], action: Callable[..., None], live: str
) -> None:
    """Killed after the first effect, then after the second, until it gets through; each time twice in a row."""
    for number in range(100):
        world = World(place / str(number))
        for name in range(4):
            world.save(f"d{name}", story(name))
        app = world.start()
        looked(world, app)
        for earlier in before:
            earlier(app)
            looked(world, app)
        world.delete("d1")
        world.effects.clear()
        world.dies_at = number
        killed = False
        try:
            action(app)
        except Killed:
            killed = True
        world.dies_at = None
        world.end(app)
        world.save("d2", story(50))
        # Killed once more in the middle of coming up, where it has something to finish.
        world.effects.clear()
        world.dies_at = 1
        with suppress(Killed):
            world.end(world.start())
        world.dies_at = None
        app = world.start()
        looked(world, app)
        must_hold(world, app)

        action(app)

        looked(world, app)
        assert app.alias.live.name == name_of(live)
        must_hold(world, app)
        app.close()
        if not killed:
            assert number >= 2
            return
    raise AssertionError("it never got through")


def test_settings_that_ask_for_another_model_are_told_and_the_live_one_serves(world: World) -> None:
    first = world.start(OLD)
    looked(world, first)
    first.close()

    app = world.start(NEW)

    assert app.served.index.generation == name_of(OLD)
    assert app.served.embedder.name == OLD  # type: ignore[attr-defined]
    assert "the settings ask for new: `twin reindex start`" in app.status()["note"]
    app.act("start", NEW)
    assert app.status()["note"] is None
    app.close()


def test_other_recipes_freeze_the_live_generation_until_it_is_replaced(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = world.start()
    looked(world, first)
    first.close()
    former = name_of(OLD)
    monkeypatch.setattr(categories, "RECIPE_VERSION", 999)

    app = world.start()
    world.save("d0", story(60))
    world.delete("d1")
    world.settle()

    assert app.served.index.generation == former
    assert "made by other recipes" in app.status()["live"]["frozen"]
    gone, edited = document("d1", "").id, document("d0", "").id
    records = app.served.index.records([gone, edited])
    assert records[gone].deleted
    assert records[edited].title == "About d0"
    assert records[edited].content_hash != world.documents[edited].content_hash
    assert app.live.missed() == ()

    looked(world, app)

    assert app.alias.live.name == name_of(OLD) != former
    assert app.alias.former is None
    looked(world, app)
    must_hold(world, app)
    app.close()


def test_a_candidate_of_other_recipes_is_begun_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first = world.start()
    first.act("start", NEW)
    looked(world, first)
    first.close()
    monkeypatch.setattr(categories, "RECIPE_VERSION", 999)

    app = world.start()

    assert app.alias.candidate is not None
    assert app.alias.candidate.name == name_of(OLD)
    assert app.alias.candidate.automatic
    app.close()


def test_other_weights_under_the_same_name_are_not_searched_with(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first = world.start()
    looked(world, first)
    first.close()
    monkeypatch.setattr(World, "embedder", lambda self, settings: BagEmbedder(f"{settings.embedding_model}-2"))

    app = world.start()

    with pytest.raises(GenerationMismatch, match="their vectors cannot be compared"):
        app.served.embedder.embed(["a question"])
    looked(world, app)
    assert app.served.embedder.embed(["a question"]).shape == (1, 128)
    app.close()


def test_a_model_that_is_missing_ends_the_start_where_nothing_else_can_be_built(world: World) -> None:
    first = world.start()
    first.close()
    world.missing = {OLD}

    with pytest.raises(EmbedderUnavailable, match="old is not installed"):
        world.start()


def test_the_former_generation_is_removed_when_its_time_is_over(world: World) -> None:
    app = world.start(OLD, TWIN_GENERATION_RETENTION="0")
    app.act("start", NEW)
    looked(world, app)
    app.act("promote")

    looked(world, app)

    assert app.alias.former is None
    must_hold(world, app)
    app.close()


def test_what_a_request_holds_stays_one_generation_through_a_promotion(world: World) -> None:
    app = world.start()
    app.act("start", NEW)
    looked(world, app)
    held = app.served
    app.act("promote")
    looked(world, app)

    from corpus.index import Filters

    hits = held.index.search("d3", held.embedder.embed(["story"])[0], Filters(), 3)  # type: ignore[arg-type]

    assert (held.index.generation, held.embedder.name) == (name_of(OLD), OLD)  # type: ignore[attr-defined]
    assert len(hits) == 3
    app.close()


def test_a_plan_counts_what_the_wanted_recipe_makes_and_measures_its_rate(world: World) -> None:
    app = world.start()
    world.settle()

    plan = app.plan(NEW)

    assert (plan["generation"], plan["changes"], plan["documents"]) == (name_of(NEW), True, 12)
    assert plan["chunks"] == app.live.index.counts().chunks
    assert plan["tokens"] > plan["chunks"] * 20
    assert plan["chunks_per_second"] > 0
    assert plan["disk_bytes"] > 0
    assert not app.plan(OLD)["changes"]
    app.close()


class Shared:
    """A server's client that several indexes have and none closes."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def close(self) -> None:
        pass


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect", "ignore:Local mode performs exact")
def test_a_process_that_only_serves_takes_index_and_embedder_from_the_new_alias(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qdrant_client import QdrantClient

    client = Shared(QdrantClient(":memory:"))
    monkeypatch.setattr(generations, "server_client", lambda settings: client)
    monkeypatch.setattr(index_module, "server_client", lambda settings: client)
    settings = load(
        {"TWIN_HOME": str(world.home), "TWIN_EMBEDDING_MODEL": OLD, "TWIN_QDRANT_URL": "http://127.0.0.1:6333"}
    )

    def started(*, streaming: bool) -> Generations:
        app = Generations(
            settings,
            world,  # type: ignore[arg-type]
            streaming=streaming,
            load=world.embedder,
            stream=partial(StreamOf, world),
            runner=partial(Runner, world),
            handed_over=world.hand_over,
        )
        app.open()
        return app

    owner, reader = started(streaming=True), started(streaming=False)
    looked(world, owner)
    owner.act("start", NEW)
    looked(world, owner)
    reader.look()
    before = reader.served
    assert (before.index.generation, before.embedder.name) == (name_of(OLD), OLD)  # type: ignore[attr-defined]

    assert owner.act("promote")["done"]
    assert reader.served is before
    reader.look()

    after = reader.served
    assert (after.index.generation, after.embedder.name) == (name_of(NEW), NEW)  # type: ignore[attr-defined]
    assert before.index.generation == name_of(OLD)
    assert owner.act("drop")["done"]
    names = {each.name for each in client.get_collections().collections}
    assert names == {"twin-generations", f"twin-chunks-{name_of(NEW)}", f"twin-documents-{name_of(NEW)}"}

    # Another process of the dataflow takes up what the first one did.
    other = started(streaming=True)
    owner.act("start", "third")
    other.look()
    assert other.beside is not None
    assert other.beside.index.generation == name_of("third")
    for app in (owner, other, reader):
        app.close()
