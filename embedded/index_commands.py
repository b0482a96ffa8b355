"""`twin verify`: the index as a whole, asked of the app that owns it."""

from __future__ import annotations

import argparse
import json
import sys
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
