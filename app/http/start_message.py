"""Prints the start message on a terminal, once, by one of the front ends."""

import asyncio
import socket
import sys
from pathlib import Path

from app.dispatch.client import DispatchClient
from app.http.started import started
from app.processes.listening import url
from app.security.keys import key_ring
from app.settings.settings import Settings
from models.cores import cores

_LOOK_EVERY_S = 0.1


async def tell_when_ready(
    settings: Settings, listener: socket.socket, client: DispatchClient, told: Path
) -> None:
    """Print the message once a worker is ready, unless another front end or an earlier one has."""
    while True:
        load = client.load
        if client.model is not None and load is not None:
            break
        await asyncio.sleep(_LOOK_EVERY_S)
    if not await asyncio.to_thread(_is_first, told):
        return
    screen = started(
        settings,
        list(client.models.values()),
        load.terms,
        streams=len(load.free_in_s),
        cores=cores(),
        url=url("http" if settings.tls_certificate is None else "https", listener),
        with_keys=key_ring(settings) is not None,
    )
    sys.stderr.write(screen)
    sys.stderr.flush()


def _is_first(told: Path) -> bool:
    """Whether this call has created the file."""
    try:
        told.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
