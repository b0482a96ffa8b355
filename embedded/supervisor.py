"""Starts the parts of one machine in order, starts again what dies, and stops everything.

One thread, one loop. Children die with the supervisor, whatever ends it: the kernel is told so when each is started.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from corpus.settings import Settings, load, without_password
from embedded.home import PartStatus, supervising, tail, write_addresses, write_parts
from embedded.parts import (
    Part,
    app_part,
    app_port,
    capture_part,
    documents_part,
    free_port,
    log_part,
    reachable,
    taken,
)

logger = logging.getLogger(__name__)
PAUSE = 0.05
GRACE = 3.5
ATTEMPTS = 3
FIRST_DELAY, LONGEST_DELAY = 0.1, 5.0
STEADY = 30.0
START_TIMEOUT = 120.0
PR_SET_PDEATHSIG = 1


class PartFailed(RuntimeError):
    """A part does not become ready; the message names it and ends with the end of its log."""


@dataclass
class Running:
    """A part under supervision. Times are of `time.monotonic`."""

    part: Part
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    ready_at: float | None = None
    ready_seconds: float | None = None
    restarts: int = 0
    failures: int = 0
    next_start: float = 0.0
    log_start: int = 0

    def postpone(self, now: float) -> float:
        """Count a failure; the seconds until the next start, longer with each."""
        self.failures += 1
        delay: float = min(FIRST_DELAY * 4 ** (self.failures - 1), LONGEST_DELAY)
        self.next_start = now + delay
        return delay

    @property
    def state(self) -> str:
        if self.process is None:
            return "restarting" if self.restarts or self.failures else "starting"
        return "ready" if self.ready_at is not None else "starting"


@dataclass
class Supervisor:
    """Supervises one home from `run()` until `stop()`; `told(status)` is called whenever a part's state changes."""

    settings: Settings
    told: Callable[[list[PartStatus]], None] = lambda parts: None
    _running: dict[str, Running] = field(default_factory=dict)
    _given: dict[str, str] = field(default_factory=dict)
    _addresses: dict[str, str] = field(default_factory=dict)
    _stopping: bool = False
    _renewing: bool = False
    _shown: list[PartStatus] = field(default_factory=list)
    _untold: bool = False

    def run(self) -> None:
        """Start everything and watch over it; returns when stopped and every process has ended.

        Raises HomeTaken, HomeUnusable, PortTaken, or PartFailed if a part never becomes ready.
        """
        with supervising(self.settings.home):
            try:
                self._start_all()
                while not self._stopping:
                    self._watch()
                    time.sleep(PAUSE)
            finally:
                self._stop_all()

    def stop(self) -> None:
        """Ask `run` to end; safe in a signal handler."""
        self._stopping = True

    def renew_log(self) -> None:
        """Ask `run` to start the log anew, if it is ours: its memory is where deleted documents stay. Safe in a signal
        handler."""
        self._renewing = True

    # Starting

    def _start_all(self) -> None:
        settings = self.settings
        home = settings.home
        host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104 - compared, not bound
        self._addresses["app_url"] = f"http://{host}:{app_port(settings)}"
        if settings.mongodb_uri is None:
            self._add(documents_part(home, free_port()))
            self._addresses["mongodb_uri"] = self._running["documents"].part.address
        else:
            self._use("documents", settings.mongodb_uri)
        if settings.kafka_bootstrap_servers is None:
            self._add(log_part(free_port()))
            self._addresses["kafka_bootstrap_servers"] = self._running["log"].part.address
        else:
            self._use("log", settings.kafka_bootstrap_servers)
        self._start(*self._running)
        self._until_ready(*self._running)
        if "log" in self._given:
            self._make_topics()
        self._start_capture()
        self._add(app_part(self._addresses["app_url"]))
        self._start("app")
        self._until_ready(*self._running)

    def _start_capture(self) -> None:
        if self.settings.connect_url is None:
            self._add(capture_part(self.settings))
            self._start("capture")
            return
        self._given["capture"] = self.settings.connect_url
        self._register()

    def _add(self, part: Part) -> None:
        self._running[part.name] = Running(part)

    def _use(self, name: str, address: str) -> None:
        reason = reachable(name, self.settings)
        if reason is not None:
            raise PartFailed(f"{name}: {reason}")
        self._given[name] = address

    def _start(self, *names: str) -> None:
        """Start processes; their addresses are written before, so that each finds the others."""
        if "log" in names:
            # Before the new log can hold a message: who reads the old one's offsets must know that they mean nothing.
            self._addresses["log_epoch"] = str(uuid.uuid4())
        if "app" in names:
            self._find_port()
        write_addresses(self.settings.home, self._addresses)
        for name in names:
            running = self._running[name]
            with (self.settings.log_directory / f"{name}.log").open("ab") as output:
                running.log_start = output.tell()
                running.process = subprocess.Popen(
                    running.part.command(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=self._environment(running.part),
                    # Ctrl-C reaches a terminal's whole group; the parts are stopped in order, by us.
                    start_new_session=True,
                    preexec_fn=_die_with_parent(os.getpid()),
                )
            running.started, running.ready_at = time.monotonic(), None
        self._tell()

    def _find_port(self) -> None:
        """Another port for the app when somebody took its own since it was chosen, unless it was asked for."""
        running = self._running["app"]
        port = int(running.part.address.rpartition(":")[2])
        if self.settings.port or not taken(self.settings.host, port):
            return
        running.part = app_part(f"{running.part.address.rpartition(':')[0]}:{free_port()}")
        self._addresses["app_url"] = running.part.address

    def _environment(self, part: Part) -> dict[str, str]:
        given = part.environment()
        return {
            **(os.environ if given is None else given),
            "TWIN_HOME": str(self.settings.home),
            "PYTHONUNBUFFERED": "1",
        }

    def _until_ready(self, *names: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not self._stopping:
            self._watch()
            waiting = [name for name in names if self._running[name].ready_at is None]
            if not waiting:
                return
            worn = [name for name in waiting if self._running[name].failures >= ATTEMPTS]
            if worn or time.monotonic() > deadline:
                raise PartFailed(self._obituary((worn or waiting)[0]))
            time.sleep(PAUSE)

    def _obituary(self, name: str) -> str:
        path = self.settings.log_directory / f"{name}.log"
        reason = self._running[name].part.reason()
        told = f": {reason}" if reason else ""
        end = tail(path, since=self._running[name].log_start)
        return f"{name} does not become ready{told}; the end of {path}:\n{end}"

    def _make_topics(self) -> None:
        from ingestion.topics import create_topics

        resolved = self._resolved()
        create_topics(resolved.kafka_bootstrap_servers or "", resolved)

    def _register(self) -> None:
        from corpus.warehouse import connect
        from ingestion.capture import connect_configuration, register

        resolved = self._resolved()
        warehouse = connect(resolved)
        try:
            identity = warehouse.identity()
        finally:
            warehouse.close()
        register(resolved.connect_url or "", connect_configuration(resolved, identity))

    def _resolved(self) -> Settings:
        """The settings with the addresses of what was started."""
        return load(home=str(self.settings.home))

    # Watching

    def _watch(self) -> None:
        """One look at every part: note who became ready, start again who died."""
        now = time.monotonic()
        if self._renewing:
            self._renewing = False
            if "log" in self._running:
                self._signal("log", signal.SIGKILL)
        for name, running in self._running.items():
            if running.process is not None and (code := running.process.poll()) is not None:
                self._died(name, running, code, now)
            elif running.process is None:
                if now >= running.next_start and not self._stopping and self._may_start(name):
                    self._start_again(name, running, now)
            elif running.ready_at is None:
                if running.part.ready(running.process.pid) and self._prepared(name):
                    running.ready_at = now
                    running.ready_seconds = round(now - running.started, 2)
                    logger.info("%s is ready after %.1f s", name, running.ready_seconds)
                    self._tell()
            elif now > running.ready_at + STEADY:
                running.failures = 0
        # What a full disk did not take is told as soon as it does.
        self._tell()

    def _start_again(self, name: str, running: Running, now: float) -> None:
        try:
            self._start(name)
            running.restarts += 1
        except OSError as error:
            # A full disk, or no process to be had: the others go on, and this one is tried again.
            delay = running.postpone(now)
            logger.warning("%s cannot be started (%s): tried again in %.1f s", name, error, delay)

    def _died(self, name: str, running: Running, code: int, now: float) -> None:
        running.process, running.ready_at = None, None
        delay = running.postpone(now)
        if self._stopping:
            return
        logger.warning("%s ended with %d and starts again in %.1f s", name, code, delay)
        if name == "log" and "capture" in self._running:
            # The log's messages are gone. Capture must not write to the new one before it has snapshotted again.
            self._end("capture", signal.SIGKILL)
        self._tell()

    def _may_start(self, name: str) -> bool:
        log = self._running.get("log")
        return name != "capture" or log is None or log.ready_at is not None

    def _prepared(self, name: str) -> bool:
        """Whether what the others need of a part is there; a new log needs its topics."""
        if name != "log":
            return True
        from ingestion.topics import TopicsFailed

        try:
            self._make_topics()
        except TopicsFailed as error:
            logger.warning("%s", error)
            return False
        return True

    def _tell(self) -> None:
        shown = self._status()
        if shown == self._shown:
            return
        try:
            write_parts(self.settings.home, shown)
            self.told(shown)
        except OSError as error:
            if not self._untold:
                logger.warning("the state of the parts cannot be told: %s", error)
            self._untold = True
            return
        self._shown, self._untold = shown, False

    def _status(self) -> list[PartStatus]:
        ours = {
            name: PartStatus(
                name=name,
                state=running.state,
                pid=running.process.pid if running.process else None,
                address=running.part.address,
                restarts=running.restarts,
                ready_seconds=running.ready_seconds,
            )
            for name, running in self._running.items()
        }
        given = {
            name: PartStatus(name=name, state="given", address=without_password(address))
            for name, address in self._given.items()
        }
        order = ("documents", "log", "capture", "app")
        return [{**ours, **given}[name] for name in order if name in ours or name in given]

    # Stopping

    def _stop_all(self) -> None:
        self._stopping = True
        if "capture" in self._given and "documents" in self._running:
            self._stop_connector()
        for name in ("app", "capture", "log", "documents"):
            if name in self._running:
                self._signal(name, signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        for name, running in self._running.items():
            if running.process is None:
                continue
            try:
                running.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger.warning("%s does not stop: killed", name)
                self._end(name, signal.SIGKILL)

    def _stop_connector(self) -> None:
        """The connector reads a MongoDB that ends with us: left running, it would fail for ever."""
        from corpus.warehouse import connect
        from ingestion.capture import CaptureFailed, connector_name, stop

        resolved = self._resolved()
        try:
            warehouse = connect(resolved)
            try:
                stop(resolved.connect_url or "", connector_name(warehouse.identity()))
            finally:
                warehouse.close()
        except (CaptureFailed, ConnectionError) as error:
            logger.warning("the connector could not be stopped: %s", error)

    def _signal(self, name: str, number: signal.Signals) -> None:
        process = self._running[name].process
        if process is not None and process.poll() is None:
            process.send_signal(number)

    def _end(self, name: str, number: signal.Signals) -> None:
        self._signal(name, number)
        process = self._running[name].process
        if process is not None:
            process.wait()


def _die_with_parent(parent: int) -> Callable[[], None]:
    """For the child, between fork and exec: let the kernel kill it when its parent ends. Source: prctl(2)."""
    libc = ctypes.CDLL(None, use_errno=True)

    def arrange() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return arrange
