"""The spans that a real server sends to an OpenTelemetry collector."""

import gzip
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

import plain_http
import pytest
from gate import until
from web import serving

from musicgen.serving import tracing

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STAGES = ["audio", "conditioning", "waiting", "decode", "codec", "output"]
# The last span of the server and of the worker; they send theirs separately.
DONE = {"POST /predictions", "cog.prediction.invoke"}
SHORT = {"prompt": "trap", "duration": 1}


@dataclass
class Collector:
    """Receives OTLP over HTTP at `url`."""

    url: str = ""
    spans: list = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def trace(self, trace_id):
        """The spans of a trace by name, in order of their start."""
        with self.lock:
            found = [span for span in self.spans if span.trace_id.hex() == trace_id]
        return {span.name: span for span in sorted(found, key=lambda s: s.start_time_unix_nano)}


@contextmanager
def collecting():
    service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            request = service.ExportTraceServiceRequest.FromString(body)
            with collector.lock:
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        collector.spans += scope.spans
            self.send_response_only(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with serving(Handler) as server:
        collector.url = server.url
        yield collector


@pytest.fixture(scope="module")
def collector():
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def traced(collector, start_server):
    """A server that sends its spans to the collector. It ends first: it would try to send on."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    return start_server(
        "predict",
        COG_TRACE_CONFIGURED="1",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_BSP_SCHEDULE_DELAY="100",
        OTEL_SERVICE_NAME="musicgen",
    )


def ask(server, trace_id, **inputs):
    headers = {"traceparent": f"00-{trace_id}-{CALLER}-01"}
    url = f"{server.url}/predictions"
    return plain_http.post(url, json={"input": inputs}, headers=headers).json()


def test_the_stages_are_below_the_prediction_of_the_callers_trace(traced, collector):
    answer = ask(traced, TRACE, **SHORT)
    until(lambda: DONE | {"musicgen.upload"} <= set(collector.trace(TRACE)))
    spans = collector.trace(TRACE)
    assert spans["POST /predictions"].parent_span_id.hex() == CALLER
    stages = [name for name in spans if name.startswith("musicgen.")]
    assert stages == [f"musicgen.{stage}" for stage in [*STAGES, "upload"]]
    invoke = spans["cog.prediction.invoke"]
    for name in stages:
        assert spans[name].parent_span_id == invoke.span_id
        assert spans[name].start_time_unix_nano >= invoke.start_time_unix_nano
        assert spans[name].end_time_unix_nano <= invoke.end_time_unix_nano
    for stage in STAGES:
        span = spans[f"musicgen.{stage}"]
        seconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
        assert seconds == pytest.approx(answer["metrics"]["seconds"][stage], abs=1e-3)
    ends = [spans[name].end_time_unix_nano for name in stages]
    starts = [spans[name].start_time_unix_nano for name in stages]
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))


def test_a_request_that_is_refused_has_the_stages_that_finished(traced, collector):
    trace_id = "1" * 32
    assert ask(traced, trace_id, multi_band_diffusion=True, **SHORT)["status"] == "failed"
    until(lambda: set(collector.trace(trace_id)) >= DONE)
    assert not [name for name in collector.trace(trace_id) if name.startswith("musicgen.")]


def test_no_input_is_in_a_span(traced, collector):
    trace_id, secret = "2" * 32, "open-sesame-0xC0FFEE"
    ask(traced, trace_id, **SHORT | {"prompt": secret}, key=secret)
    until(lambda: DONE | {"musicgen.upload"} <= set(collector.trace(trace_id)))
    assert secret not in str(collector.spans)


def test_a_request_without_a_sampled_parent_is_not_traced(traced, collector):
    before = set(collector.trace(TRACE))
    traced.predict(**SHORT)
    trace_id = "3" * 32
    ask(traced, trace_id, **SHORT)
    until(lambda: set(collector.trace(trace_id)) >= DONE)
    known = {TRACE, "1" * 32, "2" * 32, trace_id}
    others = {span.trace_id.hex() for span in collector.spans} - known
    assert not others
    assert set(collector.trace(TRACE)) == before


def test_stages_that_are_added_together_follow_each_other():
    timings = tracing.TracedTimings()
    timings.add("audio", 0.5)
    timings.add("waiting", 2.0)
    timings.add("decode", 3.0)
    (_, *audio), (_, *waiting), (_, *decode) = timings.spans()
    assert [end - start for start, end in (audio, waiting, decode)] == [
        500_000_000,
        2_000_000_000,
        3_000_000_000,
    ]
    assert waiting[1] == decode[0]
    assert audio[1] <= waiting[0]


def test_nothing_is_recorded_without_a_provider():
    with tracing.traced_timings() as timings, timings.stage("audio"):
        pass
    assert list(timings.seconds) == ["audio"]
