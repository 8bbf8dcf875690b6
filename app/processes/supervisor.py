"""Starts the processes, starts them again when they die, and drains them on SIGTERM.

The supervisor owns the listening socket (so no connection is refused while an HTTP process is replaced), a
private folder with the dispatcher's socket and the metrics, and the shared memory that holds the pixels of
images. It serves no request and never imports torch.
"""

import asyncio
import logging
import os
import signal
import socket
import time
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from setproctitle import setproctitle

from app.messages.shared_memory import make_shared_memory
from app.processes import background
from app.processes.fork_server import ForkServer
from app.processes.keeper import End, Keeper, Program, drain
from app.processes.limits import TooLow, raise_limits
from app.processes.listening import CannotListen, listen, reserve_port, url
from app.processes.orphans import reap_orphans
from app.processes.parent_death import LOAD_FAILED
from app.processes.private_folder import NoFolder, PrivateFolder
from app.processes.programs import dispatcher_program, fork_server, front_end_program, worker_program
from app.processes.reports import WorkerReport, write_reports
from app.security.keys import KeysError, key_ring
from app.security.tls import TlsError, check_tls
from app.settings.own_defaults import own_defaults
from app.settings.settings import Settings
from app.telemetry.metrics_files import reserve

log = logging.getLogger(__name__)

_LOOK_AFTER_S = 10.0  # interval between updates of the private folder
_REPORTS = "workers.json"
_FOR_GRPC = ("grpc", "grpc_health", "grpc_reflection")


class CannotStart(Exception):
    """The server cannot be started with this configuration. The text says why."""


@dataclass(frozen=True, slots=True)
class _Listeners:
    """The listening sockets of the main port and of the operations port, and the sockets that reserve the
    gRPC port for the front ends."""

    main: list[socket.socket]
    operations: list[socket.socket]
    grpc: list[socket.socket]

    def close(self) -> None:
        for listener in (*self.main, *self.operations, *self.grpc):
            listener.close()


@dataclass(slots=True)
class Supervisor:
    """Runs the server until it is stopped; `run` returns the exit code."""

    settings: Settings
    _dispatchers: list[Keeper] = field(default_factory=list)
    _workers: list[Keeper] = field(default_factory=list)
    _front_ends: list[Keeper] = field(default_factory=list)
    _reports: dict[str, WorkerReport] = field(default_factory=dict)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _folder: Path = field(default_factory=Path)
    _failed: str | None = None
    _forced: bool = False

    @property
    def _keepers(self) -> list[Keeper]:
        return [*self._dispatchers, *self._workers, *self._front_ends]

    async def run(self) -> int:
        """Run. Raises CannotStart if the port is in use."""
        setproctitle("trimvit: supervisor")
        _check(self.settings)
        if self.settings.model_repository and key_ring(self.settings) is None:
            log.warning(
                "--model-repository without API keys: anyone who can reach the port can load and unload "
                "models; see --api-keys-file"
            )
        try:
            raise_limits()
        except TooLow as error:
            raise CannotStart(str(error)) from error
        listeners = _listen(self.settings)
        try:
            private = PrivateFolder()
        except NoFolder as error:
            raise CannotStart(str(error)) from error
        self._folder = private.path
        background.report_stray_failures()
        self._heed_signals()
        slots, forks = -1, None
        try:
            slots = make_shared_memory("trimvit-slots")
            _write_metrics_into(self._folder)
            forks = fork_server(self.settings, slots)
            self._make_keepers(listeners, slots, forks)
            self._reserve_metrics()
            _tell_where(self.settings, listeners)
            return await self._serve(private, listeners, forks)
        finally:
            listeners.close()
            if forks is not None:
                await forks.close()
            if slots >= 0:
                os.close(slots)
            private.remove()

    async def _serve(self, private: PrivateFolder, listeners: _Listeners, forks: ForkServer) -> int:
        self._report()
        keeping = [
            background.needed(keeper.run, "keeper of a process", self._fail) for keeper in self._keepers
        ]
        looking_after = background.needed(
            partial(self._look_after, private), "keeper of the private folder", self._fail
        )
        reaping = background.kept(reap_orphans, "reaper of orphans")
        await self._stopping.wait()
        looking_after.cancel()
        # Front ends finish accepted requests. They need the dispatcher for this, which needs the workers.
        groups = (self._front_ends, self._dispatchers, self._workers)
        finished = await drain(groups, self.settings.shutdown_grace_s) and not self._forced
        self._ignore_signals()
        listeners.close()
        await forks.close()  # no more workers are needed
        await asyncio.gather(*keeping)
        reaping.cancel()
        if self._failed is not None:
            log.error("stopped: %s", self._failed)
            return 1
        if not finished:
            log.error(
                "stopped before all requests were finished: the grace period ended, or a "
                "second signal was received"
            )
            return 1
        log.info("stopped")
        return 0

    def _heed_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup sets SIG_IGN
            loop.add_signal_handler(signal.SIGHUP, self._hung_up)

    def _ignore_signals(self) -> None:
        """All requests are finished or given up: a further signal must not change the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)

    def _hung_up(self) -> None:
        """The terminal was closed, which may send the signal more than once."""
        if not self._stopping.is_set():
            self._signalled()

    def _signalled(self) -> None:
        if self._stopping.is_set():
            log.warning("second signal received: stopping at once")
            self._forced = True
            for keeper in self._keepers:
                keeper.end(signal.SIGKILL)
            return
        log.info("stopping: finishing the accepted requests")
        self._stopping.set()

    def _fail(self, reason: str) -> None:
        """Stop with an error, so that whoever started this process starts a new one."""
        if self._failed is None:
            self._failed = reason
        self._stopping.set()

    async def _look_after(self, private: PrivateFolder) -> None:
        """Keep the folder safe from cleaners, and stop if it is removed: without it no process could be
        started again."""
        while True:
            if not private.refresh():
                break
            await asyncio.sleep(_LOOK_AFTER_S)
        self._fail(
            f"the folder {private.path} was removed while the server was running; exclude it from "
            "cleanup jobs"
        )

    # --- what is kept running -----------------------------------------------------------------------
    def _make_keepers(self, listeners: _Listeners, slots: int, forks: ForkServer) -> None:
        settings, folder, devices = self.settings, self._folder, self.settings.devices
        self._dispatchers = [self._keeper(dispatcher_program(settings, folder))]
        self._workers = [
            self._worker_keeper(
                worker_program(settings, folder, index, device, slots, devices.count(device), forks)
            )
            for index, device in enumerate(devices)
        ]
        main = [listener.fileno() for listener in listeners.main]
        operations = [listener.fileno() for listener in listeners.operations]
        reports = folder / _REPORTS
        self._front_ends = [
            self._keeper(front_end_program(settings, folder, index, reports, main, operations, slots))
            for index in range(settings.http_workers)
        ]

    def _keeper(self, program: Program) -> Keeper:
        return Keeper(self.settings, program, lambda _: True)

    def _worker_keeper(self, program: Program) -> Keeper:
        """The keeper of a worker. Its failed starts are reported to the front ends, for /readyz."""
        name = program.files.name

        def goes_on(end: End) -> bool:
            if end.code == LOAD_FAILED and not end.came_up:
                self._fail(f"{name} cannot load the model; see its log line above")
                return False
            next_try = time.monotonic() + end.pause_s
            self._reports[name] = WorkerReport(name, end.failed_starts, end.reason, next_try, end.given_up)
            self._report()
            return True

        def is_up() -> None:
            self._reports[name] = WorkerReport(name)
            self._report()

        self._reports[name] = WorkerReport(name)
        return Keeper(self.settings, program, goes_on, is_up)

    def _report(self) -> None:
        try:
            write_reports(self._folder / _REPORTS, list(self._reports.values()))
        except OSError as error:  # the only effect is that front ends wait too long for a worker
            background.incident("reports of workers", error)

    def _reserve_metrics(self) -> None:
        names = ("supervisor", *(keeper.name for keeper in self._keepers))
        try:
            reserve(self._folder / "metrics", names)
        except OSError as error:
            raise CannotStart(
                f"cannot write metrics files in {self._folder}: {error.strerror or error}"
            ) from error


def _write_metrics_into(folder: Path) -> None:
    """Write the metrics files of all processes, including this one, into a new folder."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder / "metrics")
    os.environ["TRIMVIT_METRICS_SLOT"] = "supervisor"
    (folder / "metrics").mkdir()


def _check(settings: Settings) -> None:
    """Raises CannotStart for errors with which no HTTP process could start: in keys or certificates, or
    missing packages."""
    if settings.grpc_port is not None and any(find_spec(name) is None for name in _FOR_GRPC):
        raise CannotStart("--grpc-port needs packages that are not installed: pip install 'trimvit[grpc]'")
    try:
        key_ring(settings)
        check_tls(settings)
    except (KeysError, TlsError) as error:
        raise CannotStart(str(error)) from error


def _listen(settings: Settings) -> _Listeners:
    """Raises CannotStart."""
    listeners = _Listeners([], [], [])
    try:
        listeners.main.extend(listen(settings.host, settings.port))
        if settings.operations_port is not None:
            operations = listen(settings.operations_host, settings.operations_port, "--operations-port")
            listeners.operations.extend(operations)
        if settings.grpc_port is not None:
            listeners.grpc.extend(reserve_port(settings.host, settings.grpc_port, "--grpc-port"))
    except CannotListen as error:
        listeners.close()
        raise CannotStart(str(error)) from error
    return listeners


def _tell_where(settings: Settings, listeners: _Listeners) -> None:
    scheme = "http" if settings.tls_certificate is None else "https"
    for listener in listeners.main:
        log.info("listening on %s", url(scheme, listener))
    for listener in listeners.operations:
        log.info("operations on %s", url("http", listener))
    for listener in listeners.grpc:
        log.info("gRPC on %s", url("grpc", listener).removeprefix("grpc://"))
    if settings.model_default is not None:
        for name, defaults in own_defaults(settings.model_default).items():
            log.info("defaults of model %s: %s", name, defaults)


def serve(settings: Settings) -> int:
    """Run the server in the foreground. Returns the exit code."""
    return asyncio.run(Supervisor(settings).run())
