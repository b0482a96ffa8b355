"""Deploying: which versions of the model the app asks, as `deployment.json` of the home tells it.

A new version is a canary first: it gives a share of the answers, and is held against the champion by the app's own
counts. The file is replaced as a whole, and a server that is to take over answers before it does, so that questions are
answered throughout.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from corpus.files import replace_file
from corpus.settings import without_password
from training.evaluation.intervals import ratio_of_quantiles
from training.release import servers
from training.release.gate import CanaryRules
from training.release.registry import ModelVersion, Registry
from training.release.servers import DIRECTORY, ServerFailed
from training.shares import difference_of_shares

if TYPE_CHECKING:
    from corpus.settings import Settings

DEPLOYMENT, BASELINE, LOCK = "deployment.json", "baseline", "deployment.lock"
LOOK_SECONDS, APP_SECONDS = 2.0, 15.0
# An answer that began a moment before the file was replaced may not have reached its server yet.
GRACE_SECONDS = 1.0
CHANGE_SECONDS = 30.0
# The share of the answers that are at most as slow as the figure that is compared.
SLOWEST = 0.95


class CannotDeploy(RuntimeError):
    """A version may not be deployed, promoted or taken back like this; the message says what to do instead."""


class AppUnavailable(ConnectionError):
    """The app does not tell how the models do; the message says what to do."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A version of the model and where it is served: `model`, what its server calls it; `since` when it answers."""

    version: str
    url: str
    model: str
    since: datetime


class Canary(Target, frozen=True, kw_only=True):
    """A version that gives a share of the answers."""

    share: Annotated[float, msgspec.Meta(gt=0, lt=1)]


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """`deployment.json`; `former`: whom `twin model rollback` goes back to."""

    champion: Target | None = None
    canary: Canary | None = None
    former: Target | None = None


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """How a version did: how often it was asked and failed; `seconds`: of its latest finished answers, the newest
    last."""

    answers: int = 0
    failed: int = 0
    seconds: tuple[float, ...] = ()


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """What the time of a canary, one `since` that moment, began with: counts by version."""

    canary: str
    since: datetime
    counts: dict[str, Counts]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a canary's answers so far speak for, and why."""

    what: Literal["promote", "take back", "wait"]
    reasons: tuple[str, ...]


# What is deployed


def read(home: Path) -> Deployment:
    """What is deployed in this home. Raises CannotDeploy where that cannot be read."""
    try:
        return msgspec.json.decode((home / DEPLOYMENT).read_bytes(), type=Deployment)
    except FileNotFoundError:
        return Deployment()
    except (OSError, msgspec.DecodeError) as error:
        raise CannotDeploy(
            f"{home / DEPLOYMENT} cannot be read ({error}): mend or remove it, then deploy anew"
        ) from error


def _write(home: Path, deployment: Deployment) -> None:
    # An address may hold a password.
    content = msgspec.json.format(msgspec.json.encode(deployment))
    replace_file(home / DEPLOYMENT, content, lasting=True, private=True)


@contextmanager
def _changing(home: Path) -> Iterator[Deployment]:
    """What is deployed, which nobody else changes meanwhile. Raises CannotDeploy where another does for long."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (home / LOCK).open("a") as lock:
        deadline = time.monotonic() + CHANGE_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise CannotDeploy(
                        f"another command has been changing what is deployed in {home} for {CHANGE_SECONDS:g} s: "
                        "let it end, then again"
                    ) from error
                time.sleep(0.05)
        yield read(home)


def must_be_deployable(deployment: Deployment, version: ModelVersion, share: float) -> None:
    """Raise CannotDeploy unless this version may give this share of the answers beside what is deployed."""
    if version.state == "rejected":
        raise CannotDeploy(f"{version.id} was rejected: deploy another, or approve it after all (`twin model approve`)")
    if deployment.champion is not None and deployment.champion.version == version.id:
        # It is served anew, or elsewhere.
        return
    if deployment.canary is not None and deployment.canary.version != version.id:
        raise CannotDeploy(
            f"{deployment.canary.version} is the canary now: `twin model deploy --promote` or `--rollback` first"
        )
    if version.state != "champion" and (share >= 1 or deployment.champion is None):
        alone = "with share 1" if share >= 1 else "where no champion answers yet"
        raise CannotDeploy(
            f"{version.id} is {version.state}, and only an approved version is deployed {alone}: "
            f"`twin model approve {version.id} --by NAME`"
        )


def deploy(
    home: Path,
    current: Callable[[], ModelVersion],
    *,
    url: str,
    model: str,
    share: float,
    now: datetime,
    seconds: float = servers.STOP_SECONDS,
) -> Deployment:
    """Let this version, whose server answers at `url`, give `share` of the answers: all of them where no other does.

    `current` tells what the version is at that moment, since it may have taken long to load. Of the one that gives all
    answers already the address is replaced. The server of who is former no longer ends. Raises CannotDeploy, and what
    `current` raises.
    """
    with _changing(home) as before:
        version = current()
        must_be_deployable(before, version, share)
        if before.champion is not None and before.champion.version == version.id:
            champion = msgspec.structs.replace(before.champion, url=url, model=model)
            deployment = msgspec.structs.replace(before, champion=champion)
        elif before.champion is None or share >= 1:
            champion = Target(version=version.id, url=url, model=model, since=now)
            deployment = Deployment(champion=champion, former=before.champion or before.former)
        else:
            canary = Canary(version=version.id, url=url, model=model, since=now, share=share)
            deployment = msgspec.structs.replace(before, canary=canary)
        _write(home, deployment)
    _stop_left(home, before, deployment, seconds)
    return deployment


def promote(
    home: Path, current: Callable[[], ModelVersion], *, now: datetime, seconds: float = servers.STOP_SECONDS
) -> Deployment:
    """Let the canary, which this version must be, give all answers; the champion until now becomes former.

    `current` and the former's former as with `deploy`. Raises CannotDeploy, and what `current` raises.
    """
    with _changing(home) as before:
        version, canary = current(), _canary(before)
        if canary.version != version.id:
            raise CannotDeploy(f"{canary.version} is the canary, not {version.id}: `twin model deploy --status`")
        if version.state != "champion":
            raise CannotDeploy(
                f"{version.id} is {version.state}, and only an approved version gives all answers: "
                f"`twin model approve {version.id} --by NAME`, then again"
            )
        champion = Target(version=canary.version, url=canary.url, model=canary.model, since=now)
        deployment = Deployment(champion=champion, former=before.champion)
        _write(home, deployment)
    _stop_left(home, before, deployment, seconds)
    return deployment


def take_back(home: Path, *, of: str | None = None, seconds: float = servers.STOP_SECONDS) -> Canary:
    """Let the champion give all answers again, then end the canary's server if this home started it; the canary.

    `of`: the version that it must be. Raises CannotDeploy.
    """
    with _changing(home) as deployment:
        canary = _canary(deployment, of)
        _write(home, msgspec.structs.replace(deployment, canary=None))
    _stop(home, canary.version, seconds)
    return canary


def withdraw(home: Path, *, seconds: float = servers.STOP_SECONDS) -> list[str]:
    """Let no version give answers any more: the model of the settings does, or the sources are quoted. Servers that
    this home started end; the versions that were deployed. Raises CannotDeploy."""
    with _changing(home) as before:
        (home / DEPLOYMENT).unlink(missing_ok=True)
    _stop_left(home, before, Deployment(), seconds)
    return sorted(named(before))


def reject(home: Path, registry: Registry, id: str, *, by: str, reason: str) -> ModelVersion:
    """Note that a version is not to be used. Raises CannotDeploy for one that answers, UnknownModel, NotReleased."""
    with _changing(home) as deployment:
        version = registry.version(id)
        if deployment.canary is not None and deployment.canary.version == version.id:
            raise CannotDeploy(
                f"{version.id} is the canary and answers: `twin model deploy --rollback` takes it back, then reject it"
            )
        # The champion of the registry that has a former is refused there, which says how it goes.
        deployed = deployment.champion is not None and deployment.champion.version == version.id
        if deployed and version.state != "champion":
            raise CannotDeploy(
                f"{version.id} gives the answers: deploy another first (`twin model deploy champion`), then reject it"
            )
        if deployed and not any(each.state == "former" for each in registry.versions()):
            raise CannotDeploy(
                f"{version.id} gives the answers, and there is no former champion: `twin model deploy --withdraw` "
                "first, then reject it"
            )
        return registry.reject(version.id, by=by, reason=reason)


def _canary(deployment: Deployment, of: str | None = None) -> Canary:
    if deployment.canary is None:
        raise CannotDeploy("there is no canary: `twin model deploy VERSION` makes one")
    if of is not None and deployment.canary.version != of:
        raise CannotDeploy(f"{deployment.canary.version} is the canary by now, not {of}: `twin model deploy --status`")
    return deployment.canary


def named(deployment: Deployment) -> set[str]:
    """The versions that are deployed, or were last."""
    targets = (deployment.champion, deployment.canary, deployment.former)
    return {target.version for target in targets if target is not None}


def _stop_left(home: Path, before: Deployment, deployment: Deployment, seconds: float) -> None:
    """End the servers of those that are deployed no longer, and that nobody goes back to."""
    for version in sorted(named(before) - named(deployment)):
        _stop(home, version, seconds)


def _stop(home: Path, version: str, seconds: float) -> None:
    server = servers.served(home, version)
    if server is not None:
        if servers.runs(server):
            time.sleep(GRACE_SECONDS)
        servers.stop(server, seconds=seconds)


def serve(
    home: Path,
    version: ModelVersion,
    *,
    wait: float,
    command: Callable[[Path, int], tuple[str, ...]] = servers.SERVERS["transformers"].command,
) -> servers.Served:
    """Start a server of this version on this machine and wait until it answers; one that runs already is taken.

    Raises ServerFailed; then it does not run.
    """
    # Two who deploy it at once share one server.
    with _changing(home):
        server = servers.served(home, version.id)
        if server is not None and server.model != version.folder:
            # Another model had this name in a former life of the home.
            servers.stop(server)
        if server is None or not servers.runs(server):
            if server is not None:
                # What a program that was killed left running of it.
                servers.stop(server, seconds=1.0)
            folder, port = Path(version.folder), servers.free_port()
            server = servers.start(home, version.id, command(folder, port), model=str(folder), port=port)
    try:
        return servers.wait_until_ready(home, server, seconds=wait)
    except BaseException:
        servers.stop(server, seconds=1.0)
        raise


@contextmanager
def kept_if_deployed(home: Path, version: ModelVersion) -> Iterator[None]:
    """Where what is done within fails, a server of this version that did not run before is ended."""
    before = servers.served(home, version.id)
    ran = before is not None and servers.runs(before)
    try:
        yield
    except BaseException:
        server = servers.served(home, version.id)
        # Another command may have deployed it meanwhile.
        if server is not None and not ran and version.id not in named(read(home)):
            servers.stop(server, seconds=1.0)
        raise


def resume(home: Path, *, wait: float, say: Callable[[str], None]) -> list[str]:
    """Start those servers again that answered for this home and that are deployed; the versions that answer again."""
    deployment = read(home)
    found = []
    for target in (deployment.champion, deployment.canary):
        server = None if target is None else servers.served(home, target.version)
        if target is None or server is None or server.url != target.url or server.state == "starting":
            continue
        if servers.runs(server):
            continue
        server = servers.again(home, server)
        try:
            servers.wait_until_ready(home, server, seconds=wait)
            found.append(target.version)
        except ServerFailed as error:
            say(f"{target.version} is deployed and not served: {error}")
    return found


# Going back


def rollback(
    home: Path,
    registry: Registry,
    *,
    by: str,
    reason: str,
    now: datetime,
    override: str | None = None,
    wait: float,
    key: Callable[[str], str | None] = lambda url: None,
    seconds: float = servers.STOP_SECONDS,
) -> tuple[ModelVersion, ModelVersion | None]:
    """Make the former champion champion again, for the registry and for the app; it, and the one that was taken back.

    Its server answers before the app is told, and the app is told before the other's server ends. `key`: of the server
    at an address. Done again after a crash it ends the same. Raises NotReleased, CannotDeploy, ServerFailed.
    """
    former = registry.may_restore(override)
    deployment = read(home)
    # A server may take minutes to load; nobody waits for the lock meanwhile.
    target = _ready(home, former, deployment, now, wait, key) if deployment.champion is not None else None
    with _changing(home) as before:
        if before != deployment:
            raise CannotDeploy(
                "somebody changed what is deployed meanwhile: look (`twin model deploy --status`), then again"
            )
        after = before if target is None else Deployment(champion=target)

        def write() -> None:
            if target is not None:
                _write(home, after)

        restored, withdrawn = registry.rollback(
            by=by, reason=reason, override=override, expected=former.id, first=write
        )
    # Also those that a rollback which was broken off left running.
    rejected = {version.id for version in registry.versions() if version.state == "rejected"}
    for version in sorted((named(before) | rejected) - named(after) - {restored.id}):
        _stop(home, version, seconds)
    return restored, withdrawn


def _ready(
    home: Path,
    version: ModelVersion,
    deployment: Deployment,
    now: datetime,
    wait: float,
    key: Callable[[str], str | None],
) -> Target:
    """Where this version answers now; a server of this home's own is started again for it."""
    known = (deployment.champion, deployment.former)
    target = next((each for each in known if each is not None and each.version == version.id), None)
    server = servers.served(home, version.id)
    if target is None and server is not None:
        target = Target(version=version.id, url=server.url, model=server.model, since=now)
    if target is None:
        raise CannotDeploy(
            f"nobody knows where {version.id} is served: `twin model deploy {version.id}` tells how to serve it, and "
            f"with --url where it is; its state is {version.state}"
        )
    try:
        servers.answer_one_token(target.url, target.model, key=key(target.url))
    except ServerFailed as error:
        if server is None or server.url != target.url:
            raise ServerFailed(
                f"{version.id} would be the champion again, and {error}: start its server at "
                f"{without_password(target.url)}, then again"
            ) from error
        if not servers.runs(server):
            server = servers.again(home, server)
        servers.wait_until_ready(home, server, seconds=wait)
    return msgspec.structs.replace(target, since=now)


# Comparing


def compare(canary: Counts, champion: Counts, rules: CanaryRules) -> Verdict:
    """What the canary's answers so far speak for: it is promoted only if it surely neither fails more often by the
    margin nor is slower by the factor, taken back if it surely does or is, and else awaits more answers."""
    for name, counts in (("the canary", canary), ("the champion", champion)):
        if counts.answers < rules.least_answers:
            return Verdict(what="wait", reasons=(f"{name} gave {counts.answers} of {rules.least_answers} answers",))
    difference, low, high = difference_of_shares((canary.failed, canary.answers), (champion.failed, champion.answers))
    failures = (
        f"{canary.failed} of {canary.answers} answers failed, of the champion's {champion.failed} of "
        f"{champion.answers}: difference {difference:+.1%} ({low:+.1%} to {high:+.1%}), at most "
        f"{rules.failure_margin:+.1%} is allowed"
    )
    if low > rules.failure_margin:
        return Verdict(what="take back", reasons=(failures,))
    if not canary.seconds or not champion.seconds:
        return Verdict(what="wait", reasons=(failures, "one of them has finished no answer yet"))
    # Tiny models and quotations take less than the millisecond that times are told in.
    times = [[max(seconds, 0.001) for seconds in each.seconds] for each in (canary, champion)]
    ratio, least, most = ratio_of_quantiles(times[0], times[1], SLOWEST)
    slow = (
        f"95 % of its answers take up to {ratio:.2f} times as long as the champion's ({least:.2f} to {most:.2f}), at "
        f"most {rules.latency_factor:g} times is allowed"
    )
    if least > rules.latency_factor:
        return Verdict(what="take back", reasons=(failures, slow))
    lacking = [
        f"{name} finished {len(counts.seconds)} of the {rules.least_times} answers that show how long they take"
        for name, counts in (("the canary", canary), ("the champion", champion))
        if len(counts.seconds) < rules.least_times
    ]
    unsure = high > rules.failure_margin or most > rules.latency_factor or lacking
    return Verdict(what="wait" if unsure else "promote", reasons=(failures, slow, *lacking))


def counts_of(told: Mapping[str, Any], version: str) -> Counts:
    """What the app's status tells of a version; one that was never asked has no counts yet."""
    found = told.get("models", {}).get(version)
    if found is None:
        return Counts()
    return Counts(answers=found["answers"], failed=found["failed"], seconds=tuple(found["latest"]))


def since(counts: Counts, before: Counts) -> Counts:
    """The counts since `before`; an app that was started anew counts from 0."""
    if counts.answers < before.answers or counts.failed < before.failed:
        return counts
    answers, failed = counts.answers - before.answers, counts.failed - before.failed
    finished = max(answers - failed, 0)
    return Counts(answers=answers, failed=failed, seconds=counts.seconds[-finished:] if finished else ())


def note_baseline(home: Path, told: Mapping[str, Any]) -> None:
    """What a canary's time begins with: what either answered before is not held against it. Raises CannotDeploy."""
    deployment = read(home)
    canary = _canary(deployment)
    targets = [target for target in (deployment.champion, canary) if target is not None]
    counts = {
        target.version: msgspec.structs.replace(counts_of(told, target.version), seconds=()) for target in targets
    }
    (home / DIRECTORY).mkdir(parents=True, exist_ok=True)
    noted = Baseline(canary=canary.version, since=canary.since, counts=counts)
    replace_file(home / DIRECTORY / BASELINE, msgspec.json.encode(noted))


def compared(home: Path, told: Mapping[str, Any], rules: CanaryRules, *, of: str | None = None) -> Verdict:
    """What speaks for or against the canary by what the app tells; where nobody noted what its time began with (the app
    was away), it begins now. `of`: the version that it must be. Raises CannotDeploy."""
    deployment = read(home)
    canary = _canary(deployment, of)
    before = None
    with suppress(OSError, msgspec.DecodeError):
        before = msgspec.json.decode((home / DIRECTORY / BASELINE).read_bytes(), type=Baseline)
    if before is None or (before.canary, before.since) != (canary.version, canary.since):
        note_baseline(home, told)
        return Verdict(what="wait", reasons=("the app was away when the canary began: answers count from now on",))
    versions = (canary.version, deployment.champion.version if deployment.champion else "")
    found = [since(counts_of(told, version), before.counts.get(version, Counts())) for version in versions]
    return compare(found[0], found[1], rules)


def follow(
    ask: Callable[[], Verdict],
    *,
    wait: float,
    say: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Verdict:
    """Look again and again until there is a verdict, or `wait` seconds have passed; the last one.

    An app that is away is no verdict: it is said, and asked again.
    """
    deadline, told = clock() + wait, ""
    while True:
        try:
            verdict = ask()
        except AppUnavailable as error:
            verdict = Verdict(what="wait", reasons=(str(error),))
        if verdict.reasons and verdict.reasons[0] != told:
            told = verdict.reasons[0]
            say(told)
        if verdict.what != "wait" or clock() >= deadline:
            return verdict
        sleep(LOOK_SECONDS)


def app_status(settings: Settings) -> dict[str, Any]:
    """What the app of these settings tells of itself. Raises AppUnavailable."""
    import httpx2

    if settings.app_url is None:
        raise AppUnavailable("the app of this home is not running: `twin up`")
    headers = {"X-API-Key": settings.api_keys[0]} if settings.api_keys else {}
    shown = without_password(settings.app_url)
    try:
        with httpx2.Client(timeout=APP_SECONDS, trust_env=False) as client:
            answer = client.get(f"{settings.app_url.rstrip('/')}/api/status", headers=headers)
        answer.raise_for_status()
        told: dict[str, Any] = answer.json()
    except (httpx2.HTTPError, ValueError) as error:
        raise AppUnavailable(f"the app at {shown} does not tell ({type(error).__name__}): see `twin status`") from error
    return told
