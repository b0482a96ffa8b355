"""The twin for clients of OpenAI's chat completions, with the citations in an extension field.

Source: OpenAI API reference, chat completions (create, streaming) and models.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal, TypedDict

import msgspec
from litestar import Response, get, post
from litestar.exceptions import NotFoundException
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, JSONBody
from litestar.response import Stream

from corpus.index import Filters
from corpus.prompts import Message
from serving.answering import Answer, Citation, Event, Finished, Mode, Token, answering, complete
from serving.api import ASK_PASSAGES, AnyRequest, Counted, Given, counted, unless_gone
from serving.retrieval import InvalidQuestion, checked_question

MODEL = "twin"


class ContentPart(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a message; only text is read."""

    type: str
    text: str = ""


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message; `content` is text or a list of pieces of text."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | tuple[ContentPart, ...] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, tuple):
            return "".join(part.text for part in self.content if part.type == "text")
        return self.content or ""


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of a request; sampling options are the served model's own affair.

    `user`: whoever is named so is answered by one model while a new one is tried.
    """

    messages: tuple[ChatMessage, ...]
    model: str = MODEL
    stream: bool = False
    user: str | None = None


class Complaint(TypedDict):
    message: str
    type: str
    param: None
    code: None


class Refused(TypedDict):
    """An error in OpenAI's shape."""

    error: Complaint


REFUSED = ResponseSpec(Refused, generate_examples=False, description="What is wrong with the request")


class SaidMessage(TypedDict):
    role: Literal["assistant"]
    content: str


class Choice(TypedDict):
    """The one choice; `finish_reason` is `length` where the model stopped before its end."""

    index: int
    message: SaidMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None


class Extension(TypedDict):
    """What an answer of the twin has beyond OpenAI's fields; `twin_model`: the version of the model that wrote it."""

    citations: tuple[Citation, ...]
    mode: Mode
    notice: str | None
    twin_model: str | None


class Completion(Extension):
    """An answer in OpenAI's shape."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: tuple[Choice, ...]


class ModelCard(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(TypedDict):
    object: Literal["list"]
    data: tuple[ModelCard, ...]


@post(
    "/v1/chat/completions",
    status_code=200,
    summary="OpenAI-compatible chat, with citations",
    responses={200: ResponseSpec(Completion, generate_examples=False, description="The answer"), 400: REFUSED},
)
async def chat_completions(
    data: JSONBody[ChatRequest], request: AnyRequest, parts: Given, metrics: Counted
) -> Response[Any]:
    """The last message is the question, which must be the user's; the turns before it are the history.

    There is no `usage`, streamed or not: an answer of quotations has no tokens of a model, and those of one that is
    served are not told to the app.
    """
    if not data.messages:
        raise InvalidQuestion("messages is empty: its last one must be the user's question")
    if data.messages[-1].role != "user":
        raise InvalidQuestion("the last message must be the user's question")
    question = checked_question(data.messages[-1].text, parts.settings.max_question_characters)
    history: list[Message] = [
        {"role": "user" if each.role == "user" else "assistant", "content": each.text}
        for each in data.messages[:-1]
        if each.role in ("user", "assistant")
    ]
    events = counted(answering(parts, question, Filters(), ASK_PASSAGES, history, data.user), metrics)
    id, created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
    if data.stream:
        about = {"id": id, "created": created, "model": MODEL}
        return Stream(_chunks(events, about), media_type="text/event-stream", headers={"cache-control": "no-store"})
    answer = await unless_gone(request, complete(events))
    message = SaidMessage(role="assistant", content=answer.answer)
    choice = Choice(index=0, message=message, finish_reason=_finish_reason(answer), logprobs=None)
    completion = Completion(
        id=id,
        object="chat.completion",
        created=created,
        model=MODEL,
        choices=(choice,),
        **_extension(answer),
    )
    return Response(completion)


async def _chunks(events: AsyncGenerator[Event], about: dict[str, Any]) -> AsyncGenerator[bytes]:
    def chunk(delta: dict[str, str], finish: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        body = {**about, "object": "chat.completion.chunk", "choices": [choice], **more}
        return b"data: " + msgspec.json.encode(body) + b"\n\n"

    yield chunk({"role": "assistant", "content": ""})
    async with aclosing(events):
        async for event in events:
            match event:
                case Token(text):
                    yield chunk({"content": text})
                case Finished(answer):
                    yield chunk({}, _finish_reason(answer), **_extension(answer))
    yield b"data: [DONE]\n\n"


def _finish_reason(answer: Answer) -> Literal["stop", "length"]:
    return "length" if answer.partial else "stop"


def _extension(answer: Answer) -> Extension:
    return Extension(citations=answer.citations, mode=answer.mode, notice=answer.notice, twin_model=answer.model)


@get("/v1/models", summary="The one model that there is to talk to")
async def models() -> ModelList:
    return ModelList(object="list", data=(_model(),))


@get("/v1/models/{name:str}", summary="The model of that name", responses={400: REFUSED, 404: REFUSED})
async def model(name: FromPath[str]) -> ModelCard:
    if name != MODEL:
        raise NotFoundException(f"there is no model {name!r}: the one model is {MODEL!r}")
    return _model()


def _model() -> ModelCard:
    return ModelCard(id=MODEL, object="model", created=0, owned_by="llm-twin")


HANDLERS = (chat_completions, models, model)
