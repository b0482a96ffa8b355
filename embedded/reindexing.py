"""The generations of one index in one process: the live one, the one beside it, and how the roles change.

Every change of roles is one write of the alias (`corpus.generations`). What precedes it can be done again or left, and
what follows it is found out from the alias at the next start: a crash between any two steps is finished there
(docs/guarantees.md).
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from corpus import categories
from corpus.embedding import EmbedderUnavailable, load_embedder
from corpus.generations import (
    Alias,
    Aliases,
    Generation,
    GenerationMismatch,
    aliases_of,
    finish_removals,
    must_match,
    new_generation,
)
from corpus.index import QdrantIndex, open_generation
from corpus.settings import Settings
from embedded.app import Stream
from serving.parts import Served
from streaming.freshness import Delays
from streaming.log import hand_over
from streaming.planning import planned
from streaming.progress import Progress
from streaming.recall import questions, recall
from streaming.reconcile import TOGETHER, disagreement
from streaming.runner import DataflowRunner
from streaming.tracing import open_traces
from streaming.verify import NotApplied, Report, summary
from training.datasets.recording import Recorder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from corpus.embedding import Embedder
    from corpus.warehouse import Warehouse

logger = logging.getLogger(__name__)
# A candidate that is further behind is being built: nothing is gained by waiting for it.
NEARLY = 1000
# Between two attempts to promote a candidate that nobody asked for.
RETRY_SECONDS = 60.0
PAUSE = 0.05
GRACE_SECONDS = 2.0
CLOSING_SECONDS = 2.0
NO_CANDIDATE = "no generation is being built: `twin reindex start`"
NO_FORMER = "no former generation is kept: there is one after a `twin reindex promote`, until it is dropped"
STILL_APPLIED = "changes are still being applied (`twin reindex status` shows how far it is): "


class Unusable:
    """In place of an embedder that there is not: whatever it is asked, it says why."""

    name, dimensions, max_tokens, special_tokens = "none", 0, 256, 2

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        raise GenerationMismatch(self.reason)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        raise GenerationMismatch(self.reason)

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        raise GenerationMismatch(self.reason)


@dataclass(frozen=True)
class Role:
    """A generation that is open in this process; `began`: when it was taken up, and with how many documents."""

    generation: Generation
    stream: Stream
    runner: DataflowRunner | None
    began: tuple[float, int] = (0.0, 0)


@dataclass(frozen=True)
class Examined:
    """What a promotion or rollback was judged by, and when: it goes ahead if there are no `reasons` against it."""

    generation: str
    reasons: tuple[str, ...]
    verified: Report | None = None
    recall: Mapping[str, Any] | None = None
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


class Generations:
    """Opens what the alias names, runs a dataflow for each generation, and changes their roles.

    `served`: what a request is answered from, replaced by one assignment; `live` and `beside`: their streams. With
    `streaming` false another process runs the dataflows: this one follows the alias.
    """

    def __init__(
        self,
        settings: Settings,
        warehouse: Warehouse,
        *,
        streaming: bool = True,
        workers: int = 1,
        recorder: Recorder | None = None,
        aliases: Aliases | None = None,
        load: Callable[[Settings], Embedder] = load_embedder,
        stream: Callable[..., Stream] = Stream,
        runner: Callable[..., DataflowRunner] = DataflowRunner,
        handed_over: Callable[..., None] = hand_over,
    ) -> None:
        self.settings = settings
        self.progress = Progress(delays=Delays(settings.freshness_objective))
        self._warehouse, self._streaming, self._workers = warehouse, streaming, workers
        self._recorder = recorder
        self._aliases = aliases or aliases_of(settings)
        self._load, self._stream, self._runner, self._hand_over = load, stream, runner, handed_over
        self._acting, self._closed = threading.RLock(), threading.Event()
        self._opened: list[QdrantIndex] = []
        self._live: Role
        self._beside: Role | None = None
        self.alias: Alias
        self.served: Served
        self.examined: Examined | None = None
        self.note: str | None = None
        self._traces = (
            open_traces(settings.otlp_url, self.progress.count) if streaming and settings.otlp_url is not None else None
        )
        self._to_republish: list[str] | None = None
        self._tried_at = 0.0

    # What there is

    @property
    def live(self) -> Stream:
        return self._live.stream

    @property
    def beside(self) -> Stream | None:
        beside = self._beside
        return beside.stream if beside else None

    def streams(self) -> list[Stream]:
        return [stream for stream in (self.live, self.beside) if stream is not None]

    def stream(self, name: str | None) -> Stream:
        """The stream of a generation by its role or its name. Raises ValueError."""
        alias = self.alias
        roles = {"live": alias.live, "candidate": alias.candidate, "former": alias.former}
        for role in (self._live, self._beside):
            if role is not None and (name or "live") in (
                role.generation.name,
                *(word for word, generation in roles.items() if generation == role.generation),
            ):
                return role.stream
        there = ", ".join(f"{word} ({generation.name})" for word, generation in roles.items() if generation)
        raise ValueError(f"there is no generation {name!r}, there is {there}")

    def progress_beside(self) -> tuple[str, Progress] | None:
        """The role and the progress of the generation that is not live."""
        beside = self._beside
        return None if beside is None else (self._role_beside(), beside.stream.progress)

    def _role_beside(self) -> str:
        return "candidate" if self.alias.candidate else "former"

    # Coming and going

    def open(self) -> None:
        """Open what the alias names, finish what a crash left, and start the dataflows.

        Raises EmbedderUnavailable, IndexUnavailable.
        """
        with self._acting:
            alias = self._aliases.read()
            if alias is None:
                embedder = self._embedder(self.settings.embedding_model)
                name = categories.generation(embedder)
                first = Alias(live=new_generation(name, self.settings.embedding_model, embedder))
                alias = self._aliases.claim(first)
            self.alias = finish_removals(self._aliases, alias) if self._streaming else alias
            self._live = self._taken_up(self.alias.live, live=True)
            self._serve()
            if not self._streaming:
                return
            # The aliases of a server follow once its collections are there.
            self._aliases.claim(self.alias)
            self._note_filled_in()
            self._open_beside()
            self._start_where_needed()

    def _open_beside(self) -> None:
        beside = self.alias.beside
        if beside is None:
            return
        try:
            embedder = self._embedder(beside.model)
            must_match(beside, embedder)
            kept = categories.generation(embedder) == beside.name
        except (EmbedderUnavailable, GenerationMismatch) as error:
            logger.warning("generation %s cannot be kept up: %s", beside.name, error)
            kept = False
        if kept:
            self._beside = self._taken_up(beside, live=False)
            return
        # It cannot take changes any more, so it is of no use as either.
        logger.warning("generation %s was made by other recipes or another model, and is removed", beside.name)
        candidate = self.alias.candidate
        self._remove_beside()
        if candidate is not None and self._live.stream.frozen is None:
            self._begin(candidate.model, automatic=candidate.automatic)

    def _start_where_needed(self) -> None:
        """A live generation that takes deletions only is to be replaced soon, without anybody asking."""
        frozen = self._live.stream.frozen
        if frozen is not None:
            logger.warning("the live generation takes deletions only: %s", frozen)
            if self.alias.candidate is None:
                try:
                    reasons = self._begin(self.settings.embedding_model, automatic=True)
                except EmbedderUnavailable as error:
                    if isinstance(self.live.embedder, Unusable):
                        raise
                    reasons = [str(error)]
                if reasons:
                    self.note = "; ".join(reasons)
                    logger.warning("no other generation is built: %s", self.note)
        elif self._differs():
            logger.warning("%s", self._differs())

    def _differs(self) -> str | None:
        """What to do about settings that ask for another model than the live one's; None where they do not."""
        wanted, alias = self.settings.embedding_model, self.alias
        if wanted in (alias.live.model, ""):
            return None
        if alias.candidate is not None and alias.candidate.model == wanted:
            return None
        former = alias.former is not None and alias.former.model == wanted
        remedy = f"`twin reindex {'rollback' if former else 'start'}`, or set TWIN_EMBEDDING_MODEL={alias.live.model}"
        return f"served with {alias.live.model}; the settings ask for {wanted}: {remedy}"

    def look(self) -> None:
        """To be called every second or so: follow the alias, tell downstream, promote and remove what is due."""
        if self._aliases_changed():
            return
        if self._streaming:
            self._republish()
            self._promote_unasked()
            self._remove_expired()

    def _aliases_changed(self) -> bool:
        """Whether another process changed the alias of a server; then what it names now is taken up."""
        if self.settings.qdrant_url is None:
            return False
        with self._acting:
            found = self._aliases.read()
            if found is None or (found == self.alias if self._streaming else found.live == self.alias.live):
                return False
            logger.warning("generation %s is live now", found.live.name)
            for role in (self._live, self._beside):
                if role is not None and role.runner is not None:
                    role.runner.stop()
            self._beside = None
            self.open()
            return True

    def close(self) -> None:
        """End the dataflows and close the indexes."""
        self._closed.set()
        # What is under way may wait for a database that is away; the dataflows must have ended before the process.
        held = self._acting.acquire(timeout=CLOSING_SECONDS)
        try:
            for role in (self._beside, self._live if hasattr(self, "_live") else None):
                if role is not None and role.runner is not None:
                    role.runner.stop()
            if self._traces is not None:
                self._traces.close()
            for index in self._opened:
                index.close()
            self._opened.clear()
        finally:
            if held:
                self._acting.release()

    def _embedder(self, model: str) -> Embedder:
        return self._load(msgspec.structs.replace(self.settings, embedding_model=model))

    def _taken_up(self, generation: Generation, *, live: bool) -> Role:
        """Open a generation with the embedder that it was made with, and start its dataflow."""
        frozen: str | None = None
        embedder: Embedder
        try:
            embedder = self._embedder(generation.model or self.settings.embedding_model)
            must_match(generation, embedder)
            made = categories.generation(embedder)
            if made.rpartition("-")[0] != generation.name.rpartition("-")[0]:
                raise GenerationMismatch(f"the index was built as {generation.name}, and nothing here embeds for it")
            if made != generation.name:
                frozen = f"it was made by other recipes than this version's ({generation.name}, now {made})"
            generation = msgspec.structs.replace(
                generation,
                model=generation.model or self.settings.embedding_model,
                embedder=embedder.name,
                dimensions=embedder.dimensions,
            )
        except (EmbedderUnavailable, GenerationMismatch) as error:
            frozen = str(error)
            embedder = Unusable(frozen)
        index = open_generation(self.settings, generation)
        self._opened.append(index)
        return self._started(generation, index, embedder, live=live, frozen=frozen)

    def _started(
        self, generation: Generation, index: QdrantIndex, embedder: Embedder, *, live: bool, frozen: str | None = None
    ) -> Role:
        progress = self.progress if live else Progress()
        stream = self._stream(
            self.settings,
            self._warehouse,
            index,
            embedder,
            progress,
            publishes=live,
            term=generation.term,
            frozen=frozen,
            traces=self._traces if live else None,
            recorder=self._recorder,
        )
        if live:
            stream.others = lambda: [beside] if (beside := self.beside) is not None else []
        began = (time.monotonic(), index.counts().documents)
        if not self._streaming:
            return Role(generation, stream, None, began)
        runner = self._runner(stream.dataflow, progress, self._workers if live else 1, background=not live)
        runner.start()
        return Role(generation, stream, runner, began)

    def _note_filled_in(self) -> None:
        """Write down what an earlier version of this program did not know of its generation."""
        if self._live.generation != self.alias.live:
            self._write(msgspec.structs.replace(self.alias, live=self._live.generation))

    def _serve(self) -> None:
        self.served = Served(self._live.stream.index, self._live.stream.embedder)

    def _write(self, alias: Alias) -> None:
        self._aliases.write(alias)
        self.alias = alias

    # What is asked for

    def act(self, action: str, model: str | None = None, generation: str | None = None) -> dict[str, Any]:
        """Do what is asked, once, however often it is asked for. `done`, or the `reasons` why not; and the status.

        Raises EmbedderUnavailable, and what index, log and warehouse raise when they are away.
        """
        if (erasing := self.live.erasing) is not None:
            # It may wait for half an hour for the dataflow.
            reason = f"erasure {erasing[0]} is under way ({erasing[1]}): ask again when it has ended"
            return {"done": False, "reasons": [reason], **self.status()}
        with self._acting:
            if action == "start":
                reasons = self._start(model or self.settings.embedding_model)
            elif action == "cancel":
                reasons = self._cancel(generation)
            elif action == "drop":
                reasons = self._drop(generation)
            else:
                reasons = self._flip_to(generation, candidate=action == "promote")
            return {"done": not reasons, "reasons": list(reasons), **self.status()}

    def _start(self, model: str) -> list[str]:
        candidate = self.alias.candidate
        if candidate is not None:
            told = f"{candidate.name} ({candidate.model}) is being built"
            return [] if candidate.model == model else [f"{told}: `twin reindex cancel` first"]
        return self._begin(model, automatic=False)

    def _begin(self, model: str, *, automatic: bool) -> list[str]:
        embedder = self._embedder(model)
        name, former = categories.generation(embedder), self.alias.former
        if name == self.alias.live.name:
            return [f"{name} is live: nothing would change"]
        if former is not None:
            remedy = "rollback` makes it live" if former.name == name else "drop` removes it, then start"
            return [f"the former generation {former.name} is still kept: `twin reindex {remedy}"]
        generation = new_generation(name, model, embedder, automatic=automatic)
        # What a removal by hand or an older alias left under this name is of no use.
        self._aliases.remove(name)
        self._write(msgspec.structs.replace(self.alias, candidate=generation))
        self.examined = None
        self._beside = self._taken_up(generation, live=False)
        logger.warning("generation %s is being built beside %s", name, self.alias.live.name)
        return []

    def _cancel(self, name: str | None) -> list[str]:
        candidate = self.alias.candidate
        if candidate is None or name not in (None, candidate.name):
            return [] if name and name != self.alias.live.name else [NO_CANDIDATE]
        self._remove_beside()
        return []

    def _drop(self, name: str | None) -> list[str]:
        former = self.alias.former
        if former is None or name not in (None, former.name):
            return [] if name and name != self.alias.live.name else [NO_FORMER]
        self._remove_beside()
        return []

    def _remove_beside(self) -> None:
        """End and remove the generation beside the live one; from the first write on it is gone."""
        gone, beside = self.alias.beside, self._beside
        if gone is None:
            return
        # A request that began before a flip may still be asking it.
        self._closed.wait(max(0.0, (self.alias.flipped_at or 0.0) + GRACE_SECONDS - time.time()))
        removing = (*self.alias.removing, gone.name)
        self._write(msgspec.structs.replace(self.alias, candidate=None, former=None, removing=removing))
        self._beside = self.examined = None
        if beside is not None:
            if beside.runner is not None:
                beside.runner.stop()
            self._opened.remove(beside.stream.index)
            beside.stream.index.close()
        self.alias = finish_removals(self._aliases, self.alias)
        logger.warning("generation %s is removed", gone.name)

    def _flip_to(self, name: str | None, *, candidate: bool) -> list[str]:
        wanted, beside = self.alias.candidate if candidate else self.alias.former, self._beside
        if name is not None and name == self.alias.live.name:
            return []
        if wanted is None or beside is None or name not in (None, wanted.name):
            return [NO_CANDIDATE if candidate else NO_FORMER]
        examined = self._examine(beside, with_recall=candidate)
        if not examined.reasons:
            self._flip(beside, back=not candidate)
        self.examined = examined
        return list(examined.reasons)

    def erase(self, id: str | None, documents: Sequence[str], author: str | None) -> dict[str, Any]:
        """As `Stream.erase`, of all generations; none comes or goes meanwhile."""
        with self._acting:
            return self.live.erase(id, documents, author)

    def finish_erasures(self) -> None:
        """As `Stream.finish_erasures`."""
        with self._acting:
            self.live.finish_erasures()

    # Judging

    def _examine(self, beside: Role, *, with_recall: bool) -> Examined:
        stream, name = beside.stream, beside.generation.name
        lag = stream.progress.lag()
        if lag is None or lag > NEARLY:
            left = stream.progress.reason or "it has just been started" if lag is None else f"{lag} events are left"
            return Examined(name, (f"{STILL_APPLIED}{left}",))
        try:
            stream.settle()
            # What the log no longer holds, or capture missed.
            if stream.reconcile() != {"upserts": 0, "deletes": 0}:
                stream.settle()
        except NotApplied as error:
            return Examined(name, (f"{STILL_APPLIED}{error}",))
        report = stream.verify(repair=True)
        if report.found:
            report = stream.verify()
        reasons = []
        if report.found or report.unsettled:
            found = f"{report.found} faults" + (f" ({report.unsettled})" if report.unsettled else "")
            reasons.append(f"it is not what the warehouse says: {found}; see `twin verify --generation {name}`")
        new = {id for id, _ in disagreement(self._warehouse, stream.index).failed}
        refused = sorted(new - {id for id, _ in disagreement(self._warehouse, self.live.index).failed})
        if refused:
            reasons.append(
                f"{len(refused)} documents are refused that the live generation has ({', '.join(refused[:3])})"
            )
        if not with_recall:
            return Examined(name, tuple(reasons), report)
        asked = questions(stream.index)
        old = None if isinstance(self.live.embedder, Unusable) else (self.live.index, self.live.embedder)
        measured = recall(asked, (stream.index, stream.embedder), old)
        return Examined(name, (*reasons, *measured.reasons()), report, asdict(measured))

    # Changing roles

    def _flip(self, beside: Role, *, back: bool) -> None:
        """Make the generation beside the live one live, and the live one the former; or, if this is the way back, the
        candidate that it was."""
        live = self._live
        # Its own, at full priority: threads keep the priority that they were started with.
        embedder = self._embedder(beside.generation.model)
        must_match(beside.generation, embedder)
        successor = msgspec.structs.replace(beside.generation, term=uuid.uuid4().hex[:8], automatic=False)
        alias = Alias(
            live=successor,
            candidate=live.generation if back else None,
            former=None if back else live.generation,
            flipped_at=time.time(),
            republish=True,
        )
        for role in (live, beside):
            if role.runner is not None:
                role.runner.stop()
        try:
            begun = beside.stream.log()
            # The offsets first: of a term that never came, they mean nothing.
            self._hand_over(live.stream.log(), begun, dataclasses.replace(begun, publishes=True, term=successor.term))
            self._write(alias)
        except Exception:
            self._live, self._beside = self._again(live, live=True), self._again(beside, live=False)
            raise
        # What answers a request that begins now is one value.
        self.served = Served(beside.stream.index, embedder)
        verified = beside.stream.verified
        self._live = self._again(beside, live=True, generation=successor, embedder=embedder)
        self._live.stream.verified = verified
        self._beside = self._again(live, live=False)
        self._to_republish = None
        logger.warning("generation %s is live, %s is kept", successor.name, live.generation.name)
        if live.stream.frozen is not None:
            # It cannot take changes, so there is no way back to it.
            self._remove_beside()

    def _again(
        self, role: Role, *, live: bool, generation: Generation | None = None, embedder: Embedder | None = None
    ) -> Role:
        stream = role.stream
        return self._started(
            generation or role.generation,
            stream.index,
            embedder or stream.embedder,
            live=live,
            frozen=stream.frozen,
        )

    def _republish(self) -> None:
        """Tell downstream of every document of a generation that became live, a few at a time between other changes."""
        while not self._closed.is_set() and (stream := self._republish_some()) is not None:
            self._closed.wait(PAUSE)
            while stream is self.live and stream.progress.lag() != 0 and not self._closed.is_set():
                self._closed.wait(PAUSE)

    def _republish_some(self) -> Stream | None:
        """Send the next documents; the stream that they are sent for, or None when there is nothing left to send."""
        with self._acting:
            if not self.alias.republish:
                return None
            if self._to_republish is None:
                self._to_republish = [stamp.id for stamp in self._warehouse.stamps()]
            part = self._to_republish[:TOGETHER]
            if not part:
                self._to_republish = None
                self._write(msgspec.structs.replace(self.alias, republish=False))
                return None
            # A document that did not change is published all the same.
            self.live.send(part)
            del self._to_republish[:TOGETHER]
            return self.live

    def _promote_unasked(self) -> None:
        candidate, beside = self.alias.candidate, self._beside
        if candidate is None or beside is None or not candidate.automatic or beside.stream.progress.lag() != 0:
            return
        if self._tried_at and time.monotonic() < self._tried_at + RETRY_SECONDS:
            return
        with self._acting:
            reasons = self._flip_to(candidate.name, candidate=True)
            self._tried_at = time.monotonic()
        if reasons:
            logger.warning("generation %s is not promoted yet: %s", candidate.name, "; ".join(reasons))

    def _remove_expired(self) -> None:
        with self._acting:
            former, since = self.alias.former, self.alias.flipped_at
            if former is not None and since is not None and self._removed_at(since) < time.time():
                self._remove_beside()

    def _removed_at(self, flipped_at: float) -> float:
        return flipped_at + self.settings.generation_retention

    # What is shown

    def plan(self, model: str | None = None) -> dict[str, Any]:
        """What a generation of this model takes, measured on a sample. Raises EmbedderUnavailable."""
        model = model or self.settings.embedding_model
        embedder, alias, live = self._embedder(model), self.alias, self.live
        name = categories.generation(embedder)
        plan = planned(self._warehouse, name, embedder)
        size, chunks = self._aliases.size(alias.live.name), live.index.counts().chunks
        disk = None if size is None or not chunks else round(size / chunks * plan.chunks)
        return {
            "model": model,
            "generation": name,
            "live": {"model": alias.live.model, "generation": alias.live.name},
            "changes": name != alias.live.name,
            **asdict(plan),
            "disk_bytes": disk,
            "disk_bytes_free": _free(self.settings) if size is not None else None,
        }

    def status(self) -> dict[str, Any]:
        """The generations, how far the one being built is, and what is to be done; `twin reindex status --json`."""
        alias, live, beside, examined = self.alias, self._live, self._beside, self.examined
        erasing = live.stream.erasing
        return {
            "wanted": self.settings.embedding_model,
            "live": {**_shown(live), "frozen": live.stream.frozen},
            "candidate": self._progress_of(beside) if beside and alias.candidate else None,
            "former": self._kept(beside, alias.flipped_at or 0.0) if beside and alias.former else None,
            "note": self.note or (self._differs() if live.stream.frozen is None else None),
            "erasing": None if erasing is None else {"id": erasing[0], "doing": erasing[1]},
            "republish": len(self._to_republish or ()) if alias.republish else None,
            "examined": None
            if examined is None
            else {
                "generation": examined.generation,
                "at": examined.at.isoformat(timespec="seconds"),
                "reasons": list(examined.reasons),
                "recall": examined.recall,
                "verified": summary(examined.verified) if examined.verified else None,
            },
        }

    def _progress_of(self, role: Role) -> dict[str, Any]:
        """How far a candidate is: rate and seconds left as long as both can be told. A document that is refused is
        nothing to wait for."""
        shown, total, refused = _shown(role), self._warehouse.count(), role.stream.index.refused()
        seconds, done = time.monotonic() - role.began[0], shown["documents"] - role.began[1]
        rate = done / seconds if done > 0 else None
        left = max(0, total - shown["documents"] - refused)
        progress = role.stream.progress
        return {
            **shown,
            "refused": refused,
            "total": total,
            "built": progress.lag() == 0 and not left,
            "state": progress.state,
            "reason": progress.reason,
            "lag": progress.lag(),
            "documents_per_second": round(rate, 2) if rate else None,
            "seconds_left": round(left / rate, 1) if rate else None,
            "automatic": role.generation.automatic,
        }

    def _kept(self, role: Role, since: float) -> dict[str, Any]:
        told = {"since": since, "removed_at": self._removed_at(since)}
        return {
            **_shown(role),
            "lag": role.stream.progress.lag(),
            **{name: datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds") for name, at in told.items()},
        }


def _shown(role: Role) -> dict[str, Any]:
    counts = role.stream.index.counts()
    return {
        "generation": role.generation.name,
        "model": role.generation.model,
        "documents": counts.documents,
        "chunks": counts.chunks,
    }


def _free(settings: Settings) -> int:
    return shutil.disk_usage(settings.home).free
