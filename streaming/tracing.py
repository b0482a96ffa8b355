"""One OpenTelemetry trace for each change, from the source's commit to the acknowledged publish, sent as OTLP/HTTP.

A trace is made of the times that its message gathered, after everything was acknowledged, and handed to a queue of
bounded length: a collector that is slow or away holds nothing up. Only ids, numbers and times are sent, no text.

Source: OpenTelemetry specification, "OTLP" and "Semantic conventions for Kafka"; W3C Trace Context.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from corpus.settings import InvalidSettings, credentials
from streaming.changes import DeadLetter, Message, Origin, origin
from streaming.indexing import Indexed, Outcome, Removed
from streaming.log import message_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

logger = logging.getLogger(__name__)
PATH = "/v1/traces"
# Spans that wait for the collector, and those of one request. A change has at most 7.
QUEUE, REQUEST, SPANS = 8_192, 512, 7
EXPORT_SECONDS = 5.0
DELAY_MS = 1_000
LAST_SECONDS = 2.0
CONTEXT_HEADERS = ("traceparent", "tracestate")
# A deletion is followed by a tombstone, and another warehouse's changes have their traces there.
NO_CHANGE = frozenset({"tombstone", "foreign"})


def check_tracing() -> None:
    """Raise InvalidSettings if the extra that makes traces is not installed."""
    if not all(map(_installed, ("sdk", "exporter.otlp.proto.http"))):
        raise InvalidSettings("TWIN_OTLP_URL: traces need the extra `tracing`: run `scripts/setup tracing`")


def open_traces(otlp_url: str, count: Callable[..., None]) -> Traces:
    """Traces to the collector of this address. Raises InvalidSettings without the extra; the collector may be away.

    `count(spans_exported=n)` and `count(spans_dropped=n)` are called from any thread.
    """
    check_tracing()
    # Else these would add headers, change what is sent, or look for exporters of their own.
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        del os.environ[name]
    import requests
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    url, headers = credentials(otlp_url)
    session = requests.Session()
    # The address that was set, and no proxy of the environment before it.
    session.trust_env = False
    endpoint = url if url.rstrip("/").endswith(PATH) else url.rstrip("/") + PATH
    # Its own loggers tell of every attempt.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    return Traces(OTLPSpanExporter(endpoint, headers=headers, timeout=EXPORT_SECONDS, session=session), count)


class Traces:
    """Makes the traces of finished changes and sends them from a thread of its own."""

    def __init__(self, exporter: SpanExporter, count: Callable[..., None]) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased

        self._queue = _Queue(exporter, count)
        self._count = count
        self._provider = TracerProvider(
            sampler=ParentBased(ALWAYS_ON), resource=Resource({"service.name": "llm-twin"}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._queue,
                max_queue_size=QUEUE,
                schedule_delay_millis=DELAY_MS,
                max_export_batch_size=REQUEST,
                export_timeout_millis=1000 * EXPORT_SECONDS,
            )
        )
        self._tracer = self._provider.get_tracer("llm-twin")

    def finish(self, outcomes: Sequence[Outcome], published: int) -> None:
        """Make the traces of changes whose effects were acknowledged, the last at `published` (ns). Never raises."""
        for outcome in outcomes:
            if getattr(outcome, "why", "") in NO_CHANGE:
                continue
            if not self._queue.has_room():
                self._count(spans_dropped=SPANS)
                continue
            try:
                self._trace(outcome, published)
            except Exception as error:  # a message may hold anything, and no trace is worth a change
                self._count(spans_dropped=SPANS)
                logger.warning("a change has no trace: %s: %s", type(error).__name__, error)

    def close(self) -> None:
        """Send what waits, for LAST_SECONDS at most."""
        ending = threading.Thread(target=self._provider.shutdown, name="last traces", daemon=True)
        ending.start()
        ending.join(LAST_SECONDS)

    def _trace(self, outcome: Outcome, published: int) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        message = message_of(outcome)
        told = origin(message)
        times = message.times
        committed = int(told.committed_at.timestamp() * 1e9) if told.committed_at else times["logged"]
        # Several machines' clocks: no step may end before it began.
        logged = max(committed, times["logged"])
        received = max(logged, times["received"])
        embed, write = max(received, times["embed"]), max(received, times["write"])
        indexed = max(write, times["indexed"])
        ended = max(indexed, published)
        carried = {name: (value or b"").decode("latin-1").strip('"') for name, value in message.headers}
        context = TraceContextTextMapPropagator().extract({each: carried.get(each, "") for each in CONTEXT_HEADERS})
        root = self._started("change", context, committed, _attributes(outcome, message, told), SpanKind.CONSUMER)
        if isinstance(outcome, DeadLetter):
            root.set_status(Status(StatusCode.ERROR, f"refused: {outcome.step}"))
        inside = set_span_in_context(root)
        self._end(self._started("capture", inside, committed), logged)
        self._end(self._started("queue", inside, logged), received)
        index = self._started("index", inside, received)
        within = set_span_in_context(index)
        if isinstance(outcome, Indexed) and outcome.embedded:
            self._end(self._started("embed", within, embed), write)
        if isinstance(outcome, Indexed | Removed | DeadLetter):
            self._end(self._started("write", within, write), indexed)
        self._end(index, indexed)
        self._end(self._started("publish", inside, indexed), ended)
        self._end(root, ended)

    def _started(
        self, name: str, context: Any, start: int, attributes: Mapping[str, Any] | None = None, kind: Any = None
    ) -> Any:
        from opentelemetry.trace import SpanKind

        return self._tracer.start_span(
            name, context=context, kind=kind or SpanKind.INTERNAL, attributes=attributes, start_time=start
        )

    def _end(self, span: Any, at: int) -> None:
        # Of a trace that its sender does not sample nothing is sent.
        if span.is_recording():
            self._queue.added()
        span.end(at)


class _Queue:
    """An exporter that knows how many spans wait, and counts what the collector took and what was lost."""

    def __init__(self, exporter: SpanExporter, count: Callable[..., None]) -> None:
        self._exporter, self._count = exporter, count
        self._waiting = 0
        self._away = False
        self._lock = threading.Lock()

    def has_room(self) -> bool:
        """Whether a whole trace still fits: half of one is of no use."""
        return self._waiting + SPANS <= QUEUE

    def added(self) -> None:
        with self._lock:
            self._waiting += 1

    def export(self, spans: Sequence[Any]) -> SpanExportResult:
        from opentelemetry.sdk.trace.export import SpanExportResult

        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            with self._lock:
                self._waiting -= len(spans)
            taken = result is SpanExportResult.SUCCESS
            self._count(**{"spans_exported" if taken else "spans_dropped": len(spans)})
            if taken is self._away:
                self._away = not taken
                logger.warning("the collector of traces %s", "answers again" if taken else "does not take them")
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


def _attributes(outcome: Outcome, message: Message, told: Origin) -> dict[str, Any]:
    """What a search for traces asks for, under the names of the semantic conventions where they have one."""
    found: dict[str, Any] = {
        "messaging.system": "kafka",
        "messaging.destination.name": message.topic,
        "messaging.destination.partition.id": str(message.partition),
        "messaging.kafka.offset": message.offset,
        "twin.document.id": told.document_id,
        "twin.operation": told.operation,
        "twin.version": told.version,
    }
    if isinstance(outcome, Indexed):
        found |= {"twin.outcome": "indexed", "twin.version": outcome.record.version}
        found |= {"twin.chunks.embedded": outcome.embedded, "twin.chunks.reused": outcome.reused}
        found |= {"twin.chunks.deleted": outcome.removed}
    elif isinstance(outcome, Removed):
        found |= {"twin.outcome": "deleted", "twin.chunks.deleted": outcome.removed}
    elif isinstance(outcome, DeadLetter):
        found |= {"twin.outcome": "refused", "twin.step": outcome.step}
    else:
        found |= {"twin.outcome": outcome.why}
    return {name: value for name, value in found.items() if value is not None}


def _installed(part: str) -> bool:
    try:
        return find_spec(f"opentelemetry.{part}") is not None
    except ModuleNotFoundError:
        return False
