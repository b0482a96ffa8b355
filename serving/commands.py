"""`twin search`, `twin ask` and `twin documents`: questions to the running app from a terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from corpus.terminal import bold, bounded, faint, print_json, printable

if TYPE_CHECKING:
    from corpus.settings import Settings

PAGE = 10_000
# Characters of two columns of the list, which has 120 then for a narrow terminal.
AUTHOR, TITLE = 14, 24
FILTERS = ("author", "category", "platform", "language", "since", "until")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this package's commands; each sets `handler`, a function of (arguments, settings) to the exit code."""
    search = subparsers.add_parser("search", help="show the passages that fit a question best")
    search.add_argument("question", metavar="QUESTION")
    search.add_argument(
        "--limit",
        type=bounded(int, 1, 100, "a number from 1 to 100"),
        default=10,
        metavar="N",
        help="how many passages (1 to 100, default 10)",
    )
    _add_filters(search)
    _finish(search, show_search)

    ask = subparsers.add_parser("ask", help="answer a question from the documents, with citations")
    ask.add_argument("question", metavar="QUESTION")
    ask.add_argument(
        "--limit",
        type=bounded(int, 1, 20, "a number from 1 to 20"),
        default=6,
        metavar="N",
        help="passages to answer from (1 to 20, default 6)",
    )
    _add_filters(ask)
    _finish(ask, show_answer)

    documents = subparsers.add_parser("documents", help="list, show or delete documents")
    actions = documents.add_subparsers(dest="action", required=True, metavar="ACTION")
    told = "list the documents and their state"
    listing = actions.add_parser("list", help=told, description=told)
    _add_origin(listing)
    listing.add_argument(
        "--state", choices=("captured", "indexed", "failed"), help="captured: not searchable yet; failed: refused"
    )
    _finish(listing, list_documents)
    told = "show one document as it is indexed"
    show = actions.add_parser("show", help=told, description=told)
    show.add_argument("id", metavar="ID", help="its id, its address, or the path of its file")
    _finish(show, show_document)
    told = "delete documents from the warehouse, and so from everywhere"
    delete = actions.add_parser("delete", help=told, description=told)
    delete.add_argument("ids", nargs="+", metavar="ID", help="a document's id, address, or the path of its file")
    _finish(delete, delete_documents)


def _add_filters(parser: argparse.ArgumentParser) -> None:
    _add_origin(parser)
    parser.add_argument("--language", metavar="L", help="of the text (en) or of the code (python)")
    parser.add_argument(
        "--since",
        metavar="DATE",
        help="published, or without a date read, in or after DATE (2024, 2024-05 or 2024-05-31)",
    )
    parser.add_argument("--until", metavar="DATE", help="published, or without a date read, in or before DATE")


def _add_origin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--author", metavar="NAME", help="only what NAME wrote")
    parser.add_argument(
        "--category",
        type=_category,
        metavar="C",
        help="only this kind of text (a wrong one lists them)",
    )
    parser.add_argument("--platform", metavar="P", help="only what came from there: files, git, or a host")


def _category(name: str) -> str:
    from corpus.categories import UnknownCategory, category_of

    try:
        return category_of(name).value
    except UnknownCategory as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _finish(parser: argparse.ArgumentParser, handler: Callable[[argparse.Namespace, Settings], int]) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parser.set_defaults(handler=handler)


def show_search(arguments: argparse.Namespace, settings: Settings) -> int:
    from serving.client import call

    body = {"question": arguments.question, "limit": arguments.limit, **_given(arguments)}
    return _answered(
        lambda: call(settings, "POST", "/api/search", body), arguments, lambda hits: _hits(hits, arguments.question)
    )


def show_answer(arguments: argparse.Namespace, settings: Settings) -> int:
    from serving.client import AppRefused, AppUnavailable, call, events

    body = {"question": arguments.question, "limit": arguments.limit, "filters": _given(arguments)}
    if arguments.json:
        return _answered(lambda: call(settings, "POST", "/api/ask", body), arguments, lambda answer: "")
    reason, ended = "it broke off in the middle of its answer: see `twin status`", False
    try:
        for name, value in events(settings, "/api/ask", body):
            if name == "token":
                sys.stdout.write(printable(value["text"]))
                sys.stdout.flush()
            elif name == "error":
                reason = value["message"]
            elif name == "done":
                sys.stdout.write(_below_answer(value))
                ended = True
    except (AppRefused, AppUnavailable) as error:
        return _failed(error)
    return 0 if ended else _failed(AppUnavailable(f"the app did not answer: {reason}"))


def list_documents(arguments: argparse.Namespace, settings: Settings) -> int:
    from serving.client import call

    chosen = {name: getattr(arguments, name) for name in ("author", "category", "platform", "state")}

    def everything() -> list[dict[str, Any]]:
        rows: dict[str, dict[str, Any]] = {}
        offset = 0
        while True:
            page = call(settings, "GET", "/api/documents", query={**chosen, "limit": PAGE, "offset": offset})
            # A document that is ingested meanwhile moves the others on: one seen twice is listed once.
            rows.update((row["document_id"], row) for row in page["items"])
            offset += PAGE
            if offset >= page["total"]:
                return list(rows.values())

    return _answered(everything, arguments, lambda rows: _table(rows, chosen=any(chosen.values())))


def show_document(arguments: argparse.Namespace, settings: Settings) -> int:
    from urllib.parse import quote

    from serving.client import AppRefused, call

    def asked() -> Any:
        for id in filter(None, document_ids(arguments.id)):
            try:
                # What a terminal hands over need not be UTF-8; it is then the id of no document.
                return call(settings, "GET", f"/api/documents/{quote(id, safe='', errors='surrogateescape')}")
            except AppRefused as error:
                if error.status != 404:
                    raise
        raise AppRefused(unknown_documents([arguments.id]), 404)

    return _answered(asked, arguments, _document)


def delete_documents(arguments: argparse.Namespace, settings: Settings) -> int:
    from corpus import warehouse

    named = {given: document_ids(given) for given in arguments.ids}
    try:
        with warehouse.connect(settings) as documents:
            known = {stamp.id for stamp in documents.stamps([id for ids in named.values() for id in ids])}
            found = {given: next((id for id in ids if id in known), None) for given, ids in named.items()}
            deleted = documents.delete(sorted({id for id in found.values() if id is not None}))
    except ConnectionError as error:
        return _failed(error)
    unknown = [given for given, id in found.items() if id is None]
    if arguments.json:
        print_json({"deleted": deleted, "unknown": unknown})
    elif deleted:
        sys.stdout.write(f"deleted {_count(deleted, 'document')}\n")
    if unknown:
        sys.stderr.write(f"twin: {printable(unknown_documents(unknown))}\n")
        return 1
    return 0


def document_ids(given: str) -> list[str]:
    """The ids that a person may mean, the likeliest first: the text itself, that of an address or of a file."""
    import os
    from pathlib import Path

    from corpus.documents import InvalidDocument, canonical_url, document_identity

    path = os.path.expanduser(given)
    url = given if "://" in given else Path(os.path.realpath(path)).as_uri() if os.path.exists(path) else None
    try:
        return [given, document_identity(canonical_url(url))] if url else [given]
    except InvalidDocument:
        return [given]


def unknown_documents(given: Sequence[str]) -> str:
    shown = ", ".join(map(repr, given))
    return f"no document has the id, address or path {shown}: `twin documents list` shows them"


def _given(arguments: argparse.Namespace) -> dict[str, str]:
    return {name: value for name in FILTERS if (value := getattr(arguments, name))}


def _answered(ask: Callable[[], Any], arguments: argparse.Namespace, told: Callable[[Any], str]) -> int:
    from serving.client import AppRefused, AppUnavailable

    try:
        answer = ask()
    except (AppRefused, AppUnavailable) as error:
        return _failed(error)
    if arguments.json:
        print_json(answer)
    else:
        sys.stdout.write(told(answer))
    return 0


def _failed(error: Exception) -> int:
    sys.stderr.write(f"twin: {printable(str(error))}\n")
    # What the app cannot take is wrong use; what is not there, or not now, is a failure.
    return 2 if getattr(error, "status", None) in (400, 413) else 1


def _hits(hits: Sequence[Mapping[str, Any]], question: str) -> str:
    if not hits:
        return "nothing found\n"
    return "\n".join(
        f"{bold(f'{n:>2}. {_title(hit)}')}\n    {_excerpt(hit['text'], question)}\n    {faint(printable(hit['url']))}\n"
        for n, hit in enumerate(hits, 1)
    )


def _excerpt(text: str, question: str, width: int = 240) -> str:
    """About `width` characters of the text around the longest word of the question that it holds, its words marked."""
    import re

    plain = printable(" ".join(text.split()))
    words = sorted(set(re.findall(r"\w{3,}", question)), key=lambda word: (-len(word), word))
    spots = [match.start() for word in words if (match := re.search(re.escape(word), plain, re.IGNORECASE))]
    start = max(0, (spots[0] if spots else 0) - width // 3)
    start = plain.rfind(" ", 0, start) + 1 if start else 0
    end = len(plain) if len(plain) - start <= width else plain.rfind(" ", start, start + width)
    end = end if end > start else start + width
    shown = ("… " if start else "") + plain[start:end] + (" …" if end < len(plain) else "")
    if not words:
        return shown
    return re.sub("|".join(map(re.escape, words)), lambda match: bold(match[0]), shown, flags=re.IGNORECASE)


def _below_answer(answer: Mapping[str, Any]) -> str:
    lines = ["\n"]
    if answer.get("model"):
        lines.append(f"\n{faint('Answered by ' + printable(answer['model']))}\n")
    if answer.get("notice"):
        lines.append(f"\n{faint(printable(answer['notice']))}\n")
    above = None
    for citation in answer["citations"]:
        address = "" if citation["url"] == above else f"    {faint(printable(citation['url']))}\n"
        lines.append(f"{chr(10) if address else ''}[{citation['n']}] {bold(_title(citation))}\n{address}")
        above = citation["url"]
        if answer["mode"] == "generated":
            lines.append(f"    “{printable(' '.join(citation['quote'].split()))}”\n")
    return "".join(lines)


def _title(row: Mapping[str, Any]) -> str:
    from corpus.documents import headings_below

    return printable(" › ".join((row["title"], *headings_below(row.get("heading_path", ()), row["title"]))))


def _table(rows: Sequence[Mapping[str, Any]], chosen: bool) -> str:
    if not rows:
        return "nothing found\n" if chosen else "no documents: `twin ingest SOURCE` brings some in\n"
    # Of an address its end tells most; who reads it through a pipe gets all of it.
    beside = 36 + 8 + 6 + AUTHOR + TITLE + 5 * 2
    left = max(20, _columns() - beside) if sys.stdout.isatty() else None
    lines = [bold(_row("ID", "STATE", "CHUNKS", "AUTHOR", "TITLE", "SOURCE"))]
    for row in rows:
        url = printable(row["url"])
        source = url if left is None or len(url) <= left else "…" + url[1 - left :]
        id, author, title = (printable(row[name]) for name in ("document_id", "author", "title"))
        lines.append(_row(id, row["state"], str(row["chunks"]), author, title, source))
        if row.get("reason"):
            lines.append(f"    {printable(row['reason'])}\n")
    return "".join(lines) + _count(len(rows), "document") + "\n"


def _row(id: str, state: str, chunks: str, author: str, title: str, source: str) -> str:
    return f"{id:<36}  {state:<8}  {chunks:>6}  {_cut(author, AUTHOR)}  {_cut(title, TITLE)}  {source}\n"


def _cut(text: str, width: int) -> str:
    """The text on one line of exactly this many characters."""
    line = " ".join(text.split())
    return f"{line if len(line) <= width else line[: width - 1] + '…':<{width}}"


def _columns() -> int:
    import shutil

    return shutil.get_terminal_size().columns


def _document(document: Mapping[str, Any]) -> str:
    about = (
        ("id", document["document_id"]),
        ("url", document["url"]),
        ("author", document["author"]),
        ("category", f"{document['category']} on {document['platform']}"),
        ("state", document["state"] + (f": {document['reason']}" if document.get("reason") else "")),
        ("version", document["version"]),
        ("language", document["language"]),
        ("published", document["published_at"]),
        ("crawled", document["crawled_at"]),
        ("chunks", len(document["chunks"])),
        *((name, value) for name, value in document["metadata"].items() if name != "language"),
    )
    told = ((name, ", ".join(map(str, value)) if isinstance(value, list) else value) for name, value in about)
    shown = ((printable(name), printable(str(value))) for name, value in told if value is not None)
    head = "".join(f"{name:<9} {value}\n" for name, value in shown)
    return f"{bold(printable(document['title']))}\n{head}\n{printable(document['text'])}\n"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
