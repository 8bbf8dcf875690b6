"""Starts the processes, starts them again when they die, and drains them on SIGTERM.

The supervisor owns the listening socket (so no connection is refused while an HTTP process is replaced)
and a private folder with the engines' sockets and the metrics. It serves no request and never imports torch.
"""

import asyncio
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from setproctitle import setproctitle

from app.lifeline import LOAD_FAILED, SUPERVISOR_VARIABLE
from app.settings import Settings

log = logging.getLogger(__name__)

_RESTART_AFTER_S = (0.2, 0.5, 1.0, 2.0, 5.0)
_BACKLOG = 2048


class CannotStart(Exception):
    """The server cannot be started as configured; the text says why."""


@dataclass(slots=True)
class _Child:
    """A process to keep running. ``name`` is its slot, the same for every successor."""

    name: str
    module: str
    environment: Mapping[str, str]
    inherited: tuple[int, ...] = ()
    process: asyncio.subprocess.Process | None = None


@dataclass(slots=True)
class Supervisor:
    """Runs the server until it is told to stop; `run` gives back the exit code."""

    settings: Settings
    _children: list[_Child] = field(default_factory=list)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _failed: str | None = None

    async def run(self) -> int:
        """Raises CannotStart if the port is taken."""
        setproctitle("trimvit: supervisor")
        listener = _listen(self.settings.host, self.settings.port)
        folder = Path(tempfile.mkdtemp(prefix="trimvit-"))  # made with mode 0700
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        try:
            devices = [
                device for device in self.settings.device.split(",") for _ in range(self.settings.engines)
            ]
            engines = [
                self._engine(index, device, devices.count(device), folder)
                for index, device in enumerate(devices)
            ]
            fronts = [
                self._front(index, listener, engines, folder) for index in range(self.settings.http_workers)
            ]
            self._children = [*engines, *fronts]
            self._metrics(folder)
            host, port = listener.getsockname()[:2]
            log.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
            keepers = [asyncio.create_task(self._keep_running(child)) for child in self._children]
            await self._stopping.wait()
            listener.close()  # with the front ends' copies gone too, the port refuses new connections
            drained = await self._drain(fronts, engines)
            await asyncio.gather(*keepers)
            if self._failed is not None:
                log.error("stopped: %s", self._failed)
                return 1
            log.info("stopped")
            return 0 if drained else 1
        finally:
            listener.close()
            shutil.rmtree(folder, ignore_errors=True)

    def _signalled(self) -> None:
        if self._stopping.is_set():
            log.warning("told to stop again: ending at once")
            for child in self._children:
                _signal(child, signal.SIGKILL)
            return
        log.info("stopping: finishing what was accepted")
        self._stopping.set()

    def _engine(self, index: int, device: str, sharing: int, folder: Path) -> _Child:
        name = f"engine-{index}"
        environment = {
            "TRIMVIT_ENGINE_INDEX": str(index),
            "TRIMVIT_ENGINE_DEVICE": device,
            "TRIMVIT_ENGINE_SHARING": str(sharing),
            "TRIMVIT_ENGINE_ADDRESS": f"ipc://{folder}/{name}",
        }
        return _Child(name, "app.engine.process", environment)

    def _front(self, index: int, listener: socket.socket, engines: list[_Child], folder: Path) -> _Child:
        environment = {
            "TRIMVIT_HTTP_INDEX": str(index),
            "TRIMVIT_HTTP_REPORTS": str(folder / "engines.json"),
            "TRIMVIT_HTTP_SOCKET": str(listener.fileno()),
            "TRIMVIT_HTTP_ENGINES": " ".join(
                engine.environment["TRIMVIT_ENGINE_ADDRESS"] for engine in engines
            ),
        }
        return _Child(f"http-{index}", "app.http.process", environment, (listener.fileno(),))

    def _metrics(self, folder: Path) -> None:
        """Metrics files of all processes go into a new folder; this process writes there too."""
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder / "metrics")
        os.environ["TRIMVIT_METRICS_SLOT"] = "supervisor"
        (folder / "metrics").mkdir()

    async def _keep_running(self, child: _Child) -> None:
        from app import metrics  # only now does it know where to write

        is_engine = child.name.startswith("engine")
        deaths = 0
        metrics.RESTARTS.labels(child.name)  # there from the start, so that the first restart shows as a rise
        while not self._stopping.is_set():
            child.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                child.module,
                env={
                    **os.environ,
                    **child.environment,
                    SUPERVISOR_VARIABLE: str(os.getpid()),
                    "TRIMVIT_METRICS_SLOT": child.name,
                    "TRIMVIT_SETTINGS": self.settings.model_dump_json(),
                },
                pass_fds=child.inherited,
                start_new_session=True,  # Ctrl-C in a terminal reaches the supervisor only
            )
            if self._stopping.is_set():  # told to stop while it was being started
                _signal(child, signal.SIGTERM)
            if is_engine:
                metrics.ENGINE_UP.labels(child.name).set(1)
            code = await child.process.wait()
            if is_engine:
                metrics.ENGINE_UP.labels(child.name).set(0)
            if self._stopping.is_set():
                return
            if code == LOAD_FAILED:
                self._failed = f"{child.name} cannot load the model; its log line above says why"
                self._stopping.set()
                return
            metrics.RESTARTS.labels(child.name).inc()
            pause = _RESTART_AFTER_S[min(deaths, len(_RESTART_AFTER_S) - 1)]
            deaths += 1
            log.error("%s ended with %s; starting it again in %g s", child.name, _ending(code), pause)
            try:
                await asyncio.wait_for(self._stopping.wait(), pause)
            except TimeoutError:
                continue

    async def _drain(self, fronts: list[_Child], engines: list[_Child]) -> bool:
        """Front ends first: they finish what they accepted, for which they need the engines. False if the
        grace time ended first."""
        deadline = asyncio.get_running_loop().time() + self.settings.shutdown_grace_s
        drained = True
        for group in (fronts, engines):
            for child in group:
                _signal(child, signal.SIGTERM)
            rest = max(0.0, deadline - asyncio.get_running_loop().time())
            alive = [asyncio.create_task(child.process.wait()) for child in group if child.process]
            if alive:
                _, late = await asyncio.wait(alive, timeout=rest)
                drained = drained and not late
            for child in group:
                _signal(child, signal.SIGKILL)
        return drained


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotStart(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    listener.setblocking(False)  # noqa: FBT003
    return listener


def _signal(child: _Child, number: signal.Signals) -> None:
    if child.process is not None and child.process.returncode is None:
        child.process.send_signal(number)


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def serve(settings: Settings) -> int:
    """Run the server in the foreground; gives back the exit code."""
    return asyncio.run(Supervisor(settings).run())
