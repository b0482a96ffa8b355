"""The language model at work on samples: a real server that may fail, and a record so that nothing is asked twice."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from corpus.settings import Settings
from training.datasets.wordsmith import (
    PATIENCE,
    NotRecorded,
    Recorded,
    Request,
    ServedWordsmith,
    WordsmithUnavailable,
    Written,
    key,
)

Reply = tuple[int, Any]


def completion(text: Any, finish: str = "stop") -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "tiny", "choices": [choice]}


class ChatServer:
    """Speaks chat completions over HTTP; `reply` makes status and body of a question and of how often it was asked."""

    def __init__(self) -> None:
        self.reply: Callable[[str, int], Reply] = lambda question, _: (200, completion(f"About {question}"))
        self.asked: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.released = threading.Event()
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                question = request["messages"][-1]["content"]
                with lock:
                    server.asked.append(question)
                    server.requests.append(request)
                    server.headers.append({name.lower(): value for name, value in self.headers.items()})
                    times = server.asked.count(question)
                status, body = server.reply(question, times)
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                with contextlib.suppress(OSError):  # who asked may be gone
                    self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    server = ChatServer()
    yield server
    server.close()


def served(address: str, *, threads: int = 1, **more: Any) -> ServedWordsmith:
    return ServedWordsmith(Settings(llm_url=address, llm_model="tiny", **more), threads=threads, pause=lambda _: None)


def request(question: str, document_id: str = "d1") -> Request:
    return Request(document_id, "rewrite-1", ({"role": "user", "content": question},))


class Scribe:
    """A wordsmith in the process that writes what it is told to, and notes what it was asked."""

    name = "scribe"

    def __init__(self, texts: dict[str, str | None] | None = None) -> None:
        self.texts = texts or {}
        self.asked: list[str] = []

    def write(self, requests: Sequence[Request]) -> list[str | None]:
        questions = [one.messages[-1]["content"] for one in requests]
        self.asked += questions
        return [self.texts.get(question, f"About {question}") for question in questions]


def test_the_server_is_asked_without_chance_and_with_the_limit_of_the_settings(chat: ChatServer) -> None:
    assert served(chat.url, llm_max_tokens=9).write([request("tea")]) == ["About tea"]

    sent = chat.requests[0]
    assert (sent["model"], sent["max_tokens"], sent["temperature"]) == ("tiny", 9, 0.0)
    assert sent["messages"] == [{"role": "user", "content": "tea"}]


def test_texts_come_in_the_order_of_the_requests_however_long_each_takes(chat: ChatServer) -> None:
    def reply(question: str, _: int) -> Reply:
        if question == "0":
            chat.released.wait(5)
        elif question == "5":
            chat.released.set()
        return 200, completion(f"About {question}")

    chat.reply = reply

    texts = served(chat.url, threads=3).write([request(str(number)) for number in range(6)])

    assert texts == [f"About {number}" for number in range(6)]


def test_no_token_of_the_users_own_is_sent_to_the_address(chat: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mine")

    served(chat.url).write([request("tea")])
    served(chat.url, llm_api_key="for-this-server").write([request("tea")])

    assert [headers["authorization"] for headers in chat.headers] == ["Bearer none", "Bearer for-this-server"]
    assert "hf_mine" not in str(chat.headers)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_failure_of_the_moment_is_tried_again(chat: ChatServer, status: int) -> None:
    chat.reply = lambda question, times: (status, {}) if times < 3 else (200, completion("Tea."))
    waited: list[float] = []
    wordsmith = ServedWordsmith(Settings(llm_url=chat.url), pause=waited.append)

    assert wordsmith.write([request("tea")]) == ["Tea."]
    assert waited == [0.3, 0.6]
    assert not wordsmith.failed


def test_one_request_that_the_server_cannot_answer_leaves_the_others_their_texts(chat: ChatServer) -> None:
    chat.reply = lambda question, _: (500, {}) if question == "poison" else (200, completion("Good."))
    wordsmith = served(chat.url)

    assert wordsmith.write([request("tea"), request("poison"), request("coffee")]) == ["Good.", None, "Good."]
    assert wordsmith.failed == {"answered 500": 1}


def test_a_server_that_fails_at_one_request_after_the_other_is_given_up(chat: ChatServer) -> None:
    chat.reply = lambda question, _: (200, completion("Good.")) if question == "0" else (400, {})

    with pytest.raises(WordsmithUnavailable, match="answered 400") as raised:
        served(chat.url).write([request(str(number)) for number in range(40)])

    assert raised.value.written == ("Good.", *[None] * 39)
    assert PATIENCE < len(chat.asked) < 40


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"<html>It works!</html>", "gave an answer that is no chat completion"),
        (b"", "gave an answer that is no chat completion"),
        (b"\xff\xfe", "gave an answer that is no chat completion"),
        ([], "gave an answer that is no chat completion"),
        (7, "gave an answer that is no chat completion"),
        ({}, "gave an answer that is no chat completion"),
        ({"choices": []}, "gave an answer that is no chat completion"),
        (
            {"choices": [{"message": None, "finish_reason": "stop", "index": 0}]},
            "gave an answer that is no chat completion",
        ),
        (completion(None), "wrote nothing"),
        (completion(" \n"), "wrote nothing"),
        (completion(["a"]), "wrote nothing"),
        (completion("Tea is", "length"), "was cut off after 512 tokens (TWIN_LLM_MAX_TOKENS)"),
    ],
)
def test_nonsense_is_a_failure_of_that_request_with_its_reason(chat: ChatServer, body: Any, reason: str) -> None:
    chat.reply = lambda question, _: (200, body)
    wordsmith = served(chat.url)

    assert wordsmith.write([request("tea")]) == [None]
    assert wordsmith.failed == {reason: 1}


def test_a_model_that_is_often_cut_off_is_no_reason_to_give_up(chat: ChatServer) -> None:
    chat.reply = lambda question, _: (200, completion("Tea is", "length"))

    assert served(chat.url).write([request(str(number)) for number in range(2 * PATIENCE)]) == [None] * 2 * PATIENCE


def test_an_answer_that_takes_too_long_is_not_waited_for(chat: ChatServer) -> None:
    def reply(question: str, _: int) -> Reply:
        if question == "slow":
            chat.released.wait(5)
        return 200, completion("Good.")

    chat.reply = reply
    wordsmith = served(chat.url, llm_timeout=0.2)

    assert wordsmith.write([request("slow"), request("tea")]) == [None, "Good."]
    assert wordsmith.failed == {"took too long (the limit is 0.2 s)": 1}
    assert chat.asked.count("slow") == 1


@pytest.mark.parametrize(
    ("status", "hint"), [(401, "TWIN_LLM_API_KEY"), (403, "TWIN_LLM_API_KEY"), (404, "TWIN_LLM_MODEL")]
)
def test_a_refusal_says_which_setting_to_check_and_no_secret(chat: ChatServer, status: int, hint: str) -> None:
    chat.reply = lambda question, _: (status, {"error": "very-secret"})

    with pytest.raises(WordsmithUnavailable, match=f"answered {status}: check .*{hint}") as raised:
        served(chat.url, llm_api_key="very-secret").write([request(str(number)) for number in range(40)])

    assert "very-secret" not in str(raised.value)
    assert len(set(chat.asked)) == len(chat.asked) < 40


def test_a_server_that_is_away_is_named_without_its_password() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]

    with pytest.raises(WordsmithUnavailable) as raised:
        served(f"http://user:very-secret@127.0.0.1:{port}").write([request("tea")])

    assert str(raised.value) == f"The language model at http://***@127.0.0.1:{port} cannot be reached."


def test_without_an_address_there_is_no_served_wordsmith() -> None:
    with pytest.raises(ValueError, match="set TWIN_LLM_URL"):
        ServedWordsmith(Settings())


def test_what_was_written_before_the_server_went_away_is_kept_and_the_rest_is_asked_later(chat: ChatServer) -> None:
    gone = True
    chat.reply = lambda question, _: (503, {}) if gone and question != "tea" else (200, completion(f"On {question}."))
    record: dict[str, Written] = {}
    requests = [request("tea"), request("coffee"), request("milk")]

    with pytest.raises(WordsmithUnavailable, match="answered 503") as raised:
        Recorded(served(chat.url), record).write(requests)
    assert raised.value.written == ("On tea.", None, None)
    assert [written.text for written in record.values()] == ["On tea."]

    gone = False
    chat.asked.clear()
    assert Recorded(served(chat.url), record).write(requests) == ["On tea.", "On coffee.", "On milk."]
    assert sorted(chat.asked) == ["coffee", "milk"]


def test_a_rebuild_reads_the_record_and_asks_nobody() -> None:
    record: dict[str, Written] = {}
    requests = [request("tea", "d1"), request("coffee", "d2")]
    first = Recorded(Scribe(), record).write(requests)

    scribe = Scribe()
    again, alone = Recorded(scribe, record).write(requests), Recorded(None, record, "scribe").write(requests)

    assert first == again == alone == ["About tea", "About coffee"]
    assert scribe.asked == []
    assert {(written.document_id, written.model, written.prompt_version) for written in record.values()} == {
        ("d1", "scribe", "rewrite-1"),
        ("d2", "scribe", "rewrite-1"),
    }


def test_what_is_not_in_the_record_is_missed_by_name_where_nobody_can_be_asked() -> None:
    record: dict[str, Written] = {}
    Recorded(Scribe(), record).write([request("tea")])

    with pytest.raises(NotRecorded, match=r"1 of 2 texts by scribe .* document d9\): set TWIN_LLM_URL"):
        Recorded(None, record, "scribe").write([request("tea"), request("coffee", "d9")])
    with pytest.raises(NotRecorded, match="by another"):
        Recorded(None, record, "another").write([request("tea")])
    with pytest.raises(ValueError, match="name of the recorded one"):
        Recorded(None, record)


def test_a_recorded_failure_stays_one_also_where_there_is_somebody_to_ask() -> None:
    record: dict[str, Written] = {}
    scribe = Scribe()

    assert Recorded(Scribe({"tea": None}), record).write([request("tea")]) == [None]
    assert Recorded(None, record, "scribe").write([request("tea")]) == [None]
    assert Recorded(scribe, record).write([request("tea"), request("coffee")]) == [None, "About coffee"]
    assert scribe.asked == ["coffee"]


def test_the_same_request_is_asked_once_and_answered_everywhere() -> None:
    scribe = Scribe()

    assert Recorded(scribe, {}).write([request("tea"), request("tea")]) == ["About tea", "About tea"]
    assert scribe.asked == ["tea"]


def test_a_request_has_another_key_for_another_document_prompt_model_or_word() -> None:
    asked = request("tea")
    others = [
        key(asked, "another"),
        key(request("tea", "d2"), "scribe"),
        key(request("teas"), "scribe"),
        key(Request("d1", "rewrite-2", asked.messages), "scribe"),
        key(Request("d1", "rewrite-1", ({"role": "system", "content": "tea"},)), "scribe"),
    ]

    assert key(asked, "scribe") == key(request("tea"), "scribe")
    assert len({key(asked, "scribe"), *others}) == 6
