"""Honest fakes: an index in memory that follows the contract of corpus.index, an embedder of hashed words, a warehouse
of stamps, and a chat server that really speaks HTTP."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from litestar.testing import TestClient
from numpy.typing import NDArray

from corpus.index import Counts, Failure, Filters, Hit, Place, Record
from corpus.settings import Settings
from corpus.warehouse import Stamp
from serving.app import create_app
from serving.parts import LanguageModel, Parts, Served

CRAWLED = datetime(2026, 3, 1, 12, tzinfo=UTC)
ADDRESS = "http://127.0.0.1:8000"


class HashingEmbedder:
    """Texts to unit vectors of hashed words: the same words point the same way."""

    name, dimensions = "hashing", 64

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        vectors = np.zeros((len(texts), self.dimensions), np.float32)
        for row, text in enumerate(texts):
            for word in re.findall(r"\w+", text.casefold()):
                vectors[row, zlib.crc32(word.encode()) % self.dimensions] += 1
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


class MemoryIndex:
    """The reading side of an index over records in a dict; finds by shared words."""

    generation = "fake"

    def __init__(self) -> None:
        self.kept: dict[str, Record] = {}
        self.away = False

    def put(self, record: Record) -> Record:
        self.kept[record.document_id] = record
        return record

    def search(self, question: str, vector: Sequence[float], filters: Filters, limit: int) -> list[Hit]:
        self._reachable()
        wanted = set(re.findall(r"\w+", question.casefold()))
        hits = [
            replace(hit, score=float(shared))
            for record in self.kept.values()
            if not record.deleted and _fits(record, filters)
            for hit in _hits(record)
            if (shared := len(wanted & set(re.findall(r"\w+", f"{record.title} {hit.text}".casefold()))))
        ]
        return sorted(hits, key=lambda hit: (-hit.score, hit.chunk_id))[:limit]

    def records(self, document_ids: Sequence[str]) -> Mapping[str, Record]:
        self._reachable()
        return {id: self.kept[id] for id in document_ids if id in self.kept}

    def scan(self) -> Iterator[Record]:
        self._reachable()
        return iter([replace(record, text="") for record in self.kept.values() if not record.deleted])

    def chunks(self, document_id: str) -> list[Hit]:
        return _hits(self.kept[document_id])

    def counts(self) -> Counts:
        self._reachable()
        live = [record for record in self.kept.values() if not record.deleted]
        return Counts(len(live), sum(len(record.places) for record in live))

    def _reachable(self) -> None:
        if self.away:
            raise ConnectionError("the index cannot be reached")


def _fits(record: Record, filters: Filters) -> bool:
    moment = record.published_at or record.crawled_at
    return (
        all(
            getattr(filters, name) in (None, getattr(record, name))
            for name in ("author", "category", "platform", "language")
        )
        and (filters.since is None or (moment is not None and moment >= filters.since))
        and (filters.until is None or (moment is not None and moment <= filters.until))
    )


def _hits(record: Record) -> list[Hit]:
    return [
        Hit(
            record.document_id,
            place.chunk_id,
            record.version or 0,
            record.title,
            record.url,
            record.author,
            record.category,
            record.platform,
            record.language,
            record.published_at,
            place.heading_path,
            position,
            place.start,
            place.end,
            record.text[place.start : place.end],
            0.0,
        )
        for position, place in enumerate(record.places)
    ]


class MemoryWarehouse:
    def __init__(self) -> None:
        self.kept: dict[str, Stamp] = {}
        self.told: dict[str, dict[str, Any]] = {}
        self.away = False

    def stamps(self, ids: Iterable[str] | None = None) -> list[Stamp]:
        if self.away:
            raise ConnectionError("the warehouse cannot be reached: `twin status` shows its parts")
        return [stamp for id, stamp in self.kept.items() if ids is None or id in ids]

    def metadata(self, id: str) -> dict[str, Any]:
        return self.told.get(id, {})

    def delete(self, ids: Sequence[str]) -> int:
        return sum(self.kept.pop(id, None) is not None for id in ids)


@dataclass
class Library:
    """A warehouse and the index that follows it, with a hand that writes documents into both."""

    index: MemoryIndex = field(default_factory=MemoryIndex)
    warehouse: MemoryWarehouse = field(default_factory=MemoryWarehouse)
    embedder: HashingEmbedder = field(default_factory=HashingEmbedder)

    def add(
        self,
        title: str,
        text: str,
        *,
        version: int = 1,
        author: str = "Ada Lovelace",
        category: str = "article",
        platform: str = "file",
        published_at: datetime | None = None,
        crawled_at: datetime = CRAWLED,
        indexed: bool = True,
        url: str | None = None,
        id: str | None = None,
    ) -> str:
        url = url or f"https://example.org/{title.replace(' ', '-')}"
        id = id or str(uuid.uuid5(uuid.NAMESPACE_URL, url))
        digest = f"{zlib.crc32(text.encode()):08x}"
        self.warehouse.kept[id] = Stamp(id, digest, crawled_at, title, url, author, category, platform)
        if indexed:
            self.index.put(
                Record(
                    document_id=id,
                    seen=version,
                    version=version,
                    content_hash=digest,
                    source_hash=digest,
                    places=tuple(_paragraphs(id, text)),
                    title=title,
                    url=url,
                    author=author,
                    category=category,
                    platform=platform,
                    published_at=published_at,
                    crawled_at=crawled_at,
                    text=text,
                )
            )
        return id

    def fail(self, id: str, reason: str) -> None:
        stamp = self.warehouse.kept[id]
        before = self.index.kept.get(id) or Record(document_id=id, seen=2, title=stamp.title)
        self.index.put(replace(before, failure=Failure(2, "clean", reason, stamp.content_hash)))

    def parts(
        self, settings: Settings | None = None, *, language_model: LanguageModel | None = None, **more: Any
    ) -> Parts:
        """The parts of an app; `language_model`: the only one that there is to choose."""
        if language_model is not None:
            more["choose_model"] = lambda conversation, tried: None if tried else language_model
        return Parts(
            settings=settings or Settings(),
            served=lambda: Served(self.index, self.embedder),
            warehouse=self.warehouse,
            status=lambda: {"parts": [], "lag": 0},
            **more,
        )

    def client(self, settings: Settings | None = None, **more: Any) -> TestClient[Any]:
        return TestClient(create_app(self.parts(settings, **more)), base_url=ADDRESS)


def _paragraphs(id: str, text: str) -> Iterator[Place]:
    """Each paragraph a chunk, under the headings above it."""
    headings: list[str] = []
    for match in re.finditer(r"\S(?:.|\n(?!\s*\n))*", text):
        if heading := re.match(r"(#+) (.*)", match[0]):
            headings[len(heading[1]) - 1 :] = [heading[2]]
            continue
        chunk = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{id} {match[0]}"))
        yield Place(chunk, match.start(), match.end(), tuple(headings))


@pytest.fixture
def library() -> Library:
    return Library()


HARBOUR = """# Notes on harbours

## Tides

The zqbacedi station reports that the tide in the old harbour rises by four metres. Boats leave before noon.

## Lamps

The lamp of the zqfogahu tower is lit at dusk. It burns colza oil, e.g. from Brittany, and needs trimming every 4 hours.

Nobody has ever counted the steps of the tower.
"""


@pytest.fixture
def harbour(library: Library) -> Library:
    """A library with a text about harbours and one about bread."""
    library.add("Notes on harbours", HARBOUR)
    library.add(
        "Bread",
        "# Bread\n\nThe dough of the zqrimoko bakery rests for nine hours.\n\nThen it is baked on stone.",
        author="Jean Bread",
        category="post",
        published_at=datetime(2024, 5, 20, tzinfo=UTC),
    )
    return library


@dataclass
class ChatServer:
    """A chat-completions server: `pieces` are sent one event each; what it was asked is kept in `requests`.

    `statuses`: answered before anything else, one a request; `breaks_after`: pieces after which it hangs up; `silent`:
    accepts and never answers, but hangs up once it `leaves`; `pause`: seconds before each piece; `name`: what it calls
    its model; `asked`: it was.
    """

    pieces: Sequence[str] = ("The tide rises by four metres [1].",)
    statuses: list[int] = field(default_factory=list)
    breaks_after: int | None = None
    silent: bool = False
    pause: float = 0.0
    name: str = "fake"
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    leaves: asyncio.Event = field(default_factory=asyncio.Event)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    sent: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            headers = {k.lower(): v for k, v in re.findall(r"^([\w-]+): (.*?)\r$", head, re.MULTILINE)}
            self.headers.append({"": head.split("\r\n")[0], **headers})
            self.requests.append(json.loads(await reader.readexactly(int(headers["content-length"]))))
            self.asked.set()
            if self.silent:
                gone = asyncio.ensure_future(reader.read()), asyncio.ensure_future(self.leaves.wait())
                await asyncio.wait(gone, return_when=asyncio.FIRST_COMPLETED)
                for each in gone:
                    each.cancel()
                return
            if self.statuses:
                writer.write(
                    b"HTTP/1.1 %d Nope\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % self.statuses.pop(0)
                )
                return
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
            for count, piece in enumerate(self.pieces):
                if count == self.breaks_after:
                    return
                await asyncio.sleep(self.pause)
                await self._event(writer, piece, None)
            await self._event(writer, "", "stop")
            writer.write(b"data: [DONE]\n\n")
        except (ConnectionError, asyncio.IncompleteReadError):
            self.hung_up.set()
        finally:
            writer.close()

    async def _event(self, writer: asyncio.StreamWriter, text: str, finish: str | None) -> None:
        choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": finish}
        body = {"id": "1", "created": 1, "model": self.name, "object": "chat.completion.chunk", "choices": [choice]}
        writer.write(f"data: {json.dumps(body)}\n\n".encode())
        await writer.drain()
        self.sent += 1


@asynccontextmanager
async def serving(server: ChatServer) -> AsyncIterator[ChatServer]:
    """The server at a port of its own, until it is left."""
    listening = await asyncio.start_server(server.answer, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    yield server
    listening.close()
    listening.close_clients() if hasattr(listening, "close_clients") else None


@pytest.fixture
async def chat_server() -> AsyncIterator[ChatServer]:
    async with serving(ChatServer()) as server:
        yield server


@pytest.fixture
async def second_chat_server() -> AsyncIterator[ChatServer]:
    async with serving(ChatServer()) as server:
        yield server


@dataclass
class ScriptedModel:
    """A language model that says what it is told to, and then fails if it is told to."""

    pieces: Sequence[str]
    failure: Exception | None = None
    asked: list[Any] = field(default_factory=list)
    name: str = "scripted-1"

    async def stream(self, messages: Any) -> Any:
        self.asked.append(messages)
        for piece in self.pieces:
            yield piece
        if self.failure:
            raise self.failure


@pytest.fixture
def scripted() -> Callable[..., LanguageModel]:
    return ScriptedModel
