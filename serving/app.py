"""The app: routes, errors in one shape, and the checks around them. Importing this does nothing; `create_app` does."""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import quote

from litestar import Litestar, Request, Response
from litestar.di import Provide
from litestar.enums import ScopeType
from litestar.exceptions import HTTPException, InternalServerException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from serving import api, openai, pages
from serving.access import MAX_BODY, error_body, guarded
from serving.metrics import Metrics, measured
from serving.parts import Parts
from serving.retrieval import InvalidQuestion

log = logging.getLogger(__name__)

KINDS = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
}


def create_app(parts: Parts) -> Litestar:
    """The app over these parts. Raises corpus.settings.InvalidSettings if it would be open to others without a key."""
    metrics = Metrics(parts.registry)
    app = Litestar(
        route_handlers=[*api.HANDLERS, *openai.HANDLERS, *pages.handlers()],
        dependencies={
            "parts": Provide(lambda: parts, sync_to_thread=False),
            "metrics": Provide(lambda: metrics, sync_to_thread=False),
        },
        exception_handlers={Exception: answered_error},
        openapi_config=OpenAPIConfig(
            title="LLM Twin",
            version="1",
            description="Search and cited answers over what an author has written.",
            path="/schema",
            render_plugins=[JsonRenderPlugin(path="/openapi.json")],
            use_handler_docstrings=True,
        ),
        request_max_body_size=MAX_BODY,
        logging_config=None,
    )
    app.asgi_handler = measured(guarded(routed(app.asgi_handler), parts.settings), metrics)
    return app


def routed(app: ASGIApp) -> ASGIApp:
    """`app` where an id of any characters is one (escaped) segment of the path, and HEAD is GET without body."""

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await app(scope, receive, send)
            return
        head = scope["method"] == "HEAD"

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.body":
                message["body"] = b""
            await send(message)

        # A copy: the server must go on seeing HEAD, or it would wait for the body.
        seen: Scope = {**scope, "method": "GET" if head else scope["method"]}
        for above in api.BEFORE_ID:
            if scope["path"].startswith(above):
                seen["path"] = above + quote(scope["path"].removeprefix(above), safe="")
        try:
            await app(seen, receive, send_head if head else send)
        finally:
            scope["path_template"] = seen.get("path_template", "")

    return route


def answered_error(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """Every error as JSON in one shape, or as a page where a person reads; never with a traceback."""
    status, message, kind = _told(error)
    if status == 500:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    elif status > 500:
        log.warning("%s %s: %s", request.method, request.url.path, message)
    if pages.wanted_by(request):
        return pages.error_page(status, message)
    return Response(error_body(message, kind, request.url.path), status_code=status, media_type="application/json")


def _told(error: Exception) -> tuple[int, str, str]:
    if isinstance(error, InvalidQuestion):
        return 400, str(error), KINDS[400]
    if isinstance(error, UnicodeDecodeError):
        return 400, "the request is not valid UTF-8", KINDS[400]
    if isinstance(error, RecursionError) and "deserializing" in str(error):
        return 400, "the request is nested too deeply", KINDS[400]
    if isinstance(error, HTTPException) and not isinstance(error, InternalServerException):
        return error.status_code, _detail(error), KINDS.get(error.status_code, "error")
    if isinstance(error, api.ClientGone) or _hung_up(error):
        return 499, "the client hung up", "client_gone"
    return api.failure(error)


def _hung_up(error: Exception) -> bool:
    """Whether the client went away before its request was whole, which the framework tells as a failure of ours."""
    return isinstance(error, InternalServerException) and "client disconnected" in error.detail


def _detail(error: HTTPException) -> str:
    """The sentence of the error, with what is wrong in which field where the request did not fit."""
    extra = error.extra if isinstance(error.extra, list) else []
    wrong = [f"{each.get('key') or 'body'}: {each.get('message')}" for each in extra if isinstance(each, dict)]
    return "; ".join(wrong)[:1000] or error.detail
