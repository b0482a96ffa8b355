"""The app follows the deployment of its home: the champion answers, the canary its share, and nobody goes without."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from corpus.files import replace_file
from corpus.index import Filters
from corpus.settings import Settings
from serving import metrics
from serving.answering import Answer, answering, complete
from serving.api import counted
from serving.deployment import FILE, Deployments
from serving.language_model import LanguageModelError, ServedModel
from serving.metrics import Metrics
from serving.parts import LanguageModel, Parts

QUESTION = "How far does the tide rise at zqbacedi?"
TIDE = "The tide rises by four metres [1]."


@dataclass
class Model:
    """A model that says its pieces, waits for `goes_on` before the last one, and fails then if it is told to.

    `waiting` can be acquired once for each answer that waits.
    """

    name: str
    settings: Settings
    pieces: list[str] = field(default_factory=lambda: [TIDE])
    failure: str | None = None
    waiting: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    goes_on: asyncio.Event | None = None
    asked: int = 0

    async def stream(self, messages: Any) -> Any:
        self.asked += 1
        for number, piece in enumerate(self.pieces, 1):
            if self.goes_on is not None and number == len(self.pieces):
                self.waiting.release()
                await self.goes_on.wait()
            yield piece
        if self.failure is not None:
            raise LanguageModelError(self.failure)


@dataclass
class Home:
    """A home whose deployment a hand replaces, and the app over it; `models`: those that the app made, by name."""

    directory: Path
    library: Any
    settings: Settings = field(default_factory=Settings)
    models: dict[str, Model] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=lambda: Metrics(CollectorRegistry()))
    real: bool = False
    seed: int = 7

    def __post_init__(self) -> None:
        self.settings = Settings(home=self.directory, llm_url=self.settings.llm_url, llm_model=self.settings.llm_model)
        make = ServedModel if self.real else self.made
        self.deployments = Deployments(self.settings, Random(self.seed), make)
        self.parts: Parts = self.library.parts(self.settings, choose_model=self.deployments.choose)

    def made(self, settings: Settings, version: str | None) -> LanguageModel:
        name = version or settings.llm_model or ""
        return self.models.setdefault(name, Model(name, settings))

    def deploy(self, champion: Any, canary: Any = None, **more: Any) -> None:
        told = {"champion": champion, "canary": canary, "former": None, **more}
        replace_file(self.directory / FILE, json.dumps(told).encode())

    def chosen(self, conversation: str | None = None) -> str | None:
        model = self.deployments.choose(conversation, ())
        return None if model is None else model.name

    async def ask(self, conversation: str | None = None) -> Answer:
        events = answering(self.parts, QUESTION, Filters(), 6, conversation=conversation)
        return await complete(counted(events, self.metrics))

    def figures(self, version: str) -> dict[str, Any]:
        found: Any = self.metrics.models()[version]
        return {name: value for name, value in found.items() if name not in ("seconds", "latest")}


def version(name: str, url: str = "http://127.0.0.1:8000", **more: Any) -> dict[str, Any]:
    return {"version": name, "url": url, "model": f"/models/{name}", "since": "2026-06-01T12:00:00+00:00", **more}


@pytest.fixture
def home(harbour: Any, tmp_path: Path) -> Home:
    return Home(tmp_path, harbour)


def test_without_a_deployment_the_model_of_the_settings_answers_or_none(harbour: Any, tmp_path: Path) -> None:
    with_model = Home(tmp_path, harbour, Settings(llm_url="http://127.0.0.1:8000", llm_model="tiny"))
    without = Home(tmp_path / "never made", harbour)
    assert (with_model.chosen(), without.chosen()) == ("tiny", None)


def test_a_deployment_is_followed_while_it_is_replaced(home: Home) -> None:
    seen = [home.chosen()]
    for name in ("twin-1", "twin-2", "twin-1"):
        home.deploy(version(name))
        seen += [home.chosen(), home.chosen()]
    (home.directory / FILE).unlink()
    seen.append(home.chosen())
    assert seen == [None, "twin-1", "twin-1", "twin-2", "twin-2", "twin-1", "twin-1", None]


def test_a_deployment_is_read_when_it_was_replaced_and_only_then(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or real(path))
    for name in ("twin-1", "twin-2"):
        home.deploy(version(name))
        for _ in range(20):
            home.chosen()
    assert read == [home.directory / FILE] * 2


def test_a_deployment_without_a_champion_leaves_its_place_to_the_settings(harbour: Any, tmp_path: Path) -> None:
    home = Home(tmp_path, harbour, Settings(llm_url="http://127.0.0.1:8000", llm_model="tiny"))
    home.deploy(None, version("twin-1", share=0.5))
    assert {home.chosen() for _ in range(50)} == {"tiny", "twin-1"}


def test_a_deployed_model_is_asked_at_its_own_address_by_its_own_name(home: Home) -> None:
    home.deploy(version("twin-3", "http://127.0.0.1:9000"))
    home.chosen()
    made = home.models["twin-3"].settings
    assert (made.llm_url, made.llm_model, made.home) == ("http://127.0.0.1:9000", "/models/twin-3", home.directory)


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("https://models.example.org/v2", "very-secret"),
        ("https://MODELS.example.org", "very-secret"),
        ("http://models.example.org", None),
        ("https://models.example.org.evil.net", None),
        ("http://127.0.0.1:8000", None),
    ],
)
def test_the_key_of_the_settings_goes_to_no_other_server(home: Home, url: str, sent: str | None) -> None:
    settings = Settings(home=home.directory, llm_url="https://models.example.org/v1", llm_api_key="very-secret")
    alone = Settings(home=home.directory, llm_api_key="very-secret")
    home.deploy(version("twin-3", url))
    keys = []
    for given in (settings, alone):
        home.models.clear()
        Deployments(given, Random(1), home.made).choose(None, ())
        keys.append(home.models["twin-3"].settings.llm_api_key)
    assert keys == [sent, "very-secret"]


BROKEN = {
    "empty": b"",
    "cut off": b'{"champion": {"version": "twin-2", "url": "http://127.0',
    "a list": b"[]",
    "without a champion's name": b'{"champion": null, "canary": {"version": "x"}}',
    "of something else": b"{}",
    "nested endlessly": b"[" * 100_000,
    "not text": b'{"champion": "\xff"}',
    "a share of two": json.dumps({"champion": version("a"), "canary": version("b", share=2)}).encode(),
    "no address": json.dumps({"champion": version("a", "me:very-secret@somewhere")}).encode(),
    "an address of files": json.dumps({"champion": version("a", "file:///very-secret")}).encode(),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_of_a_broken_file_the_last_good_one_stays_and_it_is_said_once(
    home: Home, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    home.deploy(version("twin-1"))
    home.chosen()
    replace_file(home.directory / FILE, content)
    assert {home.chosen() for _ in range(20)} == {"twin-1"}
    assert len(caplog.messages) == 1
    assert f"{FILE} cannot be used" in caplog.text
    assert "twin-1 stays" in caplog.text
    assert "very-secret" not in caplog.text
    home.deploy(version("twin-2"))
    assert home.chosen() == "twin-2"


def test_a_file_that_cannot_be_read_is_tried_again_and_told_of_once(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    (home.directory / FILE).mkdir()
    assert {home.chosen() for _ in range(20)} == {None}
    assert len(caplog.messages) == 1
    (home.directory / FILE).rmdir()
    home.deploy(version("twin-2"))
    assert home.chosen() == "twin-2"


def test_the_canary_gives_its_share_of_the_answers(home: Home) -> None:
    home.deploy(version("twin-1"), version("twin-2", share=0.1))
    asked = 4000
    by_chance = sum(home.chosen() == "twin-2" for _ in range(asked))
    by_conversation = sum(home.chosen(f"conversation {n}") == "twin-2" for n in range(asked))
    # Four standard deviations of a share of 0.1.
    assert abs(by_chance - 400) < 76
    assert abs(by_conversation - 400) < 76


@pytest.mark.parametrize(("share", "answers"), [(0, {"twin-1"}), (1, {"twin-2"})])
def test_a_share_of_nothing_or_all_is_just_that(home: Home, share: float, answers: set[str]) -> None:
    home.deploy(version("twin-1"), version("twin-2", share=share))
    assert {home.chosen(each) for each in (None, "", *map(str, range(200)))} == answers


def test_a_conversation_stays_with_one_model_also_while_the_share_grows(home: Home) -> None:
    conversations = [f"conversation {n}" for n in range(300)]
    home.deploy(version("twin-1"), version("twin-2", share=0.2))
    first = {each: home.chosen(each) for each in conversations}
    again = {each: home.chosen(each) for each in conversations}
    home.deploy(version("twin-1"), version("twin-2", share=0.6))
    grown = {each: home.chosen(each) for each in conversations}
    assert first == again
    assert set(first.values()) == {"twin-1", "twin-2"}
    assert all(grown[each] == "twin-2" for each in conversations if first[each] == "twin-2")
    # Another canary is tried on other conversations.
    home.deploy(version("twin-1"), version("twin-3", share=0.2))
    assert {e for e in conversations if home.chosen(e) == "twin-3"} != {e for e in first if first[e] == "twin-2"}


@pytest.mark.parametrize("how", ["away", "empty"])
async def test_a_canary_that_says_nothing_leaves_the_answer_to_the_champion(home: Home, how: str) -> None:
    home.deploy(version("twin-1"), version("twin-2", share=1))
    home.chosen()
    canary = home.models["twin-2"]
    canary.pieces = [" "]
    canary.failure = "The language model at http://x cannot be reached." if how == "away" else None
    answer = await home.ask()
    assert (answer.answer, answer.mode, answer.model, answer.notice) == (TIDE, "generated", "twin-1", None)
    assert home.figures("twin-2") == {"answers": 1, "failed": 1, "supported": None}
    assert home.figures("twin-1") == {"answers": 1, "failed": 0, "supported": 1.0}


async def test_a_canary_that_breaks_off_keeps_what_it_said_under_its_own_name(home: Home) -> None:
    home.deploy(version("twin-1"), version("twin-2", share=1))
    home.chosen()
    home.models["twin-2"].failure = "The language model at http://x broke off."
    answer = await home.ask()
    assert (answer.answer, answer.model, answer.partial) == (TIDE, "twin-2", True)
    assert home.figures("twin-2") == {"answers": 1, "failed": 1, "supported": None}
    assert "twin-1" not in home.models


async def test_when_all_fail_the_answer_is_quoted_and_names_no_model(home: Home) -> None:
    home.deploy(version("twin-1"), version("twin-2", share=1))
    home.chosen()
    home.deploy(version("twin-1"))
    home.chosen()
    home.deploy(version("twin-1"), version("twin-2", share=1))
    for name, model in home.models.items():
        model.pieces, model.failure = [], f"The language model {name} cannot be reached."
    answer = await home.ask()
    assert (answer.mode, answer.model) == ("extractive", None)
    assert answer.notice is not None
    assert answer.notice.startswith("The language model twin-1 cannot be reached.")
    assert [model.asked for model in home.models.values()] == [1, 1]


async def test_an_answer_that_runs_ends_with_the_model_that_began_it(home: Home) -> None:
    home.deploy(version("twin-1"))
    home.chosen()
    former = home.models["twin-1"]
    former.pieces, former.goes_on = ["The tide rises", " by four metres [1]."], asyncio.Event()
    running = asyncio.create_task(home.ask())
    await former.waiting.acquire()
    home.deploy(version("twin-2"))
    following = await home.ask()
    former.goes_on.set()
    answer = await running
    assert (answer.answer, answer.model) == (TIDE, "twin-1")
    assert following.model == "twin-2"


async def test_a_rollback_while_fifty_questions_are_asked_leaves_none_without_an_answer(home: Home) -> None:
    home.deploy(version("twin-2"), former=version("twin-1"))
    home.chosen()
    bad = home.models["twin-2"]
    bad.pieces, bad.goes_on, bad.failure = [""], asyncio.Event(), "The language model at http://x broke off."
    asked = [asyncio.create_task(home.ask()) for _ in range(25)]
    for _ in range(25):
        await bad.waiting.acquire()
    home.deploy(version("twin-1"))
    asked += [asyncio.create_task(home.ask(f"conversation {n}")) for n in range(25)]
    bad.goes_on.set()
    answers = await asyncio.gather(*asked)
    assert {(each.answer, each.mode, each.model, each.notice) for each in answers} == {
        (TIDE, "generated", "twin-1", None)
    }
    assert home.figures("twin-1") == {"answers": 50, "failed": 0, "supported": 1.0}
    assert home.figures("twin-2") == {"answers": 25, "failed": 25, "supported": None}


async def test_a_server_that_goes_after_a_rollback_is_followed_by_the_one_before(
    harbour: Any, tmp_path: Path, chat_server: Any, second_chat_server: Any
) -> None:
    bad, good = chat_server, second_chat_server
    bad.silent = True
    home = Home(tmp_path, harbour, real=True)
    home.deploy(version("twin-2", bad.url))
    asked = asyncio.create_task(home.ask())
    await bad.asked.wait()
    home.deploy(version("twin-1", good.url))
    bad.leaves.set()
    answer = await asked
    assert (answer.answer, answer.mode, answer.model) == (TIDE, "generated", "twin-1")
    assert [each["model"] for each in good.requests] == ["/models/twin-1"]


def test_programs_see_how_each_version_answers(home: Home, harbour: Any) -> None:
    home.deploy(version("twin-1"), version("twin-2", share=0.5))
    with harbour.client(home.settings, choose_model=home.deployments.choose) as client:
        said = [client.post("/api/ask", json={"question": QUESTION}).json()["model"] for _ in range(30)]
        home.models["twin-2"].pieces = ["It rises."]
        talk = {"question": QUESTION, "conversation": "zqtalk"}
        stays = {client.post("/api/ask", json=talk).json()["model"] for _ in range(10)}
        chat = {"messages": [{"role": "user", "content": QUESTION}], "user": "zqtalk"}
        stays |= {client.post("/v1/chat/completions", json=chat).json()["twin_model"] for _ in range(10)}
        models = client.get("/api/status").json()["models"]
        text = client.get("/metrics").text
    assert set(said) == {"twin-1", "twin-2"}
    assert len(stays) == 1
    answers = {name: said.count(name) + 20 * (name in stays) for name in ("twin-1", "twin-2")}
    assert {name: each["answers"] for name, each in models.items()} == answers
    assert models["twin-1"]["supported"] == 1.0
    assert 0 <= models["twin-1"]["seconds"]["p50"] <= models["twin-1"]["seconds"]["p95"]
    assert f'twin_model_answers_total{{version="twin-1"}} {answers["twin-1"]}.0' in text
    assert 'twin_model_failed_total{version="twin-1"} 0.0' in text
    assert f'twin_model_seconds_count{{version="twin-1"}} {answers["twin-1"]}.0' in text


def test_figures_of_a_version_are_of_its_finished_answers() -> None:
    counted = Metrics(CollectorRegistry())
    for seconds in range(1, 101):
        counted.attempted("twin-1", float(seconds), failed=False, supported=seconds <= 75)
    for _ in range(50):
        counted.attempted("twin-1", 0.001, failed=True, supported=False)
    assert counted.models()["twin-1"] == {
        "answers": 150,
        "failed": 50,
        "seconds": {"p50": 50.5, "p95": 95.05},
        "latest": [float(seconds) for seconds in range(1, 101)],
        "supported": 0.75,
    }


def test_however_many_versions_there_were_only_the_latest_are_told_of() -> None:
    counted = Metrics(CollectorRegistry())
    for number in range(100):
        counted.attempted("twin-0", 1.0, failed=False, supported=True)
        counted.attempted(f"twin-{number}", 1.0, failed=False, supported=True)
    text = generate_latest(counted.registry).decode()
    assert len(counted.models()) == metrics.VERSIONS
    assert counted.models()["twin-0"]["answers"] == 101
    assert text.count("twin_model_answers_total{") == metrics.VERSIONS
    assert text.count("twin_model_seconds_count{") == metrics.VERSIONS
    assert 'version="twin-99"' in text
    assert 'version="twin-50"' not in text
