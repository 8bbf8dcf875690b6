"""Serves an ASGI application on sockets with uvicorn, which is only used in this folder."""

import asyncio
import contextlib
import logging
import resource
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from app.http.server.accepting import Acceptor
from app.http.server.connections import bounded
from app.http.server.forwarded import SoundClient, in_both_forms
from app.http.server.handshakes import tls_protocol
from app.http.server.places import Places
from app.http.server.traffic import Traffic
from app.processes import background
from app.security.tls import certificates
from app.settings.settings import Settings

log = logging.getLogger(__name__)

# Open files of a process in addition to client connections.
_OTHER_FILES = 200
_STOPPED_AFTER_TICKS = 3  # ticks of 0.1 s without a request
_OPERATORS = 100  # connections for probes and metrics, part of these files


def main_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """uvicorn's configuration for the application: with TLS if there is a certificate, and with forwarded
    headers trusted from the configured proxies only.

    Raises TlsError if the certificate cannot be used.
    """
    places = Places(
        _connections(settings.max_connections),
        settings.max_connections_per_client,
        settings.trusted_proxies or (),
    )
    connection = bounded(places, settings.head_timeout_s, settings.write_timeout_s)
    valid = certificates(settings)
    return uvicorn.Config(
        SoundClient(app) if settings.trusted_proxies else app,
        http=connection if valid is None else tls_protocol(connection, valid),  # type: ignore[arg-type]
        ws="none",
        timeout_keep_alive=settings.keep_alive_s,  # type: ignore[arg-type]
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=None,  # the supervisor enforces the grace period
        proxy_headers=settings.trusted_proxies is not None,
        forwarded_allow_ips=in_both_forms(settings.trusted_proxies or ()),
    )


def operations_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """uvicorn's configuration for probes and metrics: plain HTTP, for a network that only operators can
    reach."""
    return uvicorn.Config(
        app,
        http=bounded(Places(_OPERATORS), settings.head_timeout_s, settings.write_timeout_s),
        ws="none",
        timeout_keep_alive=settings.keep_alive_s,  # type: ignore[arg-type]
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=1,
        proxy_headers=False,
        lifespan="off",
    )


class _Server(uvicorn.Server):
    """Accepts connections in turn for all clients."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then listen."""
        await super().startup([])
        protocol: Callable[[], asyncio.Protocol] = partial(
            self.config.http_protocol_class,  # type: ignore[call-arg]
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            _loop=asyncio.get_running_loop(),
        )
        self.servers = [Acceptor(listener, protocol) for listener in sockets or ()]  # type: ignore[misc]


class Server(_Server):
    """Stops in order: after a signal it refuses new requests with an error message, and ends once the others
    are answered."""

    def __init__(self, config: uvicorn.Config, traffic: Traffic) -> None:
        super().__init__(config)
        self._traffic = traffic
        self._quiet_ticks = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Begin to stop. The supervisor limits how long that may take."""
        self._traffic.stopping = True

    async def on_tick(self, counter: int) -> bool:
        """Whether to end: there has been no open request for a moment."""
        self._quiet_ticks = 0 if self._traffic.requests else self._quiet_ticks + 1
        if self._traffic.stopping and self._quiet_ticks >= _STOPPED_AFTER_TICKS:
            self.should_exit = True
        return await super().on_tick(counter)


class _Companion(_Server):
    """A second server; only the main one handles signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture no signals."""
        yield


async def serve(
    app: ASGIApp,
    settings: Settings,
    listeners: list[socket.socket],
    traffic: Traffic,
    operations: ASGIApp | None = None,
    operations_listeners: Sequence[socket.socket] = (),
) -> None:
    """Serve the application until SIGTERM. ``traffic``: counts the open requests. ``operations``: probes and
    metrics, on listeners of their own, which answer until the last request is answered."""
    server = Server(main_config(app, settings), traffic)
    if operations is None:
        await server.serve(sockets=listeners)
        return
    companion = _Companion(operations_config(operations, settings))
    beside = background.awaited(companion.serve(sockets=list(operations_listeners)), "operations listener")
    # If it ends early, the process ends and is replaced.
    beside.add_done_callback(lambda _: setattr(server, "should_exit", True))
    try:
        await server.serve(sockets=listeners)
    finally:
        companion.should_exit = True
        await beside


def _connections(wanted: int) -> int:
    """The number of connections that the limit of open files allows, minus a reserve for other files."""
    may_be = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHER_FILES
    if wanted > may_be:
        log.warning(
            "accepting at most %d connections instead of %d, because the limit of open files (ulimit -n) "
            "is too "
            "low",
            may_be,
            wanted,
        )
    return max(1, min(wanted, may_be))
