"""`twin model deploy`: which version of the model the app asks, first for a share of the answers."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpus.terminal import bounded, print_json, printable, teller

if TYPE_CHECKING:
    from corpus.settings import Settings
    from training.release.deploying import Deployment, Verdict
    from training.release.gate import CanaryRules, Rules
    from training.release.registry import ModelVersion, Registry
    from training.release.servers import Server

DEPLOY = """\
Let the app ask a version. Without --url and --start: tell how it is served. The version is a canary first, which gives
a share of the answers; with --wait it is held against the champion by the app's own counts, and promoted or taken back.
--status, --promote and --rollback are for the canary there is; --withdraw lets the app ask no version any more."""

NOTHING = "nothing is deployed: `twin model deploy VERSION --start` lets the app ask a version"

_say = teller(silent=False)


def register_deploy(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `deploy` to the verbs of `twin model`."""
    deploy = verbs.add_parser("deploy", help="let the app ask a version", description=DEPLOY)
    deploy.add_argument("--json", action="store_true", help="print the result as JSON")
    deploy.set_defaults(handler=deploy_model)
    deploy.add_argument("version", nargs="?", metavar="VERSION", help="its id, such as twin-3, or champion")
    seconds = bounded(float, 0, 86_400, "a number of seconds up to 86400")
    deploy.add_argument(
        "--ready", type=seconds, default=300.0, metavar="S", help="seconds for a server to load (default 300)"
    )
    deploy.add_argument("--server", choices=("transformers", "vllm", "tgi"), default="transformers", help="what serves")
    deploy.add_argument("--url", metavar="URL", help="where it is served already")
    deploy.add_argument("--model", metavar="NAME", help="what its server calls it (default: as told without --url)")
    deploy.add_argument("--start", action="store_true", help="start `transformers serve` on this machine")
    share = bounded(float, 0.001, 1, "a share above 0 and up to 1")
    deploy.add_argument("--share", type=share, default=0.1, metavar="S", help="of the answers (default 0.1)")
    whole = bounded(int, 1, 1_000_000, "a whole number")
    deploy.add_argument("--least-answers", type=whole, metavar="N", help="of each before they are compared")
    deploy.add_argument("--wait", type=seconds, metavar="S", help="seconds to wait for a verdict, and act on it")
    deploy.add_argument("--rules", type=Path, metavar="FILE", help="the rules (default: those of the program)")
    for flag, told in (
        ("--status", "tell what is deployed, and how it does"),
        ("--promote", "let the canary give all answers"),
        ("--rollback", "let the champion give all answers again"),
        ("--withdraw", "let no version answer: the model of the settings does, or the sources are quoted"),
    ):
        deploy.add_argument(flag, action="store_true", help=told)


def deploy_model(namespace: argparse.Namespace, settings: Settings) -> int:
    """`twin model deploy`: 0 when done or a canary awaits answers, 1 when refused or taken back, 2 for usage."""
    from training.release.commands import rules_of
    from training.release.gate import InvalidRules

    asked = [name for name in ("status", "promote", "rollback", "withdraw") if getattr(namespace, name)]
    if len(asked) + bool(namespace.version) != 1:
        return _told("name a VERSION, or one of --status, --promote, --rollback and --withdraw", 2)
    if namespace.start and (namespace.url or namespace.server != "transformers"):
        return _told("--start starts `transformers serve`: leave out --url and --server, or --start", 2)
    try:
        rules = rules_of(namespace.rules, settings)
    except InvalidRules as error:
        return _told(error, 2)
    if asked == ["status"]:
        return _deployment_status(namespace, settings, rules)
    if asked == ["rollback"]:
        from training.release import deploying

        canary = deploying.take_back(settings.home)
        return _deployed(namespace, settings, f"{canary.version} is taken back")
    if asked == ["withdraw"]:
        from training.release import deploying

        withdrawn = deploying.withdraw(settings.home)
        told = f"no version gives answers any more (until now {', '.join(withdrawn)})" if withdrawn else NOTHING
        return _deployed(namespace, settings, told)
    return _promote(namespace, settings) if asked else _deploy(namespace, settings, rules)


def _deploy(namespace: argparse.Namespace, settings: Settings, rules: Rules) -> int:
    from corpus import warehouse
    from corpus.settings import ADDRESS
    from training.release import deploying, servers
    from training.release.commands import registry_of

    with warehouse.connect(settings) as documents:
        registry = registry_of(settings, documents)
        version = registry.version(namespace.version)
        folder, kind = Path(version.folder), servers.SERVERS[namespace.server]
        if namespace.url is not None and not ADDRESS.fullmatch(namespace.url):
            return _told("--url is no address like http://host:port (what was given is not shown)", 2)
        deploying.must_be_deployable(deploying.read(settings.home), registry.deployable(version.id), namespace.share)
        if not namespace.start and namespace.url is None:
            return _tell_command(namespace, version, kind)
        registry.must_be_servable(version)
        put = partial(deploying.deploy, settings.home, partial(registry.deployable, version.id), share=namespace.share)
        if namespace.start:
            _say(f"starting a server of {version.id}")
            with deploying.kept_if_deployed(settings.home, version):
                server = deploying.serve(settings.home, version, wait=namespace.ready)
                deployment = put(url=server.url, model=server.model, now=datetime.now(UTC))
        else:
            url, model = namespace.url, namespace.model or kind.called(folder)
            servers.answer_one_token(url, model, key=servers.key_for(settings, url))
            deployment = put(url=url, model=model, now=datetime.now(UTC))
    if deployment.canary is None or deployment.canary.version != version.id:
        return _deployed(namespace, settings, f"{version.id} gives the answers")
    try:
        deploying.note_baseline(settings.home, deploying.app_status(settings))
    except deploying.AppUnavailable as error:
        _say(str(error))
    told = f"{version.id} gives {deployment.canary.share:.0%} of the answers"
    if namespace.wait is None:
        return _deployed(namespace, settings, f"{told}: `twin model deploy --status` tells how it does")
    _say(told)
    return _follow(namespace, settings, rules, version)


def _follow(namespace: argparse.Namespace, settings: Settings, rules: Rules, version: ModelVersion) -> int:
    """Wait for a verdict on the canary, and act on it, by what the registry says of the version then."""
    import msgspec

    from training.release import deploying

    allowed = _canary_rules(namespace, rules)
    verdict = deploying.follow(
        lambda: deploying.compared(settings.home, deploying.app_status(settings), allowed, of=version.id),
        wait=namespace.wait,
        say=_say,
    )
    for reason in verdict.reasons:
        _say(reason)
    if verdict.what == "take back":
        deploying.take_back(settings.home, of=version.id)
        with _registry(settings) as registry:
            version = registry.version(version.id)
        if version.state == "champion":
            told = f"`twin model rollback --by NAME` takes {version.id} back there too"
            _say(f"it is still the champion in the registry: {told}")
        _deployed(namespace, settings, f"{version.id} is taken back", msgspec.to_builtins(verdict))
        return 1
    if verdict.what == "wait":
        told = f"{version.id} stays canary: `twin model deploy --status` tells how it does"
        return _deployed(namespace, settings, told, msgspec.to_builtins(verdict))
    with _registry(settings) as registry:
        version = registry.version(version.id)
        if version.state == "champion":
            deploying.promote(settings.home, partial(registry.deployable, version.id), now=datetime.now(UTC))
    if version.state != "champion":
        told = f"{version.id} does well as canary: `twin model approve {version.id} --by NAME`, then --promote"
        return _deployed(namespace, settings, told, msgspec.to_builtins(verdict))
    return _deployed(namespace, settings, f"{version.id} gives the answers", msgspec.to_builtins(verdict))


def _promote(namespace: argparse.Namespace, settings: Settings) -> int:
    from training.release import deploying

    canary = deploying.read(settings.home).canary
    if canary is None:
        raise deploying.CannotDeploy("there is no canary: `twin model deploy VERSION` makes one")
    with _registry(settings) as registry:
        deploying.promote(settings.home, partial(registry.deployable, canary.version), now=datetime.now(UTC))
    return _deployed(namespace, settings, f"{canary.version} gives the answers")


@contextmanager
def _registry(settings: Settings) -> Iterator[Registry]:
    from corpus import warehouse
    from training.release.commands import registry_of

    with warehouse.connect(settings) as documents:
        yield registry_of(settings, documents)


def _deployment_status(namespace: argparse.Namespace, settings: Settings, rules: Rules) -> int:
    import msgspec

    from corpus.warehouse import WarehouseUnavailable
    from training.release import deploying

    deployment = deploying.read(settings.home)
    told: dict[str, Any] = {}
    states: dict[str, str] = {}
    verdict = None
    try:
        with _registry(settings) as registry:
            states = {version.id: version.state for version in registry.versions()}
    except WarehouseUnavailable as error:
        _say(str(error))
    try:
        told = deploying.app_status(settings)
        if deployment.canary is not None:
            verdict = deploying.compared(settings.home, told, _canary_rules(namespace, rules))
    except deploying.AppUnavailable as error:
        _say(str(error))
    if namespace.json:
        print_json(
            {
                **_plain(deployment),
                "models": told.get("models", {}),
                "states": {name: states.get(name) for name in deploying.named(deployment)},
                "verdict": msgspec.to_builtins(verdict) if verdict else None,
            }
        )
        return 0
    sys.stdout.write(printable(_lines(deployment, told, verdict, states)) + "\n")
    return 0


def _lines(deployment: Deployment, told: dict[str, Any], verdict: Verdict | None, states: dict[str, str]) -> str:
    from corpus.settings import without_password
    from training.release.deploying import counts_of

    lines = []
    for name, target in (
        *(("champion", deployment.champion), ("canary", deployment.canary), ("former", deployment.former)),
    ):
        if target is None:
            continue
        counts = counts_of(told, target.version)
        p95 = told.get("models", {}).get(target.version, {}).get("seconds", {}).get("p95")
        slow = "" if p95 is None else f", 95 % within {p95:.2f} s"
        share = f", {deployment.canary.share:.0%} of the answers" if target is deployment.canary else ""
        state = states.get(target.version, "unknown")
        lines.append(
            f"{name:<9} {target.version:<10} {without_password(target.url)} since {target.since:%Y-%m-%d %H:%M}{share}"
            f"  {counts.answers} answers, {counts.failed} failed{slow}  (in the registry: {state})"
        )
    if verdict is not None:
        told_verdict = "no verdict yet" if verdict.what == "wait" else verdict.what
        lines.append(f"{told_verdict}: {'; '.join(verdict.reasons)}")
    return "\n".join(lines) or NOTHING


def _tell_command(namespace: argparse.Namespace, version: ModelVersion, kind: Server) -> int:
    """How a version is served, and how one sees that it is."""
    folder = Path(version.folder)
    command, called = kind.command(folder, 8000), kind.called(folder)
    url = "http://127.0.0.1:8000"
    told = {
        "version": version.id,
        "server": namespace.server,
        "command": shlex.join(command),
        "needs": kind.needs,
        "health": f"{url}{kind.health}",
        "model": called,
        "deploy": f"twin model deploy {version.id} --server {namespace.server} --url {url}",
    }
    if namespace.json:
        print_json(told)
        return 0
    body = f'{{"model": "{called}", "max_tokens": 1, "messages": [{{"role": "user", "content": "Hello"}}]}}'
    sys.stdout.write(
        printable(
            f"serve it (needs {kind.needs}):\n  {told['command']}\n"
            f"is it there?\n  curl -fsS {told['health']}\n"
            f"  curl -fsS {url}/v1/chat/completions -H 'content-type: application/json' -d {shlex.quote(body)}\n"
            f"let the app ask it:\n  {told['deploy']}\n"
        )
    )
    return 0


def _canary_rules(namespace: argparse.Namespace, rules: Rules) -> CanaryRules:
    import msgspec

    if namespace.least_answers is None:
        return rules.canary
    return msgspec.structs.replace(rules.canary, least_answers=namespace.least_answers)


def _deployed(namespace: argparse.Namespace, settings: Settings, told: str, verdict: Any = None) -> int:
    from training.release import deploying

    if namespace.json:
        print_json({**_plain(deploying.read(settings.home)), "verdict": verdict})
    else:
        sys.stdout.write(printable(told) + "\n")
    return 0


def _plain(deployment: Deployment) -> dict[str, Any]:
    """What is deployed, for programs: an address may hold a password, which is nobody's business here."""
    import msgspec

    from corpus.settings import without_password

    plain: dict[str, Any] = msgspec.to_builtins(deployment)
    for target in plain.values():
        if target is not None:
            target["url"] = without_password(target["url"])
    return plain


def _told(error: Exception | str, code: int) -> int:
    sys.stderr.write(f"twin: {printable(str(error))}\n")
    return code
