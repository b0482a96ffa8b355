"""Only those who may talk to the app do: this machine's own pages, or who has a key."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus.settings import InvalidSettings, Settings
from serving.access import Buckets, authorised, is_loopback, same, session_token
from serving.app import create_app

KEYS = ("first-key", "second-key")
OPEN = Settings(host="0.0.0.0", api_keys=KEYS)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", ""]
)
def test_on_loopback_a_foreign_host_is_refused(harbour: Any, host: str) -> None:
    with harbour.client() as client:
        response = client.get("/api/documents", headers={"host": host})
    assert response.status_code == 421
    assert response.json()["error"]["type"] == "misdirected"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8000", "[::1]:8000", "LOCALHOST"])
def test_the_names_of_this_machine_are_its_own(harbour: Any, host: str) -> None:
    with harbour.client() as client:
        assert client.get("/health/live", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:9999", "http://localhost:8000"])
def test_a_page_of_another_origin_is_refused(harbour: Any, origin: str) -> None:
    with harbour.client() as client:
        response = client.post("/api/ask", json={"question": "zqbacedi"}, headers={"origin": origin})
    assert response.status_code == 403


def test_the_apps_own_page_may_ask(harbour: Any) -> None:
    with harbour.client() as client:
        headers = {"origin": "http://127.0.0.1:8000"}
        assert client.post("/api/ask", json={"question": "zqbacedi"}, headers=headers).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "twin.example"])
def test_off_loopback_the_app_refuses_to_start_without_a_key(harbour: Any, host: str) -> None:
    with pytest.raises(InvalidSettings, match="TWIN_API_KEYS"):
        create_app(harbour.parts(Settings(host=host)))


def test_a_key_opens_the_app_by_either_header(harbour: Any) -> None:
    with harbour.client(OPEN) as client:
        none = client.get("/api/documents")
        wrong = client.get("/api/documents", headers={"x-api-key": "first-kez"})
        bearer = client.get("/api/documents", headers={"authorization": "Bearer second-key"})
        header = client.get("/api/documents", headers={"x-api-key": "first-key", "host": "twin.example"})
        health = client.get("/health/ready")
        metrics = client.get("/metrics")
    assert (none.status_code, wrong.status_code, metrics.status_code) == (401, 401, 401)
    assert none.headers["www-authenticate"] == "Bearer"
    assert (bearer.status_code, header.status_code, health.status_code) == (200, 200, 200)
    assert "first-key" not in none.text


@given(st.text(min_size=1, max_size=20), st.lists(st.text(min_size=1, max_size=20), max_size=3))
@settings(deadline=None)
def test_exactly_the_keys_are_the_same(key: str, others: list[str]) -> None:
    def plain(text: str) -> str:
        return text.encode("utf-8", "replace").decode()

    assert same(plain(key), map(plain, others)) == (plain(key) in map(plain, others))


def test_a_browser_keeps_a_token_and_never_the_key() -> None:
    token = session_token("first-key")
    assert "first-key" not in token
    assert authorised({"cookie": f"a=b; twin_session={token}"}, KEYS)
    assert not authorised({"cookie": "twin_session=first-key"}, KEYS)
    assert not authorised({"authorization": "Basic first-key"}, KEYS)
    assert authorised({}, ())


def test_too_large_requests_are_refused_with_and_without_a_stated_length(harbour: Any) -> None:
    def endless() -> Any:
        for _ in range(20):
            yield b"x" * 100_000

    with harbour.client() as client:
        stated = client.post("/api/ask", content=b"x" * 1_000_001, headers={"content-type": "application/json"})
        chunked = client.post("/api/ask", content=endless(), headers={"content-type": "application/json"})
    assert (stated.status_code, chunked.status_code) == (413, 413)


def test_who_asks_too_often_is_told_when_to_come_back(harbour: Any) -> None:
    with harbour.client(Settings(rate_limit=2)) as client:
        codes = [client.get("/api/documents").status_code for _ in range(3)]
        refused = client.get("/api/documents")
        waiting = client.get("/api/behind")
    assert codes == [200, 200, 429]
    assert int(refused.headers["retry-after"]) in range(1, 32)
    assert waiting.status_code == 200


@pytest.mark.parametrize("path", ["/api/documents", "/api/status", "/"])
def test_keys_cannot_be_guessed_faster_than_the_rate(harbour: Any, path: str) -> None:
    with harbour.client(Settings(host="0.0.0.0", api_keys=KEYS, rate_limit=2)) as client:
        codes = [client.get(path, headers={"x-api-key": f"guess-{turn}"}).status_code for turn in range(3)]
    assert codes == [401, 401, 429]


@given(st.integers(1, 100), st.lists(st.floats(0, 30), max_size=60))
@settings(deadline=None)
def test_no_client_gets_more_than_its_rate_and_its_burst(rate: int, pauses: list[float]) -> None:
    now = 0.0
    buckets = Buckets(rate, lambda: now)
    granted = 0
    for pause in pauses:
        now += pause
        granted += buckets.take("a") == 0.0
    assert granted <= rate + now * rate / 60 + 1e-6


def test_the_bucket_remembers_a_bounded_number_of_clients() -> None:
    buckets = Buckets(1, lambda: 0.0)
    for number in range(20_000):
        buckets.take(str(number))
    assert len(buckets._clients) <= 10_000


@pytest.mark.parametrize("path", ["/health/live", "/api/documents/none", "/no/such/path"])
def test_every_answer_forbids_what_a_page_of_ours_never_does(harbour: Any, path: str) -> None:
    with harbour.client() as client:
        headers = client.get(path).headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"


def test_loopback_is_what_never_leaves_the_machine() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"]))
    assert not any(map(is_loopback, ["0.0.0.0", "10.0.0.1", "example.org", "", "localhost.org"]))
