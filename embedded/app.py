"""The app of one machine in one process: the pages and the API, the index, and the dataflow in a thread beside them."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from random import SystemRandom
from typing import TYPE_CHECKING, Any

from corpus.agreement import Disagreement
from corpus.documents import ORDER_BITS
from corpus.history import History, HistoryUnavailable
from corpus.index import QdrantIndex
from corpus.settings import Settings, running_addresses
from embedded.home import renew_log
from streaming import erase
from streaming.clients import LogFailed
from streaming.dataflow import feature_dataflow
from streaming.lag import LOOK_SECONDS, STILL_SECONDS, Probe
from streaming.log import Log
from streaming.progress import Progress
from streaming.reconcile import Repaired, disagreement, missed, reenter
from streaming.tracing import Traces
from streaming.verify import NotApplied, Report, Verification, described, summary
from streaming.waiting import TimedOut, Wait
from training.datasets.recording import Recorder, open_recorder

if TYPE_CHECKING:
    from bytewax.dataflow import Dataflow

    from corpus.embedding import Embedder
    from corpus.warehouse import Erasure, Warehouse
    from embedded.reindexing import Generations
    from serving.parts import Reconciled, Status

logger = logging.getLogger(__name__)
CONNECTOR_INTERVAL = 5.0
WAREHOUSE_INTERVAL = 1.0
TOMBSTONE_INTERVAL = 3600.0
GENERATIONS_INTERVAL = 1.0
HISTORY_INTERVAL = 5.0
# For changes under way to be applied, before a verification looks again.
SETTLE_SECONDS = 30.0
# For the whole warehouse to be read again into a log that was started anew.
ERASE_SETTLE_SECONDS = 1800.0
ERASE_INTERVAL = 60.0
RENEWAL_SECONDS = 60.0
LAST_LOOK = 1.0


@dataclass
class Stream:
    """The dataflow of these settings and what it needs: for the app of one machine and for `twin stream`.

    `publishes`: downstream is told, as it is by the live generation's alone; `term`: which time it is live; `frozen`:
    why the index takes deletions only; `others`: the streams of the generations beside this one; `warehouse_id`: the
    identity of the warehouse whose changes count, once it was asked; `verified`: the report of the last verification of
    everything; `erasing`: the id of the erasure that is under way, and what it does.
    """

    settings: Settings
    warehouse: Warehouse
    index: QdrantIndex
    embedder: Embedder
    progress: Progress
    publishes: bool = True
    term: str = ""
    frozen: str | None = None
    others: Callable[[], Sequence[Stream]] = tuple
    warehouse_id: str = ""
    verified: Report | None = None
    erasing: tuple[str, str] | None = None
    _verifying: threading.Lock = field(default_factory=threading.Lock)
    traces: Traces | None = None
    recorder: Recorder | None = None
    _erasing: threading.Lock = field(default_factory=threading.Lock)
    _told: str = ""

    def log(self) -> Log:
        from ingestion.topics import topics

        named = topics(self.settings)
        return Log(
            bootstrap=self.settings.kafka_bootstrap_servers or "",
            changes=named.documents,
            documents=named.feature_documents,
            chunks=named.feature_chunks,
            dead_letters=named.dead_letters,
            index_id=self.index.id,
            epoch=self.epoch,
            # A local index belongs to one process, and so does the log of a home.
            shared=self.settings.qdrant_url is not None and not self.epoch(),
            publishes=self.publishes,
            term=self.term,
        )

    def epoch(self) -> str:
        """Which life of the log this is: the home's supervisor writes it down before it starts a log anew."""
        return running_addresses(self.settings.home).get("log_epoch", "")

    def dataflow(self, stop: threading.Event, stack: ExitStack) -> Dataflow:
        self.recognise()
        return feature_dataflow(
            self.log(),
            lambda: self.warehouse_id,
            self.index,
            self.embedder,
            self.progress,
            stop,
            stack,
            self.traces,
            frozen=self.frozen is not None,
        )

    def recognise(self) -> None:
        """Follow the warehouse that answers now: a database that was dropped and filled again has another identity."""
        found = self.warehouse.identity()
        if self.warehouse_id not in ("", found):
            logger.warning("the warehouse was dropped or replaced: its documents are followed anew")
            if self.settings.connect_url is not None and self.publishes:
                self._register_anew(self.settings.connect_url, found)
        self.warehouse_id = found

    def _register_anew(self, connect_url: str, warehouse_id: str) -> None:
        """The connector writes its warehouse's identity into every change, so the former one is of no more use."""
        from ingestion.capture import connect_configuration, connector_name, delete, register

        register(connect_url, connect_configuration(self.settings, warehouse_id))
        delete(connect_url, connector_name(self.warehouse_id))

    def reconcile(self) -> Reconciled:
        """Send what capture missed into the dataflow again."""
        self.recognise()
        differing = self.missed()
        if not differing:
            return {"upserts": 0, "deletes": 0}
        repaired = self.send(differing)
        logger.warning("reconcile sent %d upserts and %d deletes again", repaired.upserts, repaired.deletes)
        self.progress.count(reconciled=repaired.upserts + repaired.deletes)
        return {"upserts": repaired.upserts, "deletes": repaired.deletes}

    def missed(self) -> tuple[str, ...]:
        """Documents in which the index differs from the warehouse and would follow it; some are on their way."""
        difference, strays = missed(self.warehouse, self.index)
        gone = tuple(dict.fromkeys((*difference.leftover, *strays)))
        return gone if self.frozen else tuple(dict.fromkeys((*difference.behind, *gone)))

    def verify(self, repair: bool = False, since: datetime | None = None, sample: int | None = None) -> Report:
        """Compare everything in the index with the warehouse; one verification at a time."""
        with self._verifying:
            self.recognise()
            verification = Verification(
                self.warehouse, self.index, self.embedder, self.settle, partial(self.send, repair=True)
            )
            report = verification.run(repair=repair, since=since, sample=sample)
            if since is None and sample is None:
                self.verified = report
        self.progress.count(verified=1, repaired=report.repaired)
        if report.found:
            unsure = f"; changes were on their way: {report.unsettled}" if report.unsettled else ""
            logger.warning("verification found %d faults and mended %d%s", report.found, report.repaired, unsure)
        return report

    def last_report(self) -> dict[str, Any] | None:
        """The last verification of everything, without its faults."""
        return summary(self.verified) if self.verified else None

    def to_erase(self, documents: Sequence[str], author: str | None) -> dict[str, Any]:
        """What an erasure of these would remove."""
        return asdict(erase.choose(self.warehouse, self.index, documents, author, self._whole_history().bylines()))

    def erase(self, id: str | None, documents: Sequence[str], author: str | None) -> dict[str, Any]:
        """Erase documents for good, or go on with the erasure `id` (None: the newest); the receipt.

        Raises NothingToErase; ConnectionError when it cannot be finished now, which is made up for by itself later.
        """
        begun = self.warehouse.erasures({} if id is None else {"_id": id})
        if not begun and id is not None and (documents or author is not None):
            chosen = erase.choose(self.warehouse, self.index, documents, author, self._whole_history().bylines())
            if chosen.unknown:
                raise erase.NothingToErase(f"no document is found by the id {chosen.unknown[0]!r}")
            if not chosen.documents and not chosen.authors:
                raise erase.NothingToErase(f"there is no author {author!r}")
            begun = [erase.begin(self.warehouse, id, chosen, datetime.now(UTC))]
        if not begun:
            raise erase.NothingToErase("there is no such erasure" if id else "nothing was ever erased")
        with self._erasing:
            # Somebody may have finished it while this waited.
            return self._finish_erasing(self.warehouse.erasures({"_id": begun[-1].id})[0])

    def finish_erasures(self) -> None:
        """Finish what a crash broke off, and tell a log that was started anew of all that was erased before."""
        if not self._erasing.acquire(blocking=False):
            return
        try:
            for erasure in self.warehouse.erasures({"state": "open"}):
                logger.warning("erasure %s is open and goes on", erasure.id)
                self._finish_erasing(erasure)
            epoch = self.epoch()
            if epoch != self._told:
                erase.tell(self.log().bootstrap, self._erasures_topic(), self.warehouse.erasures({}))
                self._told = epoch
        finally:
            self._erasing.release()

    def _finish_erasing(self, erasure: Erasure) -> dict[str, Any]:
        self.recognise()
        reach = erase.Reach(
            settings=self.settings,
            warehouse=self.warehouse,
            indexes=tuple(stream.index for stream in (self, *self.others())),
            log=self.log(),
            events=self._erasures_topic(),
            settle=self._settle_all,
            renew=self._renew_log,
            history=self._whole_history,
        )

        def went_on(step: str) -> None:
            self.erasing = erasure.id, erase.DOING[step]

        went_on("files" if erasure.state == "done" else "")
        try:
            receipt = erase.finish(reach, erasure, went_on)
            # One that was done already is only looked at again.
            if erasure.state != "done" and not receipt["left"]:
                self.progress.count(documents_erased=len(erasure.document_ids))
            return receipt
        except (NotApplied, LogFailed, HistoryUnavailable) as error:
            raise ConnectionError(f"erasure {erasure.id} is not finished and goes on by itself: {error}") from error
        finally:
            self.erasing = None

    def _settle_all(self) -> None:
        """Return when all that was acknowledged is applied to each generation. Raises NotApplied."""
        for stream in (self, *self.others()):
            stream.settle(ERASE_SETTLE_SECONDS)

    def _whole_history(self) -> History:
        """The document history with all that downstream was told. Raises FeaturesUnavailable or HistoryUnavailable."""
        if self.recorder is None:
            self.recorder = open_recorder(self.settings)
        self.recorder.catch_up()
        return self.recorder.history

    def _erasures_topic(self) -> str:
        from ingestion.topics import topics

        return topics(self.settings).erasures

    def _renew_log(self) -> bool:
        """Start the log anew if it is the one of this home; whether it was. Raises NotApplied."""
        if "kafka_bootstrap_servers" not in running_addresses(self.settings.home):
            return False
        former = self.epoch()
        renew_log(self.settings.home)
        deadline = time.monotonic() + RENEWAL_SECONDS
        while self.epoch() in ("", former):
            if time.monotonic() > deadline:
                raise NotApplied("the log is not started anew")
            time.sleep(0.05)
        return True

    def forget_tombstones(self) -> None:
        """Remove the records of documents that were deleted longer ago than the settings keep them."""
        oldest = self.warehouse.now() - (int(self.settings.tombstone_retention * 1000) << ORDER_BITS)
        self.progress.count(tombstones_removed=self.index.forget_tombstones(oldest))

    def send(self, ids: Iterable[str], *, repair: bool = False) -> Repaired:
        """Send the present state of these documents into the dataflow again. Raises LogFailed."""
        log = self.log()
        return reenter(self.warehouse, log.bootstrap, log.changes, self.settings.database, ids, repair=repair)

    def settle(self, seconds: float = SETTLE_SECONDS) -> None:
        """Return when all that was acknowledged is applied. Raises NotApplied."""
        from ingestion.topics import topics

        log = self.log()
        deadline = time.monotonic() + seconds
        wait = Wait(
            lambda: self.warehouse,
            _Itself(self),
            lambda: log.bootstrap,
            log.changes,
            topics(self.settings).watermarks,
            deadline,
        )
        try:
            wait.until_applied()
        except TimedOut as error:
            raise NotApplied(str(error)) from error

    def status(self, generations: dict[str, Any], probe: Probe | None) -> Status:
        counts = self.index.counts()
        return {
            "warehouse": {"documents": self.warehouse.count()},
            "index": {"documents": counts.documents, "chunks": counts.chunks, "generation": self.index.generation},
            "lag": self.progress.lag(),
            "verified": self.last_report(),
            "generations": generations,
            "freshness": self.progress.freshness(),
            "oldest": self._oldest(probe) if probe is not None else None,
            "stream": {
                "state": self.progress.state,
                "reason": self.progress.reason,
                "group": self.log().group(self.epoch()),
                "counts": self.progress.counted(),
                "letters": self.progress.letters() or {},
            },
        }

    def _oldest(self, probe: Probe) -> dict[str, Any]:
        told = probe.told()
        # A batch of long documents on a busy machine takes longer than a dataflow that hangs may go unseen.
        return {**told, "stuck": told["stuck"] and not self.progress.embedding(STILL_SECONDS)}


@dataclass(frozen=True)
class _Itself:
    """This app, as a wait asks it."""

    of: Stream

    def stream(self) -> Mapping[str, str]:
        return {"group": self.of.log().group(self.of.epoch()), "epoch": self.of.epoch()}

    def disagreement(self) -> Disagreement:
        return disagreement(self.of.warehouse, self.of.index)

    def reconcile(self) -> None:
        self.of.reconcile()


class Repeated:
    """Calls `look` every `interval` seconds in a thread of its own until stopped; one that fails is tried again."""

    def __init__(self, name: str, look: Callable[[], object], interval: float, *, at_once: bool = False) -> None:
        self._name, self._look, self._interval, self._at_once = name, look, interval, at_once
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Look no more. A look at a database that is away would take half a minute: it is left to end by itself."""
        self._stop.set()
        self._thread.join(LAST_LOOK)

    def _run(self) -> None:
        while not self._stop.wait(0 if self._at_once else self._interval):
            self._at_once = False
            try:
                self._look()
            except Exception as error:  # the next look finds out whether what was away is back
                logger.warning("%s could not look: %s: %s", self._name, type(error).__name__, error)


class Twice:
    """What was found by two looks in a row, and so was not just on its way."""

    def __init__(self) -> None:
        self._before: frozenset[str] = frozenset()

    def found(self, now: Collection[str] | None) -> set[str]:
        """Of what is found now that which was found by the look before too; None while changes are under way."""
        found = frozenset(now or ())
        again = set(found & self._before)
        self._before = found
        return again


class Reconciler:
    """Compares index and warehouse; what differs twice in a row while nothing is under way was missed."""

    def __init__(self, stream: Callable[[], Stream | None]) -> None:
        self._stream = stream
        self._missed = Twice()

    def look(self) -> None:
        stream = self._stream()
        missed = stream.missed() if stream is not None and stream.progress.lag() == 0 else None
        if self._missed.found(missed) and stream is not None:
            stream.reconcile()


class Chronicle:
    """Notes the end of documents that the history holds and nobody else does: the log lost the message that told it."""

    def __init__(self, generations: Generations, recorder: Recorder) -> None:
        self._generations, self._recorder = generations, recorder
        self._strays = Twice()

    def look(self) -> None:
        stream = self._generations.live
        quiet = stream.progress.lag() == 0 and self._recorder.behind == 0
        strays: set[str] | None = None
        if quiet:
            live = self._recorder.live()
            same = len(live) == stream.index.counts().documents
            strays = set() if same else live - {record.document_id for record in stream.index.scan()}
        gone = self._strays.found(strays)
        if gone:
            noted = self._recorder.end(gone, datetime.now(UTC))
            logger.warning("%d documents ended without a message, and the history notes it", noted)


def revive_connector(connect_url: str, stream: Stream) -> None:
    """Start the connector at Connect again if it gave up, as it does when MongoDB was away for long."""
    from ingestion.capture import connector_name, connector_status, restart

    name = connector_name(stream.warehouse_id)
    status = connector_status(connect_url, name)
    if status.state == "failed":
        logger.warning("connector %s failed and is started again: %s", name, status.reason)
        restart(connect_url, name)


def keep_complete(generations: Generations, recorder: Recorder, stack: ExitStack) -> None:
    """Start what keeps the generations of a running dataflow, and the document history, complete; `stack` ends it."""
    settings = generations.settings

    def each(do: Callable[[Stream], object]) -> None:
        for stream in generations.streams():
            do(stream)

    def verify() -> None:
        if generations.live.frozen is None:
            generations.live.verify(repair=True)

    # The history is followed without an end, which the others are not.
    ended = threading.Event()
    stack.callback(ended.set)
    watches = [
        Repeated("reconcile", Reconciler(lambda: generations.live).look, settings.reconcile_interval),
        Repeated("reconcile beside", Reconciler(lambda: generations.beside).look, settings.reconcile_interval),
        Repeated("warehouse", partial(each, Stream.recognise), WAREHOUSE_INTERVAL),
        Repeated("verify", verify, settings.verify_interval),
        Repeated("erasures", generations.finish_erasures, ERASE_INTERVAL, at_once=True),
        Repeated("tombstones", partial(each, Stream.forget_tombstones), TOMBSTONE_INTERVAL),
        Repeated("history", partial(recorder.run, ended), HISTORY_INTERVAL, at_once=True),
        Repeated("history's strays", Chronicle(generations, recorder).look, settings.reconcile_interval),
    ]
    if settings.connect_url is not None:
        url = settings.connect_url
        watches.append(Repeated("connector", lambda: revive_connector(url, generations.live), CONNECTOR_INTERVAL))
    for watch in watches:
        stack.callback(watch.stop)
        watch.start()


def opened(recorder: Recorder, end: Callable[[], None]) -> Future[History]:
    """The document history, opened in a thread: it takes some tenths of a second, for which nobody who asks need wait.

    `end` is called when it cannot be opened.
    """
    opening: Future[History] = Future()

    def open_it() -> None:
        try:
            opening.set_result(recorder.history)
        except BaseException as error:
            opening.set_exception(error)
            end()

    threading.Thread(target=open_it, name="opening the history", daemon=True).start()
    return opening


def serve(settings: Settings, port: int, *, with_stream: bool) -> None:
    """Run the app on `port` until SIGTERM or Ctrl-C; with the dataflow where this process owns the index.

    Raises EmbedderUnavailable, IndexUnavailable, WarehouseUnavailable, HistoryUnavailable, or what the app refuses its
    settings with.
    """
    import signal

    import uvicorn
    from prometheus_client import CollectorRegistry

    from corpus.warehouse import connect
    from embedded.reindexing import Generations
    from serving.app import create_app
    from serving.deployment import Deployments
    from serving.parts import Parts
    from streaming.metrics import BesideMetrics, StreamMetrics

    # The server raises the signal that ended it once more; left to its default it would end us with all still open.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with ExitStack() as stack:
        warehouse = connect(settings)
        stack.callback(warehouse.close)
        recorder = open_recorder(settings)
        generations = Generations(settings, warehouse, streaming=with_stream, recorder=recorder)
        stack.callback(generations.close)
        generations.open()
        watch = Repeated("generations", generations.look, GENERATIONS_INTERVAL)
        stack.callback(watch.stop)
        watch.start()
        progress = generations.progress
        probe = _probe(generations, stack) if settings.kafka_bootstrap_servers is not None else None
        checks = {}
        if with_stream:
            keep_complete(generations, recorder, stack)
            checks["stream"] = lambda: _must_run(progress)
        registry = CollectorRegistry()
        registry.register(StreamMetrics(progress, lambda: generations.live.verified, probe))
        registry.register(BesideMetrics(generations.progress_beside))
        app = create_app(
            Parts(
                settings=settings,
                served=lambda: generations.served,
                warehouse=warehouse,
                status=lambda: generations.live.status(generations.status(), probe),
                choose_model=Deployments(settings, SystemRandom()).choose,
                reconcile=lambda: generations.live.reconcile(),
                verify=lambda repair, since, sample, name: described(
                    generations.stream(name).verify(repair, since, sample)
                ),
                verified=lambda: generations.live.last_report(),
                to_erase=lambda documents, author: generations.live.to_erase(documents, author),
                erase=generations.erase,
                reindex=generations.act if with_stream else None,
                reindex_plan=generations.plan if with_stream else None,
                reindex_status=generations.status if with_stream else None,
                checks=checks,
                registry=registry,
            )
        )
        server = uvicorn.Server(
            uvicorn.Config(
                app, host=settings.host, port=port, log_level="warning", timeout_graceful_shutdown=2, lifespan="on"
            )
        )

        def end() -> None:
            server.should_exit = True

        opening = opened(recorder, end)
        asyncio.run(server.serve())
        # A history that cannot be opened ended the server.
        opening.result()


def _probe(generations: Generations, stack: ExitStack) -> Probe:
    """Looks for the oldest unprocessed change of the live generation, also where its dataflow is another process: the
    log knows how far that is."""
    probe = Probe(generations.live.log())

    def look() -> None:
        probe.follow(generations.live.log())
        probe.look()

    watch = Repeated("oldest", look, LOOK_SECONDS)
    stack.callback(watch.stop)
    stack.callback(probe.close)
    watch.start()
    return probe


def _must_run(progress: Progress) -> None:
    if progress.lag() is None:
        raise RuntimeError(progress.reason or f"the dataflow is {progress.state}")


def follow(settings: Settings, workers: int, metrics_port: int | None = None) -> None:
    """Run the dataflow alone until interrupted, for an index on a Qdrant server. Raises OSError without the port."""
    import signal

    from corpus.warehouse import connect
    from embedded.reindexing import Generations
    from streaming.metrics import BesideMetrics, StreamMetrics, served

    with ExitStack() as stack:
        warehouse = connect(settings)
        stack.callback(warehouse.close)
        recorder = open_recorder(settings)
        generations = Generations(settings, warehouse, workers=workers, recorder=recorder)
        stack.callback(generations.close)
        ended = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())
        generations.open()
        if metrics_port is not None:
            # Not the oldest change and not the verifications: the app tells of those, for all workers.
            told = StreamMetrics(generations.progress), BesideMetrics(generations.progress_beside)
            address = stack.enter_context(served(told, settings.host, metrics_port))
            sys.stderr.write(f"twin: metrics at {address}\n")
        watch = Repeated("generations", generations.look, GENERATIONS_INTERVAL)
        stack.callback(watch.stop)
        watch.start()
        keep_complete(generations, recorder, stack)
        opening = opened(recorder, ended.set)
        ended.wait()
        if opening.done():
            # A history that cannot be opened ended it.
            opening.result()
