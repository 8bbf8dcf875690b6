"""Keeps a process running: starts it, kills it if it hangs, and starts it again when it has ended.

The supervisor keeps a server's processes in this way, and a Ray replica its own.
"""

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from app.processes import background
from app.processes.environment import ProcessFiles
from app.processes.heartbeat import Heartbeat
from app.processes.reports import take_reason
from app.processes.restarts import Restarts
from app.processes.watchdog import CpuStarvation, Watch
from app.settings.processes import ProcessSettings

log = logging.getLogger(__name__)

_TICK_S = 0.5  # interval between checks of a process's heartbeat


class Process(Protocol):
    """The interface of a process for its keeper."""

    @property
    def pid(self) -> int:
        """Its process ID."""

    @property
    def returncode(self) -> int | None:
        """None while it runs; minus the signal that killed it."""

    async def wait(self) -> int:
        """The exit code, once it has ended."""

    def send_signal(self, number: int) -> None:
        """Send a signal. Does nothing if the process has ended."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program to keep running.

    Its name is that of its ``files``. ``start`` returns a new process, and may raise OSError if the system
    lacks something. A run of less than ``settles_s`` seconds is a failed start. ``began`` and ``ended`` are
    called around each run.
    """

    files: ProcessFiles
    start: Callable[[], Awaitable[Process]]
    settles_s: float = 0.0
    began: Callable[[], None] = lambda: None
    ended: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class End:
    """How one run ended. ``came_up``: it was ready, in this run or in an earlier one. ``failed_starts``: how
    many in a row. ``pause_s``: until the next start. ``error``: it could not be started or watched."""

    code: int
    reason: str
    came_up: bool
    failed_starts: int
    pause_s: float
    given_up: bool
    error: Exception | None = None


class Keeper:
    """Keeps one program running. ``goes_on`` is called after each end and returns whether it is started
    again. ``is_up`` is called when it is ready after failed starts."""

    def __init__(
        self,
        settings: ProcessSettings,
        program: Program,
        goes_on: Callable[[End], bool],
        is_up: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = program.files.name
        self._settings, self._program = settings, program
        self._goes_on, self._is_up = goes_on, is_up
        self._restarts = Restarts(settings.slow_retry_s)
        self._process: Process | None = None
        self._hung: str | None = None
        self._ending = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Keeper of {self.name}: {self._process}>"

    async def run(self) -> None:
        """Run until the process has ended and is not to be started again."""
        from app.telemetry import metrics  # imported late, when the folder of the metrics is known

        # Create the series at the start, so that the first restart shows as a rise.
        metrics.RESTARTS.labels(self.name)
        came_up = False
        while not self._ending.is_set():
            started, error = time.monotonic(), None
            try:
                code, was_ready = await self._life()
            except Exception as failure:  # starting or watching failed; the next attempt may succeed
                background.incident("start of a process", failure)
                await self._kill()
                code, was_ready, error = 1, False, failure
            if self._ending.is_set():
                return
            came_up = came_up or was_ready
            pause_s = self._restarts.ended(time.monotonic() - started, was_ready=was_ready)
            failed, given_up = self._restarts.failed_starts, self._restarts.given_up
            end = End(code, self._reason(code, error), came_up, failed, pause_s, given_up, error)
            if not self._goes_on(end):
                return
            metrics.RESTARTS.labels(self.name).inc()
            self._tell(end)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), pause_s)

    def end(self, number: signal.Signals) -> None:
        """Send the process that signal, and do not start it again."""
        self._ending.set()
        self._signal(number)

    async def ended(self) -> None:
        """Returns when the current process has ended."""
        if self._process is not None:
            await self._process.wait()

    async def _life(self) -> tuple[int, bool]:
        """Start it and wait until it ends. Returns its exit code, and whether it was ready."""
        program, started = self._program, time.monotonic()
        heartbeat = Heartbeat.made_at(program.files.heartbeat)
        self._process, self._hung = None, None
        self._process = process = await program.start()
        if self._ending.is_set():  # told to stop during the start
            self._signal(signal.SIGKILL)
        watching = background.kept(partial(self._watch, process, heartbeat), "watch over a process")
        try:
            program.began()
            code = await process.wait()
        finally:
            watching.cancel()
            program.ended()
        return code, heartbeat.read().ready and time.monotonic() - started >= program.settles_s

    async def _watch(self, process: Process, heartbeat: Heartbeat) -> None:
        """Kill the process if it hangs, and report when it is ready again after failed starts.

        A tick counts as no longer than it should have been: if this process got no CPU or was suspended, its
        children were, too.
        """
        watch = Watch(self._settings.hang_after_s, self._settings.load_limit_s)
        starvation = CpuStarvation(process.pid)
        while True:
            await asyncio.sleep(_TICK_S)
            beat = heartbeat.read()
            if beat.ready and self._restarts.failed_starts:
                log.info("%s started after %d failed attempts", self.name, self._restarts.failed_starts)
                self._restarts.came_up()
                self._is_up()
            self._hung = watch.tick(_TICK_S, beat, lambda: starvation.starved(_TICK_S))
            if self._hung is not None:
                log.warning("killing %s, which does not respond: %s", self.name, self._hung)
                self._signal(signal.SIGKILL)
                return

    def _reason(self, code: int, error: Exception | None) -> str:
        """Why it ended, if that is known."""
        if error is not None:
            return f"{type(error).__name__}: {error}"
        return self._hung or take_reason(self._program.files.reason) or _ending(code)

    def _tell(self, end: End) -> None:
        if end.given_up:
            log.error(
                "%s failed to start %d times in a row (%s); next attempt in %g s",
                *(self.name, end.failed_starts, end.reason, end.pause_s),
            )
        else:
            log.warning("%s exited (%s); restarting it in %.1f s", self.name, end.reason, end.pause_s)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def _kill(self) -> None:
        self._signal(signal.SIGKILL)
        await self.ended()


async def drain(groups: Sequence[Sequence[Keeper]], grace_s: float) -> bool:
    """End the processes, one group after the other, each once it has finished what it accepted. Returns False
    if the grace time ended first; the rest is killed then."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + grace_s
    drained = True
    for group in groups:
        for keeper in group:
            keeper.end(signal.SIGTERM)
        ending = [background.awaited(keeper.ended(), "end") for keeper in group]
        if ending:
            _, late = await asyncio.wait(ending, timeout=max(0.0, deadline - loop.time()))
            drained = drained and not late
        for keeper in group:
            keeper.end(signal.SIGKILL)
    return drained


def _ending(code: int) -> str:
    if code == -signal.SIGKILL:
        return "killed by SIGKILL, as by the kernel when memory runs out"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
