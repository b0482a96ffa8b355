"""`twin ingest`: bring documents into the warehouse."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from corpus.settings import Settings
    from ingestion.crawl import IngestResult

DESCRIPTION = """\
Bring documents into the warehouse. A SOURCE is a file or folder (Markdown, HTML, text, PDF, source code), a Git
repository (its address, or git+PATH), the address of a web article, or an export (a JSON array of documents). What did
not change is not written again; a document that cannot be read is listed and never stops the rest."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `ingest` to the command line."""
    parser = subparsers.add_parser("ingest", help="bring documents into the warehouse", description=DESCRIPTION)
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="folder, file, repository, address or export")
    parser.add_argument(
        "--author",
        metavar="NAME",
        help="who wrote them (default: what each document says, else its author until now, else Unknown)",
    )
    parser.add_argument("--category", metavar="C", help="their kind of text, such as article (default: what each is)")
    parser.add_argument("--prune", action="store_true", help="delete what a folder or repository no longer has")
    parser.add_argument(
        "--allow-private-addresses", action="store_true", help="fetch from this machine and private networks too"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(handler=ingest)


def ingest(namespace: argparse.Namespace, settings: Settings) -> int:
    """`twin ingest`: 0 when done, 1 when a source was not reached or nothing came in but failures, 2 for usage."""
    import msgspec

    from corpus import warehouse
    from corpus.categories import UnknownCategory, category_of
    from ingestion import crawl

    if not all(source.strip() for source in namespace.sources):
        # An unset variable of a shell is no source, least of all the working directory.
        return _told("a SOURCE is empty: name a file, a folder or an address", 2)
    if namespace.author is not None and not namespace.author.strip():
        return _told("--author is empty: name somebody, or leave it out", 2)
    if namespace.category is not None:
        try:
            category_of(namespace.category)
        except UnknownCategory as error:
            return _told(str(error), 2)
    if namespace.allow_private_addresses:
        settings = msgspec.structs.replace(settings, allow_private_addresses=True)
    try:
        with warehouse.connect(settings) as documents, _progress(namespace.json) as progress:
            result = crawl.ingest(
                namespace.sources,
                settings,
                documents,
                author=namespace.author,
                category=namespace.category,
                prune=namespace.prune,
                progress=progress,
            )
    except warehouse.WarehouseUnavailable as error:
        return _told(str(error), 1)
    if namespace.json:
        sys.stdout.write(msgspec.json.encode(_plain(result)).decode() + "\n")
    else:
        sys.stdout.write(_line(result) + "\n")
        for failure in _plain(result)["failed"]:
            sys.stderr.write(f"failed: {failure['source']} {failure['reason']}\n")
    nothing = result.seen > 0 and result.seen == len(result.failed)
    return 1 if result.lost or nothing else 0


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[int, str], None]]:
    """A bar on a terminal; it shows itself when the first document was read."""
    if quiet or not sys.stderr.isatty():
        yield lambda seen, source: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.completed} documents"),
        BarColumn(24),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda seen, source: bar.update(task, completed=seen, description=escape(source[-60:]))


def _line(result: IngestResult) -> str:
    told = [
        f"{number} {word}"
        for number, word in (
            (result.inserted, "new"),
            (result.updated, "updated"),
            (result.unchanged, "unchanged"),
            (result.deleted, "deleted"),
            (len(result.failed), "failed"),
        )
        if number
    ]
    return f"{result.seen} document{'' if result.seen == 1 else 's'} seen: {', '.join(told) or 'nothing to do'}"


def _plain(result: IngestResult) -> dict[str, Any]:
    from ingestion.crawl import shown

    return {
        "seen": result.seen,
        "inserted": result.inserted,
        "updated": result.updated,
        "unchanged": result.unchanged,
        "failed": [{"source": shown(failure.source), "reason": shown(failure.reason)} for failure in result.failed],
        "deleted": result.deleted,
    }


def _told(reason: str, code: int) -> int:
    sys.stderr.write(f"twin: {reason}\n")
    return code
