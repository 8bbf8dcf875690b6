"""The supervisor, as far as it goes without starting processes (for the rest see tests/system)."""

import asyncio
import socket
from collections.abc import Iterator

import pytest
from setproctitle import getproctitle, setproctitle

from app.processes.supervisor import CannotStart, Supervisor
from app.settings.settings import Settings


@pytest.fixture(autouse=True)
def title_as_before() -> Iterator[None]:
    """The supervisor gives its process a title."""
    title = getproctitle()
    yield
    setproctitle(title)


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_taken_port_is_told_before_anything_is_started(family: socket.AddressFamily, host: str) -> None:
    """The text says which address, and why not."""
    try:
        taken = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    with taken:
        port = taken.getsockname()[1]
        supervisor = Supervisor(Settings(host=host, port=port))

        async def run() -> int:
            return await supervisor.run()

        with pytest.raises(CannotStart, match=f"cannot listen on {host} port {port}: Address already in use"):
            asyncio.run(run())
