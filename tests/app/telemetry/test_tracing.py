"""Traces of requests: what the spans say, and what the environment may ask for."""

import logging
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.testclient import TestClient

from app import main
from app.errors import QueueFull
from app.main import create_app
from app.settings.settings import Settings
from app.telemetry.tracing import Tracing, from_environment
from tests.app.fakes import FakeDispatch, encoded

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
Spans = Callable[[], list[ReadableSpan]]


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def dispatch() -> FakeDispatch:
    return FakeDispatch()


@pytest.fixture
def client(exporter: InMemorySpanExporter, dispatch: FakeDispatch) -> Iterator[TestClient]:
    """A client of the application, whose spans go to ``exporter``."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = create_app(Settings(), dispatch, tracing=Tracing(provider))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def tree(exporter: InMemorySpanExporter) -> tuple[ReadableSpan, list[ReadableSpan]]:
    """The one server span, and its children in the order of their end."""
    spans = exporter.get_finished_spans()
    (server,) = [span for span in spans if span.kind is SpanKind.SERVER]
    children = [span for span in spans if span is not server]
    assert all(
        child.parent is not None and child.parent.span_id == server.context.span_id for child in children
    )
    assert {span.context.trace_id for span in spans} == {server.context.trace_id}
    return server, children


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def test_a_request_is_one_trace_with_its_phases(client: TestClient, exporter: InMemorySpanExporter) -> None:
    """A server span in the semantic conventions' words, and under it decode, queue and compute, which last as
    long as the answer says."""
    response = client.post("/v1/classify?keep_ratio=0.5", content=encoded(), headers={"X-Request-ID": "mine"})
    server, children = tree(exporter)
    assert server.name == "POST /v1/classify"
    assert server.parent is None
    assert server.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/classify",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "url.path": "/v1/classify",
        "trimvit.request_id": "mine",
    }
    assert server.status.status_code is StatusCode.UNSET
    assert [child.name for child in children] == ["decode", "queue", "compute"]
    decode, queue, compute = children
    told = response.json()["timings_ms"]
    assert seconds(decode) == pytest.approx(told["decode"] / 1000, abs=1e-6)
    assert (seconds(queue), seconds(compute)) == pytest.approx((0.003, 0.007), abs=1e-8)
    (result,) = response.json()["results"]
    assert compute.attributes == {
        "trimvit.image": 0,
        "trimvit.keep_ratio": 0.5,
        "trimvit.compute": pytest.approx(result["compute"], abs=1e-6),
    }
    assert queue.attributes == {"trimvit.image": 0}


def test_the_queue_ends_where_the_compute_begins(client: TestClient, exporter: InMemorySpanExporter) -> None:
    """Queue and computing lie end to end; what passed before them was the way there."""
    client.post("/v1/classify", content=encoded())
    _, queue, compute = tree(exporter)[1]
    assert queue.end_time is not None
    assert compute.start_time is not None
    # Each was placed by the clock when it was told, a moment after the other.
    assert abs(queue.end_time - compute.start_time) < 1e9


def test_each_image_of_a_request_has_its_phases(client: TestClient, exporter: InMemorySpanExporter) -> None:
    """Many images are one trace; which image a phase was of, it says."""
    client.post("/v1/classify", files=[("image", encoded())] * 3)
    _, children = tree(exporter)
    phases = sorted((child.attributes["trimvit.image"], child.name) for child in children if child.attributes)
    assert phases == [(image, name) for image in range(3) for name in ("compute", "decode", "queue")]


def test_a_callers_trace_goes_on(client: TestClient, exporter: InMemorySpanExporter) -> None:
    """A W3C traceparent is the server span's parent, and its state is kept."""
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=7"}
    client.post("/v1/classify", content=encoded(), headers=headers)
    server, children = tree(exporter)
    assert server.parent is not None
    assert (f"{server.context.trace_id:032x}", f"{server.parent.span_id:016x}") == (TRACE, PARENT)
    assert {child.context.trace_state.to_header() for child in children} == {"vendor=7"}


def test_a_caller_may_say_that_it_does_not_record(client: TestClient, exporter: InMemorySpanExporter) -> None:
    """A traceparent without the sampled flag leaves the request untraced."""
    client.post("/v1/classify", content=encoded(), headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert exporter.get_finished_spans() == ()


@pytest.mark.parametrize("header", ["", "nonsense", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01"])
def test_an_unsound_traceparent_begins_a_new_trace(
    client: TestClient, exporter: InMemorySpanExporter, header: str
) -> None:
    """W3C Trace Context, section 3.2: what cannot be read is as if it were not there."""
    client.post("/v1/classify", content=encoded(), headers={"traceparent": header})
    server, _ = tree(exporter)
    assert server.parent is None


def test_traces_do_not_run_into_one_another(client: TestClient, exporter: InMemorySpanExporter) -> None:
    """The next request has a trace of its own, and an untraced one between them adds to none."""
    client.post("/v1/classify", content=encoded())
    client.post("/v1/classify", content=encoded(), headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    client.post("/v1/classify", content=encoded())
    spans = exporter.get_finished_spans()
    assert len(spans) == 8
    assert len({span.context.trace_id for span in spans}) == 2


def test_a_refused_request_says_why(
    client: TestClient, exporter: InMemorySpanExporter, dispatch: FakeDispatch
) -> None:
    """A client's fault is no error of the server span; the problem's type is there."""
    client.post("/v1/classify", content=b"no image")
    server, children = tree(exporter)
    assert server.attributes is not None
    assert server.attributes["error.type"] == "undecodable-image"
    assert server.attributes["http.response.status_code"] == 422
    assert server.status.status_code is StatusCode.UNSET
    assert children == []
    exporter.clear()
    dispatch.fails = QueueFull("full", retry_after_s=1)
    client.post("/v1/classify", content=encoded())
    server, children = tree(exporter)
    assert server.attributes is not None
    assert server.attributes["error.type"] == "queue-full"
    assert [child.name for child in children] == ["decode"]


def test_a_fault_of_ours_is_an_error(
    client: TestClient, exporter: InMemorySpanExporter, dispatch: FakeDispatch
) -> None:
    """A 500 stands out in the traces."""
    dispatch.fails = ZeroDivisionError()
    client.post("/v1/classify", content=encoded())
    server, _ = tree(exporter)
    assert server.attributes is not None
    assert server.attributes["error.type"] == "internal-fault"
    assert server.status.status_code is StatusCode.ERROR


def test_probes_and_counts_are_not_traced(client: TestClient, exporter: InMemorySpanExporter) -> None:
    """What is asked every few seconds would bury the users' requests; what nobody serves is traced as one."""
    for path in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/metrics", "/v1/stats"):
        assert client.get(path).status_code == 200
    assert exporter.get_finished_spans() == ()
    client.get("/users/4711")
    server, _ = tree(exporter)
    assert server.name == "GET unmatched"


# The environment.

COLLECTOR = "http://127.0.0.1:9"  # the discard port: nobody listens


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_SERVICE_NAME": "trimvit"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR, "OTEL_SDK_DISABLED": "TRUE"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR, "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_nothing_is_traced_unless_it_is_asked_for(
    environment: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Off, without a word."""
    assert from_environment(environment) is None
    assert caplog.text == ""


@pytest.mark.parametrize(
    "environment",
    [
        {"OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR},
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{COLLECTOR}/v1/traces"},
        {"OTEL_TRACES_EXPORTER": "otlp"},
        {"OTEL_TRACES_EXPORTER": "otlp, console", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
    ],
)
def test_an_endpoint_or_an_exporter_asks_for_traces(environment: dict[str, str]) -> None:
    """The standard's variables are enough."""
    traced = from_environment(environment)
    assert traced is not None
    traced.close()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, ("'zipkin'", "allowed are otlp, console, none")),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            ("'grpc'", "allowed is http/protobuf"),
        ),
    ],
)
def test_what_cannot_be_had_is_told_and_the_server_goes_on(
    environment: dict[str, str], words: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """A warning says what was asked and what is allowed."""
    assert from_environment(environment) is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert all(word in record.message for word in ("tracing is off", *words))


def test_without_the_extra_the_log_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Asked for and not installed."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert from_environment({"OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR}) is None
    assert "opentelemetry.sdk.trace is not installed: pip install 'trimvit[otel]'" in caplog.text


def test_what_the_sdk_does_not_like_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever else is wrong with its environment, the server goes on."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "1")  # below the size of a batch
    assert from_environment({"OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR}) is None
    assert "OpenTelemetry cannot be set up" in caplog.text


def test_an_untraced_server_does_not_load_the_extra() -> None:
    """It costs nothing where it is not used. (FastAPI may load the API, which does nothing by itself.)"""
    code = (
        "import sys; from app.telemetry import tracing; from app.main import create_app\n"
        "assert tracing.from_environment({}) is None\n"
        "sys.exit(any(name.startswith('opentelemetry.sdk') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_collector_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The application ends although the collector accepts and never answers."""
    monkeypatch.setattr(main, "_LAST_EXPORT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
        traced = from_environment()
        assert traced is not None
        scope = {"type": "http", "path": "/", "method": "GET", "scheme": "http", "headers": []}
        begun = traced.begin(scope, "mine")
        assert begun is not None
        begun.end("GET", "/", 200)
        with TestClient(create_app(Settings(), FakeDispatch(), tracing=traced)):
            pass  # the test's own timeout fails it otherwise


def test_a_collector_that_is_down_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """The SDK warns several times for every batch of spans; one warning a minute says why."""
    traced = from_environment({"OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR})
    assert traced is not None
    with caplog.at_level(logging.DEBUG):
        for number in range(20):
            logging.getLogger("opentelemetry.exporter.somewhere").warning("refused, attempt %d", number)
    traced.close()
    said = [record for record in caplog.records if "attempt" in record.getMessage()]
    assert [(record.levelno, record.getMessage()) for record in said] == [
        (logging.WARNING, "tracing: refused, attempt 0")
    ]
