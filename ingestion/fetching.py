"""Fetching from strangers: one GET with limits on time, size and redirects, and never a private address unless allowed.

The address that was checked is the one that is connected to, so a name that resolves differently a moment later (DNS
rebinding) leads nowhere. Source: OWASP Server-Side Request Forgery Prevention Cheat Sheet.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from ingestion.drafts import reason_of

REDIRECTS = 10
REDIRECTING = frozenset((301, 302, 303, 307, 308))
# Waiting longer for a server that asks for patience is left to the person who started the crawl.
LONGEST_PAUSE = 10.0
PIECE = 65_536


class FetchFailed(Exception):
    """Nothing came of a fetch; the message completes "URL ..."."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`timeout`: seconds for all of a fetch, redirects included; `largest`: bytes of the unpacked body."""

    timeout: float
    largest: int
    allow_private_addresses: bool = False


@dataclass(frozen=True, slots=True)
class Response:
    """What a server answered. `url`: of the last redirect; header names are lower case."""

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def charset(self) -> str | None:
        for part in self.headers.get("content-type", "").split(";")[1:]:
            name, _, value = part.partition("=")
            if name.strip().lower() == "charset":
                return value.strip(" \"'") or None
        return None


def fetch(
    url: str,
    limits: Limits,
    headers: Mapping[str, str],
    *,
    before: Callable[[str], None] = lambda url: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Response:
    """GET an address, following redirects; `before` is called with each address and may raise.

    Any status but a redirect is answered as it is; a 429 or 503 that asks for a short pause is asked once more. Raises
    FetchFailed.
    """
    deadline = time.monotonic() + limits.timeout
    seen: list[str] = []
    patient = True
    while True:
        _check_address(url)
        before(url)
        response = _get(url, limits, headers, deadline)
        if response.status in REDIRECTING and "location" in response.headers:
            seen.append(url)
            url = _redirected(url, response.headers["location"])
            if url in seen:
                raise FetchFailed(f"redirects in a circle ({url})")
            if len(seen) > REDIRECTS:
                raise FetchFailed(f"redirects more than {REDIRECTS} times")
            continue
        pause = retry_after(response.headers.get("retry-after"), time.time()) if response.status in (429, 503) else None
        if patient and pause is not None and pause <= min(LONGEST_PAUSE, deadline - time.monotonic()):
            patient = False
            sleep(pause)
            continue
        return response


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds from `now` (of the epoch) that a Retry-After header asks for. Source: RFC 9110, section 10.2.3."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return None


def public_addresses(host: str, port: int, allow_private: bool) -> list[str]:
    """The addresses of a host, all checked: one that is private makes the host refused. Raises FetchFailed."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise FetchFailed(f"cannot be reached: the name {host[:100]!r} is not known") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    private = [address for address in addresses if not _is_public(address)]
    if private and not allow_private:
        raise FetchFailed(
            f"is at a private address ({private[0]}): allow it with --allow-private-addresses"
            " (TWIN_ALLOW_PRIVATE_ADDRESSES=true)"
        )
    return addresses


def _is_public(address: str) -> bool:
    number = ipaddress.ip_address(address.partition("%")[0])
    inner = number.ipv4_mapped or number.sixtofour if isinstance(number, ipaddress.IPv6Address) else None
    return number.is_global and not number.is_multicast and (inner is None or inner.is_global)


def _check_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise FetchFailed(f"is not a valid address ({url[:200]})") from error
    if parts.scheme not in ("http", "https") or not host:
        raise FetchFailed(f"leads to {url[:200]!r}, which is not of http or https")
    if parts.username is not None:
        raise FetchFailed("has a password in its address: what is behind a login is not fetched")


def _redirected(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise FetchFailed(f"redirects to what is no address ({location[:200]!r})") from error


def _get(url: str, limits: Limits, headers: Mapping[str, str], deadline: float) -> Response:
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    host, port = parts.hostname or "", parts.port or (443 if secure else 80)
    addresses = public_addresses(host, port, limits.allow_private_addresses)
    connection = http.client.HTTPConnection(host, port)
    try:
        sock = connection.sock = _connected(addresses, port, deadline)
        if secure:
            sock = connection.sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
        target = quote(urlunsplit(("", "", parts.path or "/", parts.query, "")), safe="/:?#[]@!$&'()*+,;=%-._~")
        shown = f"[{host}]" if ":" in host else host.encode("idna").decode()
        name = shown if port in (80, 443) and parts.port is None else f"{shown}:{port}"
        own = {"Host": name, "Accept-Encoding": "gzip", "Connection": "close"}
        with _cut_off(sock, deadline):
            connection.request("GET", target, headers={**own, **headers})
            answer = connection.getresponse()
            received = {name.lower(): value for name, value in answer.getheaders()}
            body = b"".join(_limited(_unpacked(_pieces(answer), received), limits.largest))
        return Response(url, answer.status, received, body)
    except TimeoutError as error:
        raise FetchFailed(f"did not answer in full within {limits.timeout:g} s (TWIN_CRAWL_TIMEOUT)") from error
    except ssl.SSLError as error:
        raise FetchFailed(f"has no valid certificate ({error.reason or error})") from error
    except (OSError, http.client.HTTPException, zlib.error, UnicodeError) as error:
        raise FetchFailed(f"cannot be fetched: {_said(error)}") from error
    finally:
        connection.close()


def _said(error: Exception) -> str:
    if isinstance(error, http.client.RemoteDisconnected):
        return "the server ended the connection without an answer"
    if isinstance(error, http.client.IncompleteRead):
        return "the answer ended too early"
    if isinstance(error, http.client.HTTPException):
        return "the answer is not valid HTTP"
    if isinstance(error, zlib.error):
        return "the answer is not packed as it says"
    return reason_of(error)


def _connected(addresses: list[str], port: int, deadline: float) -> socket.socket:
    failure: OSError = OSError("no address")
    for address in addresses:
        try:
            return socket.create_connection((address, port), timeout=_left(deadline))
        except OSError as error:
            failure = error
    raise failure


@contextmanager
def _cut_off(sock: socket.socket, deadline: float) -> Iterator[None]:
    """End the connection at the deadline: a server that drips byte by byte has no more time than any other."""

    def end() -> None:
        with suppress(OSError):
            # Not the method of a TLS socket, which is not made for two threads.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)

    timer = threading.Timer(_left(deadline), end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, http.client.HTTPException, zlib.error):
        _left(deadline)
        raise
    finally:
        timer.cancel()
    # A body without a stated length ends where the connection does.
    _left(deadline)


def _pieces(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    while piece := answer.read1(PIECE):
        yield piece
    if answer.length:
        raise http.client.IncompleteRead(b"", answer.length)


def _unpacked(pieces: Iterator[bytes], headers: Mapping[str, str]) -> Iterator[bytes]:
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("", "identity"):
        yield from pieces
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise FetchFailed(f"is packed as {encoding[:40]!r}, which was not asked for")
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)
    packed = False
    for piece in pieces:
        packed = True
        while piece:
            # In steps, so that a small body that unpacks to gigabytes is stopped in time.
            yield unpack.decompress(piece, PIECE)
            piece = unpack.unconsumed_tail
    yield unpack.flush()
    if packed and not unpack.eof:
        raise http.client.IncompleteRead(b"")


def _limited(pieces: Iterator[bytes], largest: int) -> Iterator[bytes]:
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > largest:
            raise FetchFailed(f"is too large: more than {largest / 1e6:.1f} MB (TWIN_MAX_DOCUMENT_BYTES)")
        yield piece


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
