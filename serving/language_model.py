"""The language model by address: TGI or any server that speaks OpenAI's chat completions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any, cast

import httpx2
from huggingface_hub import AsyncInferenceClient
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError

from corpus.prompts import Message
from corpus.settings import Settings, masked_text, without_password

CONNECT_SECONDS = 5.0
ATTEMPTS = 3
PAUSE_SECONDS = 0.3
# Worth another try while nothing has been shown yet; every other answer of the server would be the same again.
TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
# Sent where no key is set: the client would otherwise send the user's own Hugging Face token to the address.
NO_KEY = "none"
# Of a name, so many characters are told.
NAME = 200


class LanguageModelError(RuntimeError):
    """The model's server did not do its part; the message is one sentence for the reader, without any secret."""


class ServedModel:
    """A chat model behind `settings.llm_url`; `version`: the name that its answers get where it was deployed.

    Limits: CONNECT_SECONDS to connect, half of `settings.llm_timeout` to the first piece, all of it in all.
    """

    def __init__(self, settings: Settings, version: str | None = None) -> None:
        if not settings.llm_url:
            raise ValueError("no address of a language model is set")
        self._url = settings.llm_url
        self._model = settings.llm_model or "tgi"
        self._name = version or settings.llm_model
        self._where = "TWIN_LLM_URL and TWIN_LLM_MODEL" if version is None else "`twin model deploy --status`"
        self._key = settings.llm_api_key or NO_KEY
        self._seconds = settings.llm_timeout
        self._max_tokens = settings.llm_max_tokens
        self._shown = without_password(settings.llm_url)

    @property
    def name(self) -> str:
        """The version, else the model of the settings, else what the server said that it is; without any secret."""
        return masked_text(self._name or self._model)[:NAME]

    async def stream(self, messages: Sequence[Message]) -> AsyncGenerator[str]:
        """The answer's pieces as they come. Retries what failed for the moment, but only before the first piece.

        Closing the iterator closes the connection, so that the server stops generating.
        """
        deadline = asyncio.get_running_loop().time() + self._seconds
        for attempt in range(1, ATTEMPTS + 1):
            begun = False
            try:
                async with contextlib.aclosing(self._attempt(messages, deadline)) as pieces:
                    async for piece in pieces:
                        begun = True
                        yield piece
            except Exception as error:
                if begun or attempt == ATTEMPTS or not _transient(error):
                    raise LanguageModelError(self._explained(error)) from error
                await asyncio.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
            else:
                return

    async def _attempt(self, messages: Sequence[Message], deadline: float) -> AsyncGenerator[str]:
        # The library hands the value on to httpx, which tells connecting and reading apart.
        limits = cast(float, httpx2.Timeout(self._seconds, connect=min(CONNECT_SECONDS, self._seconds)))
        first = min(deadline, asyncio.get_running_loop().time() + self._seconds / 2)
        begun = finished = False
        # A client for each request: only closing the client closes the connection of an answer that nobody reads on.
        async with AsyncInferenceClient(self._url, token=self._key, timeout=limits) as client:
            async with asyncio.timeout_at(first):
                answer = await client.chat_completion(
                    cast(Any, list(messages)),
                    model=self._model,
                    max_tokens=self._max_tokens,
                    temperature=0.2,
                    stream=True,
                )
            outputs = aiter(answer)
            while True:
                async with asyncio.timeout_at(deadline if begun else first):
                    output = await anext(outputs, None)
                if output is None:
                    break
                self._name = self._name or output.model
                for choice in output.choices[:1]:
                    finished = finished or choice.finish_reason is not None
                    if choice.delta.content:
                        begun = True
                        yield choice.delta.content
        if not finished:
            raise ConnectionError("the stream ended before the answer did")

    def _explained(self, error: Exception) -> str:
        """One sentence for the reader; never the exception's own text, which may hold an address with its password."""
        where = f"The language model at {self._shown}"
        if isinstance(error, HfHubHTTPError):
            status = error.response.status_code
            hint = {
                401: ": check TWIN_LLM_API_KEY",
                403: ": check TWIN_LLM_API_KEY",
                404: f": check {self._where}",
            }
            return f"{where} answered {status}{hint.get(status, '')}."
        if isinstance(error, (TimeoutError, InferenceTimeoutError, httpx2.TimeoutException)):
            return f"{where} took too long (the limit is {self._seconds:g} s)."
        if isinstance(error, httpx2.ConnectError):
            return f"{where} cannot be reached."
        if isinstance(error, (ConnectionError, httpx2.TransportError)):
            return f"{where} broke off."
        return f"{where} failed ({type(error).__name__})."


def _transient(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in TRANSIENT
    # A time limit is not tried again: the reader has waited long enough.
    return isinstance(error, (ConnectionError, httpx2.TransportError)) and not isinstance(
        error, httpx2.TimeoutException
    )
