"""The HTTP process's listeners: how uvicorn runs the application on its sockets."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from app.settings import Settings


def main_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """uvicorn for the application: with TLS where there is a certificate, and believing forwarded headers of
    the proxies that are named, and of no one else."""
    return uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=None,  # the supervisor keeps the grace time
        proxy_headers=settings.trusted_proxies is not None,
        forwarded_allow_ips=list(settings.trusted_proxies or ()),
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
    )


def operations_config(app: ASGIApp) -> uvicorn.Config:
    """uvicorn for probes and metrics: plain HTTP, for a network that only operators reach."""
    return uvicorn.Config(
        app,
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
    listener: socket.socket,
    operations: uvicorn.Config | None = None,
    operations_listener: socket.socket | None = None,
) -> None:
    """Serve until SIGTERM. Probes and metrics are answered until the last request is."""
    if operations is None or operations_listener is None:
        await uvicorn.Server(main).serve(sockets=[listener])
        return
    companion = _Companion(operations)
    beside = asyncio.create_task(companion.serve(sockets=[operations_listener]))
    try:
        await uvicorn.Server(main).serve(sockets=[listener])
    finally:
        companion.should_exit = True
        await beside
