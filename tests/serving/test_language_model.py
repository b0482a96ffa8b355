"""The model's server is given limits, tried again before the first word only, and left when nobody listens."""

from __future__ import annotations

import asyncio
import socket
from contextlib import aclosing
from typing import Any

import pytest

from corpus.prompts import Message
from corpus.settings import Settings
from serving.language_model import LanguageModelError, ServedModel

QUESTION: list[Message] = [{"role": "user", "content": "Why?"}]


def model(address: str, **more: Any) -> ServedModel:
    return ServedModel(Settings(llm_url=address, llm_model="tiny", **more))


async def said(served: ServedModel, heard: list[str] | None = None) -> list[str]:
    """The pieces; they are in `heard` even when the model fails midway."""
    heard = [] if heard is None else heard
    async with aclosing(served.stream(QUESTION)) as pieces:
        async for piece in pieces:
            heard.append(piece)
    return heard


async def test_pieces_come_in_order_and_the_server_gets_model_and_limit(chat_server: Any) -> None:
    chat_server.pieces = ["One ", "two", "."]
    assert await said(model(chat_server.url, llm_max_tokens=7)) == ["One ", "two", "."]
    request = chat_server.requests[0]
    assert (request["model"], request["max_tokens"], request["stream"]) == ("tiny", 7, True)
    assert request["messages"] == QUESTION
    assert chat_server.headers[0][""] == "POST /v1/chat/completions HTTP/1.1"


async def test_the_model_is_called_what_the_settings_say_else_what_its_server_says(chat_server: Any) -> None:
    named, unnamed = model(chat_server.url), ServedModel(Settings(llm_url=chat_server.url))
    deployed = ServedModel(Settings(llm_url=chat_server.url, llm_model="/models/7"), "twin-7")
    before = unnamed.name
    for served in (named, unnamed, deployed):
        await said(served)
    assert (before, named.name, unnamed.name, deployed.name) == ("tgi", "tiny", "fake", "twin-7")
    assert [request["model"] for request in chat_server.requests] == ["tiny", "tgi", "/models/7"]


async def test_a_name_never_holds_a_password(chat_server: Any) -> None:
    chat_server.name = "http://user:very-secret@models.example.org/tide" + "x" * 1000
    unnamed = ServedModel(Settings(llm_url=chat_server.url))
    await said(unnamed)
    assert unnamed.name.startswith("http://***@models.example.org/tide")
    assert len(unnamed.name) == 200


async def test_no_other_host_is_asked_and_no_token_of_the_users_own_is_sent(
    chat_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts: list[str] = []
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: hosts.append(host) or real(host, *rest, **more)
    )
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    await said(model(chat_server.url))
    assert {host.decode() if isinstance(host, bytes) else host for host in hosts} <= {"127.0.0.1"}
    assert "hf_mine" not in str(chat_server.headers)


async def test_the_key_is_sent_to_the_server_alone(chat_server: Any) -> None:
    await said(model(chat_server.url, llm_api_key="very-secret"))
    assert chat_server.headers[0]["authorization"] == "Bearer very-secret"


async def test_a_failure_of_the_moment_is_tried_again_before_the_first_word(chat_server: Any) -> None:
    chat_server.statuses = [503, 429]
    assert await said(model(chat_server.url)) == ["The tide rises by four metres [1]."]
    assert len(chat_server.requests) == 3


async def test_a_refusal_is_not_tried_again_and_says_what_to_check(chat_server: Any) -> None:
    chat_server.statuses = [401, 200]
    with pytest.raises(LanguageModelError, match="answered 401: check TWIN_LLM_API_KEY") as raised:
        await said(model(chat_server.url, llm_api_key="very-secret"))
    assert "very-secret" not in str(raised.value)
    assert len(chat_server.requests) == 1


async def test_a_deployed_model_that_is_not_there_says_where_to_look(chat_server: Any) -> None:
    chat_server.statuses = [404]
    with pytest.raises(LanguageModelError, match="answered 404: check `twin model deploy --status`"):
        await said(ServedModel(Settings(llm_url=chat_server.url, llm_model="tiny"), "twin-7"))


async def test_after_the_first_word_nothing_is_tried_again(chat_server: Any) -> None:
    chat_server.pieces, chat_server.breaks_after = ["One ", "two "], 1
    heard: list[str] = []
    with pytest.raises(LanguageModelError, match="broke off"):
        await said(model(chat_server.url), heard)
    assert heard == ["One "]
    assert len(chat_server.requests) == 1


async def test_a_dead_server_is_named_without_its_password() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(LanguageModelError) as raised:
        await said(model(f"http://user:very-secret@127.0.0.1:{port}"))
    assert str(raised.value) == f"The language model at http://***@127.0.0.1:{port} cannot be reached."


async def test_a_silent_server_is_given_up(chat_server: Any) -> None:
    chat_server.silent = True
    with pytest.raises(LanguageModelError, match=r"too long \(the limit is 0.4 s\)"):
        await said(model(chat_server.url, llm_timeout=0.4))
    assert len(chat_server.requests) == 1


async def test_an_endless_answer_is_ended(chat_server: Any) -> None:
    chat_server.pieces, chat_server.pause = ["and "] * 1000, 0.01
    heard: list[str] = []
    with pytest.raises(LanguageModelError, match="took too long"):
        await said(model(chat_server.url, llm_timeout=0.5), heard)
    assert 1 < len(heard) < 1000


async def test_the_server_can_stop_when_nobody_listens_any_more(chat_server: Any) -> None:
    chat_server.pieces, chat_server.pause = ["and " * 100] * 10_000, 0.002
    async with aclosing(model(chat_server.url).stream(QUESTION)) as pieces:
        assert await anext(pieces)
    await asyncio.wait_for(chat_server.hung_up.wait(), 5)
    assert chat_server.sent < 10_000
