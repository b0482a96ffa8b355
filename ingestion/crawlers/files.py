"""Files and folders: prose in Markdown, HTML, plain text and PDF; source code as one document a file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from ingestion.drafts import Covered, Draft, Failed, Item, Options, reason_of
from ingestion.formats import code_language, reader
from ingestion.reading import Unreadable, decode

PLATFORM = "files"
SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
# What tools made, not authors.
IGNORED_FOLDERS = frozenset(
    ("__pycache__", "bower_components", "build", "dist", "node_modules", "site-packages", "target", "vendor", "venv")
)
IGNORED_NAMES = re.compile(
    r"^\..*|.*\.min\.(js|css)|.*[-.]lock(\.yaml|\.json)?|.*\.lock|go\.sum|pnpm-lock\.yaml|.*_pb2(_grpc)?\.pyi?|.*\.egg-info"
)


def accepts(source: str) -> bool:
    """Every source that no other platform takes is a path."""
    return True


def crawl(source: str, options: Options) -> Iterator[Item]:
    """The file, or every document under the folder. Hidden files and what tools made are left out of folders."""
    path = Path(os.path.realpath(Path(source).expanduser()))
    try:
        if path.is_dir():
            yield from _folder(path, options)
        elif path.exists():
            yield from _given_file(path, options)
        elif scheme := SCHEME.match(source):
            what = "give an address of http or https, a Git repository, or the path of a file or folder"
            yield Failed(source, f"is not read, as no address of {scheme[1]} is: {what}", lost=True)
        else:
            yield Failed(source, "does not exist", lost=True)
    except (OSError, ValueError) as error:
        yield Failed(source, f"cannot be read: {reason_of(error)}", lost=True)


def _folder(root: Path, options: Options) -> Iterator[Item]:
    try:
        os.scandir(root).close()
    except OSError as error:
        yield Failed(str(root), f"cannot be read: {reason_of(error)}", root.as_uri(), lost=True)
        return
    yield from _walk(root, root, set(), options)
    yield Covered(root.as_uri().rstrip("/") + "/")


def _walk(folder: Path, root: Path, walked: set[str], options: Options) -> Iterator[Item]:
    walked.add(os.path.realpath(folder))
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        yield Failed(str(folder), f"cannot be read: {reason_of(error)}", folder.as_uri())
        return
    for entry in found:
        path = Path(entry.path)
        if ignored(entry.name):
            continue
        try:
            if entry.is_symlink():
                yield from _link(path, root, walked, options)
            elif entry.is_dir():
                yield from _walk(path, root, walked, options)
            elif entry.is_file() and wanted(entry.name):
                yield _file(path, options)
        except OSError as error:
            yield Failed(str(path), f"cannot be read: {reason_of(error)}", path.as_uri())


def _link(path: Path, root: Path, walked: set[str], options: Options) -> Iterator[Item]:
    """Links that lead out of the folder are followed, once; the others lead to what is read in its own place."""
    target = Path(os.path.realpath(path))
    if target == path or target in path.parents:
        yield Failed(str(path), f"is a symbolic link that leads back to {target}", path.as_uri())
    elif not path.exists():
        # `exists` follows the link: a circle of links, or a link to nothing.
        if wanted(path.name) or not path.suffix:
            yield Failed(str(path), f"is a symbolic link that leads nowhere ({os.readlink(path)})", path.as_uri())
    elif target.is_relative_to(root):
        return
    elif target.is_dir():
        if str(target) not in walked:
            yield from _walk(path, root, walked, options)
    elif wanted(path.name):
        yield _file(path, options)


def _given_file(path: Path, options: Options) -> Iterator[Item]:
    """A file that was named is read whatever it is called: unknown names as plain text."""
    if not path.is_file():
        yield Failed(str(path), "is neither a file nor a folder", lost=True)
        return
    yield _file(path, options)


def _file(path: Path, options: Options) -> Draft | Failed:
    try:
        size = path.stat().st_size
        if size > options.settings.max_document_bytes:
            return Failed(str(path), too_large(size, options), path.as_uri())
        content = path.read_bytes()
    except OSError as error:
        return Failed(str(path), f"cannot be read: {reason_of(error)}", path.as_uri())
    # With its folder, since every package has an `__init__.py`; no more, so that a document is the same whichever of
    # the folders above it was named.
    name = "/".join(path.parts[-2:]).removeprefix("//")
    return draft(content, name, str(path), path.as_uri(), PLATFORM, options)


def draft(
    content: bytes,
    name: str,
    source: str,
    url: str,
    platform: str,
    options: Options,
    metadata: dict[str, Any] | None = None,
) -> Draft | Failed:
    """A file's bytes as a document; `name`, the title of code, is its path in a repository, else folder and name."""
    known = {"path": _printable(name), **(metadata or {})}
    if not content.strip():
        return Failed(source, "is empty", url)
    language = code_language(name)
    try:
        if language is not None:
            return Draft(
                source=source,
                url=url,
                title=_printable(name),
                text=decode(content),
                category=options.category or "code",
                platform=platform,
                metadata={**known, "language": language},
            )
        reading = (reader(name) or reader("any.txt"))(content)  # type: ignore[misc]
    except Unreadable as error:
        return Failed(source, str(error), url)
    except Exception as error:
        # Parsers of strangers' files fail in ways that nobody listed; that costs this file only.
        return Failed(source, f"cannot be read: {reason_of(error)}", url)
    return Draft(
        source=source,
        url=url,
        title=reading.title or _printable(PurePath(name).stem),
        text=reading.text,
        category=options.category or "article",
        platform=platform,
        author=reading.author,
        published_at=reading.published_at,
        metadata={**known, **reading.metadata, **({"language": reading.language} if reading.language else {})},
    )


def ignored(name: str) -> bool:
    """Whether files and folders of this name are left out of folders and repositories."""
    return name in IGNORED_FOLDERS or IGNORED_NAMES.fullmatch(name) is not None


def wanted(name: str) -> bool:
    """Whether a file of this name is a document."""
    return reader(name) is not None or code_language(name) is not None


def too_large(size: int, options: Options) -> str:
    """Why a document of this many bytes is refused."""
    limit = options.settings.max_document_bytes
    return f"is too large: {size / 1e6:.1f} MB, the limit is {limit / 1e6:.1f} MB (TWIN_MAX_DOCUMENT_BYTES)"


def _printable(name: str) -> str:
    """A file's name whose bytes may not be UTF-8."""
    return os.fsencode(name).decode("utf-8", "replace")
