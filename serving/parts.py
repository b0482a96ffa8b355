"""What the app is made of: everything it depends on is handed to it in one value."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from corpus.index import Index
from corpus.prompts import Message
from corpus.settings import Settings

if TYPE_CHECKING:
    from corpus.warehouse import Stamp


class Embedder(Protocol):
    """Texts to unit vectors, float32 of shape (texts, dimensions); blocks while it computes."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]: ...


class Warehouse(Protocol):
    """The reading side of the warehouse that the app needs; blocks. Raises ConnectionError when it is away."""

    def stamps(self, ids: Iterable[str] | None = None) -> Iterable[Stamp]: ...

    def metadata(self, id: str) -> Mapping[str, object]: ...


class LanguageModel(Protocol):
    """A chat model by address: `stream` yields pieces of text; raises `serving.language_model.LanguageModelError`.

    `name`: the version that its answers name; asked for after an answer, as its server may be who tells it.
    """

    @property
    def name(self) -> str: ...

    def stream(self, messages: Sequence[Message]) -> AsyncGenerator[str]: ...


class Choose(Protocol):
    """The model that gives the next answer of this conversation (None: of none that is known), after those that were
    `tried` for it said nothing. None: there is no other, and the answer is quoted. Does not block."""

    def __call__(self, conversation: str | None, tried: Sequence[LanguageModel]) -> LanguageModel | None: ...


@dataclass(frozen=True, slots=True)
class Served:
    """One generation as it is asked: its index, and the embedder whose vectors may be compared with it.

    Whoever asks takes both from one value: a promotion between embedding a question and searching mixes nothing.
    """

    index: Index
    embedder: Embedder


class Warehoused(TypedDict):
    documents: int


class Indexed(TypedDict):
    documents: int
    chunks: int
    generation: str


class Streamed(TypedDict):
    """How the dataflow is: its state, why it is in it, its consumer group, what it has counted, and the open dead
    letters by the step that refused them."""

    state: str
    reason: str | None
    group: str
    counts: dict[str, int]
    letters: dict[str, int]


class Status(TypedDict):
    """How the app follows the warehouse: `lag` in events, None while nothing is read; `freshness`: `p50`, `p95` and
    `p99` in seconds over the last five minutes, None without a change, with further windows, objective and burn;
    `oldest`: the oldest unprocessed change of each partition, None without a log; `verified`: the last verification of
    everything, without its faults; `generations`: what `twin reindex status` shows."""

    warehouse: Warehoused
    index: Indexed
    lag: int | None
    freshness: dict[str, Any]
    oldest: dict[str, Any] | None
    stream: Streamed
    verified: dict[str, Any] | None
    generations: dict[str, Any]


class Verify(Protocol):
    """Compares everything in the index with the warehouse, or what was read `since`, or a `sample` of documents.

    `generation`: live, candidate, former or a name; the live one unless told. Raises ValueError for one there is not.
    """

    def __call__(
        self, repair: bool, since: datetime | None, sample: int | None, generation: str | None
    ) -> Mapping[str, Any]: ...


class Reindex(Protocol):
    """Does what `action` says (start, cancel, promote, rollback, drop) to the generation named, or the model's."""

    def __call__(self, action: str, model: str | None, generation: str | None) -> Mapping[str, Any]: ...


class ToErase(Protocol):
    """What an erasure of these documents, or of all that an author wrote, would remove; `unknown`: ids of nothing."""

    def __call__(self, documents: Sequence[str], author: str | None) -> Mapping[str, Any]: ...


class Erase(Protocol):
    """Erases these documents for good, or goes on with the erasure of this id (None: the newest), and gives a receipt.

    Raises LookupError when there is nothing of the kind.
    """

    def __call__(self, id: str | None, documents: Sequence[str], author: str | None) -> Mapping[str, Any]: ...


class Reconciled(TypedDict):
    """How many documents were sent again."""

    upserts: int
    deletes: int


@dataclass(frozen=True, slots=True)
class Parts:
    """The dependencies of the app.

    `served`: the generation that is live at this moment; `choose_model`: the language model that answers; `status`:
    what `twin status` shows; `reconcile`: compare warehouse and index now, answering what was done; `verify`: the same
    for every point, answering a report; `verified`: the last such report of everything; `reindex` and its like: what
    becomes of the generations; `erase`: remove documents for good, answering a receipt, and `to_erase` what would go;
    `checks`: by part name, a function that raises when that part is not ready (the index is always checked);
    `registry`: where the dataflow registers metrics of its own before the app starts. All functions but `served` and
    `choose_model` may block: they run in threads.
    """

    settings: Settings
    served: Callable[[], Served]
    warehouse: Warehouse
    status: Callable[[], Status]
    choose_model: Choose = lambda conversation, tried: None
    reconcile: Callable[[], Reconciled] | None = None
    verify: Verify | None = None
    verified: Callable[[], Mapping[str, Any] | None] = lambda: None
    to_erase: ToErase | None = None
    erase: Erase | None = None
    reindex: Reindex | None = None
    reindex_plan: Callable[[str | None], Mapping[str, Any]] | None = None
    reindex_status: Callable[[], Mapping[str, Any]] | None = None
    checks: Mapping[str, Callable[[], object]] = field(default_factory=dict)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
