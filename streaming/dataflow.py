"""The dataflow: changes in, points and feature messages out. Every decision is a function in another module."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import bytewax.operators as op
from bytewax.dataflow import Dataflow

from corpus.index import QdrantIndex
from streaming.changes import DeadLetter, Event, Ignored, Upsert, decode
from streaming.indexing import Indexed, Outcome, Removed, index_batch
from streaming.log import ChangeSource, FeatureOutlet, Log, Members, message_of
from streaming.progress import Progress

if TYPE_CHECKING:
    from corpus.embedding import Embedder
    from streaming.tracing import Traces


class Stopped(Exception):
    """The dataflow was stopped in the middle of a batch, of which nothing is written; its messages come again."""


def feature_dataflow(
    log: Log,
    warehouse: Callable[[], str],
    index: QdrantIndex,
    embedder: Embedder,
    progress: Progress,
    stop: threading.Event,
    stack: ExitStack,
    traces: Traces | None = None,
    frozen: bool = False,
) -> Dataflow:
    """Messages -> events -> outcomes. `warehouse()` is the id of the one whose changes count; `stop` ends it.

    What it holds open is closed with `stack`. `frozen`: the index was made by other recipes than this program's, so it
    takes deletions only: nothing is mixed.
    """

    def go_on() -> None:
        if stop.is_set():
            raise Stopped
        progress.embeds()

    def apply(events: list[Event]) -> list[Outcome]:
        times: dict[str, int] = {}
        outcomes = index_batch(events, index, embedder, go_on, lambda step: times.update({step: time.time_ns()}))
        times["indexed"] = time.time_ns()
        for outcome in outcomes:
            message_of(outcome).times.update(times)
            if isinstance(outcome, Indexed | Removed):
                progress.searchable(outcome.change.committed_at)
        return outcomes

    def taken(event: Event) -> Event:
        return Ignored(event.message, "frozen") if frozen and isinstance(event, Upsert | DeadLetter) else event

    members = Members(log, progress)
    stack.callback(members.close)
    flow = Dataflow("features")
    messages = op.input("changes", flow, ChangeSource(log, members, progress, stop))
    events = op.map("decode", messages, lambda message: taken(decode(message, warehouse())))
    # Compare, clean, split, embed and write in one step: a later batch must see what an earlier one wrote.
    outcomes = op.flat_map_batch("index", events, apply)
    op.output("publish and commit", outcomes, FeatureOutlet(log, members, progress, index.generation, traces))
    return flow
