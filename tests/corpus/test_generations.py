"""The alias over both engines: one value says which generation is live; what it no longer names is removed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from corpus.generations import (
    Alias,
    Aliases,
    FileAliases,
    Generation,
    GenerationMismatch,
    ServerAliases,
    finish_removals,
    must_match,
)
from corpus.index import QdrantIndex, Record, open_generation, server_generation
from corpus.settings import load

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect")
OLD = Generation(id="1", name="minilm-old", model="old", embedder="old-1", dimensions=4)
NEW = Generation(id="2", name="minilm-new", model="new", embedder="new-1", dimensions=8)


class Engine:
    """An index of either engine: its alias, and how one of its generations is opened."""

    def __init__(self, kind: str, home: Path) -> None:
        self.client: Any = None
        self._home, self._opened = home, list[QdrantIndex]()
        if kind == "server":
            from qdrant_client import QdrantClient

            self.client = QdrantClient(":memory:")

    def aliases(self) -> Aliases:
        return ServerAliases(self.client, "twin") if self.client else FileAliases(self._home / "index")

    def open(self, generation: Generation) -> QdrantIndex:
        if self.client:
            return server_generation(self.client, "twin", generation)
        self._opened.append(open_generation(load({"TWIN_HOME": str(self._home)}), generation))
        return self._opened[-1]

    def there(self) -> set[str]:
        """Names of the generations that take place."""
        if self.client:
            names = {each.name for each in self.client.get_collections().collections}
            return {name.removeprefix("twin-chunks-") for name in names if name.startswith("twin-chunks-")}
        return {path.name for path in (self._home / "index").iterdir() if path.is_dir()}

    def close(self) -> None:
        for index in self._opened:
            index.close()
        self._opened.clear()


@pytest.fixture(params=["edge", "server"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    made = Engine(request.param, tmp_path)
    yield made
    made.close()


def test_the_first_to_come_names_the_live_generation_and_others_find_it(engine: Engine) -> None:
    assert engine.aliases().read() is None

    assert engine.aliases().claim(Alias(live=OLD)).live == OLD
    assert engine.aliases().claim(Alias(live=NEW)).live == OLD
    assert engine.aliases().read() == Alias(live=OLD)


def test_generations_stand_side_by_side_and_a_flip_is_one_write(engine: Engine) -> None:
    aliases = engine.aliases()
    aliases.claim(Alias(live=OLD))
    aliases.write(Alias(live=OLD, candidate=NEW))
    for generation in (OLD, NEW):
        index = engine.open(generation)
        index.delete(Record(document_id=generation.name, seen=1, deleted=True), None)

    aliases.write(Alias(live=NEW, former=OLD, flipped_at=5.0, republish=True))

    assert engine.aliases().read() == Alias(live=NEW, former=OLD, flipped_at=5.0, republish=True)
    assert engine.there() == {OLD.name, NEW.name}
    if engine.client:
        pointed = {alias.alias_name: alias.collection_name for alias in engine.client.get_aliases().aliases}
        assert pointed == {
            "twin-chunks": f"twin-chunks-{NEW.name}",
            "twin-documents": f"twin-documents-{NEW.name}",
        }


def test_what_is_being_removed_is_removed_whenever_the_removal_was_broken_off(engine: Engine) -> None:
    aliases = engine.aliases()
    for generation in (OLD, NEW):
        engine.open(generation)
    engine.close()
    aliases.write(Alias(live=NEW, removing=(OLD.name,)))

    for _ in range(2):
        found = aliases.read()
        assert found is not None
        finish_removals(aliases, found)

    assert engine.there() == {NEW.name}
    assert aliases.read() == Alias(live=NEW)


def test_a_local_removal_that_was_killed_leaves_nothing(tmp_path: Path) -> None:
    for left in ("gone.removed", "gone"):
        (tmp_path / left / "chunks").mkdir(parents=True)

    FileAliases(tmp_path).remove("gone")

    assert list(tmp_path.iterdir()) == []


def test_the_alias_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    earlier = {"id": "an-id", "generation": "minilm-l6-int8-53aa5117-431e4bc5"}
    (tmp_path / "current.json").write_text(json.dumps(earlier))

    found = FileAliases(tmp_path).read()

    assert found is not None
    assert (found.live.id, found.live.name) == ("an-id", "minilm-l6-int8-53aa5117-431e4bc5")
    assert found.live.model == "minilm-l6-int8"


def test_the_alias_of_an_earlier_version_on_a_server_is_read() -> None:
    from qdrant_client import QdrantClient, models

    client = QdrantClient(":memory:")
    server_generation(client, "twin", Generation(id="1", name="minilm-l6-53aa5117-431e4bc5", dimensions=4))
    create = models.CreateAlias(collection_name="twin-chunks-minilm-l6-53aa5117-431e4bc5", alias_name="twin-chunks")
    client.update_collection_aliases([models.CreateAliasOperation(create_alias=create)])

    found = ServerAliases(client, "twin").claim(Alias(live=NEW))

    assert (found.live.name, found.live.model) == ("minilm-l6-53aa5117-431e4bc5", "minilm-l6")


def test_vectors_of_another_embedder_are_refused_in_a_sentence() -> None:
    class Embedder:
        name = "new-2"

    must_match(Generation(id="1", name="n"), Embedder())  # type: ignore[arg-type]
    with pytest.raises(GenerationMismatch, match="built with new-1, and new is new-2 now"):
        must_match(NEW, Embedder())  # type: ignore[arg-type]
