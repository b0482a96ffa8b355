"""One trace for each change, as a collector receives it: its steps, what it says, and that nothing waits for it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from corpus.documents import Chunk
from corpus.index import Record, places
from corpus.settings import InvalidSettings, Settings
from embedded.checks import refuse
from streaming import tracing
from streaming.changes import DeadLetter, Delete, Ignored, Message, Upsert
from streaming.indexing import Indexed, Outcome, Removed, Unchanged
from streaming.progress import Progress
from streaming.tracing import SPANS, Traces, open_traces

SECOND = 1_000_000_000
# When the source committed, in seconds; the later steps follow in tenths of a second.
COMMITTED = 1_900_000_000
TIMES = {"logged": 1, "received": 2, "embed": 3, "write": 5, "indexed": 6}
PUBLISHED = COMMITTED * SECOND + 7 * SECOND // 10


class Collector(ThreadingHTTPServer):
    """Takes traces by OTLP over HTTP, answers with `status`, and keeps what it took."""

    def __init__(self) -> None:
        self.status = 200
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.spans: list[Any] = []
        self.resources: list[Any] = []
        super().__init__(("127.0.0.1", 0), Receiving)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class Receiving(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        if self.server.status == 200:
            for of in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.server.resources.append(of.resource)
                self.server.spans += [span for scope in of.scope_spans for span in scope.spans]
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        return


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def progress() -> Progress:
    return Progress()


@pytest.fixture
def opened(collector: Collector, progress: Progress) -> Iterator[Traces]:
    traces = open_traces(f"http://{collector.address}", progress.count)
    yield traces
    traces.close()


def message(operation: str = "u", *headers: tuple[str, bytes | None]) -> Message:
    """An envelope that went through every step, at the times of TIMES."""
    source = {"ts_ms": COMMITTED * 1000, "ord": 3, "wallTime": COMMITTED * 1000}
    value = msgspec.json.encode({"op": operation, "after": '{"text": "a secret"}', "source": source})
    times = {step: COMMITTED * SECOND + tenth * SECOND // 10 for step, tenth in TIMES.items()}
    return Message("changes", 2, 7, b'{"id":"\\"d1\\""}', value, headers, times=times)


def indexed(of: Message, embedded: int = 1) -> Indexed:
    chunks = (Chunk(0, ("T",), "first", 0, 5), Chunk(1, ("T",), "second", 6, 12))
    record = Record(document_id="d1", seen=9, version=9, text="first\nsecond", places=places(["c1", "c2"], chunks))
    change = Upsert(of, 9, None, "", datetime.now(UTC))  # type: ignore[arg-type]
    return Indexed(change, record, chunks, {}, embedded, 2 - embedded, 3)


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def tenth(nanoseconds: int) -> int:
    """Tenths of a second since the source's commit."""
    return (nanoseconds - COMMITTED * SECOND) * 10 // SECOND


def finished(traces: Traces, collector: Collector, *outcomes: Outcome) -> dict[str, Any]:
    """The spans by name that the collector has after these outcomes."""
    traces.finish(outcomes, PUBLISHED)
    traces.close()
    return {span.name: span for span in collector.spans}


def test_a_change_is_one_trace_from_the_sources_commit_to_the_publish(opened: Traces, collector: Collector) -> None:
    spans = finished(opened, collector, indexed(message()))

    tenths = {name: (tenth(span.start_time_unix_nano), tenth(span.end_time_unix_nano)) for name, span in spans.items()}
    assert tenths == {
        "change": (0, 7),
        "capture": (0, 1),
        "queue": (1, 2),
        "index": (2, 6),
        "embed": (3, 5),
        "write": (5, 6),
        "publish": (6, 7),
    }
    assert len({span.trace_id for span in collector.spans}) == 1
    parents = {name: span.parent_span_id for name, span in spans.items()}
    root, index = spans["change"].span_id, spans["index"].span_id
    below = {"capture": root, "queue": root, "index": root, "publish": root, "embed": index, "write": index}
    assert parents == {"change": b"", **below}
    assert {path for path, _ in collector.asked} == {"/v1/traces"}


def test_a_trace_names_the_change_and_holds_nothing_of_its_text(opened: Traces, collector: Collector) -> None:
    root = finished(opened, collector, indexed(message("c")))["change"]

    assert attributes(root) == {
        "messaging.system": "kafka",
        "messaging.destination.name": "changes",
        "messaging.destination.partition.id": "2",
        "messaging.kafka.offset": 7,
        "twin.document.id": "d1",
        "twin.operation": "create",
        "twin.version": 9,
        "twin.outcome": "indexed",
        "twin.chunks.embedded": 1,
        "twin.chunks.reused": 1,
        "twin.chunks.deleted": 3,
    }
    told = b"".join(span.SerializeToString() for span in collector.spans)
    assert (b"secret" in told, b"first" in told) == (False, False)
    (service,) = {each.value.string_value for each in collector.resources[0].attributes}
    assert service == "llm-twin"


@pytest.mark.parametrize(
    ("outcome", "said", "steps"),
    [
        (Removed(Delete(message("d"), 9, "d1", None), 4), "deleted", {"write"}),
        (Unchanged(message(), "stale", "d1"), "stale", set()),
        (Ignored(message(), "superseded"), "superseded", set()),
        (DeadLetter(message(), "clean", "a secret", "d1", 9), "refused", {"write"}),
        (indexed(message(), embedded=0), "indexed", {"write"}),
    ],
)
def test_every_change_says_what_became_of_it(
    opened: Traces, collector: Collector, outcome: Outcome, said: str, steps: set[str]
) -> None:
    spans = finished(opened, collector, outcome)

    assert attributes(spans["change"])["twin.outcome"] == said
    assert set(spans) == {"change", "capture", "queue", "index", "publish"} | steps
    assert (spans["change"].status.code == 2) == (said == "refused")
    assert b"secret" not in b"".join(span.SerializeToString() for span in collector.spans)


def test_what_is_no_change_has_no_trace(opened: Traces, collector: Collector) -> None:
    assert finished(opened, collector, Ignored(message(), "tombstone"), Ignored(message(), "foreign")) == {}


def test_poison_has_a_trace_from_its_place_in_the_log(opened: Traces, collector: Collector) -> None:
    poison = Message("changes", 0, 1, b"\xff", b"\xff", times=message().times)

    root = finished(opened, collector, DeadLetter(poison, "decode", "it is odd"))["change"]

    assert root.start_time_unix_nano == message().times["logged"]
    assert "twin.document.id" not in attributes(root)


def test_clocks_that_disagree_make_no_step_end_before_it_began(opened: Traces, collector: Collector) -> None:
    late = message()
    late.times.update(logged=COMMITTED * SECOND - SECOND, received=COMMITTED * SECOND - 2 * SECOND)

    finished(opened, collector, indexed(late))

    assert [span.name for span in collector.spans if span.end_time_unix_nano < span.start_time_unix_nano] == []


@pytest.mark.parametrize("quoted", ["{}", '"{}"'])
def test_a_trace_that_the_message_carries_is_continued(opened: Traces, collector: Collector, quoted: str) -> None:
    carried = quoted.format(f"00-{'ab' * 16}-{'cd' * 8}-01").encode()

    root = finished(opened, collector, indexed(message("u", ("traceparent", carried), ("other", None))))["change"]

    assert (root.trace_id.hex(), root.parent_span_id.hex()) == ("ab" * 16, "cd" * 8)


def test_of_traces_that_their_sender_does_not_sample_nothing_is_sent_and_nothing_waits(
    opened: Traces, collector: Collector, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "QUEUE", 2 * SPANS)
    unsampled = message("u", ("traceparent", f"00-{'ab' * 16}-{'cd' * 8}-00".encode()))

    spans = finished(opened, collector, *([indexed(unsampled)] * 5), indexed(message()))

    assert (len(spans), progress.counted()) == (SPANS, {"spans_exported": SPANS})


def test_a_carried_context_that_is_none_is_left_alone(opened: Traces, collector: Collector) -> None:
    root = finished(opened, collector, indexed(message("u", ("traceparent", b"\xff-no"))))["change"]

    assert root.parent_span_id == b""


def test_user_and_password_of_the_address_are_sent_as_a_header(collector: Collector, progress: Progress) -> None:
    traces = open_traces(f"http://ada:hunter2@{collector.address}/base/", progress.count)

    finished(traces, collector, indexed(message()))

    ((path, headers),) = collector.asked
    assert (path, headers["authorization"]) == ("/base/v1/traces", "Basic YWRhOmh1bnRlcjI=")


def test_the_environment_changes_nothing_of_what_is_sent(
    collector: Collector, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = "http://127.0.0.1:1"
    for name, value in {
        "OTEL_EXPORTER_OTLP_ENDPOINT": nowhere,
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": nowhere,
        "OTEL_EXPORTER_OTLP_HEADERS": "stolen=1",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_TRACES_SAMPLER": "always_off",
        "OTEL_SDK_DISABLED": "true",
        "OTEL_RESOURCE_ATTRIBUTES": "stolen=1",
        "HTTP_PROXY": nowhere,
        "http_proxy": nowhere,
    }.items():
        monkeypatch.setenv(name, value)
    traces = open_traces(f"http://{collector.address}", progress.count)

    spans = finished(traces, collector, indexed(message()))

    assert len(spans) == SPANS
    assert "stolen" not in collector.asked[0][1]
    assert [each.key for each in collector.resources[0].attributes] == ["service.name"]


def test_what_was_sent_is_counted_and_what_was_not_too(
    opened: Traces, collector: Collector, progress: Progress
) -> None:
    collector.status = 400

    finished(opened, collector, indexed(message()))

    assert (collector.spans, progress.counted()) == ([], {"spans_dropped": SPANS})


def test_a_collector_that_hangs_holds_nothing_up_and_only_whole_traces_wait(
    progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "QUEUE", 2 * SPANS + 1)
    monkeypatch.setattr(tracing, "REQUEST", SPANS)
    monkeypatch.setattr(tracing, "LAST_SECONDS", 0.01)
    goes_on = threading.Event()

    class Hanging:
        def export(self, spans: object) -> object:
            goes_on.wait()
            raise OSError("it hung")

        def shutdown(self) -> None:
            return

    traces = Traces(Hanging(), progress.count)  # type: ignore[arg-type]
    traces.finish([indexed(message())] * 5, PUBLISHED)
    traces.close()

    assert progress.counted() == {"spans_dropped": 3 * SPANS}
    goes_on.set()


def test_a_message_that_cannot_be_traced_fails_nothing(
    opened: Traces, progress: Progress, caplog: pytest.LogCaptureFixture
) -> None:
    opened.finish([indexed(Message("changes", 0, 0, None, None))], PUBLISHED)

    assert progress.counted() == {"spans_dropped": SPANS}
    assert "a change has no trace: KeyError" in caplog.text


def test_without_the_extra_an_address_is_refused_and_the_extra_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_installed", lambda part: False)

    with pytest.raises(
        InvalidSettings, match="TWIN_OTLP_URL: traces need the extra `tracing`: run `scripts/setup tracing`"
    ):
        open_traces("http://127.0.0.1:4318", lambda **_: None)
    with pytest.raises(InvalidSettings, match="tracing"):
        refuse(Settings(otlp_url="http://127.0.0.1:4318"))
    refuse(Settings())


@pytest.mark.parametrize("extra", ["sdk", "exporter.otlp.proto.http"])
def test_the_extra_is_seen_where_it_is(extra: str) -> None:
    assert tracing._installed(extra)
    assert not tracing._installed(f"{extra}_of_another.kind")


def test_nothing_of_opentelemetry_is_loaded_while_it_is_off() -> None:
    code = "import sys, embedded.app, streaming.tracing; print([each for each in sys.modules if 'telemetry' in each])"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"
