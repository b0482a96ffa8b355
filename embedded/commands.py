"""`twin up`, `down`, `status`, `doctor`, `serve`, `stream` and `wait`."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from typing import TYPE_CHECKING, Any

from corpus.terminal import bounded

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from corpus.settings import Settings
    from embedded.home import PartStatus

MODEL_TIMEOUT = 300.0
DOWN_TIMEOUT = 30.0
UP_TIMEOUT = 150.0
ANSWER_SECONDS = 5.0


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to the command line."""
    up = subparsers.add_parser("up", help="start every part of this home")
    up.add_argument("--detach", action="store_true", help="return when every part is ready, and leave them running")
    up.set_defaults(handler=_up)
    down = subparsers.add_parser("down", help="stop every part of this home")
    down.set_defaults(handler=_down)
    status = subparsers.add_parser("status", help="show the parts, the counts, the lag and the freshness")
    status.add_argument("--json", action="store_true", help="for programs")
    status.set_defaults(handler=_status)
    doctor = subparsers.add_parser("doctor", help="check the installation and show the settings, secrets masked")
    doctor.add_argument("--json", action="store_true", help="for programs")
    doctor.set_defaults(handler=_doctor)
    wait = subparsers.add_parser("wait", help="return when every acknowledged change is searchable")
    wait.add_argument(
        "--timeout",
        type=bounded(float, 0, math.inf, "a number of seconds"),
        default=300.0,
        metavar="S",
        help="give up after S seconds (default 300)",
    )
    wait.add_argument("--json", action="store_true", help="for programs")
    wait.set_defaults(handler=_wait)
    serve = subparsers.add_parser("serve", help="run the app alone (pages and API)")
    serve.add_argument(
        "--stream", action="store_true", help="run the dataflow in the same process (a local index needs it)"
    )
    serve.add_argument(
        "--port",
        type=bounded(int, 0, 65_535, "a port"),
        metavar="P",
        help="where to listen (default: TWIN_PORT, else 8787)",
    )
    serve.set_defaults(handler=_serve)
    stream = subparsers.add_parser("stream", help="run the dataflow alone, for an index on a Qdrant server")
    stream.add_argument(
        "--workers",
        type=bounded(int, 1, 1_000, "a number of workers"),
        default=1,
        metavar="N",
        help="worker threads; partitions are shared among them",
    )
    stream.add_argument(
        "--metrics-port",
        type=bounded(int, 0, 65_535, "a port"),
        metavar="PORT",
        help="tell Prometheus at this port of TWIN_HOST (0: any free one)",
    )
    stream.set_defaults(handler=_stream)


# up and down


def _up(namespace: argparse.Namespace, settings: Settings) -> int:
    from corpus.settings import load
    from embedded.checks import refuse
    from embedded.home import forget, supervisor

    pid = supervisor(settings.home)
    if pid is not None:
        sys.stdout.write(f"already running in {settings.home} (process {pid})\n")
        return _until_ready(settings) if namespace.detach else 0
    # A supervisor that was killed could not remove its addresses; they would pass for ones given by the user.
    forget(settings.home)
    settings = load(home=str(settings.home))
    refuse(settings)
    return _up_detached(settings) if namespace.detach else _up_here(settings)


def _up_here(settings: Settings) -> int:
    import logging
    import signal
    import threading

    from embedded.home import HomeTaken, HomeUnusable
    from embedded.parts import PortTaken
    from embedded.supervisor import PartFailed, Supervisor
    from ingestion.capture import CaptureFailed
    from ingestion.topics import TopicsFailed

    logging.getLogger("embedded").setLevel(logging.INFO)
    known: dict[str, str] = {}
    resuming = threading.Thread(target=_resume_models, args=(settings,), daemon=True)

    def told(parts: list[PartStatus]) -> None:
        for part in parts:
            if known.get(part.name) != part.state:
                known[part.name] = part.state
                if part.state in ("ready", "given"):
                    sys.stdout.write(_part_line(part) + "\n")
        if _all_ready(parts):
            address = next(part.address for part in parts if part.name == "app")
            sys.stdout.write(f"ready: {address} (Ctrl-C stops everything)\n")
            # A model takes its time to load; the app quotes until then.
            if not resuming.is_alive() and resuming.ident is None:
                resuming.start()
        sys.stdout.flush()

    supervisor = Supervisor(settings, told)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: supervisor.stop())
    signal.signal(signal.SIGUSR1, lambda *_: supervisor.renew_log())
    try:
        supervisor.run()
    except HomeTaken as error:
        sys.stdout.write(f"{error} in {settings.home}\n")
    except (HomeUnusable, PortTaken, PartFailed, TopicsFailed, CaptureFailed) as error:
        sys.stderr.write(f"twin: {error}\n")
        return 1
    return 0


def _resume_models(settings: Settings) -> None:
    """Start the servers of deployed models again that this home started before `twin down`."""
    from training.release.deploying import CannotDeploy, resume

    def say(line: str) -> None:
        sys.stderr.write(f"twin: {line}\n")

    try:
        for version in resume(settings.home, wait=MODEL_TIMEOUT, say=say):
            sys.stdout.write(f"model {version} is served again\n")
    except (CannotDeploy, OSError) as error:
        say(str(error))


def _up_detached(settings: Settings) -> int:
    """Start the supervisor in a session of its own and watch it until every part is ready."""
    import subprocess

    from embedded.home import MODULE, HomeUnusable, make

    try:
        make(settings.home)
    except HomeUnusable as error:
        sys.stderr.write(f"twin: {error}\n")
        return 1
    path = settings.log_directory / "supervisor.log"
    start = time.monotonic()
    with path.open("ab") as output:
        began = output.tell()
        process = subprocess.Popen(
            [*MODULE, "embedded.cli", "--home", str(settings.home), "up"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        return _until_told(settings, process, path, began, start)
    except KeyboardInterrupt:
        sys.stderr.write("twin: the parts go on starting; `twin down` stops them\n")
        raise


def _until_told(settings: Settings, process: subprocess.Popen[bytes], path: Path, began: int, start: float) -> int:
    """Show each part as it becomes ready; `path` from `began` on is what the supervisor says itself."""
    from embedded.home import read_parts, tail

    told: set[str] = set()
    while time.monotonic() < start + UP_TIMEOUT:
        parts = read_parts(settings.home)
        for part in parts:
            if part.state in ("ready", "given") and part.name not in told:
                told.add(part.name)
                sys.stdout.write(_part_line(part) + "\n")
                sys.stdout.flush()
        if len(told) == 4:
            address = next(part.address for part in parts if part.name == "app")
            sys.stdout.write(f"ready after {time.monotonic() - start:.1f} s: {address}\n")
            return 0
        code = process.poll()
        if code is not None and code < 0:
            sys.stderr.write(f"twin: the supervisor was ended by signal {-code}: see {path}, and run `twin up` again\n")
            return 1
        if code == 0:
            # Another `up` was a moment earlier.
            sys.stdout.write(f"already running in {settings.home}\n")
            return _until_ready(settings)
        if code is not None:
            said = path.read_bytes()[began:].decode(errors="replace").strip()
            # Its log tells all of it; a person is told from the error on.
            _, named, reason = said.partition("twin: ")
            sys.stderr.write(f"{named}{reason}\n" if named else f"{said or tail(path)}\n")
            return 1
        time.sleep(0.05)
    process.terminate()
    waiting = ", ".join(part.name for part in read_parts(settings.home) if part.name not in told)
    sys.stderr.write(
        f"twin: {waiting or 'the supervisor'} is not ready after {UP_TIMEOUT:.0f} s: see {settings.log_directory}\n"
    )
    return 1


def _until_ready(settings: Settings) -> int:
    """Wait for the parts of a home that another `up` started."""
    from embedded.home import read_parts, supervisor

    deadline = time.monotonic() + UP_TIMEOUT
    while supervisor(settings.home) is not None and time.monotonic() < deadline:
        if _all_ready(read_parts(settings.home)):
            return 0
        time.sleep(0.05)
    sys.stderr.write(f"twin: the home does not become ready: see `twin status` and {settings.log_directory}\n")
    return 1


def _all_ready(parts: list[PartStatus]) -> bool:
    return len(parts) == 4 and all(part.state in ("ready", "given") for part in parts)


def _part_line(part: PartStatus) -> str:
    detail = "given by address" if part.state == "given" else f"ready after {part.ready_seconds:.1f} s"
    return f"{part.name:<10} {detail}"


def _down(namespace: argparse.Namespace, settings: Settings) -> int:
    import os
    import select
    import signal

    from embedded.home import supervisor
    from training.release.servers import stop_servers

    pid = supervisor(settings.home)
    if pid is not None:
        try:
            # Followed by its descriptor: a process lets go of its lock a moment before it has ended.
            process = os.pidfd_open(pid)
            signal.pidfd_send_signal(process, signal.SIGTERM)
            gone, _, _ = select.select([process], [], [], DOWN_TIMEOUT)
        except ProcessLookupError:
            gone = [pid]
        if not gone:
            sys.stderr.write(f"twin: process {pid} does not stop: see {settings.log_directory}\n")
    # Model servers are no parts of the supervisor's: a deployment outlives a restart of the home. They end after it,
    # which may be starting one again.
    ended = stop_servers(settings.home)
    if pid is None:
        sys.stdout.write("stopped\n" if ended else f"nothing runs in {settings.home}\n")
        return 0
    if not gone:
        return 1
    sys.stdout.write("stopped\n")
    return 0


# status and doctor


def _status(namespace: argparse.Namespace, settings: Settings) -> int:
    found = _gathered(settings)
    if namespace.json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        sys.stdout.write(_status_text(found))
    return 0


def _gathered(settings: Settings) -> dict[str, Any]:
    """The parts as the supervisor knows them and what the app says of itself; None where nobody can tell."""
    import msgspec

    from embedded.home import PART_NAMES, PartStatus, exists, read_parts, supervisor
    from embedded.parts import reachable
    from serving.client import AppRefused, AppUnavailable, call

    running = supervisor(settings.home) is not None
    parts = read_parts(settings.home) if running else []
    if not parts:
        parts = [PartStatus(name=name, state="stopped") for name in PART_NAMES]
    for part in parts:
        if part.state == "ready" and part.pid is not None and not exists(part.pid):
            part.state = "ended"
            part.reason = "its process is gone: see logs/supervisor.log, and whether the disk is full"
        elif part.name == "capture" and part.state == "ready":
            part.state, part.reason = _capture_state(settings)
        elif part.state == "given":
            part.state, part.reason = _given_state(part.name, settings)
        elif part.name in ("documents", "log") and part.state == "ready" and reachable(part.name, settings):
            # Its process lives, which is all that the supervisor sees; one that hangs must not look idle.
            part.state, part.reason = "stalled", "it does not answer"
    app: dict[str, Any] = {"warehouse": None, "index": None, "lag": None, "freshness": None}
    if running:
        try:
            app = call(settings, "GET", "/api/status", patience=0, timeout=ANSWER_SECONDS)
        except (AppUnavailable, AppRefused) as error:
            app["reason"] = str(error)
            for part in parts:
                if part.name == "app" and part.state == "ready":
                    part.state, part.reason = "stalled", str(error)
    return {"parts": msgspec.to_builtins(parts), **app}


def _capture_state(settings: Settings) -> tuple[str, str | None]:
    """What the engine's own process says, so that one that hangs does not look idle."""
    from datetime import UTC, datetime

    from ingestion.capture import read_status, status_file

    found = read_status(status_file(settings), datetime.now(UTC))
    return ("ready" if found.state == "running" else found.state), found.reason


def _given_state(name: str, settings: Settings) -> tuple[str, str | None]:
    """The state of a part given by address, asked now."""
    if name != "capture":
        from embedded.parts import reachable

        reason = reachable(name, settings)
        return ("unreachable", reason) if reason else ("ready", None)
    from corpus.warehouse import WarehouseUnavailable, connect
    from ingestion.capture import CaptureFailed, capture_status

    try:
        warehouse = connect(settings)
        try:
            found = capture_status(settings, warehouse.identity())
        finally:
            warehouse.close()
    except (CaptureFailed, WarehouseUnavailable) as error:
        return "unreachable", str(error)
    return ("ready" if found.state == "running" else found.state), found.reason


def _status_text(found: dict[str, Any]) -> str:
    lines = []
    for part in found["parts"]:
        process = f"process {part['pid']}" if part["pid"] else ""
        restarts = f"restarts: {part['restarts']}" if part["restarts"] else ""
        told = "  ".join(text for text in (part["address"] or "", process, restarts, part["reason"] or "") if text)
        lines.append(f"{part['name']:<10} {part['state']:<11} {told}".rstrip())
    if found["index"] is not None:
        lines += [
            f"warehouse  {found['warehouse']['documents']} documents",
            f"index      {found['index']['documents']} documents, {found['index']['chunks']} chunks",
            *_generations_lines(found["generations"]),
            f"lag        {found['lag']} events"
            if found["lag"] is not None
            else "lag        unknown: nothing reads the log",
            f"freshness  {_freshness_text(found['freshness'] or {})}",
            f"verified   {_verified_text(found['verified'])}",
            *_oldest_lines(found.get("oldest") or {}, found.get("stream") or {}),
        ]
        stream = found["stream"]
        if stream["state"] != "running":
            lines.append(f"dataflow   {stream['state']:<11} {stream['reason'] or ''}".rstrip())
        if stream["letters"]:
            number = sum(stream["letters"].values())
            told = f"{number} dead letter{'' if number == 1 else 's'}"
            lines.append(f"refused    {told}: see `twin dead-letters list`")
    return "\n".join(lines) + "\n"


def _generations_lines(found: dict[str, Any]) -> list[str]:
    """What is out of the ordinary about the generations of the index."""
    lines = []
    if found["live"]["frozen"]:
        lines.append(f"           takes deletions only: {found['live']['frozen']}")
    if found["candidate"]:
        lines.append(f"           {found['candidate']['generation']} is being built: `twin reindex status`")
    if found["note"]:
        lines.append(f"           {found['note']}")
    return lines


def _verified_text(report: dict[str, Any] | None) -> str:
    """The last verification in a line."""
    if report is None:
        return "not since the app started (`twin verify`)"
    faults = report["found"]
    left = faults - report["repaired"]
    told = "no fault" if not faults else f"{faults} faults, {left} left" if left else f"{faults} faults, all repaired"
    at = report["finished_at"].partition(".")[0].replace("T", " ")
    return f"{at} UTC: {report['documents']} documents, {report['chunks']} chunks, {told}"


def _freshness_text(fresh: dict[str, Any]) -> str:
    delays = ", ".join(f"{name} {fresh[name]:.2g} s" for name in ("p50", "p95", "p99") if fresh.get(name) is not None)
    if not delays:
        return "no change in the last 5 min"
    burn = f"; objective p95 {fresh['objective']:g} s: burn {fresh['burn']['5m']:.1f}" if "burn" in fresh else ""
    return f"{delays} over 5 min{burn}"


def _oldest_lines(oldest: dict[str, Any], stream: dict[str, Any]) -> list[str]:
    """What waits longest, and since when nothing moves; nothing to say where nothing is behind."""
    lines = []
    if oldest.get("reason"):
        lines.append(f"oldest     unknown: {oldest['reason']}")
    if oldest.get("partitions"):
        first, *others = oldest["partitions"]
        told = f"partition {first['partition']}, offset {first['offset']}: committed {first['seconds']:.0f} s ago"
        told += f" (behind too: partition {', '.join(str(each['partition']) for each in others)})" if others else ""
        why = f"; {stream['reason']}" if stream.get("reason") else ""
        still = f"; nothing was applied for {oldest['still']:.0f} s{why}"
        lines.append(f"stuck      {told}{still}" if oldest["stuck"] else f"oldest     {told}")
    return lines


def _doctor(namespace: argparse.Namespace, settings: Settings) -> int:
    from corpus.settings import masked
    from embedded.checks import findings

    found = findings(settings)
    if namespace.json:
        checks = [{"name": each.name, "ok": each.ok, "detail": each.detail} for each in found]
        sys.stdout.write(json.dumps({"checks": checks, "settings": masked(settings)}) + "\n")
    else:
        for each in found:
            sys.stdout.write(f"{'ok  ' if each.ok else 'FAIL'} {each.name}: {each.detail}\n")
        for name, value in masked(settings).items():
            sys.stdout.write(f"TWIN_{name.upper()}={'' if value is None else value}\n")
    return 0 if all(each.ok for each in found) else 1


# wait


def _wait(namespace: argparse.Namespace, settings: Settings) -> int:
    from embedded.waiting import wait
    from streaming.waiting import TimedOut

    if settings.app_url is None:
        sys.stderr.write(f"twin: nothing runs in {settings.home}: run `twin up`\n")
        return 1
    start = time.monotonic()
    try:
        difference = wait(settings, namespace.timeout)
    except TimedOut as error:
        if namespace.json:
            sys.stdout.write(json.dumps({"searchable": False, "behind": str(error)}) + "\n")
        sys.stderr.write(f"twin: not everything is searchable after {namespace.timeout:g} s: {error}\n")
        return 1
    seconds = time.monotonic() - start
    failed = [{"document_id": id, "reason": reason} for id, reason in difference.failed]
    if namespace.json:
        sys.stdout.write(json.dumps({"searchable": True, "seconds": round(seconds, 3), "failed": failed}) + "\n")
        return 0
    sys.stdout.write(f"everything is searchable ({seconds:.1f} s)\n")
    for letter in failed:
        sys.stdout.write(f"refused: {letter['document_id']}: {letter['reason']}\n")
    if failed:
        sys.stdout.write("mend them at their source; `twin dead-letters list` shows the messages that are still open\n")
    return 0


# serve and stream


def _serve(namespace: argparse.Namespace, settings: Settings) -> int:
    from corpus.settings import InvalidSettings
    from embedded.app import serve
    from embedded.parts import PREFERRED_PORT

    if not namespace.stream and settings.qdrant_url is None:
        raise InvalidSettings("a local index has one process: run `twin up`, or set TWIN_QDRANT_URL for `twin serve`")
    port = namespace.port or settings.port or PREFERRED_PORT
    sys.stdout.write(f"serving http://{settings.host}:{port}\n")
    sys.stdout.flush()
    serve(settings, port, with_stream=namespace.stream)
    return 0


def _stream(namespace: argparse.Namespace, settings: Settings) -> int:
    from corpus.settings import InvalidSettings
    from embedded.app import follow

    if settings.qdrant_url is None:
        raise InvalidSettings("a local index belongs to the app (`twin up`): set TWIN_QDRANT_URL for `twin stream`")
    if settings.kafka_bootstrap_servers is None:
        raise InvalidSettings("`twin stream` reads a log: set TWIN_KAFKA_BOOTSTRAP_SERVERS")
    follow(settings, namespace.workers, namespace.metrics_port)
    return 0
