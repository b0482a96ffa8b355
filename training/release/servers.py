"""Servers of the language model: how one is started for a model, when it is ready, and those that this home started.

Every server here speaks OpenAI's chat completions. A server that this home starts is `transformers serve` on this
machine; what it is and which process is noted in `serving/<version>.json`, and what it says in `logs/`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import msgspec

from corpus.files import replace_file
from corpus.settings import credentials, without_password

if TYPE_CHECKING:
    from corpus.settings import Settings

State = Literal["starting", "ready"]
DIRECTORY = "serving"
LOOPBACK = "127.0.0.1"
# The answers under way may end first.
STOP_SECONDS = 60.0
LOOK_SECONDS, ANSWER_SECONDS = 0.5, 120.0
# By this the processes of a server are known whose first one has ended; its settings, and ours are not its business.
MARK, OURS = "LLM_TWIN_SERVER_LOG", "TWIN_"
PROCESSES, BOOT = Path("/proc"), Path("/proc/sys/kernel/random/boot_id")


class ServerFailed(RuntimeError):
    """A server could not be started or does not answer; the message has its last words, or says what to do."""


@dataclass(frozen=True, slots=True)
class Server:
    """A kind of server. `command`: of (model's folder, port); `called`: its name for the model; `health`: the path that
    says whether it is up; `needs`: what must be there."""

    command: Callable[[Path, int], tuple[str, ...]]
    called: Callable[[Path], str]
    needs: str
    health: str = "/health"


SERVERS: Mapping[str, Server] = {
    "transformers": Server(
        # The model that is asked for must be named as it was given here.
        command=lambda model, port: (
            *(str(Path(sys.executable).with_name("transformers")), "serve", str(model)),
            *("--host", LOOPBACK, "--port", str(port), "--device", "auto"),
        ),
        called=str,
        needs="pip install 'transformers[serving]'",
    ),
    "vllm": Server(
        command=lambda model, port: ("vllm", "serve", str(model), "--host", LOOPBACK, "--port", str(port)),
        called=str,
        needs="a GPU, and pip install vllm in an environment of its own",
    ),
    "tgi": Server(
        command=lambda model, port: (
            *("text-generation-launcher", "--model-id", str(model), "--hostname", LOOPBACK, "--port", str(port)),
        ),
        # TGI serves one model, whatever it is called.
        called=lambda model: "tgi",
        needs="a GPU, and text-generation-inference, or its image with the model's folder in it",
    ),
}


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """`serving/<version>.json`: a server that this home started. `pid`: None until it is known which process that is;
    `started`: when, in the kernel's own terms, so that another process with this id is not taken for it; `state`:
    `starting` until it has answered for the first time."""

    version: str
    pid: int | None
    started: str
    url: str
    port: int
    model: str
    command: tuple[str, ...]
    log: str
    state: State = "ready"


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port


def start(
    home: Path, version: str, command: tuple[str, ...], *, model: str, port: int, state: State = "starting"
) -> Served:
    """Start a server on this machine, which stays when this program ends; it is not ready yet. Raises ServerFailed.

    Its record is there before it is, so that `twin down` finds it whenever this program ends.
    """
    log = home / "logs" / f"model-{version}.log"
    cache = home / DIRECTORY / "huggingface"
    for directory in (log.parent, cache / "hub"):
        directory.mkdir(parents=True, exist_ok=True)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(OURS)},
        MARK: str(log),
        # It serves what is on this machine, and tells nobody.
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "true",
    }
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    before = served(home, version)
    planned = Served(
        version=version,
        pid=None,
        started="",
        url=f"http://{LOOPBACK}:{port}",
        port=port,
        model=model,
        command=command,
        log=str(log),
        state=state,
    )
    _note(home, planned)
    try:
        pid = os.posix_spawnp(
            command[0],
            command,
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )
    except OSError as error:
        if before is None:
            _record(home, version).unlink()
        else:
            _note(home, before)
        raise ServerFailed(f"{command[0]} cannot be started ({error.strerror}): install it") from error
    return _note(home, msgspec.structs.replace(planned, pid=pid, started=_started(pid) or ""))


def again(home: Path, served: Served) -> Served:
    """Start a server of this home anew, at the address that it had. Raises ServerFailed."""
    return start(home, served.version, served.command, model=served.model, port=served.port, state=served.state)


def served(home: Path, version: str) -> Served | None:
    """The server that this home started for a version, whether it still runs or not."""
    try:
        return msgspec.json.decode(_record(home, version).read_bytes(), type=Served)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def runs(server: Served) -> bool:
    """Whether this very process is there; of one that nobody noted, nobody knows."""
    if server.pid is None:
        return False
    with suppress(ChildProcessError):
        # Nobody else takes leave of it where this program started it.
        os.waitpid(server.pid, os.WNOHANG)
    return bool(server.started) and _started(server.pid) == server.started


def stop(server: Served, *, seconds: float = STOP_SECONDS) -> bool:
    """End a server that this home started, after the answers under way, and all that it started; whether it ran."""
    found = False
    for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, 10.0)):
        deadline = time.monotonic() + patience
        asked = False
        while there := _processes(server):
            if not asked or number == signal.SIGKILL:
                for pid in there:
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)
            found = asked = True
            if time.monotonic() >= deadline:
                break
            time.sleep(0.05)
    return found


def _processes(server: Served) -> list[int]:
    """The processes of a server's session. Where the first has ended, those of this machine that bear its mark: its id
    may be another's by now. Where its id was never noted, all that bear it."""
    leads = runs(server)
    boot = BOOT.read_text().strip() if BOOT.exists() else ""
    lost = server.pid is not None and not leads
    if lost and (not server.started.startswith(f"{boot} ") or _started(server.pid) is not None):
        return []
    mark = f"{MARK}={server.log}".encode()
    found = []
    for path in PROCESSES.glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            state, _, _, session, *_ = (path / "stat").read_text().rpartition(")")[2].split()
            ours = leads or mark in (path / "environ").read_bytes().split(b"\0")
            if state not in "ZX" and server.pid in (None, int(session)) and ours:
                found.append(int(path.name))
    return found


def stop_servers(home: Path, *, seconds: float = STOP_SECONDS) -> list[str]:
    """End every server that this home started; the versions that were served."""
    return [server.version for server in list(_all(home)) if stop(server, seconds=seconds)]


def _all(home: Path) -> Iterator[Served]:
    for path in sorted((home / DIRECTORY).glob("*.json")):
        found = served(home, path.stem)
        if found is not None:
            yield found


def answer_one_token(url: str, model: str, *, key: str | None = None, seconds: float = ANSWER_SECONDS) -> None:
    """Let the model at this address say one token, which shows more than an open port. Raises ServerFailed."""
    import httpx2

    address, headers = credentials(url)
    if key:
        headers["Authorization"] = f"Bearer {key}"
    shown = without_password(url)
    question = {"role": "user", "content": "Hello"}

    async def ask() -> httpx2.Response:
        # A proxy of the environment is not for this machine.
        timeout = httpx2.Timeout(seconds, connect=5.0)
        async with (
            # Those of the client are for each read: a server that sends a byte now and then would never be over.
            asyncio.timeout(seconds),
            httpx2.AsyncClient(timeout=timeout, trust_env=not _is_here(address)) as client,
        ):
            return await client.post(
                f"{address.rstrip('/')}/v1/chat/completions",
                json={"model": model, "messages": [question], "max_tokens": 1},
                headers=headers,
            )

    try:
        answer = asyncio.run(ask())
    except TimeoutError as error:
        raise ServerFailed(f"the server at {shown} does not answer within {seconds:g} s") from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise ServerFailed(f"the server at {shown} does not answer ({type(error).__name__})") from error
    if answer.status_code != 200:
        raise ServerFailed(f"the server at {shown} refused ({answer.status_code}): {answer.text[:300]}")
    try:
        choices = answer.json()["choices"]
        spoken = not choices or isinstance(choices[0]["message"], dict)
    except (ValueError, KeyError, TypeError) as error:
        raise ServerFailed(f"what answers at {shown} does not speak OpenAI's chat completions") from error
    if not spoken:
        raise ServerFailed(f"what answers at {shown} does not speak OpenAI's chat completions")
    if not choices:
        raise ServerFailed(f"the server at {shown} answered without a choice")


def key_for(settings: Settings, url: str) -> str | None:
    """The key that the server at this address is to see: that of the settings belongs to their own address."""
    if settings.llm_url is not None and urlsplit(settings.llm_url)[:2] != urlsplit(url)[:2]:
        return None
    return settings.llm_api_key


def wait_until_ready(
    home: Path, server: Served, *, seconds: float, sleep: Callable[[float], None] = time.sleep
) -> Served:
    """Wait for a server of this home to answer, and note it. Raises ServerFailed when it ends, or `seconds` have
    passed."""
    deadline = time.monotonic() + seconds
    while True:
        if not runs(server):
            raise ServerFailed(f"the server of {server.version} ended: {_last_words(Path(server.log))}")
        try:
            with socket.create_connection((LOOPBACK, server.port), timeout=1.0):
                pass
            answer_one_token(server.url, server.model, seconds=max(1.0, deadline - time.monotonic()))
            return server if server.state == "ready" else _note(home, msgspec.structs.replace(server, state="ready"))
        except OSError as error:
            told: Exception = error
        except ServerFailed as error:
            told = error
        if time.monotonic() >= deadline:
            raise ServerFailed(
                f"the server of {server.version} is not ready after {seconds:g} s ({told}); see {server.log}"
            ) from told
        sleep(LOOK_SECONDS)


def _is_here(address: str) -> bool:
    return urlsplit(address).hostname in (LOOPBACK, "localhost", "::1")


def _last_words(log: Path) -> str:
    try:
        lines = [line for line in log.read_bytes()[-4000:].decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    return f"{lines[-1][:300]} (see {log})" if lines else f"it said nothing (see {log})"


def _note(home: Path, server: Served) -> Served:
    replace_file(_record(home, server.version), msgspec.json.format(msgspec.json.encode(server)))
    return server


def _record(home: Path, version: str) -> Path:
    return home / DIRECTORY / f"{version}.json"


def _started(pid: int | None) -> str | None:
    """When this process started: which boot, and ticks since; None where it is not there or has ended.

    Source: proc_pid_stat(5), fields state and starttime.
    """
    try:
        state, *fields = (PROCESSES / str(pid) / "stat").read_text().rpartition(")")[2].split()
        boot = BOOT.read_text().strip()
    except OSError:
        return None
    return None if state in "ZX" else f"{boot} {fields[18]}"
