"""A process started as a new program and waited for in an event loop.

asyncio has such processes, but not under every event loop policy: Ray sets uvloop's, under which only the
main thread's loop can wait for a child.
"""

import asyncio
import contextlib
import logging
import subprocess
from collections.abc import Mapping, Sequence

from app.processes import background

log = logging.getLogger(__name__)


class Spawned:
    """A process that is started when this object is made, with these files ``inherited``. The kernel ends it
    with the thread that made it (app.processes.parent_death). Raises OSError if the system cannot create
    it."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], inherited: Sequence[int] = ()
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._process = subprocess.Popen(  # noqa: S603
            command,
            env=environment,
            pass_fds=inherited,
            start_new_session=True,  # so that Ctrl-C in a terminal only reaches the supervisor
        )
        background.thread(self._wait, "wait for a process", background.end_process)

    def __repr__(self) -> str:
        return f"<Spawned {self.pid}: {self.returncode}>"

    @property
    def pid(self) -> int:
        """Its process ID."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; minus the signal that killed it."""
        return self._process.returncode

    async def wait(self) -> int:
        """The exit code, once it has ended."""
        await self._ended.wait()
        return self._process.wait()

    def send_signal(self, number: int) -> None:
        """Send a signal. Does nothing if the process has ended."""
        self._process.send_signal(number)

    def _wait(self) -> None:
        self._process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits for the result
            self._loop.call_soon_threadsafe(self._ended.set)
