"""The commands speak to a person or a program, over real HTTP, and sit out a restart of the app."""

from __future__ import annotations

import argparse
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from html import unescape
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn
from bson import ObjectId

from corpus import warehouse
from corpus.settings import ADDRESSES, Settings
from serving import client, commands
from serving.app import create_app


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def running(app: Any, port: int) -> Iterator[str]:
    """The app behind a real server on this port."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def settings(harbour: Any, tmp_path: Path) -> Iterator[Settings]:
    with running(create_app(harbour.parts()), free_port()) as address:
        yield Settings(home=tmp_path, app_url=address)


def twin(settings: Settings, *arguments: str) -> int:
    parser = argparse.ArgumentParser("twin")
    commands.register(parser.add_subparsers())
    namespace = parser.parse_args(arguments)
    return int(namespace.handler(namespace, settings))


def test_search_shows_passages_to_a_person(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert twin(settings, "search", "the zqbacedi tide") == 0
    out = capsys.readouterr().out
    assert " 1. Notes on harbours › Tides" in out
    assert "The zqbacedi station reports" in out


def test_search_prints_a_list_for_programs(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert twin(settings, "search", "zqrimoko bread", "--author", "Jean Bread", "--limit", "1", "--json") == 0
    hits = json.loads(capsys.readouterr().out)
    assert [hit["title"] for hit in hits] == ["Bread"]


def test_ask_prints_the_answer_and_then_its_sources(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert twin(settings, "ask", "What does the zqbacedi station report?") == 0
    out = capsys.readouterr().out
    assert out.startswith("“The zqbacedi station reports that the tide")
    assert "\n[1] Notes on harbours › Tides\n    https://example.org/Notes-on-harbours" in out
    assert twin(settings, "ask", "zqbacedi", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["mode"] == "extractive"
    assert answer["citations"]


def test_ask_names_the_model_that_answered_and_none_for_quotations(
    settings: Settings, harbour: Any, scripted: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert twin(settings, "ask", "zqbacedi") == 0
    assert "Answered by" not in capsys.readouterr().out
    model = scripted(["The tide rises [1]."], name="twin-3\x1b[31m")
    with running(create_app(harbour.parts(language_model=model)), free_port()) as address:
        written = Settings(home=settings.home, app_url=address)
        assert twin(written, "ask", "zqbacedi") == 0
        out = capsys.readouterr().out
        assert twin(written, "ask", "zqbacedi", "--json") == 0
        answer = json.loads(capsys.readouterr().out)
    assert out.startswith("The tide rises [1].\n\nAnswered by twin-3[31m\n\n[1] Notes on harbours")
    assert (answer["mode"], answer["model"]) == ("generated", "twin-3\x1b[31m")


def test_the_address_of_a_document_that_is_quoted_twice_is_printed_once(
    settings: Settings, harbour: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "https://example.org/incident"
    text = (
        "# Incident of 2 June: the queue\n\nThe zqone queue was full of old mail.\n\nThe zqtwo queue was quite empty."
    )
    harbour.add("Incident of 2 June", text, url=url)
    assert twin(settings, "ask", "Which zqone queue was full and which zqtwo queue was empty?") == 0
    out = capsys.readouterr().out
    assert f"[1] Incident of 2 June › the queue\n    {url}\n[2] Incident of 2 June › the queue\n" in out
    assert out.count(url) == 1


def test_documents_are_listed_over_all_pages(
    settings: Settings, harbour: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(10_100):
        harbour.add(f"Text {number}", "Short.")
    assert twin(settings, "documents", "list", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["document_id"] for row in rows} == set(harbour.warehouse.kept)
    wanted = {"document_id", "url", "title", "author", "category", "platform", "version", "state", "chunks"}
    assert wanted <= set(rows[0])
    assert twin(settings, "documents", "list", "--author", "Jean Bread") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 document"
    assert twin(settings, "documents", "list", "--author", "Nobody") == 0
    assert capsys.readouterr().out == "nothing found\n"


def test_a_document_is_shown(settings: Settings, harbour: Any, capsys: pytest.CaptureFixture[str]) -> None:
    id, record = next(iter(harbour.index.kept.items()))
    assert twin(settings, "documents", "show", id, "--json") == 0
    assert json.loads(capsys.readouterr().out)["text"] == record.text
    assert twin(settings, "documents", "show", id) == 0
    assert record.text in capsys.readouterr().out


def test_a_document_is_named_by_its_address_or_its_file_too(
    settings: Settings,
    harbour: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "tea of ada.md"
    file.write_text("Text.")
    harbour.add("Tea", "The zqtea text.", url=file.as_uri())
    harbour.add("Page", "The zqpage text.", url="https://example.org/page")
    monkeypatch.chdir(tmp_path)
    for given, text in ((file.name, "zqtea"), (file.as_uri(), "zqtea"), ("https://example.org/page#top", "zqpage")):
        assert twin(settings, "documents", "show", given) == 0
        assert f"The {text} text." in capsys.readouterr().out

    @contextmanager
    def connected(settings: Settings) -> Iterator[Any]:
        yield harbour.warehouse

    monkeypatch.setattr(warehouse, "connect", connected)
    gone = "https://example.org/gone"
    assert twin(settings, "documents", "delete", file.name, "https://example.org/page", gone, "--json") == 1
    assert json.loads(capsys.readouterr().out) == {"deleted": 2, "unknown": [gone]}
    assert {stamp.title for stamp in harbour.warehouse.kept.values()} == {"Notes on harbours", "Bread"}


def test_two_documents_of_one_title_are_told_apart_in_a_narrow_terminal_and_in_a_pipe(
    settings: Settings, harbour: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "https://example.org/a/very/long/way/to/the/notes/of"
    for name in ("ada", "bob"):
        harbour.add("The same title of a good many words", "x", url=f"{long}/{name}.md", author=f"{name} of Longname")

    assert twin(settings, "documents", "list") == 0
    piped = capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    assert twin(settings, "documents", "list") == 0
    shown = re.sub(r"\x1b\[\d+m", "", capsys.readouterr().out)

    assert all(f"{long}/{name}.md" in piped for name in ("ada", "bob"))
    assert shown.startswith("ID ")
    assert max(map(len, shown.splitlines())) <= 120
    for name in ("ada", "bob"):
        assert re.search(rf"  {name} of Longna…  The same title of a goo…  ….*/{name}\.md$", shown, re.MULTILINE)


def test_a_document_is_shown_with_what_is_known_of_it(
    settings: Settings, harbour: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    published = datetime(2024, 3, 4, tzinfo=UTC)
    id = harbour.add("Piers", "A pier of zqstone.", published_at=published)
    oid = ObjectId()
    harbour.warehouse.told[id] = {"path": "piers.md", "tags": ["stone", "old"], "oid": oid, "language": "en"}

    assert twin(settings, "documents", "show", id, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["language"], shown["published_at"]) == (harbour.index.kept[id].language, "2024-03-04T00:00:00Z")
    assert shown["metadata"] == {"path": "piers.md", "tags": ["stone", "old"], "oid": str(oid), "language": "en"}
    assert twin(settings, "documents", "show", id) == 0
    told = capsys.readouterr().out
    assert "published 2024-03-04T00:00:00Z\n" in told
    assert "path      piers.md\ntags      stone, old\n" in told


STRANGE_IDS = (
    *(
        "a/b",
        "/a//b/",
        "posts/passage",
        "..",
        "x y?q#f",
        "100%41%2F",
        "ünï/☃",
        "line\nend",
        "'\"<>&",
        "5f9f1b9b9b9b9b9b9b9b9b9b",
    ),
)


@pytest.mark.parametrize("id", STRANGE_IDS)
def test_a_document_is_shown_and_deleted_whatever_its_id(
    settings: Settings, harbour: Any, id: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    harbour.add("Strange", "The zqstrange text.", id=id)
    assert twin(settings, "documents", "show", id, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["document_id"], shown["text"]) == (id, "The zqstrange text.")

    @contextmanager
    def connected(settings: Settings) -> Iterator[Any]:
        yield harbour.warehouse

    monkeypatch.setattr(warehouse, "connect", connected)
    assert twin(settings, "documents", "delete", id) == 0
    assert id not in harbour.warehouse.kept


@pytest.mark.parametrize("id", [each for each in STRANGE_IDS if each != ".."])
def test_every_link_to_a_document_leads_there_whatever_its_id(settings: Settings, harbour: Any, id: str) -> None:
    harbour.add("Strange", "The zqstrange text.", id=id)

    def page(path: str) -> str:
        with closing(HTTPConnection("127.0.0.1", urlsplit(settings.app_url or "").port or 0)) as connection:
            connection.request("GET", path, headers={"accept": "text/html"})
            return connection.getresponse().read().decode()

    listed = re.search(r'<a href="([^"]+)">Strange</a>', page("/documents"))
    cited = re.search(r'class="citation" href="([^"]+)"', page("/?question=zqstrange"))
    assert listed
    assert cited
    address = unescape(cited[1]).removesuffix("#cited")
    assert "<h1>Strange</h1>" in page(unescape(listed[1]))
    assert '<mark id="cited">The zqstrange text.' in page(address)
    passage = page(address.replace("/documents/", "/passages/", 1))
    assert '<mark id="cited">The zqstrange text.' in passage
    whole = re.search(r'<a href="([^"]+)">The whole document', passage)
    assert whole
    assert "<h1>Strange</h1>" in page(unescape(whole[1]).removesuffix("#cited"))


@pytest.mark.parametrize(
    "asked", [("search", "tide"), ("ask", "tide"), ("documents", "list")], ids=lambda asked: asked[0]
)
def test_a_category_that_there_is_not_is_wrong_use_and_an_author_is_not(
    settings: Settings, asked: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        twin(settings, *asked, "--category", "bogus")
    assert ended.value.code == 2
    assert "category 'bogus' is not known: choose one of article, post, code" in capsys.readouterr().err
    assert twin(settings, *asked, "--category", "post", "--author", "Nobody") == 0


def test_an_unknown_document_is_a_failure_and_a_bad_date_wrong_use_in_one_sentence(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert twin(settings, "documents", "show", "no-such?id") == 1
    told = "twin: no document has the id, address or path 'no-such?id': `twin documents list` shows them\n"
    assert capsys.readouterr().err == told
    for nothing in ("", "\udcff"):
        assert twin(settings, "documents", "show", nothing) == 1
        assert capsys.readouterr().err.startswith("twin: no document has the id")
    assert twin(settings, "search", "tide", "--since", "soon") == 2
    assert capsys.readouterr().err.startswith("twin: since is 'soon': write a date")
    for command in ("search", "ask"):
        assert twin(settings, command, "tide", "--since", "2025", "--until", "2024") == 2
        assert capsys.readouterr().err == "twin: since (2025) lies after until (2024): swap them\n"
    assert twin(settings, "ask", " ") == 2
    assert "the question is empty" in capsys.readouterr().err


@pytest.mark.parametrize("json", [(), ("--json",)])
def test_a_question_that_is_too_long_is_wrong_use(
    settings: Settings, json: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert twin(settings, "ask", "tide " * 2_000, *json) == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)


@pytest.mark.parametrize("asked", [("search", "tide", "--limit", "0"), ("ask", "tide", "--limit", "9999")])
def test_a_limit_out_of_bounds_is_wrong_use_whether_the_app_runs_or_not(
    asked: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        twin(Settings(home=tmp_path), *asked)
    assert ended.value.code == 2
    assert "is not a number from 1 to" in capsys.readouterr().err


def test_a_document_cannot_write_control_characters_to_the_terminal(
    settings: Settings, harbour: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    harbour.add("Red \x1b[31m title", "zqhostile \x1b]0;owned\x07 text.")
    twin(settings, "search", "zqhostile")
    twin(settings, "ask", "zqhostile")
    twin(settings, "documents", "list")
    out = capsys.readouterr().out
    assert "zqhostile" in out
    assert "\x1b" not in out


def test_what_is_deleted_is_counted_and_what_is_unknown_is_named(
    harbour: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    id = next(iter(harbour.warehouse.kept))

    @contextmanager
    def connected(settings: Settings) -> Iterator[Any]:
        yield harbour.warehouse

    monkeypatch.setattr(warehouse, "connect", connected)
    assert twin(Settings(), "documents", "delete", id, "none-such", "--json") == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"deleted": 1, "unknown": ["none-such"]}
    assert captured.err.startswith("twin: no document has the id, address or path 'none-such'")
    assert id not in harbour.warehouse.kept


def test_a_home_that_is_not_up_says_so_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert twin(Settings(home=tmp_path), "search", "tide") == 1
    assert capsys.readouterr().err == "twin: the app of this home is not running: `twin up`\n"


def test_an_address_where_nobody_answers_is_given_up(tmp_path: Path) -> None:
    nowhere = Settings(home=tmp_path, app_url=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(client.AppUnavailable, match="cannot be reached"):
        client.call(nowhere, "GET", "/api/documents", patience=0.3)


def test_a_restart_is_sat_out_even_at_a_new_address(harbour: Any, tmp_path: Path) -> None:
    old, new = f"http://127.0.0.1:{free_port()}", free_port()
    (tmp_path / ADDRESSES).write_text(json.dumps({"app_url": old}))
    settings = Settings(home=tmp_path, app_url=old)
    got: list[Any] = []
    asking = threading.Thread(target=lambda: got.append(client.call(settings, "GET", "/api/documents")))
    asking.start()
    time.sleep(0.2)
    with running(create_app(harbour.parts()), new) as address:
        (tmp_path / ADDRESSES).write_text(json.dumps({"app_url": address}))
        asking.join(10)
    assert got[0]["total"] == 2


def test_a_home_that_goes_down_meanwhile_is_not_waited_for(tmp_path: Path) -> None:
    old = f"http://127.0.0.1:{free_port()}"
    (tmp_path / ADDRESSES).write_text(json.dumps({"app_url": old}))
    threading.Timer(0.2, (tmp_path / ADDRESSES).unlink).start()
    with pytest.raises(client.AppUnavailable, match="twin up"):
        client.call(Settings(home=tmp_path, app_url=old), "GET", "/api/documents", patience=10)


def test_a_part_that_is_away_for_a_moment_is_waited_for(settings: Settings, harbour: Any) -> None:
    harbour.warehouse.away = True
    threading.Timer(0.3, lambda: setattr(harbour.warehouse, "away", False)).start()
    assert client.call(settings, "GET", "/api/documents")["total"] == 2


def test_head_keeps_the_connection_in_order(settings: Settings) -> None:
    connection = HTTPConnection("127.0.0.1", urlsplit(settings.app_url or "").port or 0)
    for method, length in (("HEAD", 0), ("GET", 17), ("HEAD", 0)):
        connection.request(method, "/health/live")
        response = connection.getresponse()
        assert (response.status, len(response.read())) == (200, length)
    connection.close()


def test_the_key_of_the_settings_opens_an_app_for_others(harbour: Any, tmp_path: Path) -> None:
    keys = Settings(api_keys=("a-key",))
    with running(create_app(harbour.parts(keys)), free_port()) as address:
        opened = client.call(Settings(home=tmp_path, app_url=address, api_keys=("a-key",)), "GET", "/api/documents")
        with pytest.raises(client.AppRefused, match="set TWIN_API_KEYS"):
            client.call(Settings(home=tmp_path, app_url=address), "GET", "/api/documents")
    assert opened["total"] == 2


def test_an_answer_that_breaks_off_is_a_failure(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> None:
        raise ConnectionError("the index does not answer")

    monkeypatch.setattr("serving.answering.retrieve", fails)
    assert twin(settings, "ask", "zqbacedi tide") == 1
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "twin: the app did not answer: the index does not answer\n")


def test_a_client_that_hangs_up_ends_the_models_work(harbour: Any, scripted: Callable[..., Any]) -> None:
    import asyncio

    ended = threading.Event()

    class Endless:
        name = "endless-1"

        async def stream(self, messages: Any) -> Any:
            try:
                while True:
                    yield "and "
                    await asyncio.sleep(0.01)
            finally:
                ended.set()

    body = b'{"question": "zqbacedi"}'
    head = b"POST /api/ask HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
    port = free_port()
    with running(create_app(harbour.parts(language_model=Endless())), port):
        for accept in (b"text/event-stream", b"application/json"):
            ended.clear()
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(head % len(body) + b"accept: " + accept + b"\r\n\r\n" + body)
                time.sleep(0.3)
                assert not ended.is_set()
            assert ended.wait(5), accept


def test_nothing_heavy_is_imported_to_register_the_commands() -> None:
    heavy = {"litestar", "numpy", "http.client", "msgspec"}
    code = f"import sys, serving.commands; print(sorted(sys.modules.keys() & {heavy!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
