"""`twin verify` and `twin erase`: the index as a whole, asked of the app that owns it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from corpus.settings import Settings

# A comparison of millions of points takes its time; an app that went away is noticed at once.
PATIENCE_SECONDS = 3600.0
SHOWN = 20
KINDS = ("missing", "orphaned", "stale", "wrong_generation", "duplicate")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to the command line."""
    from embedded.commands import number

    told = "compare every document, record and point of the index with the warehouse"
    verify = subparsers.add_parser("verify", help=told, description=told)
    verify.add_argument("--repair", action="store_true", help="mend what differs, through the dataflow")
    verify.add_argument(
        "--since", metavar="DATE", help="only documents read in or after DATE (2024, 2024-05 or 2024-05-31)"
    )
    verify.add_argument(
        "--sample",
        type=number(int, 1, 1_000_000_000, "a number of documents"),
        metavar="N",
        help="only N documents chosen at random, cleaned, split and embedded anew as well",
    )
    verify.add_argument("--json", action="store_true", help="for programs")
    verify.set_defaults(handler=_verify)
    told = "remove documents from every place for good, with a receipt"
    erase = subparsers.add_parser("erase", help=told, description=told)
    which = erase.add_mutually_exclusive_group(required=True)
    which.add_argument("--author", metavar="NAME", help="all that an author wrote: a name or an id")
    which.add_argument(
        "--document",
        action="append",
        metavar="ID",
        help="a document's id, address, or the path of its file; may be given more than once",
    )
    which.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="ID",
        help="go on with an erasure that was broken off (the newest, or ID), or look again at one that is done",
    )
    erase.add_argument("--receipt", type=Path, metavar="FILE", help="where to write the receipt, as JSON")
    erase.add_argument("--force", action="store_true", help="write over a FILE that exists")
    erase.add_argument("--dry-run", action="store_true", help="only say what would go")
    erase.add_argument("--yes", action="store_true", help="do not ask")
    erase.add_argument("--json", action="store_true", help="for programs")
    erase.set_defaults(handler=_erase)


def _verify(namespace: argparse.Namespace, settings: Settings) -> int:
    from serving.client import AppRefused, AppUnavailable, call

    asked = {"repair": namespace.repair, "since": namespace.since, "sample": namespace.sample}
    try:
        report = call(settings, "POST", "/api/verify", asked, timeout=PATIENCE_SECONDS)
    except AppRefused as error:
        sys.stderr.write(f"twin: {error}\n")
        return 2 if error.status == 400 else 1
    except AppUnavailable as error:
        sys.stderr.write(f"twin: {error}\n")
        return 1
    found = sum(report[kind] for kind in KINDS)
    sys.stdout.write((json.dumps(report) if namespace.json else _told(report, found)) + "\n")
    if report["unsettled"]:
        sys.stderr.write(f"twin: changes under way could not be waited for: {report['unsettled']}\n")
    return 1 if found > report["repaired"] else 0


def _told(report: dict[str, Any], found: int) -> str:
    compared = f"{report['documents']} documents and {report['chunks']} chunks compared in {report['seconds']:.1f} s"
    lines = [
        f"{fault['kind']:<17} {fault['document_id'] or '-':<36}  {fault['point_id'] or '-':<36}  {fault['what']}"
        for fault in report["faults"][:SHOWN]
    ]
    if found > SHOWN:
        lines.append(f"... and {found - SHOWN} more (--json names the first 1000)")
    if report["in_flight"]:
        lines.append(f"{report['in_flight']} documents are being changed all the time and were not judged")
    if not report["documents"] and not report["chunks"]:
        return "there was nothing to compare"
    if not found:
        return "\n".join([*lines, f"{compared}: the index is what the warehouse says"])
    kinds = ", ".join(f"{report[kind]} {kind}" for kind in KINDS if report[kind])
    repaired = f"; {report['repaired']} repaired" if report["repaired"] else "; mend with `twin verify --repair`"
    return "\n".join([*lines, f"{compared}: {kinds}{repaired}"])


def _erase(namespace: argparse.Namespace, settings: Settings) -> int:
    import uuid

    from corpus.files import replace_file
    from serving.client import AppRefused, AppUnavailable, call

    try:
        if namespace.resume is not None and namespace.dry_run:
            return _failed("--dry-run says what would go, and --resume goes on with what was chosen", 2)
        if not namespace.dry_run and (refused := _no_receipt(namespace)):
            return _failed(refused, 2 if namespace.receipt is None else 1)
        asked: dict[str, Any] = {"id": namespace.resume or None}
        if namespace.resume is None:
            chosen = _chosen(namespace, settings)
            if not chosen["documents"] and not chosen["authors"]:
                return _failed(f"there is no author {namespace.author!r}: `twin documents list` shows them")
            if namespace.dry_run or not namespace.json:
                sys.stdout.write((json.dumps(chosen) if namespace.json else _would_go(chosen)) + "\n")
            if namespace.dry_run:
                return 0
            if not namespace.yes and sys.stdin.isatty() and not _agreed():
                return _failed("nothing was erased")
            asked = {"id": str(uuid.uuid4()), "author": namespace.author}
            if namespace.author is None:
                asked["documents"] = list(chosen["documents"])
            sys.stderr.write(
                f"erasure {asked['id']}: if this breaks off, the app goes on; `--resume` gives the receipt\n"
            )
        receipt = call(settings, "POST", "/api/erase", asked, timeout=PATIENCE_SECONDS)
    except (AppRefused, AppUnavailable) as error:
        return _failed(str(error))
    asked_for = {"author": namespace.author} if namespace.author else {"documents": receipt["documents"]}
    receipt = {"asked": asked_for if namespace.resume is None else {"erasure": receipt["erasure_id"]}, **receipt}
    replace_file(namespace.receipt, json.dumps(receipt, indent=2, ensure_ascii=False).encode() + b"\n")
    sys.stdout.write((json.dumps(receipt) if namespace.json else _erased(receipt, namespace.receipt)) + "\n")
    if receipt["ingested_again"]:
        again = ", ".join(receipt["ingested_again"][:SHOWN])
        sys.stderr.write(f"twin: ingested again since, and so new documents: {again}\n")
    return 1 if receipt["left"] else 0


def _failed(told: str, code: int = 1) -> int:
    sys.stderr.write(f"twin: {told}\n")
    return code


def _no_receipt(namespace: argparse.Namespace) -> str | None:
    """Why no receipt can be written, found before anything is erased; None if it can."""
    file: Path | None = namespace.receipt
    if file is None:
        return "an erasure gives a receipt: say where with --receipt FILE"
    if file.is_dir() or not file.parent.is_dir():
        return f"{file} cannot be written: it is a folder, or in none"
    if file.exists() and not namespace.force:
        return f"{file} exists: name another file, or write over it with --force"
    return None


def _chosen(namespace: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """What would go, each document once. Raises AppRefused, also when a document is not known, and AppUnavailable."""
    from serving.client import AppRefused, call
    from serving.commands import document_ids, unknown_documents

    named = {given: document_ids(given) for given in namespace.document or ()}
    asked = {"documents": [id for ids in named.values() for id in ids], "author": namespace.author, "dry_run": True}
    chosen: dict[str, Any] = call(settings, "POST", "/api/erase", asked)
    unknown = [given for given, ids in named.items() if not any(id in chosen["documents"] for id in ids)]
    if unknown:
        raise AppRefused(unknown_documents(unknown), 404)
    return chosen


def _would_go(chosen: dict[str, Any]) -> str:
    documents = list(chosen["documents"].items())
    lines = [f"{id}  {about.get('title') or '(deleted already)'}" for id, about in documents[:SHOWN]]
    if len(documents) > SHOWN:
        lines.append(f"... and {len(documents) - SHOWN} more (--dry-run --json names all)")
    authors = ", ".join(sorted(chosen["authors"].values()))
    return "\n".join([*lines, f"to be erased: {_count(len(documents))}" + (f" of {authors}" if authors else "")])


def _count(documents: int) -> str:
    return f"{documents} document{'' if documents == 1 else 's'}"


def _agreed() -> bool:
    sys.stdout.write("Nothing can bring them back. Type yes to erase them: ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().casefold() == "yes"


def _erased(receipt: dict[str, Any], file: Path) -> str:
    lines = [
        f"{each['place']:<32} {each['found']:>6} found  {'?' if each['left'] is None else each['left']:>6} left"
        for each in receipt["places"]
    ]
    stale = [f"{kind[:-1]} {id}" for kind, ids in receipt["stale"].items() for id in ids]
    if stale:
        lines.append(f"made from them, and to be made anew: {', '.join(stale)}")
    told = f"{receipt['left']} left (`twin erase --resume` tries again)" if receipt["left"] else "0 left"
    return "\n".join([*lines, f"{_count(len(receipt['documents']))} erased, {told}; the receipt is {file}"])
