"""Starts the processes, starts them again when they die, and drains them on SIGTERM.

The supervisor owns the listening socket (so no connection is refused while an HTTP process is replaced), a
private folder with the dispatcher's socket and the metrics, and the shared memory that holds the pixels of
images. It serves no request and never imports torch.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from setproctitle import setproctitle

from app.messages.shared_memory import make_shared_memory
from app.processes import background
from app.processes.environment import (
    DISPATCHER,
    ProcessFiles,
    dispatcher_variables,
    environment_of,
    worker_variables,
)
from app.processes.fork_server import Forked, ForkServer
from app.processes.heartbeat import Heartbeat
from app.processes.lifeline import LOAD_FAILED
from app.processes.limits import TooLow, raise_limits
from app.processes.listening import CannotListen, listen, url
from app.processes.orphans import reap_orphans
from app.processes.private_folder import NoFolder, PrivateFolder
from app.processes.reports import WorkerReport, take_reason, write_reports
from app.processes.restarts import Restarts
from app.processes.watchdog import CpuStarvation, Watch
from app.security.keys import KeysError, key_ring
from app.security.tls import TlsError, check_tls
from app.settings.settings import Settings
from app.telemetry.metrics_files import reserve

log = logging.getLogger(__name__)

# The programs of the three kinds of children.
DISPATCH = "app.dispatch.process"
WORKER = "app.worker.process"
HTTP = "app.main"
# What a worker needs and no other of our processes: imported once, by the fork server. What counts metrics
# is not among it: each worker has files of its own for them.
PRELOADED = ("models.classifier", "models.load")
FORKABLE = {"OPENBLAS_NUM_THREADS": "1"}  # the BLAS beneath numpy would start threads when it is imported

_SETTLED_S = 5.0  # an HTTP process that lives so long has started well
_TICK_S = 0.5  # between two looks at a process's heartbeat
_LOOK_AFTER_S = 10.0  # between two looks at the private folder
_REPORTS = "workers.json"


class CannotStart(Exception):
    """The server cannot be started as configured; the text says why."""


@dataclass(slots=True)
class _Child:
    """A process to keep running. ``name`` is the same for every successor; ``heartbeat``: where its beats
    are; ``hung``: why it was killed, or could not be started."""

    name: str
    module: str
    environment: Mapping[str, str]
    restarts: Restarts
    heartbeat: Path
    inherited: tuple[int, ...] = ()
    process: asyncio.subprocess.Process | Forked | None = None
    ending: asyncio.Event = field(default_factory=asyncio.Event)  # it is not to be started again
    came_up: bool = False  # in this life or an earlier one
    hung: str | None = None
    report: WorkerReport | None = None


@dataclass(slots=True)
class Supervisor:
    """Runs the server until it is told to stop; `run` gives back the exit code."""

    settings: Settings
    _children: list[_Child] = field(default_factory=list)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _folder: Path = field(default_factory=Path)
    _fork_server: ForkServer | None = None
    _slots: int = -1  # the shared memory's descriptor
    _failed: str | None = None
    _forced: bool = False

    async def run(self) -> int:
        """Raises CannotStart if the port is taken."""
        setproctitle("trimvit: supervisor")
        _check(self.settings)
        try:
            raise_limits()
        except TooLow as error:
            raise CannotStart(str(error)) from error
        listeners, operations = _listeners(self.settings)
        try:
            private = PrivateFolder()
        except NoFolder as error:
            raise CannotStart(str(error)) from error
        self._folder = folder = private.path
        background.tell_of_stray_failures()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
            loop.add_signal_handler(signal.SIGHUP, self._hung_up)
        try:
            self._slots = make_shared_memory("trimvit-slots")
            devices = self.settings.devices
            dispatcher = self._dispatcher(folder)
            workers = [
                self._worker(index, device, devices.count(device), folder)
                for index, device in enumerate(devices)
            ]
            fronts = [
                self._front(index, listeners, operations, folder)
                for index in range(self.settings.http_workers)
            ]
            self._children = [dispatcher, *workers, *fronts]
            self._metrics(folder)
            environment = environment_of(self.settings, "fork-server", FORKABLE, keys=False)
            self._fork_server = ForkServer(environment, PRELOADED, self.settings.load_limit_s, (self._slots,))
            scheme = "http" if self.settings.tls_certificate is None else "https"
            for listener in listeners:
                log.info("listening on %s", url(scheme, listener))
            for listener in operations:
                log.info("operations on %s", url("http", listener))
            self._report()
            keepers = [
                background.needed(partial(self._keep_running, child), "keeper of a process", self._fail)
                for child in self._children
            ]
            looking_after = background.needed(
                partial(self._look_after, private), "keeper of the private folder", self._fail
            )
            reaping = background.kept(reap_orphans, "reaper of orphans")
            await self._stopping.wait()
            looking_after.cancel()
            drained = await self._drain(fronts, [dispatcher], workers)
            for listener in (*listeners, *operations):
                listener.close()
            await self._fork_server.close()  # nobody waits for a worker that it would start
            await asyncio.gather(*keepers)
            reaping.cancel()
            if self._failed is not None:
                log.error("stopped: %s", self._failed)
                return 1
            if self._forced or not drained:
                log.error(
                    "stopped before everything was finished: the grace time ended, or a second signal came"
                )
                return 1
            log.info("stopped")
            return 0
        finally:
            for listener in (*listeners, *operations):
                listener.close()
            if self._fork_server is not None:
                await self._fork_server.close()
            if self._slots >= 0:
                os.close(self._slots)
            private.remove()

    def _hung_up(self) -> None:
        """The terminal was closed, which may send the signal more than once."""
        if not self._stopping.is_set():
            self._signalled()

    def _signalled(self) -> None:
        if self._stopping.is_set():
            log.warning("told to stop again: ending at once")
            self._forced = True
            for child in self._children:
                child.ending.set()
                _signal(child, signal.SIGKILL)
            return
        log.info("stopping: finishing what was accepted")
        self._stopping.set()

    def _fail(self, reason: str) -> None:
        """Stop, with an error: whoever started this process starts a sound one."""
        if self._failed is None:
            self._failed = reason
        self._stopping.set()

    async def _look_after(self, private: PrivateFolder) -> None:
        """Keep cleaners of old files off the folder, and stop where it is removed: nothing could be started
        again without it."""
        while True:
            if not private.refresh():
                break
            await asyncio.sleep(_LOOK_AFTER_S)
        self._fail(f"the folder {private.path} was removed while the server ran; exclude it from cleaning")

    def _dispatcher(self, folder: Path) -> _Child:
        files = ProcessFiles(folder, DISPATCHER)
        restarts = Restarts(self.settings.slow_retry_s)
        return _Child(files.name, DISPATCH, dispatcher_variables(files), restarts, files.heartbeat)

    def _worker(self, index: int, device: str, sharing: int, folder: Path) -> _Child:
        files = ProcessFiles(folder, f"worker-{index}")
        environment = worker_variables(files, index, device, sharing, self._slots)
        restarts = Restarts(self.settings.slow_retry_s)
        report = WorkerReport(files.name)
        return _Child(files.name, WORKER, environment, restarts, files.heartbeat, report=report)

    def _front(
        self, index: int, listeners: list[socket.socket], operations: list[socket.socket], folder: Path
    ) -> _Child:
        files = ProcessFiles(folder, f"http-{index}")
        sockets = tuple(listener.fileno() for listener in (*listeners, *operations))
        environment = {
            "TRIMVIT_HTTP_HEARTBEAT": str(files.heartbeat),
            "TRIMVIT_HTTP_INDEX": str(index),
            "TRIMVIT_HTTP_REPORTS": str(folder / _REPORTS),
            "TRIMVIT_HTTP_SOCKETS": " ".join(map(str, sockets[: len(listeners)])),
            "TRIMVIT_HTTP_OPERATIONS_SOCKETS": " ".join(map(str, sockets[len(listeners) :])),
            "TRIMVIT_HTTP_DISPATCHER": str(files.socket),
            "TRIMVIT_HTTP_SLOTS": str(self._slots),
        }
        restarts = Restarts(self.settings.slow_retry_s)
        return _Child(files.name, HTTP, environment, restarts, files.heartbeat, (*sockets, self._slots))

    def _metrics(self, folder: Path) -> None:
        """Metrics files of all processes go into a new folder; this process writes there too."""
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder / "metrics")
        os.environ["TRIMVIT_METRICS_SLOT"] = "supervisor"
        (folder / "metrics").mkdir()
        try:
            reserve(folder / "metrics", ("supervisor", *(child.name for child in self._children)))
        except OSError as error:
            raise CannotStart(f"no room for metrics files in {folder}: {error.strerror or error}") from error

    async def _keep_running(self, child: _Child) -> None:
        from app.telemetry import metrics  # only now does it know where to write

        loop = asyncio.get_running_loop()
        metrics.RESTARTS.labels(child.name)  # there from the start, so that the first restart shows as a rise
        while not child.ending.is_set():
            started = loop.time()
            try:
                code, was_ready = await self._life(child)
            except Exception as error:  # it cannot be started now, or watched: the next try may succeed
                background.incident("start of a process", error)
                child.hung = f"{type(error).__name__}: {error}"
                await _end(child)
                code, was_ready = 1, False
            if child.ending.is_set():
                return
            child.came_up = child.came_up or was_ready
            if code == LOAD_FAILED and not child.came_up:
                self._fail(f"{child.name} cannot load the model; its log line above says why")
                return
            metrics.RESTARTS.labels(child.name).inc()
            pause = child.restarts.ended(loop.time() - started, was_ready=was_ready)
            self._tell_of_end(child, code, pause)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(child.ending.wait(), pause)

    async def _life(self, child: _Child) -> tuple[int, bool]:
        """Start it and wait until it ends: its exit code, and whether it came up. Raises OSError where the
        system lacks something for a start."""
        from app.telemetry import metrics

        started = time.monotonic()
        heartbeat = Heartbeat.made_at(child.heartbeat)
        child.process = None
        child.process = await self._start(child)
        if child.ending.is_set():  # told to stop while it was being started
            _signal(child, signal.SIGKILL)
        watching = background.kept(partial(self._watch, child, heartbeat), "watch over a process")
        try:
            if child.module == WORKER:
                metrics.WORKER_UP.labels(child.name).set(1)
            code = await child.process.wait()
        finally:
            watching.cancel()
            if child.module == WORKER:
                metrics.worker_ended(child.name)
            elif child.module == DISPATCH:
                metrics.dispatcher_ended()
        settled = child.module == WORKER or time.monotonic() - started > _SETTLED_S
        return code, heartbeat.read().ready and settled

    async def _start(self, child: _Child) -> asyncio.subprocess.Process | Forked:
        environment = environment_of(self.settings, child.name, child.environment, keys=child.module == HTTP)
        if child.module == WORKER:
            assert self._fork_server is not None
            return await self._fork_server.start(child.module, environment)
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            child.module,
            env=environment,
            pass_fds=child.inherited,
            start_new_session=True,  # Ctrl-C in a terminal reaches the supervisor only
        )

    async def _watch(self, child: _Child, heartbeat: Heartbeat) -> None:
        """Kill the process if it hangs; say so once it is ready again after failed starts.

        A tick counts as no longer than it should have been: where this process got no CPU or was suspended,
        its children were, too.
        """
        assert child.process is not None
        watch = Watch(self.settings.hang_after_s, self.settings.load_limit_s)
        starvation = CpuStarvation(child.process.pid)
        while True:
            await asyncio.sleep(_TICK_S)
            beat = heartbeat.read()
            if beat.ready and child.restarts.failed_starts:
                log.info("%s is up after %d failed starts", child.name, child.restarts.failed_starts)
                child.restarts.came_up()
                if child.report is not None:
                    child.report = WorkerReport(child.name)
                    self._report()
            child.hung = watch.tick(_TICK_S, beat, lambda: starvation.starved(_TICK_S))
            if child.hung is not None:
                log.warning("%s hangs and is killed: %s", child.name, child.hung)
                _signal(child, signal.SIGKILL)
                return

    def _tell_of_end(self, child: _Child, code: int, pause_s: float) -> None:
        """In the log, and for /readyz where a worker's starts fail."""
        reason = child.hung or take_reason(ProcessFiles(self._folder, child.name).reason) or _ending(code)
        child.hung = None
        failed = child.restarts.failed_starts
        if child.restarts.given_up:
            log.error(
                "%s has failed to start %d times in a row (%s); the next start is in %g s",
                child.name,
                failed,
                reason,
                pause_s,
            )
        else:
            log.warning("%s ended (%s); starting it again in %.1f s", child.name, reason, pause_s)
        if child.report is not None:
            child.report = WorkerReport(
                child.name, failed, reason, time.monotonic() + pause_s, child.restarts.given_up
            )
            self._report()

    def _report(self) -> None:
        reports = [child.report for child in self._children if child.report is not None]
        try:
            write_reports(self._folder / _REPORTS, reports)
        except OSError as error:  # front ends wait longer for a worker than they need to
            background.incident("reports of workers", error)

    async def _drain(self, *groups: list[_Child]) -> bool:
        """One group after the other: front ends finish what they accepted, for which they need the
        dispatcher, and that needs the workers. False if the grace time ended first."""
        deadline = asyncio.get_running_loop().time() + self.settings.shutdown_grace_s
        drained = True
        for group in groups:
            for child in group:
                child.ending.set()
                _signal(child, signal.SIGTERM)
            rest = max(0.0, deadline - asyncio.get_running_loop().time())
            alive = [background.awaited(child.process.wait(), "end") for child in group if child.process]
            if alive:
                _, late = await asyncio.wait(alive, timeout=rest)
                drained = drained and not late
            for child in group:
                _signal(child, signal.SIGKILL)
        return drained


def _check(settings: Settings) -> None:
    """Raises CannotStart for keys or certificates that no HTTP process could start with."""
    try:
        key_ring(settings)
        check_tls(settings)
    except (KeysError, TlsError) as error:
        raise CannotStart(str(error)) from error


def _listeners(settings: Settings) -> tuple[list[socket.socket], list[socket.socket]]:
    """Of the main port and of the operations port. Raises CannotStart."""
    listeners: list[socket.socket] = []
    try:
        listeners = listen(settings.host, settings.port)
        if settings.operations_port is None:
            return listeners, []
        return listeners, listen(settings.operations_host, settings.operations_port, "--operations-port")
    except CannotListen as error:
        for listener in listeners:
            listener.close()
        raise CannotStart(str(error)) from error


def _signal(child: _Child, number: signal.Signals) -> None:
    if child.process is not None and child.process.returncode is None:
        child.process.send_signal(number)


async def _end(child: _Child) -> None:
    if child.process is not None:
        _signal(child, signal.SIGKILL)
        await child.process.wait()


def _ending(code: int) -> str:
    if code == -signal.SIGKILL:
        return "killed by SIGKILL, as by the kernel when memory runs out"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def serve(settings: Settings) -> int:
    """Run the server in the foreground; gives back the exit code."""
    return asyncio.run(Supervisor(settings).run())
