"""The dataflow in a thread beside an event loop: started again when something it needs was away, ended before exit."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack

from bytewax.dataflow import Dataflow
from bytewax.testing import cluster_main

from streaming.dataflow import Stopped
from streaming.log import LogLost
from streaming.progress import Progress

logger = logging.getLogger(__name__)
FIRST_DELAY, LONGEST_DELAY = 0.2, 5.0
# Of Linux' 19: a tenth of the processor where the live dataflow and searches want it, all of it where they do not.
BACKGROUND = 10


class DataflowRunner:
    """Runs the dataflow that `build(stop, stack)` makes until `stop()`; after a failure it is built anew, with backoff.

    `stack` closes what the dataflow held open, however it ended.

    The dataflow's thread must have ended before the interpreter exits, or the process aborts: `stop()` sees to it.
    `background`: it and the threads that it starts take the processor time that nobody else wants.
    """

    def __init__(
        self,
        build: Callable[[threading.Event, ExitStack], Dataflow],
        progress: Progress,
        workers: int = 1,
        *,
        background: bool = False,
    ) -> None:
        self._build, self._progress, self._workers, self._background = build, progress, workers, background
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dataflow")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the dataflow within a second or so, and wait for that; a batch that it embeds is given up."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        delay = FIRST_DELAY
        if self._background and hasattr(os, "setpriority"):
            # On Linux a priority is a thread's own, and inherited.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BACKGROUND)
        while not self._stop.is_set():
            try:
                with ExitStack() as stack:
                    flow = self._build(self._stop, stack)
                    # While it tries again what failed, it still waits: the dataflow itself says when that is over.
                    if self._progress.state != "waiting":
                        self._progress.report("running", None)
                    cluster_main(flow, [], 0, worker_count_per_proc=self._workers)  # type: ignore[no-untyped-call]
            except BaseException as error:  # a panic of the runtime is no Exception, and may stand for one
                cause = _root(error)
                if isinstance(cause, Stopped):
                    break
                if isinstance(cause, LogLost):
                    logger.warning("the log was started anew: reading it from the start")
                    delay = FIRST_DELAY
                    continue
                if self._progress.state == "running":
                    delay = FIRST_DELAY
                reason = f"{type(cause).__name__}: {cause}"
                logger.warning("the dataflow stopped and starts again in %.1f s: %s", delay, reason)
                self._progress.report("waiting", reason)
                self._stop.wait(delay)
                delay = min(2 * delay, LONGEST_DELAY)
        self._progress.report("stopped", None)


def _root(error: BaseException) -> BaseException:
    """What really happened, below the runtime's own wrapping."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
