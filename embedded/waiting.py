"""`twin wait` over the parts of a home: which warehouse, log and app its evidence comes from."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from corpus.agreement import Disagreement
from corpus.settings import Settings, load
from ingestion.topics import topics
from serving.client import AppRefused, AppUnavailable, call
from streaming.waiting import Wait

if TYPE_CHECKING:
    from corpus.warehouse import Warehouse


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

    try:
        return Wait(
            warehouse=warehouse,
            app=RunningApp(settings),
            bootstrap=lambda: load(home=str(settings.home)).kafka_bootstrap_servers or "",
            changes=named.documents,
            marks=named.watermarks,
            deadline=time.monotonic() + timeout,
        ).until_searchable()
    finally:
        for each in opened:
            each.close()
