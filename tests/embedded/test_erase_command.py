"""`twin erase`: what it asks of the app and of a person, what it writes, and what it refuses."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedded.cli import main
from serving.client import AppRefused, AppUnavailable
from serving.commands import document_ids

PLACE = {"place": "index: chunks", "found": 3, "left": 0, "check": "counted"}
RECEIPT = {
    "erasure_id": "e",
    "documents": ["one"],
    "places": [PLACE, {**PLACE, "place": "warehouse: history", "left": None}],
    "ingested_again": [],
    "stale": {"datasets": ["first"], "models": []},
    "left": 0,
}
CHOSEN = {"documents": {"one": {"title": "The first"}, "two": {}}, "authors": {"a": "Ada"}, "unknown": []}


class App:
    """Answers as the app does, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.looked, self.looks, self.busy = threading.Event(), 0, False
        self.chosen: dict[str, Any] = CHOSEN
        self.receipt: dict[str, Any] | Exception = RECEIPT

    def call(self, _: object, method: str, path: str, body: Any = None, **__: object) -> Any:
        if path == "/api/reindex":
            self.looks += 1
            if self.looks > 1:
                self.looked.set()
            return {"erasing": {"id": "e", "doing": "the index is written anew"}}
        assert (method, path) == ("POST", "/api/erase")
        self.asked.append(body)
        if body.get("dry_run"):
            return self.chosen
        assert not self.busy or self.looked.wait(60)
        if isinstance(self.receipt, Exception):
            raise self.receipt
        return self.receipt


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> App:
    found = App()
    monkeypatch.setattr("serving.client.call", found.call)
    monkeypatch.setenv("TWIN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    return found


@pytest.fixture
def erase(tmp_path: Path) -> Callable[..., int]:
    """`erase(*arguments)` with a receipt in a file that is not there yet."""
    return lambda *arguments: main(["erase", *arguments, "--receipt", str(tmp_path / "receipt.json")])


def test_a_receipt_is_written_and_told(
    app: App, erase: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert erase("--document", "one", "--document", "two", "--yes") == 0

    dry, asked = app.asked
    assert (dry["documents"], dry["dry_run"]) == (["one", "two"], True)
    assert asked["documents"] == ["one", "two"]
    assert len(asked["id"]) == 36
    receipt = json.loads((tmp_path / "receipt.json").read_text())
    assert receipt == {"asked": {"documents": ["one"]}, **RECEIPT}
    told = capsys.readouterr().out
    assert "one  The first\ntwo  (deleted already)\nto be erased: 2 documents of Ada" in told
    assert "warehouse: history                    3 found       ? left" in told
    assert "made from them, and to be made anew: dataset first" in told
    assert told.endswith(f"1 document erased, 0 left; the receipt is {tmp_path / 'receipt.json'}\n")


def test_a_terminal_is_told_meanwhile_what_is_being_done(
    app: App, erase: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", terminal)
    app.busy = True

    assert erase("--document", "one", "--yes") == 0

    # The line is empty again at the end.
    assert "\r\x1b[Kthe index is written anew ..." in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_what_is_left_is_a_failure(app: App, erase: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    app.receipt = {**RECEIPT, "left": 2, "ingested_again": ["one"]}

    assert erase("--author", "Ada") == 1

    told = capsys.readouterr()
    assert "2 left (`twin erase --resume` tries again)" in told.out
    assert "ingested again since, and so new documents: one" in told.err
    assert app.asked[1]["author"] == "Ada"
    assert "documents" not in app.asked[1]


def test_a_dry_run_erases_nothing_and_needs_no_receipt(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["erase", "--author", "Ada", "--dry-run", "--json"]) == 0

    assert json.loads(capsys.readouterr().out) == CHOSEN
    assert [asked["dry_run"] for asked in app.asked] == [True]


def test_a_path_that_names_a_document_is_not_unknown(
    app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "secret.md").write_text("A secret.")
    _, id = document_ids(str(tmp_path / "secret.md"))
    app.chosen = {"documents": {id: {"title": "A secret"}}, "authors": {}, "unknown": [str(tmp_path / "secret.md")]}

    assert main(["erase", "--document", str(tmp_path / "secret.md"), "--dry-run", "--json"]) == 0

    assert json.loads(capsys.readouterr().out) == {**app.chosen, "unknown": []}


def test_a_document_of_an_author_that_cannot_be_found_is_named(
    app: App, erase: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    app.chosen = {**CHOSEN, "unknown": ["MinKey()"]}

    assert erase("--author", "Ada", "--yes") == 1

    assert "'Ada' has documents that are not found by their ids: MinKey()" in capsys.readouterr().err
    assert [asked["dry_run"] for asked in app.asked] == [True]


@pytest.mark.parametrize(("answer", "code"), [("yes\n", 0), ("\n", 1), ("", 1)])
def test_a_person_is_asked(
    app: App, erase: Callable[..., int], monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    terminal = io.StringIO(answer)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)

    assert erase("--document", "one") == code

    assert len(app.asked) == (2 if code == 0 else 1)


def test_an_erasure_is_gone_on_with(app: App, erase: Callable[..., int], tmp_path: Path) -> None:
    assert erase("--resume") == 0
    assert json.loads((tmp_path / "receipt.json").read_text())["asked"] == {"erasure": "e"}
    assert erase("--resume", "e", "--force") == 0

    assert app.asked == [{"id": None}, {"id": "e"}]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--document", "one"], 2, "say where with --receipt FILE"),
        (["--document", "one", "--receipt", "{here}/there"], 1, "exists: name another file, or write over it"),
        (["--document", "one", "--receipt", "{here}"], 1, "cannot be written: it is a folder"),
        (["--document", "one", "--receipt", "{here}/no/receipt.json"], 1, "there is no folder {here}/no"),
        (["--resume", "--dry-run"], 2, "--dry-run says what would go"),
    ],
)
def test_what_cannot_end_well_is_refused_before_anything_is_erased(
    app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    (tmp_path / "there").write_text("kept")

    assert main(["erase", *(each.format(here=tmp_path) for each in arguments)]) == code

    assert said.format(here=tmp_path) in capsys.readouterr().err
    assert (app.asked, (tmp_path / "there").read_text()) == ([], "kept")


def test_an_unknown_document_or_author_is_named(
    app: App, erase: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    app.chosen = {"documents": {}, "authors": {}, "unknown": []}

    assert erase("--document", "one") == 1
    assert "no document has the id, address or path 'one'" in capsys.readouterr().err
    assert erase("--author", "Trent") == 1
    assert "there is no author 'Trent'" in capsys.readouterr().err
    assert [asked["dry_run"] for asked in app.asked] == [True, True]


@pytest.mark.parametrize("error", [AppRefused("no such erasure", 404), AppUnavailable("the app is away")])
def test_an_app_that_fails_leaves_no_receipt(
    app: App, erase: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    app.receipt = error

    assert erase("--document", "one") == 1

    told = capsys.readouterr().err
    assert str(error) in told
    assert "if this breaks off, the app goes on" in told
    assert not (tmp_path / "receipt.json").exists()
