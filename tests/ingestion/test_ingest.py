"""`twin ingest` as a whole: pruning, the record of a crawl, what it prints and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from corpus.settings import load
from corpus.warehouse import Warehouse, WarehouseUnavailable


@pytest.fixture
def notes() -> Path:
    folder = Path("notes").absolute()
    (folder / "deep").mkdir(parents=True)
    for name in ("a.md", "b.md", "deep/c.md"):
        (folder / name).write_text(f"Text of {name}.")
    return folder


def paths(twin: Any) -> list[str]:
    return [document.metadata["path"] for document in twin.documents()]


def test_what_did_not_change_is_not_written_whichever_folder_is_named(twin: Any, notes: Path) -> None:
    (notes / "deep" / "grow.py").write_text("def grow():\n    return 1\n")
    twin.ingest(str(notes))
    before = twin.documents()

    results = [twin.ingest(source) for source in (".", str(notes / "deep"), str(notes / "deep" / "grow.py"))]

    assert [(result["updated"], result["unchanged"]) for result in results] == [(0, 4), (0, 2), (0, 1)]
    assert twin.documents() == before
    # Nor would it have been another if it had been written anew.
    assert {document.title for document in before} >= {"deep/grow.py"}
    (notes / "deep" / "grow.py").write_text("def grow():\n    return 2\n")
    twin.ingest("notes/deep/grow.py")
    (edited,) = (document for document in twin.documents() if document.category == "code")
    assert (edited.title, edited.metadata["path"]) == ("deep/grow.py", "deep/grow.py")


# Pruning


def test_prune_deletes_what_is_no_longer_there(twin: Any, notes: Path) -> None:
    twin.ingest(str(notes))
    (notes / "a.md").unlink()
    (notes / "deep" / "c.md").rename(notes / "deep" / "d.md")
    assert twin.ingest(str(notes))["deleted"] == 0
    result = twin.ingest(str(notes), "--prune")
    assert (result["deleted"], result["unchanged"]) == (2, 2)
    assert paths(twin) == ["notes/b.md", "deep/d.md"]


def test_prune_leaves_other_folders_alone_however_their_names_begin(twin: Any, notes: Path) -> None:
    beside = notes.parent / "notes-too"
    beside.mkdir()
    (beside / "x.md").write_text("Beside.")
    twin.ingest(str(notes), str(beside))
    (notes / "a.md").unlink()
    assert twin.ingest(str(notes), "--prune")["deleted"] == 1
    assert paths(twin) == ["notes-too/x.md", "notes/b.md", "deep/c.md"]


def test_prune_of_a_folder_within_touches_only_that(twin: Any, notes: Path) -> None:
    twin.ingest(str(notes))
    for name in ("a.md", "deep/c.md"):
        (notes / name).unlink()
    twin.ingest(str(notes / "deep"), "--prune")
    assert paths(twin) == ["notes/a.md", "notes/b.md"]


def test_prune_of_an_emptied_folder_deletes_all_of_it(twin: Any, notes: Path) -> None:
    twin.ingest(str(notes))
    for name in ("a.md", "b.md", "deep/c.md"):
        (notes / name).unlink()
    result = twin.ingest(str(notes), "--prune")
    assert (result["seen"], result["deleted"], twin.documents()) == (0, 3, [])


def test_prune_keeps_everything_of_a_folder_that_is_gone(twin: Any, notes: Path) -> None:
    twin.ingest(str(notes))
    notes.rename(notes.parent / "elsewhere")
    assert twin.ingest(str(notes), "--prune", code=1)["deleted"] == 0
    assert len(twin.documents()) == 3


def test_prune_keeps_a_document_whose_file_became_unreadable(twin: Any, notes: Path) -> None:
    twin.ingest(str(notes))
    (notes / "a.md").write_bytes(b"\xff\xff")
    result = twin.ingest(str(notes), "--prune")
    assert (result["deleted"], len(result["failed"])) == (0, 1)
    assert twin.documents()[0].text == "Text of a.md."


def test_a_document_that_comes_back_is_inserted_again(twin: Any, notes: Path) -> None:
    twin.ingest(str(notes))
    text = (notes / "a.md").read_text()
    (notes / "a.md").unlink()
    twin.ingest(str(notes), "--prune")
    (notes / "a.md").write_text(text)
    assert twin.ingest(str(notes), "--prune")["inserted"] == 1


# Several sources


def test_a_source_given_twice_is_seen_twice_and_written_once(twin: Any, notes: Path) -> None:
    result = twin.ingest(str(notes), str(notes / "deep"), str(notes / "a.md"))
    assert (result["seen"], result["inserted"], result["unchanged"], result["failed"]) == (5, 3, 2, [])


def test_more_documents_than_a_batch_are_all_written(twin: Any, notes: Path) -> None:
    for number in range(100):
        (notes / f"{number}.txt").write_text(f"Number {number}.")
    assert twin.ingest(str(notes))["inserted"] == 103
    assert twin.warehouse.count() == 103


# The record


def test_a_crawl_records_itself(twin: Any, notes: Path) -> None:
    (notes / "empty.md").write_text("")
    twin.ingest(str(notes), "--author", "Ada")
    settings = load()
    with MongoClient[dict[str, Any]](settings.mongodb_uri, tz_aware=True) as client:
        (crawl,) = client[settings.database].crawls.find()
    assert crawl["_id"] == twin.documents()[0].crawl_id
    assert (crawl["sources"], crawl["author"], crawl["state"]) == ([str(notes)], "Ada", "done")
    assert {name: crawl[name] for name in ("seen", "inserted", "updated", "unchanged", "deleted")} == {
        "seen": 4,
        "inserted": 3,
        "updated": 0,
        "unchanged": 0,
        "deleted": 0,
    }
    assert crawl["failed"] == [{"source": str(notes / "empty.md"), "reason": "is empty"}]
    assert crawl["started_at"] <= crawl["finished_at"]


# What it prints, and how it ends


def test_a_person_reads_one_line_and_what_failed(twin: Any, notes: Path) -> None:
    (notes / "empty.md").write_text("")
    assert twin.run("ingest", str(notes)) == (
        0,
        "4 documents seen: 3 new, 1 failed\n",
        f"failed: {notes / 'empty.md'} is empty\n",
    )
    assert twin.run("ingest", str(notes / "deep"))[1] == "1 document seen: 1 unchanged\n"


def test_a_program_reads_json(twin: Any, notes: Path) -> None:
    code, out, err = twin.run("ingest", str(notes), "--json")
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert json.loads(out) == {"seen": 3, "inserted": 3, "updated": 0, "unchanged": 0, "failed": [], "deleted": 0}


@pytest.mark.parametrize("arguments", [[], ["--no-such-option", "x"]])
def test_wrong_usage_ends_with_2(twin: Any, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        twin.run("ingest", *arguments)
    assert ended.value.code == 2


def test_an_unknown_category_is_wrong_usage_and_the_known_ones_are_named(twin: Any, notes: Path) -> None:
    code, _, err = twin.run("ingest", str(notes), "--category", "poem")
    assert code == 2
    assert "article" in err
    assert twin.documents() == []


def test_without_a_warehouse_the_reason_says_what_to_do(
    twin: Any, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TWIN_MONGODB_URI")
    code, out, err = twin.run("ingest", str(notes))
    assert (code, out) == (1, "")
    assert err == "twin: there is no warehouse: run `twin up`, or set TWIN_MONGODB_URI to your MongoDB\n"


def test_a_warehouse_that_goes_away_meanwhile_is_told(twin: Any, notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(warehouse: Warehouse, documents: Any) -> None:
        raise WarehouseUnavailable("MongoDB at mongodb://127.0.0.1 does not answer")

    monkeypatch.setattr(Warehouse, "save", gone)
    code, out, err = twin.run("ingest", str(notes), "--json")
    assert (code, out, err) == (1, "", "twin: MongoDB at mongodb://127.0.0.1 does not answer\n")


def test_a_crawler_that_fails_in_a_way_nobody_foresaw_costs_its_source_only(
    twin: Any, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ingestion import crawl
    from ingestion.drafts import Crawler

    def broken(source: str, options: object) -> Any:
        raise ZeroDivisionError("division by zero")

    found = crawl.crawler_of
    odd = Crawler("odd", lambda source: True, broken)
    monkeypatch.setattr(crawl, "crawler_of", lambda source: odd if source == "odd" else found(source))
    result = twin.ingest("odd", str(notes), code=1)
    assert result["inserted"] == 3
    assert result["failed"] == [{"source": "odd", "reason": "cannot be crawled: division by zero"}]


def test_the_command_is_there_at_once() -> None:
    """Nothing heavy is imported before there is work."""
    heavy = {"pymongo", "lxml", "rich", "yaml", "msgspec"}
    program = f"import sys, ingestion.commands; print(sorted({heavy} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_document_that_names_no_author_keeps_the_one_it_was_brought_in_with(twin: Any, tmp_path: Path) -> None:
    note = tmp_path / "note.md"
    note.write_text("# Tea\n\nWarm the pot first.\n")
    twin.ingest(str(note), "--author", "Ada")

    unchanged = twin.ingest(str(note))
    note.write_text("# Tea\n\nWarm the pot twice.\n")
    twin.ingest(str(note))

    assert unchanged["unchanged"] == 1
    assert (twin.only().author_name, "twice" in twin.only().text) == ("Ada", True)


@pytest.mark.parametrize("author", ["", "  "])
def test_an_empty_author_is_nobody(twin: Any, author: str) -> None:
    code, out, err = twin.run("ingest", "notes", "--author", author)

    assert (code, out) == (2, "")
    assert "--author is empty" in err


@pytest.mark.parametrize("source", ["", "  "])
def test_an_empty_source_is_no_source(twin: Any, source: str) -> None:
    code, out, err = twin.run("ingest", source)

    assert (code, out) == (2, "")
    assert "SOURCE is empty" in err
    assert twin.documents() == []
