"""What the app counts and measures, in Prometheus' text format, in a registry of its own."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from prometheus_client import CollectorRegistry, Counter, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
# Of language models, so many versions are told of, those that answered last; their times over so many answers.
VERSIONS, LATEST = 20, 500
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Quantiles(TypedDict):
    p50: float | None
    p95: float | None


class ModelFigures(TypedDict):
    """How a version did since the app started: `answers`: how often it was asked for one; `failed`: how often it gave
    none or not all of it; `seconds`: to the last word, over the latest answers that it finished, which `latest` has
    each, the newest last; `supported`: the share of finished answers whose every statement names a passage. None before
    there is one."""

    answers: int
    failed: int
    seconds: Quantiles
    latest: list[float]
    supported: float | None


@dataclass
class Tally:
    answers: int = 0
    failed: int = 0
    supported: int = 0
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=LATEST))

    def figures(self) -> ModelFigures:
        finished = self.answers - self.failed
        p50, p95 = np.quantile(self.seconds, (0.5, 0.95)).round(3).tolist() if self.seconds else (None, None)
        return {
            "answers": self.answers,
            "failed": self.failed,
            "seconds": {"p50": p50, "p95": p95},
            "latest": [round(seconds, 3) for seconds in self.seconds],
            "supported": round(self.supported / finished, 4) if finished else None,
        }


class Metrics:
    """The app's metrics; registering twice in one registry is an error of the caller."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.requests = Counter(
            "twin_http_requests", "Requests answered.", ["method", "route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "twin_http_request_seconds",
            "Time from a request to the end of its answer.",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.answers = Counter("twin_answers", "Questions answered.", ["mode"], registry=registry)
        self.model_failures = Counter(
            "twin_language_model_failures", "Answers that the model did not finish.", registry=registry
        )
        self.model_answers = Counter(
            "twin_model_answers", "Answers that a version of the model was asked for.", ["version"], registry=registry
        )
        self.model_failed = Counter(
            "twin_model_failed", "Of these, those that it did not give, or not all of.", ["version"], registry=registry
        )
        self.model_supported = Counter(
            "twin_model_supported", "Those whose every statement names a passage.", ["version"], registry=registry
        )
        self.model_seconds = Histogram(
            "twin_model_seconds",
            "Time to the last word of the answers that it finished.",
            ["version"],
            buckets=SECONDS,
            registry=registry,
        )
        self._models: dict[str, Tally] = {}

    def attempted(self, version: str, seconds: float, *, failed: bool, supported: bool) -> None:
        """Count an answer that this version of the model was asked for; `supported` counts if it was finished."""
        tally = self._models.pop(version, None) or Tally()
        self._models[version] = tally
        if len(self._models) > VERSIONS:
            oldest = next(iter(self._models))
            del self._models[oldest]
            for family in (self.model_answers, self.model_failed, self.model_supported, self.model_seconds):
                family.remove(oldest)
        tally.answers += 1
        tally.failed += failed
        tally.supported += supported and not failed
        # Every series of a version is there from its first answer on, also those that stay at 0.
        self.model_answers.labels(version).inc()
        self.model_failed.labels(version).inc(failed)
        self.model_supported.labels(version).inc(supported and not failed)
        histogram = self.model_seconds.labels(version)
        if not failed:
            tally.seconds.append(seconds)
            histogram.observe(seconds)

    def models(self) -> dict[str, ModelFigures]:
        """The figures by version of the model; the one that answered last comes last."""
        return {version: tally.figures() for version, tally in self._models.items()}


def measured(app: ASGIApp, metrics: Metrics) -> ASGIApp:
    """`app` with every request counted and timed under its route (not its path: ids would make endless series)."""

    async def measure(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await app(scope, receive, send)
            return
        status = 500
        start = time.perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await app(scope, receive, watched)
        finally:
            route = scope.get("path_template") or "none"
            method = scope["method"] if scope["method"] in METHODS else "other"
            metrics.requests.labels(method, route, str(status)).inc()
            metrics.seconds.labels(route).observe(time.perf_counter() - start)

    return measure
