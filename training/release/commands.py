"""`twin model`: the versions of the model, who decides about them, and which of them the app asks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpus.terminal import bold, bounded, print_json, printable, teller
from training.release.deploy_command import register_deploy

if TYPE_CHECKING:
    from corpus.settings import Settings
    from corpus.warehouse import Erasure
    from training.release.gate import Decision, Rules
    from training.release.registry import Decided, ModelVersion, Records, Registry

REGISTER = """\
Make a finished run a version of the model, a candidate, with what `twin evaluate` found of it. A run that is registered
already takes the new evaluation."""
APPROVE = """\
Make a version champion. It must pass the release gate: by the program's rules or those of --rules, as it was
compared with the present champion, or with its base where there is none. --override records why it may all the same."""
ROLLBACK = """\
Make the former champion champion again, also for the app: its server answers before the other's is stopped."""

_say = teller(silent=False)


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `model` and its verbs; each sets `handler`, a function of (arguments, settings) to the exit code."""
    parser = subparsers.add_parser("model", help="the versions of the model: approve, deploy, roll back")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, told: str, description: str | None, handler: Any) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=told, description=description or f"{told[:1].upper()}{told[1:]}.")
        made.add_argument("--json", action="store_true", help="print the result as JSON")
        made.set_defaults(handler=handler)
        return made

    def rules(made: argparse.ArgumentParser) -> None:
        made.add_argument("--rules", type=Path, metavar="FILE", help="the rules (default: those of the program)")

    def named(made: argparse.ArgumentParser) -> None:
        made.add_argument("--by", required=True, metavar="NAME", help="who decides")

    verb("list", "list the versions", None, list_models)
    show = verb("show", "show a version, what it is made of, and what the gate says", None, show_model)
    rules(show)
    registered = verb("register", "make a finished run a version", REGISTER, register_run)
    registered.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    registered.add_argument("--evaluation", type=Path, metavar="FILE", help="default: RUN/evaluation/evaluation.json")
    approve = verb("approve", "make a version champion", APPROVE, approve_model)
    rules(approve)
    reject = verb("reject", "note that a version is not to be used", None, reject_model)
    reject.add_argument("--reason", required=True, metavar="TEXT", help="why")
    for made in (show, approve, reject):
        made.add_argument("version", metavar="VERSION", help="its id, such as twin-3")
    rollback = verb("rollback", "make the former champion champion again", ROLLBACK, roll_back)
    rollback.add_argument("--reason", default="not said", metavar="TEXT", help="why")
    for made in (approve, reject, rollback):
        named(made)
    for made in (approve, rollback):
        made.add_argument("--override", metavar="REASON", help="do it although it is refused, for this reason")
    seconds = bounded(float, 0, 86_400, "a number of seconds up to 86400")
    rollback.add_argument(
        "--ready", type=seconds, default=300.0, metavar="S", help="seconds for a server to load (default 300)"
    )
    register_deploy(verbs)


def registry_of(settings: Settings, warehouse: Records) -> Registry:
    """The registry of these settings; what MLflow cannot be told is said to the terminal."""
    from corpus.generations import aliases_of
    from training.release.registry import Registry
    from training.release.tracking import tell_versions, uri_of

    def live() -> str | None:
        alias = aliases_of(settings).read()
        return None if alias is None else alias.live.name

    return Registry(settings.home, warehouse, told=partial(tell_versions, uri_of(settings)), live=live, say=_say)


def rules_of(path: Path | None, settings: Settings) -> Rules:
    """The rules of this file, of TWIN_RELEASE_RULES, or those that come with the program. Raises InvalidRules."""
    from training.release.gate import load_rules

    return load_rules(path or settings.release_rules)


def list_models(namespace: argparse.Namespace, settings: Settings) -> int:
    """`twin model list`: 0."""
    import msgspec

    from corpus import warehouse

    with warehouse.connect(settings) as documents:
        registry = registry_of(settings, documents)
        versions = registry.versions()
        stale = {version.id: found[0] for version in versions if (found := registry.stale(version)) is not None}
    if namespace.json:
        print_json([{**msgspec.to_builtins(version), "stale": stale.get(version.id)} for version in versions])
        return 0
    if not versions:
        sys.stdout.write("no model yet: `twin train sft`, `twin evaluate`, then `twin model register RUN`\n")
    else:
        sys.stdout.write(bold(f"{'VERSION':<10} {'STATE':<10} REGISTERED        MADE BY") + "\n")
    for version in versions:
        line = (
            f"{version.id:<10} {version.state:<10} {version.created_at:%Y-%m-%d %H:%M}  {version.method} "
            f"{version.stage.upper()} on {version.dataset}"
            f"{f', rests on {stale[version.id]}, which was erased' if version.id in stale else ''}"
        )
        line = printable(line)
        sys.stdout.write((bold(line) if version.state == "champion" else line) + "\n")
    return 0


def show_model(namespace: argparse.Namespace, settings: Settings) -> int:
    """`twin model show`: 0, 1 for an unknown version, 2 for rules that cannot be used."""
    import msgspec

    from corpus import warehouse
    from training.release.gate import InvalidRules
    from training.release.registry import approval

    try:
        rules = rules_of(namespace.rules, settings)
    except InvalidRules as error:
        return _told(error, 2)
    with warehouse.connect(settings) as documents:
        registry = registry_of(settings, documents)
        version = registry.version(namespace.version)
        # The champion was held against another than itself.
        said = approval(version) or registry.judged(version, rules)
        stale, erased = registry.stale(version), registry.erased(version)
    if namespace.json:
        told = {
            "gate": msgspec.to_builtins(said),
            "stale": None if stale is None else stale[0],
            "erased_datasets": sorted(erased),
        }
        print_json({**msgspec.to_builtins(version), **told})
        return 0
    sys.stdout.write(printable(shown(version, said, None if stale is None else stale[0], erased)) + "\n")
    return 0


def shown(version: ModelVersion, said: Decision | Decided, stale: str | None, erased: Mapping[str, Erasure]) -> str:
    """A version for a person; `said`: what the gate says of it, or said when it was approved; `erased`: the datasets
    that something was erased from since it was made of them."""
    from training.release.gate import Decision

    datasets = (f"{id} (erased {erased[id].erased_at:%Y-%m-%d})" if id in erased else id for id in version.datasets)
    lines = [
        f"{version.id}  {version.state}",
        f"  model       {version.folder}",
        f"  trained     {version.method} {version.stage.upper()} from {version.base_model}, run {version.run}",
        f"  datasets    {', '.join(datasets)} ({len(version.document_ids)} documents)",
        f"  generation  {version.generation}",
        f"  code        {version.code_revision or 'unknown'}",
        f"  evaluated   {version.evaluation.created_at:%Y-%m-%d %H:%M} on {version.evaluation.dataset}, against "
        f"{version.evaluation.against or 'nothing'}",
    ]
    metrics = version.evaluation.metrics.values()
    width = max((len(metric.name) for metric in metrics), default=0)
    for metric in metrics:
        lines.append(
            f"    {metric.name:<{width}} {metric.value:>10.4g}  {metric.low:.4g} to {metric.high:.4g}, n {metric.n}"
        )
    if stale is not None:
        lines.append(f"  stale       document {stale}, which it rests on, was erased")
    if isinstance(said, Decision):
        lines.append(f"  gate        {'passes' if said.passes else 'refuses'}")
        lines += [f"    {reason}" for reason in said.told()]
    else:
        lines.append(f"  gate        as it was {said.what} by {said.by}, {said.at:%Y-%m-%d %H:%M}")
        lines += [f"    {reason}" for reason in said.reasons]
    lines.append("  decisions")
    for decided in version.decisions:
        lines.append(f"    {decided.at:%Y-%m-%d %H:%M}  {decided.what}{f' by {decided.by}' if decided.by else ''}")
        # These stand above.
        lines += [f"      {reason}" for reason in decided.reasons if decided is not said]
    return "\n".join(lines)


def register_run(namespace: argparse.Namespace, settings: Settings) -> int:
    """`twin model register`: 0 when registered, 1 when it cannot be."""
    from corpus import warehouse
    from training.evaluation.figures import read_evaluation
    from training.release.registry import CannotRegister
    from training.release.tracking import tell
    from training.runs import RECORD

    if not (namespace.run / RECORD).is_file():
        raise CannotRegister(f"there is no run in {namespace.run}: name the folder that `twin train` wrote to")
    evaluation = read_evaluation(namespace.evaluation or namespace.run / "evaluation")
    tell(settings, say=_say, also=namespace.run)
    with warehouse.connect(settings) as documents:
        version = registry_of(settings, documents).register(namespace.run, evaluation)
    return _result(namespace, version, f"{version.id} is registered, {version.state}")


def approve_model(namespace: argparse.Namespace, settings: Settings) -> int:
    """`twin model approve`: 0 when it is champion, 1 when it is refused, 2 for usage."""
    from corpus import warehouse
    from training.release.gate import InvalidRules

    if empty := _empty(namespace, "by", "override"):
        return _told(empty, 2)
    try:
        rules = rules_of(namespace.rules, settings)
    except InvalidRules as error:
        return _told(error, 2)
    with warehouse.connect(settings) as documents:
        registry = registry_of(settings, documents)
        version = registry.approve(namespace.version, by=namespace.by, rules=rules, override=namespace.override)
    if not namespace.json:
        for reason in version.decisions[-1].reasons:
            sys.stdout.write(printable(f"  {reason}\n"))
    return _result(
        namespace, version, f"{version.id} is champion; `twin model deploy {version.id}` lets the app ask it"
    )


def reject_model(namespace: argparse.Namespace, settings: Settings) -> int:
    """`twin model reject`: 0 when noted, 1 when it cannot be, 2 for usage."""
    from corpus import warehouse
    from training.release import deploying

    if empty := _empty(namespace, "by", "reason"):
        return _told(empty, 2)
    with warehouse.connect(settings) as documents:
        registry = registry_of(settings, documents)
        champion = registry.champion()
        version = deploying.reject(settings.home, registry, namespace.version, by=namespace.by, reason=namespace.reason)
    left = "; there is no champion now" if champion is not None and champion.id == version.id else ""
    return _result(namespace, version, f"{version.id} is rejected{left}")


def roll_back(namespace: argparse.Namespace, settings: Settings) -> int:
    """`twin model rollback`: 0 when the former is champion again, 1 when it cannot be, 2 for usage."""
    from corpus import warehouse
    from training.release import deploying
    from training.release.servers import key_for

    if empty := _empty(namespace, "by", "reason", "override"):
        return _told(empty, 2)
    with warehouse.connect(settings) as documents:
        restored, withdrawn = deploying.rollback(
            settings.home,
            registry_of(settings, documents),
            by=namespace.by,
            reason=namespace.reason,
            now=datetime.now(UTC),
            override=namespace.override,
            wait=namespace.ready,
            key=partial(key_for, settings),
        )
    told = f"{restored.id} is champion again"
    return _result(namespace, restored, f"{told}, {withdrawn.id} is rejected" if withdrawn else told)


def _empty(namespace: argparse.Namespace, *names: str) -> str | None:
    """What is wrong with options that were given without a text, as an unset variable of a shell gives them."""
    given = ((name, getattr(namespace, name)) for name in names)
    return next((f"--{name} is empty: say it" for name, text in given if text is not None and not text.strip()), None)


def _result(namespace: argparse.Namespace, version: ModelVersion, told: str) -> int:
    import msgspec

    if namespace.json:
        print_json(msgspec.to_builtins(version))
    else:
        sys.stdout.write(printable(told) + "\n")
    return 0


def _told(error: Exception | str, code: int) -> int:
    sys.stderr.write(f"twin: {printable(str(error))}\n")
    return code
