"""Generations of the index side by side, and the alias that says which of them queries go to.

A generation is what one embedding model and one set of recipes make of the documents. One is live. Beside it there may
be one other: a candidate that is being built, or the former one, kept so that a promotion can be taken back. The alias
is one small value that is replaced as a whole, so a flip is one write: a file of a local index, a point of a Qdrant
server. The server's own aliases follow it, for other readers.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from corpus.files import replace_file
from corpus.points import IndexUnavailable, Point, ServerPoints, Where
from corpus.settings import Settings, without_password

if TYPE_CHECKING:
    from corpus.embedding import Embedder

logger = logging.getLogger(__name__)
PARTS = ("chunks", "documents")
ALIAS_POINT = str(uuid.uuid5(uuid.NAMESPACE_OID, "generations"))
REMOVED = ".removed"


class GenerationMismatch(RuntimeError):
    """A generation is asked for, or with vectors of, another embedding model or recipe than it was made with."""


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """One generation: `id` of this very index, `name` (`corpus.categories.generation`), and what embeds for it.

    `model`: the setting that loads its embedder, `embedder`: that embedder's own name, weights included; both are empty
    where an earlier version of this program did not write them down. `term`: which time it is live; each has a consumer
    group of its own. `automatic`: a candidate that nobody asked for, so it is promoted without being asked for.
    """

    id: str
    name: str
    model: str = ""
    embedder: str = ""
    dimensions: int = 0
    term: str = ""
    automatic: bool = False


class Alias(msgspec.Struct, frozen=True, kw_only=True):
    """Which generations there are. At most one of `candidate` and `former` is there.

    `flipped_at`: when `live` became so, seconds since 1970; `republish`: downstream has not been told every document of
    `live` yet; `removing`: names of generations whose removal has begun.
    """

    live: Generation
    candidate: Generation | None = None
    former: Generation | None = None
    flipped_at: float | None = None
    republish: bool = False
    removing: tuple[str, ...] = ()

    @property
    def beside(self) -> Generation | None:
        """The one that is not live."""
        return self.candidate or self.former


class Aliases(Protocol):
    """Where the alias is kept, and the generations it names. Every call raises IndexUnavailable."""

    def read(self) -> Alias | None:
        """The alias as it is now; None before the first generation."""
        ...

    def claim(self, first: Alias) -> Alias:
        """The alias as it is now, which is `first` if there was none."""
        ...

    def write(self, alias: Alias) -> None: ...

    def remove(self, name: str) -> None:
        """Remove a generation that the alias does not name; one that is not there is no error."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes that a generation takes on this machine's disk; None where that is not known."""
        ...


def new_generation(name: str, model: str, embedder: Embedder, *, automatic: bool = False) -> Generation:
    """A generation of this name that is yet to be built."""
    return Generation(
        id=str(uuid.uuid4()),
        name=name,
        model=model,
        embedder=embedder.name,
        dimensions=embedder.dimensions,
        automatic=automatic,
    )


def must_match(generation: Generation, embedder: Embedder) -> None:
    """Raise GenerationMismatch unless vectors of this embedder may be compared with this generation's."""
    if generation.embedder and embedder.name != generation.embedder:
        raise GenerationMismatch(
            f"the index was built with {generation.embedder}, and {generation.model} is {embedder.name} now: "
            "their vectors cannot be compared"
        )


def local_directory(settings: Settings) -> Path:
    """Where a local index lies."""
    return settings.home / "index"


class FileAliases:
    """The alias of a local index: `current.json` beside one directory a generation, and its copy."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # A power failure may leave a torn file on some disks. Without either the log is read anew.
        self._files = directory / "current.json", directory / "current.copy.json"

    def read(self) -> Alias | None:
        return next((alias for file in self._files if (alias := self._read(file)) is not None), None)

    def _read(self, file: Path) -> Alias | None:
        try:
            return _alias(msgspec.json.decode(file.read_bytes()))
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            logger.warning("%s does not say which generation is live: %s", file, error)
            return None
        except OSError as error:
            raise self._unavailable(error) from error

    def claim(self, first: Alias) -> Alias:
        written = [self._read(file) for file in self._files]
        alias = next(filter(None, written), first)
        if None in written:
            self.write(alias)
        return alias

    def write(self, alias: Alias) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            for file in self._files:
                replace_file(file, msgspec.json.encode(alias), lasting=True)
        except OSError as error:
            raise self._unavailable(error) from error

    def remove(self, name: str) -> None:
        place = self._directory / name
        # Moved away first: a crash must not leave half of a generation under its name.
        away = place.with_name(name + REMOVED)
        try:
            for _ in range(2):
                if away.exists():
                    shutil.rmtree(away)
                if place.exists():
                    place.rename(away)
        except OSError as error:
            raise self._unavailable(error) from error

    def size(self, name: str) -> int | None:
        found = 0
        for parent, _, files in os.walk(self._directory / name):
            for file in files:
                try:
                    # The engine reserves more than it uses.
                    found += (Path(parent) / file).stat().st_blocks * 512
                except FileNotFoundError:
                    continue
        return found

    def _unavailable(self, error: OSError) -> IndexUnavailable:
        return IndexUnavailable(f"the index in {self._directory} cannot be opened: {error}")


class ServerAliases:
    """The alias of an index on a Qdrant server: a point of the collection `<prefix>-generations`."""

    def __init__(self, client: Any, prefix: str, address: str = "") -> None:
        self._client, self._prefix, self._address = client, prefix, address

    def read(self) -> Alias | None:
        with reached(self._address):
            # A reader makes nothing.
            if not self._client.collection_exists(f"{self._prefix}-generations"):
                return self._pointed_at()
            stored = self._points().retrieve([ALIAS_POINT])
            return _alias(stored[0].payload["alias"]) if stored else self._pointed_at()

    def claim(self, first: Alias) -> Alias:
        found = self.read()
        with reached(self._address):
            payload = {"alias": msgspec.to_builtins(found or first), "made": 0}
            # Of several processes that start at once, one writes.
            self._points().upsert([Point(ALIAS_POINT, payload)], only_over=Where(at_most={"made": -1}))
        now = self.read() or first
        with reached(self._address):
            self._point_at(now.live.name)
        return now

    def write(self, alias: Alias) -> None:
        with reached(self._address):
            self._points().upsert([Point(ALIAS_POINT, {"alias": msgspec.to_builtins(alias), "made": 0})])
            self._point_at(alias.live.name)

    def remove(self, name: str) -> None:
        with reached(self._address):
            for part in PARTS:
                self._client.delete_collection(f"{self._prefix}-{part}-{name}")

    def size(self, name: str) -> int | None:
        return None

    def _points(self) -> ServerPoints:
        return ServerPoints(self._client, f"{self._prefix}-generations", None, {})

    def _pointed_at(self) -> Alias | None:
        """What an earlier version of this program left: the server's alias alone."""
        for alias in self._client.get_aliases().aliases:
            if alias.alias_name == f"{self._prefix}-chunks":
                return _alias({"id": "", "generation": alias.collection_name.removeprefix(f"{self._prefix}-chunks-")})
        return None

    def _point_at(self, name: str) -> None:
        """Let the server's own aliases follow, for whoever reads the collections without this program."""
        from qdrant_client import models

        there = {alias.alias_name: alias.collection_name for alias in self._client.get_aliases().aliases}
        changes: list[Any] = []
        for part in PARTS:
            alias, collection = f"{self._prefix}-{part}", f"{self._prefix}-{part}-{name}"
            if there.get(alias) == collection or not self._client.collection_exists(collection):
                continue
            if alias in there:
                changes.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)))
            create = models.CreateAlias(collection_name=collection, alias_name=alias)
            changes.append(models.CreateAliasOperation(create_alias=create))
        if changes:
            self._client.update_collection_aliases(changes)


def aliases_of(settings: Settings) -> Aliases:
    """The alias of the index of these settings."""
    if settings.qdrant_url is None:
        return FileAliases(local_directory(settings))
    with reached(settings.qdrant_url):
        return ServerAliases(server_client(settings), settings.topic_prefix, settings.qdrant_url)


def server_client(settings: Settings) -> Any:
    """A client of the Qdrant server of these settings."""
    from qdrant_client import QdrantClient

    return QdrantClient(url=settings.qdrant_url, api_key=settings.qdrant_api_key, timeout=30, check_compatibility=False)


@contextmanager
def reached(address: str) -> Iterator[None]:
    """What the client of a server raises within is an IndexUnavailable."""
    try:
        yield
    except (GenerationMismatch, IndexUnavailable):
        raise
    except Exception as error:  # the client raises transport errors of several libraries
        raise IndexUnavailable(
            f"Qdrant at {without_password(address)} cannot be used ({type(error).__name__}): check TWIN_QDRANT_URL"
        ) from error


def _alias(stored: Mapping[str, Any]) -> Alias:
    """The alias as it was written, by an earlier version of this program too."""
    if isinstance(stored, dict) and "generation" in stored:
        name = str(stored["generation"])
        return Alias(live=Generation(id=str(stored["id"]), name=name, model=_model_of(name)))
    return msgspec.convert(stored, Alias)


def _model_of(name: str) -> str:
    """The setting whose embedder a generation is named by, of those that a name tells."""
    known = [model for model in ("minilm-l6-int8", "minilm-l6") if name.startswith(f"{model}-")]
    return max(known, key=len, default="")


def finish_removals(aliases: Aliases, alias: Alias) -> Alias:
    """Remove what is being removed; the alias without it."""
    for name in alias.removing:
        aliases.remove(name)
    if not alias.removing:
        return alias
    done = msgspec.structs.replace(alias, removing=())
    aliases.write(done)
    return done
