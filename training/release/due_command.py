"""`twin train due`: whether it is worth training again, for a person or a scheduler."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from corpus.terminal import print_json, printable

if TYPE_CHECKING:
    from corpus.settings import Settings

DESCRIPTION = """\
Tell whether it is worth training again, and why: documents that are new, changed or gone and feedback since the last
dataset that a model was trained on, a report of drift, an erasure that the champion should follow, or no champion at
all. The exit code is 0 either way: read `due` of --json."""


def register_due(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `due` to the verbs of `twin train`."""
    parser = verbs.add_parser("due", help="tell whether to train again, and why", description=DESCRIPTION)
    parser.add_argument("--rules", type=Path, metavar="FILE", help="from when on (default: those of the program)")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    parser.set_defaults(handler=train_due)


def train_due(namespace: argparse.Namespace, settings: Settings) -> int:
    """`twin train due`: 0 when told, 1 when that cannot be found out, 2 for rules that cannot be used."""
    import msgspec

    from corpus import warehouse
    from corpus.history import open_history
    from training.release.commands import registry_of, rules_of
    from training.release.due import due, facts
    from training.release.gate import InvalidRules

    try:
        rules = rules_of(namespace.rules, settings)
    except InvalidRules as error:
        sys.stderr.write(f"twin: {printable(str(error))}\n")
        return 2
    with warehouse.connect(settings) as documents:
        registry = registry_of(settings, documents)
        found = due(facts(settings.home, registry, documents, open_history(settings)), rules.due)
    if namespace.json:
        print_json(msgspec.to_builtins(found))
        return 0
    sys.stdout.write("train again:\n" if found.due else "no need to train again:\n")
    for told in found.reasons:
        sys.stdout.write(printable(f"  yes: {told}\n"))
    for told in found.not_due:
        sys.stdout.write(printable(f"  no: {told}\n"))
    return 0
