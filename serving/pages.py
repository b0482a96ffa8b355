"""The pages for people: the chat, the sources, a document with its chunks, the interface's reference, the login."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, unquote, urlencode

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from litestar import Request, Response, get, post
from litestar.datastructures import CacheControlHeader, Cookie
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter, URLEncodedBody
from litestar.response import Redirect, Stream
from litestar.static_files import create_static_files_router
from litestar.types import ControllerRouterHandler

from corpus.categories import RECIPES
from corpus.documents import headings_below
from corpus.index import Record
from serving.access import COOKIE, same, session_token
from serving.answering import NOTHING, Answer, Citation, Event, Finished, Retrieved, Stopped, Token, answering, complete
from serving.api import (
    ASK_PASSAGES,
    AnyRequest,
    Ask,
    Counted,
    Given,
    counted,
    event_stream,
    known_document,
    listed,
    unless_gone,
)
from serving.documents import matching
from serving.markup import document_html, html, part, window, with_markers
from serving.parts import Parts
from serving.retrieval import InvalidQuestion, checked_question, filters_from, period

TEMPLATES, STATIC = Path(__file__).with_name("templates"), Path(__file__).with_name("static")
ROWS = 50
# Of a document's text: around a citation, and on one page of the whole.
AROUND, WHOLE = 3_000, 40_000
_MARKS = re.compile(r"(\*\*|`)(\S|\S.*?\S)\1")
_FIRST_HEADING = re.compile(r"\s*#[ \t]+([^\n]+?)[ \t]*#*[ \t]*(?:\n\s*|$)")


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["ago"] = ago
    environment.filters["exact"] = exact
    environment.filters["below"] = headings_below
    environment.filters["address"] = document_address
    environment.filters["count"] = lambda number: f"{number:,}"
    environment.globals["fingerprint"] = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in STATIC.iterdir()
    }
    return environment


def render(name: str, **values: Any) -> str:
    """The template `name` with these values; every value is escaped unless it is Markup of ours."""
    return _templates().get_template(name).render(**values)


def page(name: str, status: int = 200, **values: Any) -> Response[str]:
    """A whole page."""
    return Response(
        render(name, **values), media_type="text/html", status_code=status, headers={"cache-control": "no-store"}
    )


def ago(moment: datetime | None, now: datetime | None = None) -> str:
    """How long ago, in one unit; empty for None."""
    if moment is None:
        return ""
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    if seconds < 45:
        return "just now"
    for unit, size, below in (("minute", 60, 3600), ("hour", 3600, 86400), ("day", 86400, 86400 * 60)):
        if seconds < below:
            number = max(1, round(seconds / size))
            return f"{number} {unit}{'s' if number > 1 else ''} ago"
    days = seconds / 86400
    return f"{days / 30.44:.0f} months ago" if days < 700 else f"{days / 365.25:.0f} years ago"


def exact(moment: datetime | None) -> str:
    """The moment to the second, in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if moment else ""


@dataclass(frozen=True, slots=True)
class ShownCitation:
    """A citation, where its passage is shown, and its quote without the marks of Markdown."""

    citation: Citation
    address: str
    words: str


def document_address(document_id: str, **query: int) -> str:
    """The page of a document, whatever characters its id has."""
    return f"/documents/{quote(document_id, safe='')}" + (f"?{urlencode(query)}" if query else "")


def citation_address(citation: Citation) -> str:
    """The page of the document with the cited words marked."""
    where = {"version": citation.version, "start": citation.start, "end": citation.end}
    return document_address(citation.document_id, **where) + "#cited"


def turn_html(question: str, answer: Answer) -> str:
    """A question and its answer as they stand in the conversation."""
    from markupsafe import Markup

    addresses = {each.n: citation_address(each) for each in answer.citations}
    safe = with_markers(html(answer.answer), addresses.get, quoted=answer.mode == "extractive")
    body = Markup(safe)  # noqa: S704 - sanitised by markup.html
    citations = [ShownCitation(each, addresses[each.n], _MARKS.sub(r"\2", each.quote)) for each in answer.citations]
    quoted = answer.mode == "extractive" and bool(citations) and not answer.answer.startswith(NOTHING)
    return render("turn.html", question=question, answer=answer, body=body, citations=citations, quoted=quoted)


@get("/", include_in_schema=False)
async def chat(
    request: AnyRequest,
    parts: Given,
    metrics: Counted,
    question: FromQuery[str | None] = None,
    author: FromQuery[str | None] = None,
    category: FromQuery[str | None] = None,
    since: FromQuery[str | None] = None,
    until: FromQuery[str | None] = None,
) -> Response[str]:
    """The conversation; with a question in the address it is answered here, without any script."""
    from markupsafe import Markup

    chosen = {"author": author or "", "category": category or "", "since": since or "", "until": until or ""}
    turn, problem = "", ""
    if question is not None:
        try:
            asked = checked_question(question, parts.settings.max_question_characters)
            events = counted(answering(parts, asked, filters_from(**chosen), ASK_PASSAGES), metrics)
            answer = await unless_gone(request, complete(events))
            turn = turn_html(asked, answer)
        except (InvalidQuestion, ConnectionError) as error:
            problem = str(error)
    try:
        counts = await asyncio.to_thread(parts.served().index.counts)
    except ConnectionError as error:
        counts, problem = None, str(error)
    return page(
        "chat.html",
        status=400 if problem and turn == "" and question is not None else 200,
        turn=Markup(turn),  # noqa: S704 - rendered by a template of ours
        problem=problem,
        question=question if problem and question else "",
        counts=counts,
        generates=parts.choose_model(None, ()) is not None,
        chosen=chosen,
        categories=sorted(str(getattr(each, "value", each)) for each in RECIPES),
        maximum=parts.settings.max_question_characters,
    )


@post("/ask", status_code=200, include_in_schema=False)
async def ask(data: JSONBody[Ask], parts: Given, metrics: Counted) -> Stream:
    """The events of an answer for the page's script; the last carries the finished turn as HTML."""
    question = checked_question(data.question, parts.settings.max_question_characters)
    events = answering(parts, question, data.filters.filters(), data.limit, data.messages(), data.conversation)
    return event_stream(_page_events(question, counted(events, metrics)))


async def _page_events(question: str, events: AsyncGenerator[Event]) -> AsyncGenerator[tuple[str, Any]]:
    async with aclosing(events):
        async for event in events:
            match event:
                case Retrieved(passages):
                    titles = list(dict.fromkeys(passage.record.title for passage in passages))
                    yield "retrieval", {"passages": len(passages), "titles": titles[:3]}
                case Token(text):
                    yield "token", {"text": text}
                case Stopped(reason):
                    yield "error", {"message": reason}
                case Finished(answer):
                    yield "done", {"html": turn_html(question, answer), "answer": answer.answer}


@get("/authors", include_in_schema=False)
async def authors(parts: Given) -> list[str]:
    """The authors there are, for the filter's suggestions."""
    return await asyncio.to_thread(
        lambda: sorted({record.author for record in parts.served().index.scan() if record.author})
    )


def _verified(report: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The last verification as the page tells of it; None before the first."""
    if report is None:
        return None
    found = report["found"]
    return {
        "at": datetime.fromisoformat(report["finished_at"]),
        "documents": report["documents"],
        "chunks": report["chunks"],
        "found": found,
        "left": found - report["repaired"],
    }


@get("/documents", include_in_schema=False)
async def sources(
    parts: Given,
    words: FromQuery[str | None] = None,
    author: FromQuery[str | None] = None,
    category: FromQuery[str | None] = None,
    state_: Annotated[str | None, QueryParameter(name="state")] = None,
    since: FromQuery[str | None] = None,
    until: FromQuery[str | None] = None,
    offset: Annotated[int, QueryParameter(ge=0)] = 0,
) -> Response[str]:
    """Every document with its state, a page at a time."""
    chosen = {
        "words": words or "",
        "author": author or "",
        "category": category or "",
        "state": state_ or "",
        "since": since or "",
        "until": until or "",
    }
    state = {name: name for name in ("indexed", "captured", "failed")}.get(chosen["state"])
    problem, status = "", 200
    rows: Sequence[Any] = ()
    everything: list[Any] = []
    try:
        everything = await asyncio.to_thread(listed, parts)
        begin, end = period(since, until)
        rows = matching(
            everything,
            words=words,
            author=author or None,
            category=category or None,
            state=state,  # type: ignore[arg-type]
            since=begin,
            until=end,
        )
    except (InvalidQuestion, ConnectionError) as error:
        problem, status = str(error), 400 if isinstance(error, InvalidQuestion) else 200

    def address(**changed: Any) -> str:
        given = {name: value for name, value in {**chosen, **changed}.items() if value}
        return f"/documents?{urlencode(given)}" if given else "/documents"

    return page(
        "documents.html",
        status=status,
        rows=rows[offset : offset + ROWS],
        total=len(rows),
        everything=len(everything),
        verified=_verified(parts.verified()),
        states={name: sum(row.state == name for row in everything) for name in ("indexed", "captured", "failed")},
        first=offset,
        earlier=address(offset=max(0, offset - ROWS)) if offset else None,
        later=address(offset=offset + ROWS) if offset + ROWS < len(rows) else None,
        address=address,
        chosen=chosen,
        categories=sorted({row.category for row in everything}),
        authors=sorted({row.author for row in everything})[:500],
        filtered=any(chosen.values()),
        problem=problem,
    )


@get("/documents/{document_id:str}", include_in_schema=False)
async def document(
    document_id: FromPath[str],
    parts: Given,
    version: FromQuery[int | None] = None,
    start: FromQuery[int | None] = None,
    end: FromQuery[int | None] = None,
    offset: Annotated[int, QueryParameter(ge=0)] = 0,
) -> Response[str]:
    """The cleaned text of a document, where its chunks begin, and the cited words marked."""
    document_id = unquote(document_id)
    shown, record = await asyncio.to_thread(_document_and_record, parts, document_id)
    text = record.text if record else ""
    mark = _still_there(record, version, start, end)
    if mark is not None and not offset and mark[1] > WHOLE:
        offset = mark[0] - WHOLE // 4
    first, last = part(text, offset, WHOLE)
    return page(
        "document.html",
        document=shown,
        body=_body(record, first, last, mark, with_chunks=True) if record else "",
        moved=start is not None and mark is None,
        first=first,
        last=last,
        length=len(text),
        earlier=document_address(document_id, offset=max(0, first - WHOLE)) if first > 0 else None,
        later=document_address(document_id, offset=last) if last < len(text.rstrip()) else None,
    )


@get("/passages/{document_id:str}", include_in_schema=False)
async def passage(
    document_id: FromPath[str],
    parts: Given,
    version: FromQuery[int],
    start: FromQuery[int],
    end: FromQuery[int],
) -> Response[str]:
    """The cited words in their surroundings, for the pane beside the conversation."""
    document_id = unquote(document_id)
    shown, record = await asyncio.to_thread(_document_and_record, parts, document_id)
    mark = _still_there(record, version, start, end)
    text = record.text if record else ""
    first, last = window(text, *(mark or (0, 0)), AROUND)
    place = (
        next((each for each in record.places if mark and each.start <= mark[0] < each.end), None) if record else None
    )
    return page(
        "passage.html",
        document=shown,
        published=record.published_at if record else None,
        heading_path=place.heading_path if place else (),
        body=_body(record, first, last, mark, with_chunks=False) if record else "",
        moved=mark is None,
        begins=first == 0,
        ends=last >= len(text.rstrip()),
        address=document_address(document_id, version=version, start=start, end=end) + "#cited",
    )


def _document_and_record(parts: Parts, document_id: str) -> tuple[Any, Record | None]:
    index = parts.served().index
    shown = known_document(index, parts.warehouse, document_id)
    record = index.records([document_id]).get(document_id)
    return shown, record if record is not None and not record.deleted and record.version is not None else None


def _still_there(
    record: Record | None, version: int | None, start: int | None, end: int | None
) -> tuple[int, int] | None:
    """The cited stretch, if the document is still the one that was cited."""
    if record is None or start is None or end is None or version != record.version:
        return None
    return (start, end) if 0 <= start < end <= len(record.text) else None


def _body(record: Record, first: int, last: int, mark: tuple[int, int] | None, *, with_chunks: bool) -> Any:
    """The stretch as HTML, without a first heading that only says the title again: that stands above it."""
    from markupsafe import Markup

    began = first
    if first == 0 and record.category != "code" and (heading := _FIRST_HEADING.match(record.text)):
        again = heading[1].strip("*_` ") == record.title and (mark is None or mark[0] >= heading.end())
        first = heading.end() if again else 0
    chunks = [
        (max(place.start, first) - first, number)
        for number, place in enumerate(record.places, 1)
        if with_chunks and began <= place.start < last
    ]
    inside = (mark[0] - first, mark[1] - first) if mark and mark[0] < last and mark[1] > first else None
    code = record.category == "code"
    return Markup(document_html(record.text[first:last], code=code, mark=inside, chunks=chunks))  # noqa: S704 - sanitised


@get("/reference", include_in_schema=False)
async def reference(request: AnyRequest) -> Response[str]:
    """The interface for programs, from its own OpenAPI schema; nothing is loaded from another host."""
    schema = request.app.openapi_schema.to_schema()
    operations = [
        {
            "method": method.upper(),
            "path": path,
            "summary": operation.get("summary", ""),
            "description": operation.get("description", ""),
            "fields": _fields(schema, operation),
            "answer": _answer_fields(schema, operation),
        }
        for path, methods in sorted(schema["paths"].items())
        for method, operation in methods.items()
    ]
    return page("reference.html", title=schema["info"]["title"], operations=operations)


def _fields(schema: Mapping[str, Any], operation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Parameters and the fields of the body, flat, with what each may be."""
    given = [
        {
            "name": each["name"],
            "place": each["in"],
            "required": each.get("required", False),
            "kind": _kind(each["schema"]),
        }
        for each in operation.get("parameters", ())
    ]
    for content in operation.get("requestBody", {}).get("content", {}).values():
        given += _body_fields(schema["components"]["schemas"], content["schema"])
    return given


def _answer_fields(schema: Mapping[str, Any], operation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The fields of the answer, flat; of one without fields its media type."""
    schemas = schema["components"]["schemas"]
    return [
        field
        for status, answer in operation["responses"].items()
        if status.startswith("2")
        for media, content in answer.get("content", {}).items()
        for field in list(_body_fields(schemas, content["schema"]))
        or [{"name": media, "required": True, "kind": _kind(content["schema"])}]
    ]


def _body_fields(schemas: Mapping[str, Any], value: Mapping[str, Any], above: str = "") -> Iterator[dict[str, Any]]:
    """The fields of an object, each followed by its own: `filters.author`, `history[].question`."""
    for choice in value.get("oneOf", ()):
        yield from _body_fields(schemas, choice, above)
    if "items" in value:
        yield from _body_fields(schemas, value["items"], f"{above}[]")
    body = schemas.get(value.get("$ref", "").rpartition("/")[2], {})
    for name, field in body.get("properties", {}).items():
        path = f"{above}.{name}" if above else name
        yield {"name": path, "place": "body", "required": name in body.get("required", ()), "kind": _kind(field)}
        yield from _body_fields(schemas, field, path)


def _kind(schema: Mapping[str, Any]) -> str:
    kinds = [_kind(each) for each in (*schema.get("oneOf", ()), *schema.get("anyOf", ()))]
    named = "object" if "$ref" in schema else schema.get("type") or ""
    if "enum" in schema:
        named = " | ".join(str(value) for value in schema["enum"])
    if named == "array" and schema.get("items"):
        named = f"array of {_kind(schema['items'])}"
    if "format" in schema:
        named += f", {schema['format']}"
    if isinstance(named, list):
        named = " | ".join(map(str, named))
    least, most = schema.get("minimum"), schema.get("maximum")
    if least is not None and most is not None:
        named += f", {least:,.0f} to {most:,.0f}"
    if schema.get("default"):
        named += f", {schema['default']} unless given"
    return " | ".join(dict.fromkeys(filter(None, [str(named), *kinds]))).replace("null", "none").replace("None", "none")


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """What the login form sends."""

    key: str = ""
    next: str = "/"


@get("/login", include_in_schema=False)
async def login(next: FromQuery[str] = "/") -> Response[str]:
    return page("login.html", next=_local(next), problem="")


@post("/login", status_code=200, include_in_schema=False)
async def enter(data: URLEncodedBody[Login], request: AnyRequest, parts: Given) -> Response[Any]:
    """A key opens the pages: the browser keeps a token that is no key."""
    if parts.settings.api_keys and not same(data.key, parts.settings.api_keys):
        return page("login.html", status=401, next=_local(data.next), problem="That key does not open this twin.")
    cookie = Cookie(
        key=COOKIE,
        value=session_token(data.key),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
        path="/",
    )
    return Redirect(_local(data.next), status_code=303, cookies=[cookie])


def _local(target: str) -> str:
    """The target if it is a path of this app, else the first page: a login never leads to another site."""
    safe = target.startswith("/") and not target.startswith("//") and not set(target) & set("\\\r\n\t")
    return target if safe else "/"


def handlers() -> list[ControllerRouterHandler]:
    """Routes of the pages and their static files."""
    files = create_static_files_router(
        path="/static",
        directories=[STATIC],
        cache_control=CacheControlHeader(public=True, max_age=31_536_000, immutable=True),
    )
    return [chat, ask, authors, sources, document, passage, reference, login, enter, files]


def wanted_by(request: Request[Any, Any, Any]) -> bool:
    """Whether this request comes from a person's browser that shows a page."""
    path = request.url.path
    programs = ("/api/", "/v1/", "/health/", "/metrics", "/schema", "/static/")
    return "text/html" in request.headers.get("accept", "") and not path.startswith(programs)


def error_page(status: int, message: str) -> Response[str]:
    """What failed and what to do, as a page."""
    return page("error.html", status=status, code=status, message=message)
