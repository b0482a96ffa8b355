"""The interface for programs: ask, search, documents, what is behind, status, health and metrics, as JSON."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict, TypeVar
from urllib.parse import unquote

import msgspec
from litestar import Request, Response, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.exceptions import ClientException, NotFoundException
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter, SkipValidation
from litestar.response import Stream
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from corpus.agreement import State as DocumentState
from corpus.agreement import compare
from corpus.embedding import EmbedderUnavailable
from corpus.generations import GenerationMismatch
from corpus.index import Filters, Hit, Index
from corpus.prompts import Message
from serving.answering import Answer, Attempt, Event, Finished, Retrieved, Stopped, Token, answering, complete
from serving.documents import Listed, Shown, listing, matching, shown
from serving.metrics import Metrics, ModelFigures
from serving.parts import Parts, Reconciled, Status, Warehouse
from serving.retrieval import Passage, checked_question, filters_from, known_category, period, search

log = logging.getLogger(__name__)
Given = NamedDependency[SkipValidation[Parts]]
Counted = NamedDependency[SkipValidation[Metrics]]
AnyRequest = Request[Any, Any, State]
ASK_PASSAGES = 6
# Everything that follows in the path is one id, whatever characters it has: see `serving.app.routed`.
REINDEX_ACTIONS = ("start", "cancel", "promote", "rollback", "drop")
NO_DATAFLOW = "this app has no dataflow beside it: ask the one that runs `twin up` or `twin serve --stream`"
BEFORE_ID = ("/api/documents/", "/documents/", "/passages/")
T = TypeVar("T")


class Wanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which documents may answer: published, or without a date read, in or after `since` and in or before `until`.

    Dates are ISO years, months, days or instants.
    """

    author: str | None = None
    category: str | None = None
    platform: str | None = None
    language: str | None = None
    since: str | None = None
    until: str | None = None

    def filters(self) -> Filters:
        return filters_from(**msgspec.structs.asdict(self))


class Turn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An earlier question of the conversation and its answer."""

    question: str
    answer: str


class Ask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question; `limit`: how many chunks the answer is made from; `conversation`: any name of it that the client
    makes up, so that all of its answers come from one model while a new one is tried."""

    question: str
    filters: Wanted = Wanted()
    limit: Annotated[int, msgspec.Meta(ge=1, le=20)] = ASK_PASSAGES
    history: tuple[Turn, ...] = ()
    conversation: str | None = None

    def messages(self) -> list[Message]:
        """The earlier turns as a chat."""
        return [
            message
            for turn in self.history
            for message in (
                Message(role="user", content=turn.question),
                Message(role="assistant", content=turn.answer),
            )
        ]


class Search(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A search; filters stand beside the question."""

    question: str
    limit: Annotated[int, msgspec.Meta(ge=1, le=100)] = 10
    author: str | None = None
    category: str | None = None
    platform: str | None = None
    language: str | None = None
    since: str | None = None
    until: str | None = None


class Verification(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to verify: everything, or the documents read in or after `since`, or `sample` documents chosen at random.

    Those of a sample are cleaned, split and embedded anew as well. `generation`: live (unless told), candidate, former.
    """

    repair: bool = False
    since: str | None = None
    sample: Annotated[int, msgspec.Meta(ge=1)] | None = None
    generation: str | None = None


class Reindexing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`model`: of the generation to start; `generation`: the name of the one meant, so that a request that is sent
    twice acts once."""

    model: str | None = None
    generation: str | None = None


class Erasing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to erase for good: documents by id, and all that an author (a name or an id) wrote.

    `id`: that of the erasure, so that the request may be repeated; without documents and author an erasure that was
    begun is gone on with (the newest, without an id). `dry_run`: only say what would go.
    """

    id: str | None = None
    documents: tuple[str, ...] = ()
    author: str | None = None
    dry_run: bool = False


class Complaint(TypedDict):
    message: str
    type: str


class Refused(TypedDict):
    """The one shape of an error."""

    error: Complaint


REFUSED = ResponseSpec(Refused, generate_examples=False, description="What is wrong with the request")


@dataclass(frozen=True, slots=True)
class Page:
    """One page of the list of documents; `total` counts all that match."""

    items: list[Listed]
    total: int
    limit: int
    offset: int


@dataclass(frozen=True, slots=True)
class FailedDocument:
    """A document whose newest version cannot be indexed."""

    document_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Behind:
    """Ids: `behind`: the index has not followed; `leftover`: gone from the warehouse, not yet from the index."""

    behind: tuple[str, ...]
    leftover: tuple[str, ...]
    failed: tuple[FailedDocument, ...]


@dataclass(frozen=True, slots=True)
class Live:
    """That the process answers."""

    status: str


@dataclass(frozen=True, slots=True)
class Health:
    """`ready` is False when a part is not; `parts` says of each `ready` or why not; `pid`: the process that answers."""

    ready: bool
    parts: dict[str, str]
    pid: int


class StatusAndModels(Status):
    """`models`: by version of the language model, since the app started."""

    models: dict[str, ModelFigures]


@post(
    "/api/ask",
    status_code=200,
    summary="Answer a question from the documents, with citations",
    responses={200: ResponseSpec(Answer, generate_examples=False, description="The answer"), 400: REFUSED},
)
async def ask(data: JSONBody[Ask], request: AnyRequest, parts: Given, metrics: Counted) -> Response[Any]:
    """JSON, or with `Accept: text/event-stream` the events retrieval, token, citations, error and done.

    From documents published, or without a date read, in or after `since` and in or before `until`.
    """
    question = checked_question(data.question, parts.settings.max_question_characters)
    given = (parts, question, data.filters.filters(), data.limit, data.messages(), data.conversation)
    events = counted(answering(*given), metrics)
    if "text/event-stream" in request.headers.get("accept", ""):
        return event_stream(named_events(events))
    return Response(await unless_gone(request, complete(events)))


@post(
    "/api/search",
    status_code=200,
    name="search",
    summary="The chunks that fit a question best",
    responses={400: REFUSED},
)
async def find(data: JSONBody[Search], parts: Given) -> list[Hit]:
    """The best chunks, best first; scores compare within one answer only.

    From documents published, or without a date read, in or after `since` and in or before `until`.
    """
    question = checked_question(data.question, parts.settings.max_question_characters)
    fields = {name: getattr(data, name) for name in Wanted.__struct_fields__}
    served = parts.served()
    return await asyncio.to_thread(search, served.index, served.embedder, question, filters_from(**fields), data.limit)


@get("/api/documents", summary="The documents of the warehouse and their state", responses={400: REFUSED})
async def documents(
    parts: Given,
    limit: Annotated[int, QueryParameter(ge=1, le=10_000)] = 50,
    offset: Annotated[int, QueryParameter(ge=0)] = 0,
    words: FromQuery[str | None] = None,
    author: FromQuery[str | None] = None,
    category: FromQuery[str | None] = None,
    platform: FromQuery[str | None] = None,
    state_: Annotated[DocumentState | None, QueryParameter(name="state")] = None,
    since: FromQuery[str | None] = None,
    until: FromQuery[str | None] = None,
) -> Page:
    """A page of those published, or without a date read, in or after `since` and in or before `until`."""
    begin, end = period(since, until)
    found = matching(
        await asyncio.to_thread(listed, parts),
        words=words,
        author=author,
        category=known_category(category),
        platform=platform,
        state=state_,
        since=begin,
        until=end,
    )
    return Page(list(found[offset : offset + limit]), len(found), limit, offset)


def listed(parts: Parts) -> list[Listed]:
    """Every document of the warehouse, newest crawl first, then by title. Blocks."""
    records = {record.document_id: record for record in parts.served().index.scan()}
    rows = list(listing(parts.warehouse.stamps(), records))
    rows.sort(key=lambda row: (row.title.casefold(), row.document_id))
    rows.sort(key=lambda row: row.crawled_at.timestamp() if row.crawled_at else 0.0, reverse=True)
    return rows


@get(
    "/api/documents/{document_id:str}",
    summary="One document with its cleaned text and its chunks",
    responses={400: REFUSED, 404: REFUSED},
)
async def document(document_id: FromPath[str], parts: Given) -> Shown:
    """Percent-escape the id, its slashes too."""
    return await asyncio.to_thread(known_document, parts.served().index, parts.warehouse, unquote(document_id))


def known_document(index: Index, warehouse: Warehouse, document_id: str) -> Shown:
    """The document as it is shown. Raises NotFoundException. Blocks."""
    found = shown(index, warehouse, document_id)
    if found is None:
        raise NotFoundException(f"no document has the id {document_id!r}")
    return found


@get("/api/behind", summary="What separates the index from the warehouse")
async def behind(parts: Given) -> Behind:
    def compared() -> Behind:
        # The warehouse first: what is ingested after it is read must not look like something the index lost.
        stamps = list(parts.warehouse.stamps())
        found = compare(stamps, parts.served().index.scan())
        failed = tuple(FailedDocument(id, reason) for id, reason in found.failed)
        return Behind(found.behind, found.leftover, failed)

    return await asyncio.to_thread(compared)


@post(
    "/api/reconcile",
    status_code=200,
    summary="Compare warehouse and index now and mend what differs",
    responses={400: REFUSED},
)
async def reconcile(parts: Given) -> Reconciled:
    if parts.reconcile is None:
        raise ClientException("this app has no dataflow beside it: it reconciles where `twin stream` runs")
    return await asyncio.to_thread(parts.reconcile)


@post(
    "/api/verify",
    status_code=200,
    summary="Compare every document, record and point with the warehouse, and mend what differs where asked",
    responses={400: REFUSED},
)
async def verify(data: JSONBody[Verification], parts: Given) -> dict[str, Any]:
    """What `twin verify --json` prints. Takes about a minute for 100,000 documents."""
    if parts.verify is None:
        raise ClientException("this app has no dataflow beside it: it verifies where `twin stream` runs")
    since, _ = period(data.since, None)
    try:
        return dict(await asyncio.to_thread(parts.verify, data.repair, since, data.sample, data.generation))
    except ValueError as error:
        raise ClientException(str(error)) from error


@get("/api/reindex", summary="The generations of the index, and how far the one being built is")
async def reindex_status(parts: Given) -> dict[str, Any]:
    """What `twin reindex status --json` prints."""
    if parts.reindex_status is None:
        raise ClientException(NO_DATAFLOW)
    return dict(await asyncio.to_thread(parts.reindex_status))


@get(
    "/api/reindex/plan",
    summary="What another generation takes: documents, chunks, tokens, time and disk",
    responses={400: REFUSED},
)
async def reindex_plan(parts: Given, model: FromQuery[str | None] = None) -> dict[str, Any]:
    """Measured now, on a sample: takes some seconds."""
    if parts.reindex_plan is None:
        raise ClientException(NO_DATAFLOW)
    try:
        return dict(await asyncio.to_thread(parts.reindex_plan, model))
    except EmbedderUnavailable as error:
        raise ClientException(str(error)) from error


@post(
    "/api/reindex/{action:str}",
    status_code=200,
    summary="Start, cancel, promote, roll back or drop another generation",
    responses={400: REFUSED, 404: REFUSED},
)
async def reindex(action: FromPath[str], data: JSONBody[Reindexing], parts: Given) -> dict[str, Any]:
    """`done`, and where it was refused the `reasons`."""
    if parts.reindex is None:
        raise ClientException(NO_DATAFLOW)
    if action not in REINDEX_ACTIONS:
        raise NotFoundException(f"a reindex knows {', '.join(REINDEX_ACTIONS)}, not {action!r}")
    try:
        return dict(await asyncio.to_thread(parts.reindex, action, data.model, data.generation))
    except EmbedderUnavailable as error:
        raise ClientException(str(error)) from error


@post(
    "/api/erase",
    status_code=200,
    summary="Remove documents from every place for good, with a receipt",
    responses={400: REFUSED, 404: REFUSED},
)
async def erase(data: JSONBody[Erasing], parts: Given) -> dict[str, Any]:
    """What `twin erase --json` prints. Takes as long as the index and the warehouse take to be written anew."""
    if parts.erase is None or parts.to_erase is None:
        raise ClientException("this app cannot erase")
    if data.dry_run:
        return dict(await asyncio.to_thread(parts.to_erase, data.documents, data.author))
    if data.id is None and (data.documents or data.author is not None):
        raise ClientException("an erasure needs an id of your choice, so that the request may be repeated")
    try:
        return dict(await asyncio.to_thread(parts.erase, data.id, data.documents, data.author))
    except LookupError as error:
        raise NotFoundException(str(error)) from error


@get("/api/status", summary="The parts, the counts, lag and freshness, and how each version of the model answers")
async def status(parts: Given, metrics: Counted) -> StatusAndModels:
    told: Status = await asyncio.to_thread(parts.status)
    return {**told, "models": metrics.models()}


@get("/health/live", summary="Whether the process answers")
async def live() -> Live:
    return Live("live")


@get("/health/ready", summary="Whether every part is ready")
async def ready(parts: Given) -> Response[Health]:
    """503 while a part is not ready, naming it."""
    states = {"index": parts.served().index.counts, **parts.checks}

    async def checked(name: str) -> str:
        try:
            await asyncio.to_thread(states[name])
        except Exception as error:  # whatever a part raises, it is not ready
            return str(error) or type(error).__name__
        return "ready"

    told = dict(zip(states, await asyncio.gather(*map(checked, states)), strict=True))
    good = all(value == "ready" for value in told.values())
    return Response(Health(good, told, os.getpid()), status_code=200 if good else 503)


@get("/metrics", summary="Metrics for Prometheus", media_type="text/plain")
async def exposition(metrics: Counted) -> Response[bytes]:
    text = await asyncio.to_thread(generate_latest, metrics.registry)
    return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})


async def counted(events: AsyncGenerator[Event], metrics: Metrics) -> AsyncGenerator[Event]:
    """The same events, with answers and failures of the model counted."""
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Finished):
                metrics.answers.labels(event.answer.mode).inc()
            elif isinstance(event, Stopped):
                metrics.model_failures.inc()
            elif isinstance(event, Attempt):
                metrics.attempted(event.model, event.seconds, failed=event.failed, supported=event.supported)
            yield event


async def named_events(events: AsyncGenerator[Event]) -> AsyncGenerator[tuple[str, Any]]:
    """Events as server-sent events name them: retrieval, token, error, citations, done."""
    async with aclosing(events):
        async for event in events:
            match event:
                case Retrieved(passages):
                    yield "retrieval", {"passages": [described(passage) for passage in passages]}
                case Token(text):
                    yield "token", {"text": text}
                case Stopped(reason):
                    yield "error", {"message": reason, "type": "language_model"}
                case Finished(answer):
                    yield "citations", {"citations": answer.citations}
                    yield "done", answer


def described(passage: Passage) -> dict[str, Any]:
    """A passage as programs see it."""
    record = passage.record
    return {
        "n": passage.n,
        "document_id": record.document_id,
        "chunk_id": passage.chunk_id,
        "version": passage.version,
        "title": record.title,
        "url": record.url,
        "heading_path": passage.heading_path,
        "text": passage.text,
        "score": passage.score,
    }


def event_stream(events: AsyncIterator[tuple[str, Any]]) -> Stream:
    """Named events as a response of server-sent events (HTML standard, section 9.2)."""

    async def encoded() -> AsyncGenerator[bytes]:
        try:
            async for name, value in events:
                yield _event(name, value)
        except Exception as error:  # the answer has begun: what failed can be said within it only
            _, message, kind = failure(error)
            log.exception("an answer broke off")
            yield _event("error", {"message": message, "type": kind})

    return Stream(
        encoded(), media_type="text/event-stream", headers={"cache-control": "no-store", "x-accel-buffering": "no"}
    )


def _event(name: str, value: Any) -> bytes:
    return f"event: {name}\ndata: ".encode() + msgspec.json.encode(value) + b"\n\n"


def failure(error: Exception) -> tuple[int, str, str]:
    """Status, message and kind of what went wrong within the app, without its details."""
    if isinstance(error, ConnectionError | GenerationMismatch):
        # The index, the warehouse and their like: away for the moment, and they say so themselves.
        return 503, str(error) or "a part of the app is not available at the moment", "unavailable"
    return 500, "the app could not answer; its log says why", "internal_error"


async def unless_gone(request: AnyRequest, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client hangs up."""

    async def hung_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(hung_up())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        watch.cancel()
        task.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


class ClientGone(ConnectionAbortedError):
    """The client hung up before its answer was finished; nobody reads what is answered."""


HANDLERS = (
    ask,
    find,
    documents,
    document,
    behind,
    reconcile,
    verify,
    erase,
    reindex_status,
    reindex_plan,
    reindex,
    status,
    live,
    ready,
    exposition,
)
