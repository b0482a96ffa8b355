"""`twin verify`, `twin erase` and `twin reindex`: the index as a whole, asked of the app that owns it."""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpus.terminal import bounded

if TYPE_CHECKING:
    from corpus.settings import Settings

# A comparison of millions of points takes its time; an app that went away is noticed at once.
PATIENCE_SECONDS = 3600.0
SHOWN = 20
LOOK_SECONDS = 0.5
# Back to the beginning of the terminal's line, which is emptied.
ANEW = "\r\x1b[K"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to the command line."""
    told = "compare every document, record and point of the index with the warehouse"
    verify = subparsers.add_parser("verify", help=told, description=told)
    verify.add_argument("--repair", action="store_true", help="mend what differs, through the dataflow")
    verify.add_argument(
        "--since", metavar="DATE", help="only documents read in or after DATE (2024, 2024-05 or 2024-05-31)"
    )
    verify.add_argument(
        "--sample",
        type=bounded(int, 1, 1_000_000_000, "a number of documents"),
        metavar="N",
        help="only N documents chosen at random, cleaned, split and embedded anew as well",
    )
    verify.add_argument(
        "--generation", metavar="NAME", help="live (unless told), candidate, former, or a generation's name"
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
    _register_reindex(subparsers)


def _register_reindex(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    told = "build the index anew with another model or recipe, beside the one that serves"
    actions = subparsers.add_parser("reindex", help=told, description=told).add_subparsers(
        dest="action", metavar="ACTION", required=True
    )
    for action, said in (
        ("plan", "what another generation takes: documents, chunks, tokens, time and disk"),
        ("start", "build a generation beside the live one"),
        ("status", "the generations, and how far the one being built is"),
        ("cancel", "stop building, and remove what was built"),
        ("promote", "let the built generation serve, if it finds what it should"),
        ("rollback", "let the former generation serve again"),
        ("drop", "remove the former generation now"),
    ):
        command = actions.add_parser(action, help=said, description=said)
        if action in ("plan", "start"):
            command.add_argument("--model", metavar="NAME", help="else TWIN_EMBEDDING_MODEL of this command")
        command.add_argument("--json", action="store_true", help="for programs")
        command.set_defaults(handler=_reindex)


def _verify(namespace: argparse.Namespace, settings: Settings) -> int:
    asked = {name: getattr(namespace, name) for name in ("repair", "since", "sample", "generation")}
    with _meanwhile(lambda: "comparing, and waiting for changes that are on their way"):
        report = _asked(settings, "POST", "/api/verify", asked)
    if isinstance(report, int):
        return report
    sys.stdout.write(
        (json.dumps(report) if namespace.json else _told(report, namespace.generation, namespace.sample)) + "\n"
    )
    if report["unsettled"]:
        sys.stderr.write(f"twin: changes under way could not be waited for: {report['unsettled']}\n")
    return 1 if report["found"] > report["repaired"] else 0


def _told(report: dict[str, Any], generation: str | None, sample: int | None = None) -> str:
    found: int = report["found"]
    compared = f"{report['documents']} documents and {report['chunks']} chunks compared in {report['seconds']:.1f} s"
    # What may be a change on its way is no fault yet.
    shown = 0 if report["unsettled"] else SHOWN
    lines = [
        f"{fault['kind']:<17} {fault['document_id'] or '-':<36}  {fault['point_id'] or '-':<36}  {fault['what']}"
        for fault in report["faults"][:shown]
    ]
    if found > shown > 0:
        lines.append(f"... and {found - shown} more (--json names the first 1000)")
    if report["in_flight"]:
        lines.append(f"{report['in_flight']} documents are being changed all the time and were not judged")
    if not report["documents"] and not report["chunks"]:
        return "there was nothing to compare"
    if not found:
        return "\n".join([*lines, f"{compared}: the index is what the warehouse says"])
    # Here, for it takes the model's and the index' libraries along.
    from streaming.verify import KINDS

    kinds = ", ".join(f"{report[kind]} {kind}" for kind in KINDS if report[kind])
    if report["repaired"]:
        remedy = f"{report['repaired']} repaired"
    elif report["unsettled"]:
        remedy = "changes are on their way, which these may be (--json names them): verify again later"
    else:
        # Vectors and texts are compared, and so mended, by --sample alone; of documents chosen at random.
        of = f"{f' --sample {sample}' if sample else ''}{f' --generation {generation}' if generation else ''}"
        remedy = f"mend with `twin verify --repair{of}`" + (", in a sample of all to meet them again" if sample else "")
    return "\n".join([*lines, f"{compared}: {kinds}; {remedy}"])


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
        with _meanwhile(lambda: _erasing(settings)):
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


def _erasing(settings: Settings) -> str | None:
    """What the app is doing for an erasure; None where it does not answer."""
    from serving.client import AppRefused, AppUnavailable, call

    with suppress(AppRefused, AppUnavailable):
        erasing = call(settings, "GET", "/api/reindex", patience=0)["erasing"]
        return str(erasing["doing"]) if erasing else "waiting for the app"
    return None


@contextmanager
def _meanwhile(doing: Callable[[], str | None]) -> Iterator[None]:
    """Meanwhile one line of a terminal says what is being done."""
    if not sys.stderr.isatty():
        yield
        return
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(LOOK_SECONDS):
            told = doing()
            if told is not None and not ended.is_set():
                sys.stderr.write(f"{ANEW}{told} ...")
                sys.stderr.flush()

    telling = threading.Thread(target=tell, daemon=True)
    telling.start()
    try:
        yield
    finally:
        ended.set()
        telling.join(LOOK_SECONDS)
        sys.stderr.write(ANEW)
        sys.stderr.flush()


def _failed(told: str, code: int = 1) -> int:
    sys.stderr.write(f"twin: {told}\n")
    return code


def _no_receipt(namespace: argparse.Namespace) -> str | None:
    """Why no receipt can be written, found before anything is erased; None if it can."""
    file: Path | None = namespace.receipt
    if file is None:
        return "an erasure gives a receipt: say where with --receipt FILE"
    if file.is_dir():
        return f"{file} cannot be written: it is a folder"
    if not file.parent.is_dir():
        return f"{file} cannot be written: there is no folder {file.parent}"
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
    if namespace.author is not None and chosen["unknown"]:
        ids = ", ".join(chosen["unknown"][:SHOWN])
        raise AppRefused(f"{namespace.author!r} has documents that are not found by their ids: {ids}", 404)
    # Of the ids that a path or an address may stand for, one was found.
    return {**chosen, "unknown": []}


def _would_go(chosen: dict[str, Any]) -> str:
    documents = list(chosen["documents"].items())
    lines = [f"{id}  {about.get('title') or '(deleted already)'}" for id, about in documents[:SHOWN]]
    if len(documents) > SHOWN:
        lines.append(f"... and {len(documents) - SHOWN} more (--dry-run --json names all)")
    authors = ", ".join(sorted(filter(None, chosen["authors"].values())))
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


def _asked(
    settings: Settings, method: str, path: str, body: dict[str, Any] | None = None, **query: str | None
) -> dict[str, Any] | int:
    """The app's answer, or the exit code where there is none and it was said why."""
    from serving.client import AppRefused, AppUnavailable, call

    try:
        answer: dict[str, Any] = call(settings, method, path, body, query, timeout=PATIENCE_SECONDS)
    except AppRefused as error:
        sys.stderr.write(f"twin: {error}\n")
        return 2 if error.status == 400 else 1
    except AppUnavailable as error:
        sys.stderr.write(f"twin: {error}\n")
        return 1
    return answer


# reindex


def _reindex(namespace: argparse.Namespace, settings: Settings) -> int:
    action: str = namespace.action
    model = (namespace.model or settings.embedding_model) if action in ("plan", "start") else None
    if action == "plan":
        found = _asked(settings, "GET", "/api/reindex/plan", model=model)
    else:
        found = _asked(settings, "GET", "/api/reindex")
        if action != "status" and not isinstance(found, int):
            # By name: a request that is sent again after the connection broke must not act on another one.
            meant = found["candidate" if action in ("cancel", "promote") else "former"]
            named = {"model": model} if action == "start" else {"generation": meant and meant["generation"]}
            found = _asked(settings, "POST", f"/api/reindex/{action}", named)
    if isinstance(found, int):
        return found
    told = _planned(found) if action == "plan" else _generations(found)
    refused = [] if action in ("plan", "status") else found["reasons"]
    if not namespace.json and (not refused or action == "promote"):
        sys.stdout.write(told + "\n")
    if namespace.json:
        sys.stdout.write(json.dumps(found) + "\n")
    for reason in refused:
        sys.stderr.write(f"twin: not done: {reason}\n")
    return 1 if refused else 0


def _planned(plan: dict[str, Any]) -> str:
    if not plan["changes"]:
        return f"{plan['generation']} ({plan['model']}) is live already: nothing would change"
    about = "" if plan["sampled"] == plan["documents"] else f"about (from {plan['sampled']} documents) "
    lines = [
        f"from       {plan['live']['generation']} ({plan['live']['model']})",
        f"to         {plan['generation']} ({plan['model']})",
        f"documents  {plan['documents']}",
        f"chunks     {about}{plan['chunks']}",
        f"tokens     {about}{plan['tokens']}",
        f"time       about {_seconds(plan['seconds'])}, at {plan['chunks_per_second']:.0f} chunks/s measured now",
    ]
    if plan["disk_bytes"] is not None:
        free = plan["disk_bytes_free"] / 1e6
        lines.append(f"disk       about {plan['disk_bytes'] / 1e6:.0f} MB more, {free:,.0f} MB are free")
    return "\n".join(lines)


def _generations(found: dict[str, Any]) -> str:
    lines = [_generation("live", found["live"])]
    if found["live"]["frozen"]:
        lines.append(f"           takes deletions only: {found['live']['frozen']}")
    if candidate := found["candidate"]:
        lines.append(_generation("candidate", candidate))
        lines.append(f"           {_built(candidate)}")
    if former := found["former"]:
        until = former["removed_at"].partition("+")[0].replace("T", " ")
        lines += [_generation("former", former), f"           kept up, until {until} UTC: `twin reindex rollback`"]
    if erasing := found["erasing"]:
        lines.append(f"erasure {erasing['id']} is under way: {erasing['doing']}")
    if found["republish"] is not None:
        lines.append("downstream is being told of every document again")
    if found["note"]:
        lines.append(found["note"])
    if found["examined"]:
        lines += _examined(found["examined"])
    return "\n".join(lines)


def _generation(role: str, of: dict[str, Any]) -> str:
    return f"{role:<10} {of['generation']} ({of['model']}): {of['documents']} documents, {of['chunks']} chunks"


def _built(candidate: dict[str, Any]) -> str:
    if candidate["lag"] is None:
        return f"{candidate['state']}: {candidate['reason'] or 'it has just been started'}"
    if candidate["built"]:
        refused = f", {_count(candidate['refused'])} refused" if candidate["refused"] else ""
        return f"built and kept up{refused}: `twin reindex promote`"
    rate, left = candidate["documents_per_second"], candidate["seconds_left"]
    told = f", {rate:.1f} documents/s, about {_seconds(left)} left" if rate and left is not None else ""
    return f"{candidate['documents']} of {candidate['total']} documents, {candidate['lag']} events to be applied{told}"


def _examined(examined: dict[str, Any]) -> list[str]:
    at = examined["at"].partition("+")[0].replace("T", " ")
    judged = f"could not serve: {'; '.join(examined['reasons'])}" if examined["reasons"] else "may serve"
    lines = [f"examined   {at} UTC, {examined['generation']}: {judged}"]
    if verified := examined["verified"]:
        faults = verified["found"]
        lines.append(f"           {verified['documents']} documents, {verified['chunks']} chunks, {faults} faults")
    if measured := examined["recall"]:
        new, old = measured["new"], measured["old"] or {}
        lines += [
            f"           {measured['questions']} questions; exact neighbours found {measured['exact']:.3f}",
            *(
                f"           right document among the first 5 by {how}: {new[name]:.3f}"
                + (f", live {old[name]:.3f}" if old else "")
                for name, how in (("search", "a search"), ("meaning", "meaning alone"))
            ),
        ]
    return lines


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"
