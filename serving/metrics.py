"""What the app counts and measures, in Prometheus' text format, in a registry of its own."""

from __future__ import annotations

import time

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from prometheus_client import CollectorRegistry, Counter, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


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
