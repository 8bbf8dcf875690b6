"""The HTTP process's listeners: how uvicorn runs the application on its sockets."""

import asyncio
import contextlib
import logging
import resource
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from app.http.connections import Server, bounded
from app.http.traffic import Traffic
from app.settings import Settings

log = logging.getLogger(__name__)

# Files that a process has open beside its clients' connections.
_OTHER_FILES = 200
_OPERATORS = 100  # connections to probes and metrics, which are among those files


def main_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """uvicorn for the application: with TLS where there is a certificate, and believing forwarded headers of
    the proxies that are named, and of no one else."""
    return uvicorn.Config(
        app,
        http=bounded(
            _connections(settings.max_connections), settings.head_timeout_s, settings.write_timeout_s
        ),
        ws="none",
        timeout_keep_alive=settings.keep_alive_s,  # type: ignore[arg-type]
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=None,  # the supervisor keeps the grace time
        proxy_headers=settings.trusted_proxies is not None,
        forwarded_allow_ips=list(settings.trusted_proxies or ()),
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
    )


def operations_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """uvicorn for probes and metrics: plain HTTP, for a network that only operators reach."""
    return uvicorn.Config(
        app,
        http=bounded(_OPERATORS, settings.head_timeout_s, settings.write_timeout_s),
        ws="none",
        timeout_keep_alive=settings.keep_alive_s,  # type: ignore[arg-type]
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=1,
        proxy_headers=False,
        lifespan="off",
    )


class _Companion(uvicorn.Server):
    """A server beside the main one, which alone hears signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None are captured."""
        yield


async def serve(
    main: uvicorn.Config,
    listeners: list[socket.socket],
    traffic: Traffic,
    operations: uvicorn.Config | None,
    operations_listeners: list[socket.socket],
) -> None:
    """Serve until SIGTERM; ``traffic`` tells what is under way then. Probes and metrics are answered until
    the last request is."""
    if operations is None:
        await Server(main, traffic).serve(sockets=listeners)
        return
    companion = _Companion(operations)
    beside = asyncio.create_task(companion.serve(sockets=operations_listeners))
    try:
        await Server(main, traffic).serve(sockets=listeners)
    finally:
        companion.should_exit = True
        await beside


def _connections(wanted: int) -> int:
    """As many as there may be open files, some of which are needed for other things."""
    may_be = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHER_FILES
    if wanted > may_be:
        log.warning("at most %d connections, not %d: the limit of open files is too low", may_be, wanted)
    return max(1, min(wanted, may_be))
