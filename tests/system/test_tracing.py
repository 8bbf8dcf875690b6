"""Traces of a live server, as a collector receives them."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.system.server import running_server
from tests.system.small_network import PHOTOGRAPHS

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CLOCKS_APART_NS = 5_000_000  # times of one process and durations of another, each rounded


class Collector:
    """Takes OTLP over HTTP and keeps what it is sent."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.url = f"http://127.0.0.1:{server.server_port}"
        self.requests: list[ExportTraceServiceRequest] = []

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    @property
    def resources(self) -> list[dict[str, str]]:
        return [
            {pair.key: pair.value.string_value for pair in resource.resource.attributes}
            for request in self.requests
            for resource in request.resource_spans
        ]


@contextmanager
def running_collector() -> Iterator[Collector]:
    class Receive(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            assert self.headers["Content-Type"] == "application/x-protobuf"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            collector.requests.append(ExportTraceServiceRequest.FromString(body))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Receive) as server:
        collector = Collector(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield collector
        server.shutdown()


def test_a_request_reaches_the_collector_as_one_trace(
    calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the standard environment alone, each request is a trace of its caller's; its phases lie within
    it; the last spans are sent when the server ends."""
    with running_collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")  # nothing is sent before the end
        with running_server(tmp_path, "--model", str(calibrated)) as server:
            responses = [
                httpx.post(
                    f"{server.url}/v1/classify?keep_ratio=0.5",
                    files=[("image", photograph) for photograph in PHOTOGRAPHS[:2]],
                    headers={"traceparent": f"00-{TRACE}-{PARENT}-01"},
                ),
                httpx.post(f"{server.url}/v1/classify", content=b"no image"),
            ]
            assert [response.status_code for response in responses] == [200, 422]
            assert collector.requests == []
        assert "Traceback" not in server.log.read_text()
    traced = [span for span in collector.spans if span.trace_id.hex() == TRACE]
    (request,) = [span for span in traced if span.kind == Span.SPAN_KIND_SERVER]
    phases = [span for span in traced if span is not request]
    assert request.parent_span_id.hex() == PARENT
    assert request.name == "POST /v1/classify"
    assert sorted(phase.name for phase in phases) == [
        "compute",
        "compute",
        "decode",
        "decode",
        "queue",
        "queue",
    ]
    for phase in phases:
        assert phase.parent_span_id == request.span_id
        assert request.start_time_unix_nano <= phase.start_time_unix_nano + CLOCKS_APART_NS
        assert phase.end_time_unix_nano <= request.end_time_unix_nano + CLOCKS_APART_NS
    told = responses[0].json()["timings_ms"]
    for name in ("decode", "queue", "compute"):
        longest = max(
            phase.end_time_unix_nano - phase.start_time_unix_nano for phase in phases if phase.name == name
        )
        assert longest / 1e6 == pytest.approx(told[name], abs=1e-3)
    (other,) = [span for span in collector.spans if span.trace_id.hex() != TRACE]
    assert {pair.key: pair.value for pair in other.attributes}[
        "error.type"
    ].string_value == "undecodable-image"
    assert collector.resources
    for resource in collector.resources:
        assert resource["service.name"] == "trimvit"
        assert resource["deployment.environment.name"] == "test"
