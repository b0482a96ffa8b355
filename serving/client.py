"""Talking to the app of a home over HTTP, with the standard library alone: commands that use it start at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from corpus.settings import Settings, running_addresses, without_password

if TYPE_CHECKING:
    from http.client import HTTPResponse

PATIENCE_SECONDS = 15.0
TIMEOUT_SECONDS = 120.0


class AppUnavailable(ConnectionError):
    """The app cannot be reached; the message says what to do."""


class AppRefused(RuntimeError):
    """The app answered with an error; the message is its own, `status` the HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def call(
    settings: Settings,
    method: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    query: Mapping[str, Any] | None = None,
    patience: float = PATIENCE_SECONDS,
    timeout: float = TIMEOUT_SECONDS,
) -> Any:
    """The app's JSON answer. A query value that is None is left out.

    Every call may be repeated without harm, so one that fails while the app restarts is tried again for `patience`
    seconds. An app that hangs is given `timeout` seconds. Raises AppUnavailable or AppRefused.
    """
    import json

    with _answer(settings, method, path, body, query, "application/json", patience, timeout) as response:
        return json.loads(response.read())


def events(settings: Settings, path: str, body: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The app's server-sent events as (name, value). Raises as `call`; a stream that breaks raises AppUnavailable."""
    import json
    from http.client import HTTPException

    with _answer(
        settings, "POST", path, body, None, "text/event-stream", PATIENCE_SECONDS, TIMEOUT_SECONDS
    ) as response:
        name = ""
        try:
            for raw in response:
                line = raw.decode().rstrip("\n")
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    yield name, json.loads(line.removeprefix("data: "))
        except (OSError, HTTPException) as error:
            raise AppUnavailable("the app broke off in the middle of its answer: see `twin status`") from error


@contextmanager
def _answer(
    settings: Settings,
    method: str,
    path: str,
    body: Mapping[str, Any] | None,
    query: Mapping[str, Any] | None,
    accept: str,
    patience: float,
    timeout: float,
) -> Iterator[HTTPResponse]:
    import time

    deadline = time.monotonic() + patience
    pause = 0.05
    # The address may change when the app is started again, and is gone when the home goes down.
    follows = settings.app_url is not None and running_addresses(settings.home).get("app_url") == settings.app_url
    address = settings.app_url
    while True:
        if address is None:
            raise AppUnavailable("the app of this home is not running: `twin up`")
        try:
            connection, response = _request(settings, address, method, path, body, query, accept, timeout)
            break
        except AppUnavailable:
            if time.monotonic() + pause > deadline:
                raise
            time.sleep(pause)
            pause = min(1.0, pause * 1.5)
            if follows:
                address = running_addresses(settings.home).get("app_url")
    with closing(connection):
        yield response


def _request(
    settings: Settings,
    address: str,
    method: str,
    path: str,
    body: Mapping[str, Any] | None,
    query: Mapping[str, Any] | None,
    accept: str,
    timeout: float,
) -> tuple[Any, HTTPResponse]:
    import json
    from http.client import HTTPConnection, HTTPException, HTTPSConnection
    from urllib.parse import urlencode, urlsplit

    parts = urlsplit(address)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    headers = {"Accept": accept, "Content-Type": "application/json"}
    if settings.api_keys:
        headers["X-API-Key"] = settings.api_keys[0]
    given = {name: value for name, value in (query or {}).items() if value is not None}
    target = parts.path.rstrip("/") + path + (f"?{urlencode(given)}" if given else "")
    connection = kind(parts.hostname or "127.0.0.1", parts.port, timeout=timeout)
    try:
        connection.request(method, target, None if body is None else json.dumps(body).encode(), headers)
        response = connection.getresponse()
        if response.status < 400:
            return connection, response
        message = _message(response.read())
    except TimeoutError as error:
        connection.close()
        raise AppRefused(f"the app did not answer within {timeout:.0f} s: see `twin status`", 504) from error
    except (OSError, HTTPException) as error:
        connection.close()
        raise AppUnavailable(
            f"the app at {without_password(address)} cannot be reached: `twin up` starts it, `twin status` shows it"
        ) from error
    connection.close()
    if response.status == 503:
        raise AppUnavailable(message or "the app is not ready: see `twin status`")
    if response.status == 401:
        raise AppRefused("the app asks for a key: set TWIN_API_KEYS for this command as for the app", 401)
    raise AppRefused(message or f"the app answered {response.status}", response.status)


def _message(body: bytes) -> str:
    import json

    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""
