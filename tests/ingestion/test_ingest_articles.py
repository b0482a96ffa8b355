"""Web articles through `twin ingest`, from a site on this machine."""

from __future__ import annotations

import gzip
import socket
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from ingestion import fetching
from ingestion.crawlers import article
from ingestion.fetching import FetchFailed, Limits, fetch, public_addresses, retry_after

PROSE = "Cedars grow slowly on the mountain, and their roots hold the soil when the rain comes down in autumn. "
PAGE = f"""<!doctype html><html lang="en-GB"><head><title>Of Cedars | A Site</title>
<meta property="og:title" content="Of Cedars"><meta name="author" content="Ada"></head><body>
<nav><a href="/">Home</a></nav>
<article><h1>Of Cedars</h1><p>{PROSE * 2} See <a href="/soil">the soil</a>.</p>
<pre><code class="language-python">def grow():
    return 1
</code></pre></article><footer>Imprint</footer></body></html>"""


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWIN_ALLOW_PRIVATE_ADDRESSES", "true")


def reason(twin: Any, url: str) -> str:
    """Why the only source failed; nothing came in, so the exit code is 1."""
    result = twin.ingest(url, code=1)
    assert twin.documents() == []
    (failure,) = result["failed"]
    assert failure["source"] == url
    return str(failure["reason"])


# What goes in


def test_an_article_goes_in_as_markdown_with_what_its_page_says(twin: Any, site: Any) -> None:
    url = site.put("/cedars", PAGE)
    assert twin.ingest(url)["inserted"] == 1
    document = twin.only()
    assert document.text == (
        f"# Of Cedars\n\n{(PROSE * 2).strip()} See [the soil]({site.url('/soil')}).\n\n"
        "```python\ndef grow():\n    return 1\n```"
    )
    assert (document.title, document.author_name, document.language) == ("Of Cedars", "Ada", "en")
    assert (document.url, document.platform, document.category) == (url, "127.0.0.1", "article")


@pytest.mark.parametrize(
    ("kind", "body", "text"),
    [
        ("text/plain", "Just text.", "Just text."),
        ("text/markdown; charset=utf-8", "---\ntitle: T\n---\n# Heading\n", "# Heading\n"),
    ],
)
def test_text_goes_in_as_it_is(twin: Any, site: Any, kind: str, body: str, text: str) -> None:
    twin.ingest(site.put("/text", body, kind))
    assert twin.only().text == text


def test_a_packed_page_is_unpacked(twin: Any, site: Any) -> None:
    twin.ingest(site.put("/packed", gzip.compress(PAGE.encode()), Content_Encoding="gzip"))
    assert PROSE.strip() in twin.only().text


@pytest.mark.parametrize(
    ("declared", "meta", "encoding"),
    [("text/html; charset=iso-8859-2", "", "iso-8859-2"), ("text/html", "<meta charset=koi8-r>", "koi8-r")],
)
def test_a_page_is_read_in_its_own_encoding(twin: Any, site: Any, declared: str, meta: str, encoding: str) -> None:
    word = "Zażółć" if encoding == "iso-8859-2" else "Кедры"
    twin.ingest(site.put("/page", f"{meta}<article><p>{word} {PROSE * 2}</p></article>".encode(encoding), declared))
    assert twin.only().text.startswith(word)


def test_we_say_who_we_are(twin: Any, site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWIN_CRAWL_CONTACT", "mailto:ada@example.com")
    twin.ingest(site.put("/cedars", PAGE))
    agents = {headers["User-Agent"] for _, headers in site.asked}
    assert len(agents) == 1
    assert agents.pop().startswith("llm-twin")
    assert site.asked[-1][1]["User-Agent"].endswith(" (+mailto:ada@example.com)")
    assert article.user_agent(None).endswith("+") is False


# Addresses


def test_a_canonical_address_of_the_same_site_is_the_documents(twin: Any, site: Any) -> None:
    canonical = f'<link rel="canonical" href="{site.url("/p/cedars?utm_source=feed")}">'
    twin.ingest(site.put("/cedars?from=mail", PAGE.replace("<title>", canonical + "<title>")))
    assert twin.only().url == site.url("/p/cedars")


@pytest.mark.parametrize("canonical", ["https://elsewhere.example/p/cedars", "/", "javascript:alert(1)", "http://[bad"])
def test_a_canonical_address_that_leads_elsewhere_is_passed_over(twin: Any, site: Any, canonical: str) -> None:
    url = site.put("/cedars", PAGE.replace("<title>", f'<link rel="canonical" href="{canonical}"><title>'))
    twin.ingest(url)
    assert twin.only().url == url


def test_two_addresses_of_one_article_are_one_document(twin: Any, site: Any) -> None:
    page = PAGE.replace("<title>", f'<link rel="canonical" href="{site.url("/p/cedars")}"><title>')
    result = twin.ingest(site.put("/a", page), site.put("/b", page))
    assert (result["seen"], result["inserted"], result["unchanged"]) == (2, 1, 1)


def test_a_redirect_is_followed(twin: Any, site: Any) -> None:
    site.put("/new", PAGE)
    site.pages["/old"] = site.answer(301, "", {"Location": "/new"})
    twin.ingest(site.url("/old"))
    assert twin.only().url == site.url("/new")


# Asked again


def test_an_unchanged_article_is_not_sent_again(twin: Any, site: Any) -> None:
    url = site.put("/cedars", PAGE, ETag='"1"', Last_Modified="Mon, 04 Mar 2024 10:00:00 GMT")
    twin.ingest(url)
    before = twin.only()
    site.pages["/cedars"] = site.answer(304)

    result = twin.ingest(url)

    assert (result["seen"], result["unchanged"], result["failed"]) == (1, 1, [])
    headers = site.asked[-1][1]
    assert headers["If-None-Match"] == '"1"'
    assert headers["If-Modified-Since"] == "Mon, 04 Mar 2024 10:00:00 GMT"
    assert twin.only() == before


def test_another_author_needs_the_article_itself(twin: Any, site: Any) -> None:
    url = site.put("/cedars", PAGE, ETag='"1"')
    twin.ingest(url)
    assert twin.ingest(url, "--author", "Grace")["updated"] == 1
    assert "If-None-Match" not in site.asked[-1][1]
    assert twin.only().author_name == "Grace"


def test_an_edited_article_is_updated(twin: Any, site: Any) -> None:
    url = site.put("/cedars", PAGE, ETag='"1"')
    twin.ingest(url)
    site.put("/cedars", PAGE.replace("slowly", "quickly"), ETag='"2"')
    assert twin.ingest(url)["updated"] == 1
    assert "quickly" in twin.only().text


# robots.txt


def test_what_robots_txt_disallows_is_not_fetched(twin: Any, site: Any) -> None:
    site.put("/robots.txt", "User-agent: llm-twin\nDisallow: /private\n", "text/plain")
    url = site.put("/private/cedars", PAGE)
    assert "robots.txt disallows it" in reason(twin, url)
    assert site.paths() == ["/robots.txt"]
    assert twin.ingest(site.put("/public", PAGE))["inserted"] == 1


def test_robots_txt_is_read_once_for_all_articles_of_a_site(twin: Any, site: Any) -> None:
    twin.ingest(site.put("/a", PAGE), site.put("/b", PAGE))
    assert site.paths() == ["/robots.txt", "/a", "/b"]


def test_a_redirect_does_not_lead_around_robots_txt(twin: Any, site: Any) -> None:
    site.put("/robots.txt", "User-agent: *\nDisallow: /private\n", "text/plain")
    site.put("/private", PAGE)
    site.pages["/open"] = site.answer(302, "", {"Location": "/private"})
    assert "robots.txt disallows it" in reason(twin, site.url("/open"))
    assert "/private" not in site.paths()


def test_a_site_whose_robots_txt_is_broken_is_left_alone(twin: Any, site: Any) -> None:
    site.pages["/robots.txt"] = site.answer(500)
    url = site.put("/cedars", PAGE)
    assert "robots.txt answered HTTP 500" in reason(twin, url)
    assert "/cedars" not in site.paths()


# What is refused


def test_a_missing_page(twin: Any, site: Any) -> None:
    assert reason(twin, site.url("/gone")) == "does not exist (HTTP 404)"


def test_a_server_that_is_not_there(twin: Any) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert reason(twin, f"http://127.0.0.1:{closed.getsockname()[1]}/") == "cannot be fetched: Connection refused"


def test_patience_is_given_when_it_is_short(twin: Any, site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        site.put("/cedars", PAGE)

    monkeypatch.setattr(fetching.fetch, "__kwdefaults__", {**(fetching.fetch.__kwdefaults__ or {}), "sleep": sleep})
    site.pages["/cedars"] = site.answer(429, "", {"Retry-After": "7"})
    assert twin.ingest(site.url("/cedars"))["inserted"] == 1
    assert slept == [7.0]


def test_patience_that_is_long_is_told(twin: Any, site: Any) -> None:
    site.pages["/cedars"] = site.answer(429, "", {"Retry-After": "3600"})
    assert reason(twin, site.url("/cedars")) == "asks for patience (HTTP 429): try again in 3600 s"


def test_a_retry_after_is_seconds_or_a_date() -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    later = format_datetime(now + timedelta(seconds=90), usegmt=True)
    assert retry_after("120", now.timestamp()) == 120
    assert retry_after("\u00b2", now.timestamp()) is None
    assert retry_after(later, now.timestamp()) == 90
    assert retry_after("soon", now.timestamp()) is None
    assert retry_after(None, now.timestamp()) is None


def test_a_circle_of_redirects(twin: Any, site: Any) -> None:
    site.pages["/a"] = site.answer(302, "", {"Location": "/b"})
    site.pages["/b"] = site.answer(302, "", {"Location": "/a"})
    assert reason(twin, site.url("/a")) == f"redirects in a circle ({site.url('/a')})"


def test_redirects_without_end(twin: Any, site: Any) -> None:
    for number in range(20):
        site.pages[f"/{number}"] = site.answer(302, "", {"Location": f"/{number + 1}"})
    assert reason(twin, site.url("/0")) == "redirects more than 10 times"


def test_a_redirect_to_something_that_is_not_the_web(twin: Any, site: Any) -> None:
    site.pages["/a"] = site.answer(302, "", {"Location": "file:///etc/passwd"})
    assert reason(twin, site.url("/a")) == "leads to 'file:///etc/passwd', which is not of http or https"


def endless(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Type", "text/html")
    request.end_headers()
    while True:
        request.wfile.write(b"<p>More and more of it.</p>" * 4_000)


def test_an_endless_body_is_cut_off(twin: Any, site: Any) -> None:
    site.pages["/endless"] = endless
    assert reason(twin, site.url("/endless")) == "is too large: more than 8.0 MB (TWIN_MAX_DOCUMENT_BYTES)"


def test_a_small_body_that_unpacks_to_a_huge_one_is_cut_off(twin: Any, site: Any) -> None:
    url = site.put("/bomb", gzip.compress(b"\0" * 30_000_000), Content_Encoding="gzip")
    assert reason(twin, url).startswith("is too large")


def dripping(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Type", "text/html")
    request.end_headers()
    while True:
        request.wfile.write(b"<")
        request.wfile.flush()
        time.sleep(0.02)


def dripping_headers(request: BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        request.wfile.write(b"x")
        request.wfile.flush()
        time.sleep(0.02)


@pytest.mark.parametrize("drip", [dripping, dripping_headers])
def test_an_answer_that_drips_ends_with_the_time(
    twin: Any, site: Any, monkeypatch: pytest.MonkeyPatch, drip: Any
) -> None:
    monkeypatch.setenv("TWIN_CRAWL_TIMEOUT", "0.3")
    site.pages["/drip"] = drip
    assert reason(twin, site.url("/drip")) == "did not answer in full within 0.3 s (TWIN_CRAWL_TIMEOUT)"


def silent(request: BaseHTTPRequestHandler) -> None:
    time.sleep(1)


def test_a_server_that_says_nothing_ends_with_the_time(twin: Any, site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWIN_CRAWL_TIMEOUT", "0.3")
    site.pages["/silent"] = silent
    assert reason(twin, site.url("/silent")) == "did not answer in full within 0.3 s (TWIN_CRAWL_TIMEOUT)"


def cut_packed(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Type", "text/html")
    request.send_header("Content-Encoding", "gzip")
    request.end_headers()
    request.wfile.write(gzip.compress(PAGE.encode())[:-20])


def cut(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Type", "text/html")
    request.send_header("Content-Length", "100000")
    request.end_headers()
    request.wfile.write(PAGE.encode())


@pytest.mark.parametrize("body", [cut, cut_packed])
def test_a_body_that_was_cut_is_not_taken_for_the_whole(twin: Any, site: Any, body: Any) -> None:
    site.pages["/cut"] = body
    assert reason(twin, site.url("/cut")) == "cannot be fetched: the answer ended too early"


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"", "the server ended the connection without an answer"),
        (b"SSH-2.0-OpenSSH\r\n", "the answer is not valid HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nnot packed", "the answer is not packed as it says"),
    ],
)
def test_an_answer_that_is_none_is_told_in_words(twin: Any, site: Any, sent: bytes, said: str) -> None:
    def raw(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(sent)
        request.close_connection = True

    site.pages["/odd"] = raw
    assert reason(twin, site.url("/odd")) == f"cannot be fetched: {said}"


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        ("image/png", b"\x89PNG", "is image/png, not an article (HTML, Markdown, plain text or PDF)"),
        ("application/json", b"{}", "is application/json, not an article (HTML, Markdown, plain text or PDF)"),
        ("text/html", b"", "is empty"),
        (
            "text/html",
            b"<html><body><a href='/'>Home</a></body></html>",
            "has no article: 0 characters of running text",
        ),
        ("text/html", b"<p>Please log in.</p>", "has no article: 12 characters of running text"),
        ("text/html; charset=utf-8", b"<p>\xff</p>" * 90, "is not valid UTF-8: byte 0xff at offset 3"),
        ("application/pdf", b"%PDF-1.7 no", "is a broken PDF"),
    ],
)
def test_what_is_not_an_article(twin: Any, site: Any, kind: str, body: bytes, expected: str) -> None:
    assert reason(twin, site.put("/page", body, kind)).startswith(expected)


def test_an_address_with_a_password_is_refused_and_not_shown(twin: Any) -> None:
    result = twin.ingest("http://ada:secret@127.0.0.1/", code=1)
    assert "behind a login" in result["failed"][0]["reason"]
    assert "secret" not in str(result)


@pytest.mark.parametrize("address", ["http://[bad", "http://127.0.0.1:port/", "http:///nothing"])
def test_what_is_no_address(twin: Any, address: str) -> None:
    assert "address" in reason(twin, address) or "not of http" in reason(twin, address)


def test_a_redirect_to_what_is_no_address(twin: Any, site: Any) -> None:
    site.pages["/a"] = site.answer(302, "", {"Location": "http://[bad"})
    assert reason(twin, site.url("/a")) == "redirects to what is no address ('http://[bad')"


def test_a_name_that_is_not_known(twin: Any) -> None:
    assert "cannot be reached" in reason(twin, "http://no-such-host.invalid/")


# Private addresses


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "100.64.0.1",
        "224.0.0.1",
        "::1",
        "fe80::1",
        "fd00::1",
        "::ffff:127.0.0.1",
        "2002:7f00:1::",
    ],
)
def test_private_addresses_are_refused(address: str) -> None:
    with pytest.raises(FetchFailed, match="is at a private address"):
        public_addresses(address, 80, allow_private=False)
    assert public_addresses(address, 80, allow_private=True) == [address]


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1"])
def test_public_addresses_are_allowed(address: str) -> None:
    assert public_addresses(address, 80, allow_private=False) == [address]


def test_a_private_address_is_refused_and_the_reason_says_how_to_allow_it(
    twin: Any, site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TWIN_ALLOW_PRIVATE_ADDRESSES")
    url = site.put("/cedars", PAGE)
    assert "is at a private address (127.0.0.1): allow it with --allow-private-addresses" in reason(twin, url)
    assert site.asked == []
    assert twin.ingest(url, "--allow-private-addresses")["inserted"] == 1


def test_a_name_whose_address_changes_between_check_and_connection_leads_nowhere(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the first answer is public, the next would be this machine."""
    answers = iter(["192.0.2.1", "127.0.0.1", "127.0.0.1"])
    port = int(site.address.rpartition(":")[2])
    resolve = socket.getaddrinfo

    def rebinding(host: Any, *arguments: Any, **named: Any) -> Any:
        return resolve(next(answers) if host == "rebind.example" else host, *arguments, **named)

    connected: list[str] = []

    def connect(address: tuple[str, int], **named: Any) -> socket.socket:
        connected.append(address[0])
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    monkeypatch.setattr(fetching, "_is_public", lambda address: address == "192.0.2.1")
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(FetchFailed, match="cannot be fetched: Connection refused"):
        fetch(f"http://rebind.example:{port}/", Limits(1, 1_000), {})
    assert connected == ["192.0.2.1"]


def test_a_redirect_to_a_private_address_is_refused(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *rest, **named: resolve("127.0.0.1" if host == "public.example" else host, *rest, **named),
    )
    monkeypatch.setattr(fetching, "_is_public", lambda address: address == "127.0.0.1")
    port = site.address.rpartition(":")[2]
    site.pages["/a"] = site.answer(302, "", {"Location": "http://127.0.0.2/latest/meta-data"})
    with pytest.raises(FetchFailed, match=r"is at a private address \(127\.0\.0\.2\)"):
        fetch(f"http://public.example:{port}/a", Limits(2, 1_000), {})
