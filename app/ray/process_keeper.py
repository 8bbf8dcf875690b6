"""Runs a process of a replica, its dispatcher or its worker, and starts it again when it dies or hangs: for
one process, and in a thread, what app.processes.supervisor does for a server's, with its judgement and its
timing."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.processes import background
from app.processes.environment import (
    DISPATCHER,
    ProcessFiles,
    dispatcher_variables,
    environment_of,
    tune_libraries,
    worker_variables,
)
from app.processes.heartbeat import Heartbeat
from app.processes.reports import take_reason
from app.processes.restarts import Restarts
from app.processes.watchdog import CpuStarvation, Watch
from app.settings.settings import Settings

log = logging.getLogger(__name__)

WORKER = "worker-0"
_TICK_S = 0.5


@dataclass(frozen=True, slots=True)
class Program:
    """What is to be kept running: its files, by whose name it is called, its command, what it is told in the
    environment, the files that it inherits, and what is to be told of its life in the metrics."""

    files: ProcessFiles
    command: Sequence[str]
    variables: Mapping[str, str]
    inherited: Sequence[int] = ()
    began: Callable[[], None] = field(default=lambda: None)
    ended: Callable[[], None] = field(default=lambda: None)


def files_of(folder: Path) -> tuple[ProcessFiles, ProcessFiles]:
    """Of the dispatcher and of the worker."""
    return ProcessFiles(folder, DISPATCHER), ProcessFiles(folder, WORKER)


def dispatcher_program(files: ProcessFiles) -> Program:
    """The replica's dispatcher."""
    from app.telemetry import metrics  # only now is it known where to write

    command = (sys.executable, "-m", "app.dispatch.process")
    return Program(files, command, dispatcher_variables(files), ended=metrics.dispatcher_ended)


def worker_program(files: ProcessFiles, device: str, slots: int) -> Program:
    """The replica's worker. ``slots``: the descriptor of the shared memory."""
    from app.telemetry import metrics

    return Program(
        files,
        (sys.executable, "-m", "app.worker.process"),
        worker_variables(files, 0, device, sharing=1, slots=slots),
        (slots,),
        began=lambda: metrics.WORKER_UP.labels(files.name).set(1),
        ended=lambda: metrics.worker_ended(files.name),
    )


class ProcessKeeper:
    """Keeps one program running.

    ``give_up`` is called, with the reason in words, where it never came up or its starts fail in a row: then
    another replica, perhaps on another node, is the better try.
    """

    def __init__(self, settings: Settings, program: Program, give_up: Callable[[str], None]) -> None:
        self._program = program
        self._name = program.files.name
        self._settings = settings
        self._give_up = give_up
        self._ending = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        # The process ends with the thread that started it (app.processes.lifeline).
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the process; a worker may take its time to load."""
        self._thread = background.thread(self._keep, "process keeper", self._failed)

    def stop(self) -> None:
        """End the process, once it has finished what it accepted or the grace time has passed."""
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
        """Nobody keeps the process, which ends with the thread; another replica is the better try."""
        if not self._ending.is_set():
            self._give_up(f"{self._name} cannot be kept running: {type(error).__name__}: {error}")

    def _keep(self) -> None:
        from app.telemetry import metrics  # only now is it known where to write

        restarts = Restarts(self._settings.slow_retry_s)
        metrics.RESTARTS.labels(self._name)
        came_up = False
        while not self._ending.is_set():
            started = time.monotonic()
            self._process, heartbeat = self._start()
            self._program.began()
            hung = self._watch(self._process, heartbeat)
            self._program.ended()
            if self._ending.is_set():
                return
            was_ready = heartbeat.read().ready
            came_up = came_up or was_ready
            pause = restarts.ended(time.monotonic() - started, was_ready=was_ready)
            reason = hung or take_reason(self._program.files.reason) or f"{self._process.returncode}"
            if not came_up or restarts.given_up:
                self._give_up(f"{self._name} does not come up: {reason}")
                return
            metrics.RESTARTS.labels(self._name).inc()
            log.warning("%s ended (%s); starting it again in %.1f s", self._name, reason, pause)
            self._ending.wait(pause)

    def _start(self) -> tuple[subprocess.Popen[bytes], Heartbeat]:
        program = self._program
        made = Heartbeat.made_at(program.files.heartbeat)
        environment = environment_of(self._settings, self._name, program.variables, keys=False)
        tune_libraries(environment)
        return subprocess.Popen(program.command, env=environment, pass_fds=program.inherited), made  # noqa: S603

    def _watch(self, process: subprocess.Popen[bytes], heartbeat: Heartbeat) -> str | None:
        """Returns when the process has ended; gives back why it was killed, if it was."""
        watch = Watch(self._settings.hang_after_s, self._settings.load_limit_s)
        starvation = CpuStarvation(process.pid)
        hung: str | None = None
        while process.poll() is None:
            try:
                process.wait(_TICK_S)
            except subprocess.TimeoutExpired:
                hung = hung or watch.tick(_TICK_S, heartbeat.read(), lambda: starvation.starved(_TICK_S))
                if hung is not None and not self._ending.is_set():
                    log.warning("%s hangs and is killed: %s", self._name, hung)
                    process.kill()
        return hung
