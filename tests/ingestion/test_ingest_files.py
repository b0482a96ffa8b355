"""Files and folders through `twin ingest`: what goes in, and what is refused with which reason."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pypdf import PdfReader, PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

from ingestion.crawlers import files

LIMIT = 8_000_000


@pytest.fixture
def notes() -> Path:
    folder = Path("notes").absolute()
    folder.mkdir()
    return folder


def pdf(*pages: str, metadata: dict[str, str] | None = None) -> PdfWriter:
    """A PDF with one line of text on each page; an empty line is a page without text."""
    writer = PdfWriter()
    font = {NameObject(f"/{name}"): NameObject(f"/{value}") for name, value in FONT.items()}
    for text in pages:
        page = writer.add_blank_page(300, 300)
        content = DecodedStreamObject()
        content.set_data(f"BT /F1 12 Tf 20 200 Td ({text}) Tj ET".encode() if text else b"")
        page[NameObject("/Contents")] = writer._add_object(content)
        fonts = DictionaryObject({NameObject("/F1"): DictionaryObject(font)})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
    if metadata:
        writer.add_metadata(metadata)
    return writer


FONT = {"Type": "Font", "Subtype": "Type1", "BaseFont": "Helvetica"}


def reason(result: dict[str, Any]) -> str:
    (failure,) = result["failed"]
    return str(failure["reason"])


# What goes in


def test_markdown_says_itself_who_wrote_it_and_when(twin: Any, notes: Path) -> None:
    text = "# Heading\n\nSome *text*.\n"
    front = "title: Of Cedars\nauthor: Ada\ndate: 2024-03-04\nlang: en\ntags: [trees, 7]"
    (notes / "cedar.md").write_text(f"---\n{front}\n---\n{text}")

    assert twin.ingest(str(notes)) == {
        "seen": 1,
        "inserted": 1,
        "updated": 0,
        "unchanged": 0,
        "failed": [],
        "deleted": 0,
    }

    document = twin.only()
    assert (document.title, document.author_name, document.text) == ("Of Cedars", "Ada", text)
    assert document.published_at == datetime(2024, 3, 4, tzinfo=UTC)
    assert document.metadata == {"path": "notes/cedar.md", "language": "en", "tags": ["trees", "7"]}
    assert (document.category, document.platform) == ("article", "files")
    assert document.url == (notes / "cedar.md").as_uri()


@pytest.mark.parametrize(
    ("name", "text", "title"),
    [
        ("a.md", "Intro.\n\n## A **bold** `name` ##\n", "A **bold** `name"),
        ("b.md", "Underlined\n==========\n\nText.", "Underlined"),
        ("c.md", "```sh\n# a comment\n```\n\nNo heading.", "c"),
        ("d.txt", "# Not Markdown", "d"),
        ("e.md", "---\nAbove is a rule.\n---\n# Below\n", "Below"),
        ("f.md", "---\ntitle: [broken\n---\n# Kept whole\n", "Kept whole"),
        ("g.html", "<title>Page</title><body><h1>Heading</h1><p>Text of the page.</p>", "Page"),
        ("h.md", "---\ntitle:\n  nested: 1\n---\n\nText.", "h"),
    ],
)
def test_a_title_is_found_or_else_the_name_of_the_file(
    twin: Any, notes: Path, name: str, text: str, title: str
) -> None:
    (notes / name).write_text(text)
    twin.ingest(str(notes))
    assert twin.only().title == title


def test_a_document_without_author_is_of_unknown_author_unless_one_is_given(twin: Any, notes: Path) -> None:
    (notes / "a.md").write_text("Text.")
    twin.ingest(str(notes))
    assert twin.only().author_name == "Unknown"
    assert twin.ingest(str(notes), "--author", "Grace")["updated"] == 1
    assert twin.only().author_name == "Grace"


def test_source_code_is_one_document_a_file_with_path_and_language(twin: Any, notes: Path) -> None:
    (notes / "src").mkdir()
    (notes / "src" / "tree.py").write_text("def grow():\n    return 1\n")
    (notes / "Dockerfile").write_text("FROM scratch\n")
    twin.ingest(str(notes))
    docker, python = twin.documents()
    assert (docker.title, docker.category, docker.language) == ("notes/Dockerfile", "code", "dockerfile")
    assert (python.title, python.category, python.language) == ("src/tree.py", "code", "python")
    assert python.metadata["path"] == "src/tree.py"
    assert python.text == "def grow():\n    return 1\n"


def test_a_category_can_be_given(twin: Any, notes: Path) -> None:
    (notes / "a.md").write_text("A short post.")
    twin.ingest(str(notes), "--category", "post")
    assert twin.only().category == "post"


def test_the_language_of_prose_is_detected_when_there_is_enough_of_it(twin: Any, notes: Path) -> None:
    french = "Les cèdres poussent lentement sur la montagne et leurs racines tiennent la terre quand il pleut. "
    (notes / "long.md").write_text(french * 4)
    (notes / "short.md").write_text("Les cèdres.")
    twin.ingest(str(notes))
    assert [document.language for document in twin.documents()] == ["fr", None]


def test_folders_leave_out_what_tools_made_and_what_is_no_document(twin: Any, notes: Path) -> None:
    for name in (
        ".git/config.md",
        "node_modules/a.md",
        "__pycache__/a.py",
        "a.min.js",
        "uv.lock",
        "photo.jpg",
        "a.json",
    ):
        (notes / name).parent.mkdir(exist_ok=True)
        (notes / name).write_text("text")
    (notes / "kept.md").write_text("text")
    result = twin.ingest(str(notes))
    assert (result["seen"], result["failed"]) == (1, [])
    assert twin.only().metadata["path"] == "notes/kept.md"


def test_a_file_that_is_named_goes_in_whatever_it_is_called(twin: Any, notes: Path) -> None:
    (notes / "LICENSE").write_text("You may.")
    twin.ingest(str(notes / "LICENSE"))
    assert (twin.only().title, twin.only().text) == ("LICENSE", "You may.")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_honoured(twin: Any, notes: Path, encoding: str) -> None:
    (notes / "a.md").write_bytes("# Zedern für später\n".encode(encoding))
    twin.ingest(str(notes))
    assert twin.only().text == "# Zedern für später\n"


def test_a_pdf_gives_its_text_and_what_it_says_of_itself(twin: Any, notes: Path) -> None:
    said = {"/Title": "Of Cedars", "/Author": "Ada", "/CreationDate": "D:20240304050607+01'00'"}
    pdf("First page.", "Second page.", metadata=said).write(notes / "a.pdf")
    twin.ingest(str(notes))
    document = twin.only()
    assert document.text == "First page.\n\nSecond page."
    assert (document.title, document.author_name) == ("Of Cedars", "Ada")
    assert document.published_at == datetime(2024, 3, 4, 4, 6, 7, tzinfo=UTC)


def test_names_of_any_bytes_are_kept_apart(twin: Any, notes: Path) -> None:
    for name in (b"\xff.md", b"\xfe.md", "ü #1?%41.md".encode(), b"%FF.md"):
        (notes / os.fsdecode(name)).write_text("Text.")
    result = twin.ingest(str(notes))
    assert (result["inserted"], result["failed"]) == (4, [])
    assert twin.ingest(str(notes))["unchanged"] == 4
    assert twin.ingest(str(notes / os.fsdecode(b"\xff.md")))["unchanged"] == 1
    (notes / os.fsdecode(b"\xfd.md")).write_text("")
    assert twin.ingest(str(notes))["failed"] == [{"source": f"{notes}/\\udcfd.md", "reason": "is empty"}]


def test_an_edit_is_an_update_and_nothing_else_is_written(twin: Any, notes: Path) -> None:
    for name in ("a", "b", "c"):
        (notes / f"{name}.md").write_text(f"Text {name}.")
    twin.ingest(str(notes))
    (notes / "b.md").write_text("Edited.")
    result = twin.ingest(str(notes))
    assert (result["seen"], result["inserted"], result["updated"], result["unchanged"]) == (3, 0, 1, 2)


# What is refused


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("empty.md", b"", "is empty"),
        ("blank.md", b" \n\t\n", "is empty"),
        ("only-front-matter.md", b"---\ntitle: A\n---\n", "is empty"),
        ("bytes.md", b"# Bytes\n\n\xff\xfe\xfa", "is not valid UTF-8: byte 0xff at offset 9"),
        ("surrogate.md", b"a lone \xed\xa0\x80 surrogate", "is not valid UTF-8: byte 0xed at offset 7"),
        ("half.txt", "ab".encode("utf-16")[:-1], "is not valid UTF-16: byte 0x62 at offset 4"),
        ("surrogate16.txt", b"\xff\xfea\x00\x00\xd8b\x00", "is not valid UTF-16: byte 0x00 at offset 4"),
        (
            "title.md",
            b'---\ntitle: "a \\ud800"\n---\nText.',
            "has a lone surrogate (U+D800) in its title at character 2",
        ),
        ("title.md", b"---\ntitle: 0x" + b"f" * 6_000 + b"\n---\nText.", "cannot be read: Exceeds the limit"),
        ("deep.html", b"<p>Text</p>" + b"<ul><li>" * 5_000, "is nested too deeply"),
        ("binary.py", b"\x7fELF\x00\x00", "is binary, not text"),
        ("broken.pdf", b"%PDF-1.7 and then nothing", "is a broken PDF"),
        ("text.pdf", b"this is no PDF", "is a broken PDF"),
        ("bare.html", b"<html><nav><a href='/'>Home</a></nav></html>", "has no article"),
        ("encoding.html", b"<meta charset=utf-8><p>\xff</p>", "is not valid UTF-8: byte 0xff at offset 23"),
        ("unknown.html", b"<meta charset=klingon><p>Text</p>", "names an unknown encoding (klingon)"),
    ],
)
def test_a_bad_file_is_listed_with_its_reason_and_the_rest_goes_in(
    twin: Any, notes: Path, name: str, content: bytes, expected: str
) -> None:
    (notes / name).write_bytes(content)
    (notes / "zz-good.md").write_text("# Good\n")
    result = twin.ingest(str(notes))
    assert (result["seen"], result["inserted"]) == (2, 1)
    assert result["failed"][0]["source"] == str(notes / name)
    assert reason(result).startswith(expected)


@pytest.mark.parametrize("deep", ["title: " + "[" * 5_000 + "]" * 5_000, "a: " + "{a: " * 3_000 + "}" * 3_000])
def test_front_matter_beyond_reason_is_passed_over_as_broken_one_is(twin: Any, notes: Path, deep: str) -> None:
    (notes / "deep.md").write_text(f"---\n{deep}\n---\n\n# Cedars\n\nText.")
    twin.ingest(str(notes))
    assert twin.only().title == "Cedars"
    assert twin.only().text.endswith("Text.")


def test_a_bad_file_alone_is_a_failure(twin: Any, notes: Path) -> None:
    (notes / "empty.md").write_text("")
    assert reason(twin.ingest(str(notes / "empty.md"), code=1)) == "is empty"


def test_a_text_of_30_megabytes_is_refused_with_the_limit_and_its_setting(twin: Any, notes: Path) -> None:
    (notes / "huge.txt").write_text("word " * 6_000_000)
    (notes / "good.md").write_text("Good.")
    result = twin.ingest(str(notes))
    assert reason(result) == "is too large: 30.0 MB, the limit is 8.0 MB (TWIN_MAX_DOCUMENT_BYTES)"
    assert result["inserted"] == 1


def test_a_text_just_below_the_limit_goes_in(twin: Any, notes: Path) -> None:
    (notes / "large.txt").write_text("x" * LIMIT)
    assert twin.ingest(str(notes))["inserted"] == 1
    assert len(twin.only().text) == LIMIT


def test_a_pdf_without_text_says_that_it_needs_recognition(twin: Any, notes: Path) -> None:
    pdf("").write(notes / "scan.pdf")
    assert reason(twin.ingest(str(notes), code=1)).startswith("is a PDF without text (scanned pages?)")


def test_an_encrypted_pdf_says_that_it_is_locked(twin: Any, notes: Path) -> None:
    writer = pdf("Secret.")
    writer.encrypt("password", algorithm="RC4-128")
    writer.write(notes / "locked.pdf")
    assert PdfReader(notes / "locked.pdf").is_encrypted
    assert reason(twin.ingest(str(notes), code=1)) == "is an encrypted PDF: remove its password"


def test_a_cut_pdf_is_broken(twin: Any, notes: Path) -> None:
    pdf("A page of text.").write(notes / "cut.pdf")
    content = (notes / "cut.pdf").read_bytes()
    (notes / "cut.pdf").write_bytes(content[: len(content) // 4])
    assert reason(twin.ingest(str(notes), code=1)).startswith("is a broken PDF")


def test_a_missing_source_fails_and_the_others_still_go_in(twin: Any, notes: Path) -> None:
    (notes / "a.md").write_text("Text.")
    result = twin.ingest("no-such-folder", str(notes), code=1)
    assert result["failed"] == [{"source": "no-such-folder", "reason": "does not exist"}]
    assert result["inserted"] == 1


@pytest.mark.parametrize("source", ["ftp://example.org/a.md", "file:///nowhere/a.md"])
def test_an_address_of_another_kind_says_which_are_read(twin: Any, source: str) -> None:
    result = twin.ingest(source, code=1)
    kind = source.partition(":")[0]
    assert reason(result).startswith(f"is not read, as no address of {kind} is: give an address of http or https")


def test_what_is_neither_file_nor_folder_fails(twin: Any) -> None:
    os.mkfifo("pipe")
    assert reason(twin.ingest("pipe", code=1)) == "is neither a file nor a folder"


# Links


def test_a_circle_of_links_is_told_and_the_rest_goes_in(twin: Any, notes: Path) -> None:
    (notes / "deep").mkdir()
    (notes / "deep" / "a.md").write_text("Text.")
    (notes / "deep" / "up").symlink_to(notes)
    (notes / "self.md").symlink_to(notes / "self.md")
    result = twin.ingest(str(notes))
    assert result["inserted"] == 1
    up, circle = result["failed"]
    assert up == {"source": str(notes / "deep" / "up"), "reason": f"is a symbolic link that leads back to {notes}"}
    assert circle["source"] == str(notes / "self.md")
    assert "symbolic link" in circle["reason"]


def test_a_link_to_nothing_is_told(twin: Any, notes: Path) -> None:
    (notes / "gone.md").symlink_to("no-such-file.md")
    assert reason(twin.ingest(str(notes), code=1)) == "is a symbolic link that leads nowhere (no-such-file.md)"


def test_a_document_is_read_once_in_its_own_place(twin: Any, notes: Path) -> None:
    (notes / "real").mkdir()
    (notes / "real" / "a.md").write_text("Text.")
    (notes / "again").symlink_to(notes / "real")
    (notes / "again.md").symlink_to(notes / "real" / "a.md")
    outside = notes.parent / "outside"
    outside.mkdir()
    (outside / "b.md").write_text("From outside.")
    (outside / "back").symlink_to(notes)
    (notes / "linked").symlink_to(outside)
    twin.ingest(str(notes))
    assert [document.metadata["path"] for document in twin.documents()] == ["linked/b.md", "real/a.md"]


# What cannot be read


@contextmanager
def without_rights(*paths: Path) -> Iterator[None]:
    """Nobody may read these; the tests may run as the one user who is always allowed to."""
    modes = {path: path.stat().st_mode for path in paths}
    everywhere = {parent: parent.stat().st_mode for parent in paths[0].parents if parent.stat().st_uid == os.getuid()}
    user = os.geteuid()
    for path in paths:
        path.chmod(0)
    if user == 0:
        for parent, mode in everywhere.items():
            parent.chmod(mode | 0o055)
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        for path, mode in {**everywhere, **modes}.items():
            path.chmod(mode)


def test_a_folder_that_cannot_be_read_fails(twin: Any, notes: Path) -> None:
    (notes / "a.md").write_text("Text.")
    twin.ingest(str(notes))
    with without_rights(notes):
        result = twin.ingest(str(notes), "--prune", code=1)
    assert result["failed"] == [{"source": str(notes), "reason": "cannot be read: Permission denied"}]
    assert len(twin.documents()) == 1


def test_a_file_and_a_folder_within_that_cannot_be_read_are_told_and_kept(twin: Any, notes: Path) -> None:
    (notes / "closed").mkdir()
    for name in ("closed/a.md", "closed.md", "open.md", "gone.md"):
        (notes / name).write_text("Text.")
    twin.ingest(str(notes))
    (notes / "gone.md").unlink()
    with without_rights(notes / "closed", notes / "closed.md"):
        result = twin.ingest(str(notes), "--prune")
    assert [failure["source"] for failure in result["failed"]] == [str(notes / "closed"), str(notes / "closed.md")]
    assert {failure["reason"] for failure in result["failed"]} == {"cannot be read: Permission denied"}
    kept = [document.metadata["path"] for document in twin.documents()]
    assert kept == ["notes/closed.md", "closed/a.md", "notes/open.md"]


def test_a_file_that_goes_while_it_is_read_is_told(twin: Any, notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (notes / "a.md").write_text("Text.")
    (notes / "b.md").write_text("Text.")
    wanted = files.wanted

    def and_remove(name: str) -> bool:
        (notes / "a.md").unlink(missing_ok=True)
        return wanted(name)

    monkeypatch.setattr(files, "wanted", and_remove)
    result = twin.ingest(str(notes))
    assert (result["inserted"], reason(result)) == (1, "cannot be read: No such file or directory")
