"""Files to text and what they say about themselves: one function a format, from bytes, without I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import date, datetime
from pathlib import PurePath
from typing import Any

from ingestion.reading import Reading, Unreadable, decode, moment

LARGEST_FRONT_MATTER = 16_384
FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
ATX_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.+?)[ \t]*#*[ \t]*$", re.MULTILINE)
SETEXT_HEADING = re.compile(r"^ {0,3}(\S[^\n]*)\n {0,3}(?:=+|-+)[ \t]*$", re.MULTILINE)
FENCED = re.compile(r"^ {0,3}(```+|~~~+).*?(?:^ {0,3}\1[`~]*[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)


def read_text(content: bytes) -> Reading:
    """Plain text has nothing to say but itself."""
    return Reading(decode(content))


def read_markdown(content: bytes) -> Reading:
    """Markdown with the front matter of static-site generators (YAML between `---` lines), which is taken off."""
    text = decode(content)
    said, body, below = _front_matter(text)
    tags = said.get("tags")
    metadata = {"tags": [str(tag) for tag in tags if isinstance(tag, str | int)]} if isinstance(tags, list) else {}
    author = said.get("author")
    if isinstance(author, dict):
        author = author.get("name")
    return Reading(
        text=body,
        title=_plain(said.get("title")) or first_heading(below),
        author=_plain(author),
        published_at=moment(said.get("date") or said.get("published")),
        language=_plain(said.get("lang") or said.get("language")),
        metadata=metadata,
    )


def read_html(content: bytes) -> Reading:
    """The article of an HTML page. Raises Unreadable if there is none."""
    from ingestion.pages import read_page

    return read_page(content, address=None, charset=None)


def read_pdf(content: bytes) -> Reading:
    """The text of a PDF, page after page. Raises Unreadable for a broken or locked one, and for one without text."""
    import pypdfium2  # type: ignore[import-untyped]

    try:
        document = pypdfium2.PdfDocument(content)
    except pypdfium2.PdfiumError as error:
        locked = "password" in str(error).lower()
        raise Unreadable("is an encrypted PDF: remove its password" if locked else "is a broken PDF") from error
    try:
        said = document.get_metadata_dict(skip_empty=True)
        pages = [_page_text(page) for page in document]
    except pypdfium2.PdfiumError as error:
        raise Unreadable(f"is a broken PDF ({error})") from error
    finally:
        document.close()
    text = "\n\n".join(page for page in pages if page)
    if not text:
        raise Unreadable("is a PDF without text (scanned pages?): run text recognition (OCR) over it first")
    return Reading(
        text=text,
        title=_plain(said.get("Title")),
        author=_plain(said.get("Author")),
        published_at=_pdf_moment(said.get("CreationDate", "")),
        metadata={"pages": len(pages)},
    )


FORMATS: Mapping[str, Callable[[bytes], Reading]] = {
    ".md": read_markdown,
    ".markdown": read_markdown,
    ".mdx": read_markdown,
    ".qmd": read_markdown,
    ".txt": read_text,
    ".text": read_text,
    ".rst": read_text,
    ".adoc": read_text,
    ".org": read_text,
    ".html": read_html,
    ".htm": read_html,
    ".xhtml": read_html,
    ".pdf": read_pdf,
}

CODE_LANGUAGES: Mapping[str, str] = {
    ".bash": "shell",
    ".c": "c",
    ".cc": "c++",
    ".clj": "clojure",
    ".cpp": "c++",
    ".cs": "c#",
    ".css": "css",
    ".cu": "cuda",
    ".dart": "dart",
    ".ex": "elixir",
    ".exs": "elixir",
    ".erl": "erlang",
    ".fs": "f#",
    ".go": "go",
    ".graphql": "graphql",
    ".h": "c",
    ".hpp": "c++",
    ".hs": "haskell",
    ".java": "java",
    ".jl": "julia",
    ".js": "javascript",
    ".jsx": "javascript",
    ".kt": "kotlin",
    ".lua": "lua",
    ".m": "objective-c",
    ".ml": "ocaml",
    ".nix": "nix",
    ".php": "php",
    ".pl": "perl",
    ".proto": "protobuf",
    ".ps1": "powershell",
    ".py": "python",
    ".pyi": "python",
    ".pyx": "cython",
    ".r": "r",
    ".rb": "ruby",
    ".rs": "rust",
    ".scala": "scala",
    ".scss": "scss",
    ".sh": "shell",
    ".sol": "solidity",
    ".sql": "sql",
    ".svelte": "svelte",
    ".swift": "swift",
    ".tf": "terraform",
    ".toml": "toml",
    ".ts": "typescript",
    ".tsx": "typescript",
    ".vue": "vue",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".zig": "zig",
    ".zsh": "shell",
}
CODE_NAMES: Mapping[str, str] = {"Dockerfile": "dockerfile", "Makefile": "makefile", "Justfile": "just"}


def reader(name: str) -> Callable[[bytes], Reading] | None:
    """How a file of this name is read as prose, or None."""
    return FORMATS.get(PurePath(name).suffix.lower())


def code_language(name: str) -> str | None:
    """The programming language of a file of this name, or None."""
    path = PurePath(name)
    return CODE_NAMES.get(path.name) or CODE_LANGUAGES.get(path.suffix.lower())


def first_heading(markdown: str) -> str | None:
    """The first heading outside code blocks, without its marks."""
    prose = FENCED.sub("", markdown.replace("\r\n", "\n"))
    found = [match for pattern in (ATX_HEADING, SETEXT_HEADING) if (match := pattern.search(prose))]
    return min(found, key=lambda match: match.start()).group(1).strip("*_` ") or None if found else None


def _front_matter(text: str) -> tuple[dict[str, Any], str, str]:
    """What the front matter says, the text, and what of it is below the front matter.

    Text between rules that is not front matter after all stays in the text.
    """
    import yaml  # type: ignore[import-untyped]

    found = FRONT_MATTER.match(text[:LARGEST_FRONT_MATTER])
    if not found:
        return {}, text, text
    below = text[found.end() :]
    try:
        said = yaml.safe_load(found.group(1))
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}, text, below
    return (said, below, below) if isinstance(said, dict) else ({}, text, below)


def _plain(value: object) -> str | None:
    """A name or title as one line; what is neither text nor number says nothing."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | date):
        return None
    return " ".join(str(value).split()) or None


def _page_text(page: Any) -> str:
    text = page.get_textpage().get_text_bounded()
    # The library marks a hyphen at a line's end with U+FFFE, so that words can be put together again.
    return re.sub(r"[\ufffe\x02]\s*", "", text).replace("\r\n", "\n").replace("\0", "").strip()


def _pdf_moment(value: str) -> datetime | None:
    """`D:20240131120000+01'00'` (ISO 32000-1, section 7.9.4)."""
    found = re.match(r"D?:?(\d{4})(\d{2})?(\d{2})?(\d{2})?(\d{2})?(\d{2})?", value)
    if not found:
        return None
    year, *rest = (int(part) if part else None for part in found.groups())
    month, day, *clock = rest
    offset = re.search(r"([+-])(\d{2})'?(\d{2})?", value[found.end() :])
    zone = f"{offset[1]}{offset[2]}:{offset[3] or '00'}" if offset else "+00:00"
    hours = ":".join(f"{part or 0:02}" for part in clock)
    return moment(f"{year:04}-{month or 1:02}-{day or 1:02}T{hours}{zone}")
