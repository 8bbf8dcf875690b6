"""All middleware of the application, in its order."""

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from app.http.answers import WARNINGS_HEADER
from app.http.bodies.memory import most_held
from app.http.classification import Classification
from app.http.methods import HeadAsGet
from app.http.middleware.access import KEY_HEADER, BrowserHeaders, RequireKey
from app.http.middleware.early import RefuseEarly
from app.http.middleware.expectation import CloseUnasked
from app.http.middleware.hosts import AnswerHosts, answered_hosts
from app.http.middleware.inflate import Inflated
from app.http.middleware.observe import REQUEST_ID, Observe
from app.http.middleware.prefix import UnderPrefix
from app.http.middleware.sites import RefuseOtherSites
from app.http.routes.embed import SHAPE_HEADERS
from app.http.routes.open_inference.tensors import HEADER_LENGTH
from app.http.server.traffic import Bounded, Traffic
from app.security.keys import KeyRing
from app.settings.settings import Settings
from app.telemetry.tracing import Tracing

# All headers that routes read, except those that browsers always allow. Tracing in browsers adds its own to
# every request.
_TAKEN_FROM_PAGES = [
    *("Authorization", KEY_HEADER, REQUEST_ID, "Content-Type", "Content-Encoding", HEADER_LENGTH),
    *("traceparent", "tracestate"),
]
_SHOWN_TO_PAGES = [
    *(REQUEST_ID, "Retry-After", "Server-Timing", "Cache-Status", WARNINGS_HEADER, HEADER_LENGTH),
    *SHAPE_HEADERS,
]


def surround(
    app: FastAPI,
    settings: Settings,
    classification: Classification,
    traffic: Traffic,
    keys: KeyRing | None,
    tracing: Tracing | None,
    listening_on: str | None,
) -> None:
    """Add the middleware. The last one added is the outermost."""
    app.add_middleware(HeadAsGet)
    app.add_middleware(RefuseEarly, classification=classification)
    app.add_middleware(Inflated, most_bytes=settings.max_body_bytes)
    app.add_middleware(
        Bounded,
        traffic=traffic,
        body_timeout_s=settings.body_timeout_s,
        most_body_bytes=most_held(settings.max_bodies_bytes, settings.max_body_bytes),
    )
    app.add_middleware(RefuseOtherSites, origins=settings.cors_origins or ())
    if keys is not None:
        app.add_middleware(RequireKey, keys=keys)
    if settings.cors_origins is not None:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=_TAKEN_FROM_PAGES,
            expose_headers=_SHOWN_TO_PAGES,
            allow_private_network=True,  # a page on the public internet may be one of the origins
        )
    if listening_on is not None:
        hosts = answered_hosts(listening_on, settings.allowed_hosts, with_keys=keys is not None)
        app.add_middleware(AnswerHosts, hosts=hosts)
    app.add_middleware(CloseUnasked)
    app.add_middleware(Observe, tracing=tracing)
    app.add_middleware(BrowserHeaders)
    if settings.root_path is not None:
        app.add_middleware(UnderPrefix, prefix=settings.root_path)
