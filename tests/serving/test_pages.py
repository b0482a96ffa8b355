"""The pages read well without any script, hide nothing that failed, and run nothing that an author wrote."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from corpus.settings import Settings
from serving.answering import NEAREST, NOTHING, Answer, Citation
from serving.pages import STATIC, ago, document_address, turn_html

BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
HOSTILE = '<img src=x onerror="alert(1)">'


def get(client: Any, path: str, **more: Any) -> Any:
    return client.get(path, headers=BROWSER, **more)


def test_an_empty_twin_says_what_to_do_first(library: Any) -> None:
    with library.client() as client:
        for path in ("/", "/documents"):
            assert "twin ingest" in get(client, path).text


def test_a_question_is_answered_without_any_script(harbour: Any) -> None:
    with harbour.client() as client:
        page = get(
            client, "/", params={"question": "What does the zqbacedi station report?", "author": "", "since": ""}
        ).text
        address = re.search(r'class="citation" href="([^"]+)"', page)
        assert address is not None
        cited = get(client, address[1].replace("&amp;", "&").partition("#")[0]).text
    assert "“The zqbacedi station reports" in page
    assert 'class="marker"' in page
    assert '<mark id="cited">The zqbacedi station reports' in cited
    assert 'id="chunk-1"' in cited


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ({"question": " "}, "empty"),
        ({"question": "x" * 5000}, "5,000 characters"),
        ({"question": "x", "since": "s"}, "since"),
    ],
)
def test_a_question_that_cannot_be_answered_is_kept_and_explained(harbour: Any, query: Any, told: str) -> None:
    with harbour.client() as client:
        response = get(client, "/", params=query)
    assert response.status_code == 400
    assert told in response.text
    assert f">{query['question']}</textarea>" in response.text


def test_markup_of_an_author_is_never_markup_of_the_page(library: Any) -> None:
    id = library.add(
        HOSTILE, f"# {HOSTILE}\n\nThe zqevil {HOSTILE} <script>x()</script>.", author=HOSTILE, category="post"
    )
    library.fail(library.add("Bad", "x", indexed=False), HOSTILE)
    passage = f"/passages/{id}?version=1&start=0&end=10"
    with library.client() as client:
        for path in ("/?question=zqevil", "/documents", f"/documents/{id}", passage, f"/documents/{HOSTILE}"):
            text = get(client, path).text
            assert "<img" not in text, path
            assert "<script>" not in text, path
            assert "&lt;img" in text, path


def test_a_citation_of_a_version_that_is_gone_says_so(harbour: Any) -> None:
    id = next(iter(harbour.index.kept))
    with harbour.client() as client:
        old = get(client, f"/passages/{id}?version=7&start=0&end=10").text
        whole = get(client, f"/documents/{id}?version=7&start=0&end=10").text
        beyond = get(client, f"/passages/{id}?version=1&start=5&end=99999").text
    assert all("has changed since it was cited" in text and "<mark" not in text for text in (old, whole, beyond))


def test_the_sources_page_says_what_failed_and_why(harbour: Any) -> None:
    harbour.fail(harbour.add("Scan", "x", indexed=False), "the PDF holds no text")
    harbour.add("Coming", "x", indexed=False)
    with harbour.client() as client:
        page = get(client, "/documents").text
        failed = get(client, "/documents?state=failed").text
        none = get(client, "/documents?words=zzz").text
    assert "clean: the PDF holds no text" in page
    assert [f"<b>{n}</b>" in page for n in (4, 2, 1)] == [True, True, True]
    assert "Scan" in failed
    assert "Coming" not in failed
    assert "No document fits" in none


def test_a_title_stands_once_above_its_text(library: Any) -> None:
    text = "# Incident of 2 June\n\nThe zqqueue was full of mail.\n\n## Later\n\nThe zqqueue was empty again."
    id = library.add("Incident of 2 June", text)
    start = text.index("The zqqueue was full")
    with library.client() as client:
        whole = get(client, f"/documents/{id}").text
        cited = get(client, f"/documents/{id}?version=1&start={start}&end={start + 11}").text
        beside = get(client, f"/passages/{id}?version=1&start={start}&end={start + 11}").text
        heading = get(client, f"/documents/{id}?version=1&start=2&end=20").text
    for page in (whole, cited, beside):
        assert re.sub("<title>.*</title>", "", page).count("Incident of 2 June") == 1
    assert 'id="chunk-1"' in whole
    assert '<mark id="cited">The zqqueue</mark>' in cited
    assert '<mark id="cited">The zqqueue</mark>' in beside
    # Words that are cited are always shown.
    assert '<mark id="cited">Incident of 2 June</mark>' in heading


def test_quotations_of_one_document_are_told_apart(library: Any) -> None:
    text = "# Mail: the queue\n\nThe zqone queue was full of old mail.\n\nThe zqtwo queue was quite empty."
    library.add("Mail", text)
    with library.client() as client:
        page = get(client, "/?question=Which zqone queue was full, which zqtwo queue was empty?").text
    rows = re.findall(r'<li><a class="citation".*?</li>', page)
    assert len(rows) == 2
    assert all('<span class="path">the queue</span>' in row for row in rows)
    assert "<q>The zqone queue was full" in "".join(rows)
    assert "<q>The zqtwo queue was quite" in "".join(rows)


def test_the_model_that_wrote_an_answer_is_named_below_it_and_none_is_for_quotations() -> None:
    written = turn_html("How?", Answer("So.", "generated", (), model="<twin-3>"))
    quoted = turn_html("How?", Answer("“So.” [1]", "extractive", ()))
    assert re.search(r'So\.</p>\s*</div>\s*<p class="model">Answered by &lt;twin-3&gt;</p>', written)
    assert "Answered by" not in quoted


def test_a_row_of_a_source_shows_words_without_marks() -> None:
    quote = "**Set** `limit`, and call f(**given, **more)."
    citation = Citation(1, "id", "chunk", 1, "Tea", "https://example.org/tea", "Ada", (), quote, 0, len(quote))
    assert "<q>Set limit, and call f(**given, **more).</q>" in turn_html("How?", Answer("x", "generated", (citation,)))


def test_what_answers_nothing_is_not_called_a_quotation() -> None:
    citation = Citation(1, "id", "chunk", 1, "Tea", "https://example.org/tea", "Ada", (), "Some words.", 0, 11)
    quoted = turn_html("What?", Answer("“Some words.” [1]", "extractive", (citation,)))
    nearest = turn_html("What?", Answer(f"{NEAREST}\n\n“Some words.” [1]", "extractive", (citation,)))
    nothing = turn_html("What?", Answer(NOTHING, "extractive", ()))
    told = ["Quoted from the sources" in turn for turn in (quoted, nearest, nothing)]
    assert told == [True, False, False]


def test_ten_thousand_sources_come_a_page_at_a_time(library: Any) -> None:
    for number in range(10_000):
        library.add(f"Text {number:05}", "Short.")
    with library.client() as client:
        first = get(client, "/documents")
        last = get(client, "/documents?offset=9950").text
    assert first.text.count("<tr>") == 51
    assert "1&ndash;50 of 10,000" in first.text
    assert 'href="/documents?offset=50"' in first.text
    assert "Text 09999" in last
    assert 'rel="next"' not in last
    assert len(first.content) < 60_000


def test_a_warehouse_that_is_away_is_told_in_the_page(harbour: Any) -> None:
    harbour.warehouse.away = True
    with harbour.client() as client:
        assert "the warehouse cannot be reached" in get(client, "/documents").text
    harbour.index.away = True
    with harbour.client() as client:
        assert "the index cannot be reached" in get(client, "/").text


def test_a_very_long_text_comes_in_parts_that_lead_to_each_other(library: Any) -> None:
    text = "\n\n".join(f"Paragraph {number} of the zqlong text." for number in range(10_000))
    id = library.add("Long", text)
    with library.client() as client:
        address, seen = f"/documents/{id}", []
        while address:
            page = get(client, address).text
            assert len(page) < 200_000
            seen += re.findall(r"Paragraph (\d+) of", page)
            following = re.search(r'href="([^"]+)" rel="next"', page)
            address = following[1] if following else ""
        start = text.index("Paragraph 9000 of")
        marked = get(client, f"/documents/{id}?version=1&start={start}&end={start + 17}").text
    assert seen == [str(number) for number in range(10_000)]
    assert "<mark" in marked


def test_the_page_with_everything_is_small(harbour: Any) -> None:
    with harbour.client() as client:
        page = get(client, "/")
        parts = re.findall(r'(?:href|src)="(/static/[^"]+)"', page.text)
        loaded = [get(client, part.replace("&amp;", "&")) for part in parts]
    assert len(parts) == 3
    assert all(part.status_code == 200 and "immutable" in part.headers["cache-control"] for part in loaded)
    assert len(page.content) + sum(len(part.content) for part in loaded) < 100_000


def test_pages_name_no_other_host() -> None:
    for path in [*STATIC.iterdir(), *STATIC.with_name("templates").iterdir()]:
        told = path.read_text().replace("https://example.org/", "").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"(https?:)?//[a-z0-9.-]+\.[a-z]", told), path


def test_the_reference_shows_every_route_for_programs(harbour: Any) -> None:
    with harbour.client() as client:
        page = get(client, "/reference").text
        paths = client.get("/schema/openapi.json").json()["paths"]
    assert all(path in page for path in paths)
    assert "<code>question</code>" in page
    assert all(f"<code>{name}</code>" in page for name in ("filters.author", "history[].answer", "messages[].role"))
    assert "integer, 1 to 20, 6 unless given" in page
    assert "text/event-stream" in page


def test_the_reference_shows_the_fields_of_every_answer(harbour: Any) -> None:
    with harbour.client() as client:
        page = get(client, "/reference").text
        paths = client.get("/schema/openapi.json").json()["paths"]
    sections = {
        (method, path): rows
        for method, path, rows in re.findall(
            r'class="method">(\w+)</span> <code>([^<]+)</code>.*?Answered with(.*?)</section>', page, re.DOTALL
        )
    }
    assert set(sections) == {(method.upper(), path) for path, methods in paths.items() for method in methods}

    def kind(method: str, path: str, field: str) -> str:
        found = re.search(rf"<td><code>{re.escape(field)}</code></td><td>([^<]*)</td>", sections[method, path])
        assert found, (path, field)
        return found[1]

    assert kind("POST", "/api/ask", "mode") == "generated | extractive"
    assert kind("POST", "/api/ask", "citations[].quote") == "string"
    assert kind("POST", "/api/search", "[].heading_path") == "array of string"
    assert kind("GET", "/api/documents", "items[].crawled_at") == "string, date-time | none"
    assert kind("GET", "/api/documents/{document_id}", "chunks[].position") == "integer"
    assert kind("GET", "/api/status", "index.documents") == "integer"
    assert kind("POST", "/v1/chat/completions", "choices[].message.content") == "string"
    assert kind("GET", "/metrics", "text/plain") == "string"


def test_a_page_that_is_not_there_says_so_to_a_person(harbour: Any) -> None:
    with harbour.client() as client:
        response = get(client, "/documents/none-such")
        missing = get(client, "/nowhere")
    assert (response.status_code, missing.status_code) == (404, 404)
    assert "no document has the id" in response.text
    assert "<h1>Not found</h1>" in missing.text


def test_a_person_who_enters_comes_to_the_document_that_was_asked_for(harbour: Any) -> None:
    id = "a/b?c#d %41"
    harbour.add("Strange", "Text.", id=id)
    address = document_address(id, offset=0)
    with harbour.client(Settings(host="0.0.0.0", api_keys=("a-key",))) as client:
        sent = get(client, address, follow_redirects=False)
        form = get(client, sent.headers["location"]).text
    # The test client decodes a path twice, hence the plain letter.
    asked = re.search(r'name="next" value="([^"]+)"', form)
    assert asked
    assert asked[1] == "/documents/a/b%3Fc%23d%20A?offset=0"


def test_a_person_enters_with_a_key_and_stays_in(harbour: Any) -> None:
    settings = Settings(host="0.0.0.0", api_keys=("a-key",))
    with harbour.client(settings) as client:
        sent = get(client, "/documents?state=failed", follow_redirects=False)
        assert (sent.status_code, sent.headers["location"]) == (303, "/login?next=%2Fdocuments%3Fstate%3Dfailed")
        assert get(client, "/static/page.css").status_code == 200
        form = get(client, sent.headers["location"]).text
        assert 'value="/documents?state=failed"' in form
        wrong = client.post("/login", data={"key": "wrong", "next": "/"})
        assert (wrong.status_code, "does not open" in wrong.text) == (401, True)
        right = client.post("/login", data={"key": "a-key", "next": "/documents"}, follow_redirects=False)
        assert (right.status_code, right.headers["location"]) == (303, "/documents")
        cookie = right.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()
        assert "a-key" not in cookie
        assert get(client, "/documents").status_code == 200


@pytest.mark.parametrize(
    "target", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:x", "/\r\nx: y"]
)
def test_a_login_never_leads_to_another_site(harbour: Any, target: str) -> None:
    settings = Settings(host="0.0.0.0", api_keys=("a-key",))
    with harbour.client(settings) as client:
        response = client.post("/login", data={"key": "a-key", "next": target}, follow_redirects=False)
    assert response.headers["location"] == "/"


def test_ages_are_told_in_one_unit() -> None:
    now = datetime(2026, 6, 1, tzinfo=UTC)
    told = [ago(now - timedelta(seconds=seconds), now) for seconds in (3, 60, 5400, 86400, 86400 * 90, 86400 * 1200)]
    assert told == ["just now", "1 minute ago", "2 hours ago", "1 day ago", "3 months ago", "3 years ago"]
    assert ago(None) == ""


def test_everything_that_is_served_is_packaged() -> None:
    import tomllib

    root = Path(__file__).parents[2]
    data = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["serving"]
    assert set(data) == {"templates/*", "static/*"}
