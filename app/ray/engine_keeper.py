"""Runs a replica's engine, and starts it again when it dies or hangs: for one engine, and in a thread, what
app.processes.supervisor does for a server's processes, with its judgement and its timing."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from app.processes import background
from app.processes.environment import EngineFiles, engine_variables, environment_of, tune_libraries
from app.processes.heartbeat import Heartbeat
from app.processes.reports import take_reason
from app.processes.restarts import Restarts
from app.processes.watchdog import CpuStarvation, Watch
from app.settings.settings import Settings

log = logging.getLogger(__name__)

NAME = "engine-0"
_TICK_S = 0.5
_COMMAND = (sys.executable, "-m", "app.engine.process")


class EngineKeeper:
    """Keeps an engine at ``address``, with its files in ``folder``.

    ``give_up`` is called, with the reason in words, where it never came up or its starts fail in a row: then
    another replica, perhaps on another node, is the better try.
    """

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        give_up: Callable[[str], None],
        command: Sequence[str] = _COMMAND,
    ) -> None:
        self._files = EngineFiles(folder, NAME)
        self.address = self._files.address
        self._settings = settings
        self._give_up = give_up
        self._command = command
        self._ending = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        # The engine ends with the thread that started it (app.processes.lifeline).
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the engine; it may take its time to load."""
        self._thread = background.thread(self._keep, "engine keeper", self._failed)

    def stop(self) -> None:
        """End the engine, once it has finished what it accepted or the grace time has passed."""
        self._ending.set()
        process = self._process
        if process is not None:
            process.terminate()
            try:
                process.wait(self._settings.shutdown_grace_s)
            except subprocess.TimeoutExpired:
                process.kill()
        if self._thread is not None:
            self._thread.join()

    def _failed(self, error: BaseException) -> None:
        """Nobody keeps the engine any more, which ends with the thread; another replica is the better try."""
        if not self._ending.is_set():
            self._give_up(f"the engine cannot be kept running: {type(error).__name__}: {error}")

    def _keep(self) -> None:
        from app.telemetry import metrics  # only now is it known where to write

        restarts = Restarts(self._settings.slow_retry_s)
        metrics.RESTARTS.labels(NAME)
        came_up = False
        while not self._ending.is_set():
            started = time.monotonic()
            self._process, heartbeat = self._start()
            metrics.ENGINE_UP.labels(NAME).set(1)
            hung = self._watch(self._process, heartbeat)
            metrics.engine_ended(NAME)
            if self._ending.is_set():
                return
            was_ready = heartbeat.read().ready
            came_up = came_up or was_ready
            pause = restarts.ended(time.monotonic() - started, was_ready=was_ready)
            reason = hung or take_reason(self._files.reason) or f"{self._process.returncode}"
            if not came_up or restarts.given_up:
                self._give_up(f"the engine does not come up: {reason}")
                return
            metrics.RESTARTS.labels(NAME).inc()
            log.warning("the engine ended (%s); starting it again in %.1f s", reason, pause)
            self._ending.wait(pause)

    def _start(self) -> tuple[subprocess.Popen[bytes], Heartbeat]:
        made = Heartbeat.made_at(self._files.heartbeat)
        variables = engine_variables(self._files, 0, self._settings.device, sharing=1)
        environment = environment_of(self._settings, NAME, variables, keys=False)
        tune_libraries(environment)
        return subprocess.Popen(self._command, env=environment), made  # noqa: S603

    def _watch(self, process: subprocess.Popen[bytes], heartbeat: Heartbeat) -> str | None:
        """Returns when the engine has ended; gives back why it was killed, if it was."""
        watch = Watch(self._settings.hang_after_s, self._settings.load_limit_s)
        starvation = CpuStarvation(process.pid)
        hung: str | None = None
        while process.poll() is None:
            try:
                process.wait(_TICK_S)
            except subprocess.TimeoutExpired:
                hung = hung or watch.tick(_TICK_S, heartbeat.read(), lambda: starvation.starved(_TICK_S))
                if hung is not None and not self._ending.is_set():
                    log.warning("the engine hangs and is killed: %s", hung)
                    process.kill()
        return hung
