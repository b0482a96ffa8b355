"""Who may talk to the app: host, origin, key, size and rate, checked before anything else; headers on every answer."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import quote, urlsplit

import msgspec
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from corpus.settings import InvalidSettings, Settings

MAX_BODY = 1_000_000
COOKIE = "twin_session"
CLIENTS = 10_000
# What a probe, the page's style and the login form need before there is a key.
OPEN_PATHS = frozenset({"/health/live", "/health/ready", "/login"})
# What `twin wait` and monitors ask many times a second.
UNCOUNTED_PATHS = frozenset({"/health/live", "/health/ready", "/metrics", "/api/behind", "/api/status"})
SECURITY_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
        b"frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine only."""
    name = host.strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def checked_host(settings: Settings) -> None:
    """Raise InvalidSettings if the app would be open to others without a key."""
    if not is_loopback(settings.host) and not settings.api_keys:
        raise InvalidSettings(
            f"TWIN_HOST={settings.host} lets other machines in: set TWIN_API_KEYS to a secret of your own, "
            "or TWIN_HOST=127.0.0.1"
        )


def same(given: str, expected: Iterable[str]) -> bool:
    """Whether `given` is one of the expected secrets, in a time that tells nothing of how near it came."""
    found = False
    for each in expected:
        found |= hmac.compare_digest(given.encode(), each.encode())
    return found


def session_token(key: str) -> str:
    """What a browser keeps in place of a key: it opens the pages, and the key cannot be read from it."""
    return hmac.new(key.encode(), b"llm-twin session", hashlib.sha256).hexdigest()


def authorised(headers: Mapping[str, str], keys: tuple[str, ...]) -> bool:
    """Whether a request with these headers (lower-case names) carries one of the keys; True if none is set."""
    if not keys:
        return True
    scheme, _, token = headers.get("authorization", "").partition(" ")
    given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    if given and same(given, keys):
        return True
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return False
    return morsel is not None and same(morsel.value, map(session_token, keys))


class Buckets:
    """A token bucket for each client: `rate` requests a minute, as many at once after a minute of rest."""

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._clients: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> float:
        """Take one request; 0.0 if it is granted, else the seconds until one would be."""
        now = self._clock()
        level, since = self._clients.pop(client, (float(self._rate), now))
        level = min(float(self._rate), level + (now - since) * self._rate / 60)
        wait = 0.0 if level >= 1 else (1 - level) * 60 / self._rate
        self._clients[client] = (level - 1 if not wait else level, now)
        if len(self._clients) > CLIENTS:
            self._clients.popitem(last=False)
        return wait


def error_body(message: str, kind: str, path: str = "") -> bytes:
    """An error in the app's one shape, or in OpenAI's below `/v1/`."""
    error: dict[str, str | None] = {"message": message, "type": kind}
    if path.startswith("/v1/"):
        error |= {"param": None, "code": None}
    return msgspec.json.encode({"error": error})


def guarded(app: ASGIApp, settings: Settings) -> ASGIApp:
    """`app` behind the checks of this module. Raises InvalidSettings if it would be open to others without a key."""
    checked_host(settings)
    loopback = is_loopback(settings.host)
    buckets = Buckets(settings.rate_limit)

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"]

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(h for h in SECURITY_HEADERS if h[0] not in given)]
            await send(message)

        refusal = _refused(path, headers, loopback, settings.api_keys)
        # A wrong key counts wherever it is tried: who guesses has the rate of everybody else.
        if (refusal[0] == 401) if refusal else (path not in UNCOUNTED_PATHS):
            wait = buckets.take(_client(scope, headers))
            if wait:
                refusal = (
                    429,
                    f"too many requests: try again in {wait:.0f} s",
                    "rate_limited",
                    [(b"retry-after", b"%d" % (wait + 1))],
                )
        if refusal is None:
            await app(scope, receive, send_guarded)
            return
        status, message, kind, more = refusal
        if status == 401 and scope["method"] in ("GET", "HEAD") and "text/html" in headers.get("accept", ""):
            query = scope.get("query_string", b"").decode("latin-1")
            target = quote(quote(path) + (f"?{query}" if query else ""), safe="")
            status, more = 303, [(b"location", f"/login?next={target}".encode("latin-1"))]
        body = error_body(message, kind, path)
        start = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *more]
        await send_guarded({"type": "http.response.start", "status": status, "headers": start})
        await send_guarded({"type": "http.response.body", "body": body, "more_body": False})

    return guard


Refusal = tuple[int, str, str, list[tuple[bytes, bytes]]]


def _refused(path: str, headers: Mapping[str, str], loopback: bool, keys: tuple[str, ...]) -> Refusal | None:
    host = headers.get("host", "")
    # A page of another site can make a name of its own point here (DNS rebinding): such a name is not ours.
    if loopback and not is_loopback(_name(host)):
        return 421, "this app answers on this machine only: use its 127.0.0.1 address", "misdirected", []
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        return 403, "requests from pages of other sites are refused", "forbidden", []
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > MAX_BODY:
        return 413, f"the request is larger than {MAX_BODY:,} bytes", "too_large", []
    if path not in OPEN_PATHS and not path.startswith("/static/") and not authorised(headers, keys):
        challenge = [(b"www-authenticate", b"Bearer")]
        return (
            401,
            "a key is needed: send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
            "unauthorized",
            challenge,
        )
    return None


def _name(host: str) -> str:
    """The host name of a Host header without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _client(scope: Scope, headers: Mapping[str, str]) -> str:
    client = scope.get("client")
    return str(client[0]) if client else headers.get("host", "")
