"""OpenTelemetry traces of a front end's requests, if the OTEL_* environment enables them (extra `otel`).

A request is one server span, which continues a W3C traceparent. Below it, every image has the spans `decode`,
`queue` and `compute`. Dispatcher and workers do not trace: their times come with the answer, and the spans
are made here, so no second exporter is needed.
"""

import logging
import os
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import Scope

from app.telemetry.rarely import Rarely

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

log = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EXPORTERS = ("otlp", "console", "none")


class CannotTraceError(Exception):
    """Tracing is requested but not possible. The text says why."""


@dataclass(frozen=True, slots=True)
class RequestSpan:
    """The span of an open request."""

    span: "Span"
    tracer: "Tracer"
    context: "Context"

    def end(self, method: str, route: str, status: int | None) -> None:
        """End the span. ``route``: the pattern, never the raw path. ``status``: None if the client
        disconnected."""
        from opentelemetry.trace import StatusCode

        self.span.update_name(f"{method} {route}")
        self.span.set_attribute("http.route", route)
        if status is None:
            self.span.set_attribute("error.type", "client-gone")
        else:
            self.span.set_attribute("http.response.status_code", status)
            if status >= 500:
                self.span.set_status(StatusCode.ERROR)
        self.span.end()
        _current.set(None)


_current: ContextVar[RequestSpan | None] = ContextVar("trimvit_request_span", default=None)


class Tracing:
    """Makes the spans of one front end."""

    def __init__(self, provider: "TracerProvider") -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("trimvit", version("trimvit"))

    def begin(self, scope: Scope, request_id: str) -> RequestSpan:
        """Begin a request's span, as a child of the one in its headers.

        Calls of `phase` and `refused` until the end of the span, in this task or one that it starts, add to
        it.
        """
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind, set_span_in_context

        headers = Headers(scope=scope)
        parent = extract({name: ",".join(headers.getlist(name)) for name in headers})
        span = self._tracer.start_span(
            scope["method"],
            parent,
            SpanKind.SERVER,
            {
                "http.request.method": scope["method"],
                "url.scheme": scope["scheme"],
                "url.path": scope["path"],
                "trimvit.request_id": request_id,
            },
        )
        begun = RequestSpan(span, self._tracer, set_span_in_context(span, parent))
        _current.set(begun)
        return begun

    def close(self) -> None:
        """Send what has not been sent. Blocks as long as the collector does not respond."""
        self._provider.shutdown()


def phase(name: str, image: int, seconds: float, *, ended_s_ago: float = 0.0, **attributes: float) -> None:
    """Add the span of a phase of an image (by its index in the request) to the current request's span, if it
    is traced. The phase had this duration, and ended now or this long ago."""
    request = _current.get()
    if request is None:
        return
    end = time.time_ns() - round(ended_s_ago * 1e9)
    told = {"trimvit.image": image, **{f"trimvit.{key}": value for key, value in attributes.items()}}
    span = request.tracer.start_span(
        name, request.context, attributes=told, start_time=end - round(seconds * 1e9)
    )
    span.end(end)


def refused(slug: str) -> None:
    """Add the type of the problem to the current request's span, if it is traced."""
    request = _current.get()
    if request is not None:
        request.span.set_attribute("error.type", slug)


def from_environment(environment: Mapping[str, str] = os.environ) -> Tracing | None:
    """Tracing according to the OpenTelemetry environment. None if it does not enable traces, and, with a
    warning, if they are not possible (a server without traces is better than none)."""
    try:
        exporters = _exporters(environment)
        return _tracing(exporters) if exporters else None
    except CannotTraceError as error:
        log.warning("tracing is off: %s", error)
    except Exception as error:  # any other error of the SDK about its environment
        log.warning("tracing is off: OpenTelemetry cannot be set up: %s", error)
    return None


def _exporters(environment: Mapping[str, str]) -> list[str]:
    """The configured exporters. Empty if the environment does not mention traces."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    endpoint = any(environment.get(name) for name in _ENDPOINTS)
    named = environment.get("OTEL_TRACES_EXPORTER") or ("otlp" if endpoint else "none")
    exporters = [name.strip().lower() for name in named.split(",")]
    for name in exporters:
        if name not in _EXPORTERS:
            allowed = ", ".join(_EXPORTERS)
            raise CannotTraceError(f"OTEL_TRACES_EXPORTER names {name!r}; allowed are {allowed}")
    protocol = next((environment[name] for name in _PROTOCOLS if environment.get(name)), "http/protobuf")
    if "otlp" in exporters and protocol != "http/protobuf":
        raise CannotTraceError(f"the OTLP protocol is {protocol!r}; allowed is http/protobuf")
    return [name for name in exporters if name != "none"]


def _tracing(exporters: list[str]) -> Tracing:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
    except ImportError as error:
        raise CannotTraceError(
            f"the environment enables tracing, but {error.name} is not installed: pip install 'trimvit[otel]'"
        ) from error
    ours = Resource({"service.name": "trimvit", "service.version": version("trimvit")})
    sdk = logging.getLogger("opentelemetry")
    sdk.handlers, sdk.propagate = [], True  # log the SDK's messages like all others
    # `close` shuts it down with a time limit.
    provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    for name in exporters:
        exporter = OTLPSpanExporter() if name == "otlp" else ConsoleSpanExporter()
        provider.add_span_processor(BatchSpanProcessor(exporter))
    sdk.handlers, sdk.propagate = [_ToldRarely()], False
    return Tracing(provider)


class _ToldRarely(logging.Handler):
    """Logs a warning of the SDK at most once a minute: while a collector is down, there are several for every
    batch of spans."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._rarely = Rarely()

    def emit(self, record: logging.LogRecord) -> None:
        """Pass it on to our log, or count it."""
        left_out = self._rarely.due(time.monotonic())
        if left_out is not None:
            more = f" ({left_out} more messages since the last one)" if left_out else ""
            log.log(record.levelno, "tracing: %s%s", record.getMessage(), more)
