"""`twin wait` over the parts of a home: which warehouse, log and app its evidence comes from."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from corpus.agreement import Disagreement
from corpus.settings import Settings, load
from ingestion.topics import topics
from serving.client import AppRefused, AppUnavailable, call
from streaming.waiting import TimedOut, Wait

if TYPE_CHECKING:
    from corpus.warehouse import Warehouse

# What answers, but late, is waited for: who is in time says better what is behind.
GRACE = 0.5


@dataclass
class RunningApp:
    """The app of these settings, asked over HTTP; while it is away every call raises ConnectionError at once."""

    settings: Settings

    def stream(self) -> Mapping[str, str]:
        found = self._call("GET", "/api/status")["stream"]
        return {"group": str(found["group"])}

    def disagreement(self) -> Disagreement:
        found = self._call("GET", "/api/behind")
        failed = tuple((str(each["document_id"]), str(each["reason"])) for each in found["failed"])
        return Disagreement(tuple(found["behind"]), tuple(found["leftover"]), failed)

    def reconcile(self) -> None:
        self._call("POST", "/api/reconcile")

    def _call(self, method: str, path: str) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = call(load(home=str(self.settings.home)), method, path, patience=0)
        except AppRefused as error:
            # An app whose warehouse or index is away answers with an error; it is asked again until the time is over.
            raise AppUnavailable(str(error)) from error
        return answer


def wait(settings: Settings, timeout: float) -> Disagreement:
    """Return when every change acknowledged until now is searchable or refused; raises streaming.waiting.TimedOut."""
    named = topics(settings)
    opened: list[Warehouse] = []

    def warehouse() -> Warehouse:
        if not opened:
            from corpus.warehouse import connect

            opened.append(connect(load(home=str(settings.home)), timeout=5.0))
        return opened[0]

    waiting = Wait(
        warehouse=warehouse,
        app=RunningApp(settings),
        bootstrap=lambda: load(home=str(settings.home)).kafka_bootstrap_servers or "",
        changes=named.documents,
        marks=named.watermarks,
        deadline=time.monotonic() + timeout,
    )
    found: Future[Disagreement] = Future()

    def follow() -> None:
        try:
            found.set_result(waiting.until_searchable())
        except BaseException as error:  # raised again where the result is asked for
            found.set_exception(error)
        finally:
            for each in opened:
                each.close()

    # In a thread, for a part that is stopped or hangs holds its callers longer than anybody wants to wait.
    thread = threading.Thread(target=follow, name="wait", daemon=True)
    thread.start()
    thread.join(min(timeout + GRACE, threading.TIMEOUT_MAX))
    if not found.done():
        raise TimedOut(waiting.behind)
    return found.result()
