"""The language model at work on samples: it rewrites, asks and answers, and what it wrote is kept.

What a model wrote is part of a dataset's recipe: a rebuild reads it from the record and asks nobody, and an erased
document's part of the record is known by its `document_id`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, cast

import msgspec

from corpus.prompts import Message
from corpus.settings import Settings, without_password

CONNECT_SECONDS = 5.0
ATTEMPTS = 3
PAUSE_SECONDS = 0.3
THREADS = 4
# Requests that are handed to the model at once: so much is lost at most when the program is killed.
BATCH = 32
# So many requests in a row that the server failed at are no accident of theirs.
PATIENCE = 5
TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
# Nobody is there to serve; or every request would be refused alike.
AWAY = frozenset({429, 502, 503, 504})
HINTS = {
    401: ": check TWIN_LLM_API_KEY",
    403: ": check TWIN_LLM_API_KEY",
    404: ": check TWIN_LLM_URL and TWIN_LLM_MODEL",
}
# Sent where no key is set: the client would otherwise send the user's own Hugging Face token to the address.
NO_KEY = "none"


class Request(msgspec.Struct, frozen=True):
    """One thing to write. `document_id`: the document that its messages quote; `prompt_version`: what asks for it."""

    document_id: str
    prompt_version: str
    messages: tuple[Message, ...]


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """What a model wrote to one request; `text` is None where it failed."""

    text: str | None
    document_id: str
    model: str
    prompt_version: str


class Wordsmith(Protocol):
    """A language model that writes; `name` tells it from others, in samples and in the record."""

    @property
    def name(self) -> str: ...

    def write(self, requests: Sequence[Request]) -> list[str | None]:
        """A text for each request, in order, or None where it failed for that one.

        Raises WordsmithUnavailable where it fails for all of them.
        """


class WordsmithUnavailable(RuntimeError):
    """The model's server cannot be worked with; `written` holds what came before, in the order of the requests."""

    def __init__(self, message: str, written: Sequence[str | None]) -> None:
        super().__init__(message)
        self.written = tuple(written)


class NotRecorded(LookupError):
    """A rebuild needs a text that the record does not hold; the message says what to do."""


def fenced(texts: Mapping[str, str]) -> tuple[str, str]:
    """A name that none of the texts can hold, the same for the same texts, and the texts between fences of it."""
    fence = "quoted-" + hashlib.sha256("\0".join(texts.values()).encode(errors="surrogatepass")).hexdigest()[:16]
    while any(fence in text for text in texts.values()):
        fence = "quoted-" + hashlib.sha256(fence.encode()).hexdigest()[:16]
    return fence, "\n\n".join(f'<{fence} is="{name}">\n{text}\n</{fence}>' for name, text in texts.items())


def key(request: Request, model: str) -> str:
    """The name of a request to this model in a record: SHA-256 of both, in hexadecimal.

    The document is part of it, so that erasing one of two documents with equal passages leaves the other's.
    """
    parts = [model, request.document_id, request.prompt_version, [(m["role"], m["content"]) for m in request.messages]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class Recorded:
    """A wordsmith that answers from its record, asks `inner` only for what is missing there, and keeps the answers.

    Without `inner` nothing is asked; `model` then names the one whose words the record holds. A failure is recorded
    as well, and stays one, also when there is somebody to ask: else a version, rebuilt, could come to other samples.
    """

    def __init__(self, inner: Wordsmith | None, record: MutableMapping[str, Written], model: str = "") -> None:
        if inner is None and not model:
            raise ValueError("without a model to ask, the name of the recorded one must be given")
        self.name = inner.name if inner is not None else model
        self._inner = inner
        self._record = record

    def write(self, requests: Sequence[Request]) -> list[str | None]:
        """As `Wordsmith.write`; raises NotRecorded where something is missing and there is nobody to ask.

        What was written before an error is in the record.
        """
        keys = [key(request, self.name) for request in requests]
        missing = {name: request for name, request in zip(keys, requests, strict=True) if name not in self._record}
        if missing and self._inner is None:
            raise NotRecorded(
                f"{len(missing)} of {len(requests)} texts by {self.name} are not in the record (the first is of "
                f"document {next(iter(missing.values())).document_id}): set TWIN_LLM_URL and build a new version, or "
                "put the record back that belongs to this one"
            )
        names = list(missing)
        for first in range(0, len(names), BATCH):
            batch = names[first : first + BATCH]
            try:
                self._keep(batch, missing, cast(Wordsmith, self._inner).write([missing[name] for name in batch]))
            except WordsmithUnavailable as error:
                # What was not written is no failure of its request: it stays missing.
                self._keep(batch, missing, error.written, failures=False)
                raise WordsmithUnavailable(str(error), [self._text(name) for name in keys]) from error
        return [self._text(name) for name in keys]

    def _text(self, name: str) -> str | None:
        found = self._record.get(name)
        return found.text if found is not None else None

    def _keep(
        self, names: Sequence[str], requests: dict[str, Request], texts: Sequence[str | None], *, failures: bool = True
    ) -> None:
        for name, text in zip(names, texts, strict=True):
            if text is not None or failures:
                request = requests[name]
                self._record[name] = Written(
                    text=text,
                    document_id=request.document_id,
                    model=self.name,
                    prompt_version=request.prompt_version,
                )


class _Answer(NamedTuple):
    """A text, or why there is none and what that lies with: this text, the server this time, or the server at all."""

    text: str | None
    reason: str = ""
    lies_with: Literal["text", "server", "away"] = "text"


class ServedWordsmith:
    """The chat model behind `settings.llm_url`: TGI or any server that speaks OpenAI's chat completions.

    Limits: CONNECT_SECONDS to connect, `settings.llm_timeout` for each answer, `settings.llm_max_tokens` of each.
    `failed` counts the requests without an answer by reason; `pause` waits so many seconds before another try.
    """

    def __init__(
        self, settings: Settings, *, threads: int = THREADS, pause: Callable[[float], None] = time.sleep
    ) -> None:
        if not settings.llm_url:
            raise ValueError("no address of a language model is set: set TWIN_LLM_URL")
        self.name = settings.llm_model or "tgi"
        self.failed: Counter[str] = Counter()
        self._url = settings.llm_url
        self._key = settings.llm_api_key or NO_KEY
        self._seconds = settings.llm_timeout
        self._max_tokens = settings.llm_max_tokens
        self._shown = without_password(settings.llm_url)
        self._threads = threads
        self._pause = pause
        self._failed_in_a_row = 0

    def write(self, requests: Sequence[Request]) -> list[str | None]:
        """As `Wordsmith.write`: several at once, each without chance (temperature 0)."""
        from concurrent.futures import ThreadPoolExecutor, as_completed

        away = ""
        with ThreadPoolExecutor(min(self._threads, max(1, len(requests)))) as pool:
            asked = [pool.submit(self._answer, request) for request in requests]
            try:
                for done in as_completed(asked):
                    answer = done.result()
                    self._failed_in_a_row = 0 if answer.lies_with == "text" else self._failed_in_a_row + 1
                    if answer.lies_with == "away" or self._failed_in_a_row >= PATIENCE:
                        away = answer.reason
                        break
            finally:
                # What waits is not asked any more; what is being asked is waited for.
                pool.shutdown(cancel_futures=True)
        answers = [_Answer(None) if done.cancelled() else done.result() for done in asked]
        self.failed.update(answer.reason for answer in answers if answer.reason)
        written = [answer.text for answer in answers]
        if away:
            # Whoever comes again with a server that was mended starts with all patience.
            self._failed_in_a_row = 0
            raise WordsmithUnavailable(f"The language model at {self._shown} {away}.", written)
        return written

    def _answer(self, request: Request) -> _Answer:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._asked(request)
            except Exception as error:
                answer, again = self._judged(error)
                if not again or attempt == ATTEMPTS:
                    return answer
                self._pause(PAUSE_SECONDS * 2 ** (attempt - 1))
        raise AssertionError("the last attempt returns")

    def _asked(self, request: Request) -> _Answer:
        import httpx2
        from huggingface_hub import InferenceClient

        # The library hands the value on to httpx, which tells connecting and reading apart.
        limits = cast(float, httpx2.Timeout(self._seconds, connect=min(CONNECT_SECONDS, self._seconds)))
        client = InferenceClient(self._url, token=self._key, timeout=limits)
        said: Any = client.chat_completion(
            cast(Any, list(request.messages)), model=self.name, max_tokens=self._max_tokens, temperature=0.0
        )
        choice = said.choices[0]
        text = choice.message.content
        if not isinstance(text, str) or not text.strip():
            return _Answer(None, "wrote nothing")
        if choice.finish_reason == "length":
            return _Answer(None, f"was cut off after {self._max_tokens} tokens (TWIN_LLM_MAX_TOKENS)")
        return _Answer(text.strip())

    def _judged(self, error: Exception) -> tuple[_Answer, bool]:
        """What happened, in words without any secret, and whether to try again."""
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError

        if isinstance(error, HfHubHTTPError):
            status = error.response.status_code
            reason = f"answered {status}{HINTS.get(status, '')}"
            return _Answer(None, reason, "away" if status in AWAY or status in HINTS else "server"), status in TRANSIENT
        if isinstance(error, (TimeoutError, InferenceTimeoutError, httpx2.TimeoutException)):
            # A time limit is not tried again: the next try would take as long.
            return _Answer(None, f"took too long (the limit is {self._seconds:g} s)", "server"), False
        if isinstance(error, httpx2.ConnectError):
            return _Answer(None, "cannot be reached", "away"), True
        if isinstance(error, (ConnectionError, httpx2.TransportError)):
            return _Answer(None, "broke off", "server"), True
        if isinstance(error, (ValueError, TypeError, KeyError, IndexError, AttributeError)):
            return _Answer(None, "gave an answer that is no chat completion", "server"), False
        return _Answer(None, f"failed ({type(error).__name__})", "server"), False
