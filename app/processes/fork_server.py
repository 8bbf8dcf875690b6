"""The fork server (`python -m app.processes.fork_server`): it has imported torch and timm, and forks workers.

These imports are most of the time of a worker's start, and most of its memory besides the weights. The fork
server imports once, computes nothing and starts no thread, so forking is safe, and its memory is shared with
its forks. If it cannot be forked, it starts workers as new processes.

Both ends are here: `ForkServer` is the supervisor's.
"""

import asyncio
import contextlib
import gc
import importlib
import logging
import os
import runpy
import signal
import socket
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from setproctitle import setproctitle

from app.processes import background
from app.processes.environment import leave_removed_folder
from app.processes.parent_death import SUPERVISOR_VARIABLE, die_with_parent
from app.settings.settings import Settings
from app.telemetry.logs import configure_logging

log = logging.getLogger(__name__)


class Order(msgspec.Struct, frozen=True):
    """Start that module as a program, with only that environment."""

    module: str
    environment: dict[str, str]


class Started(msgspec.Struct, frozen=True, tag=True):
    """The process of the last order."""

    pid: int


class NotStarted(msgspec.Struct, frozen=True, tag=True):
    """The last order failed."""

    reason: str


class Ended(msgspec.Struct, frozen=True, tag=True):
    """``code`` as that of a subprocess: minus the signal that killed it."""

    pid: int
    code: int


_News = Started | NotStarted | Ended
_news = msgspec.json.Decoder(_News)


# --- the supervisor's end ----------------------------------------------------------------------------
@dataclass(slots=True)
class Forked:
    """A process that the fork server started, with the interface of asyncio.subprocess.Process."""

    pid: int
    returncode: int | None = None
    _ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self) -> int:
        """The exit code, once it has ended."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal. Does nothing if the process has ended."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def end(self, code: int) -> None:
        """Note that it has ended."""
        self.returncode = code
        self._ended.set()


class ForkServer:
    """Runs a fork server with that ``environment`` that has imported the modules ``preloaded``. It is started
    with the first order, and again if it dies. It may take ``patience_s`` for an order, including its
    imports. It and its forks inherit the files ``inherited``."""

    def __init__(
        self,
        environment: Mapping[str, str],
        preloaded: Sequence[str],
        patience_s: float,
        inherited: Sequence[int] = (),
    ) -> None:
        self._inherited = tuple(inherited)
        self._environment = environment
        self._preloaded = preloaded
        self._patience_s = patience_s
        self._one_at_a_time = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._listening: asyncio.Task[None] | None = None
        self._started: asyncio.Future[Forked] | None = None
        self._forked: dict[int, Forked] = {}
        self._closed = False

    async def start(self, module: str, environment: Mapping[str, str]) -> Forked:
        """Start ``module`` with that environment. If the fork server dies, takes too long or was closed, the
        returned process has already ended. Raises OSError if the system cannot create a process."""
        async with self._one_at_a_time:
            if self._closed:
                return _ended(-signal.SIGKILL)
            if self._listening is None or self._listening.done():
                await self._launch()
            assert self._writer is not None
            self._started = asyncio.get_running_loop().create_future()
            self._writer.write(msgspec.json.encode(Order(module, dict(environment))) + b"\n")
            _, late = await asyncio.wait([self._started], timeout=self._patience_s)
            if late and not self._started.done():
                log.warning("killing the fork server: no response for %g s", self._patience_s)
                assert self._process is not None
                self._process.kill()
            return await self._started

    async def close(self) -> None:
        """End it for good. Its forks end with it, at once."""
        self._closed = True
        if self._listening is not None and self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self._listening

    async def _launch(self) -> None:
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as on_failure, theirs:
            on_failure.callback(ours.close)
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "app.processes.fork_server",
                str(theirs.fileno()),
                *self._preloaded,
                env=self._environment,
                pass_fds=(theirs.fileno(), *self._inherited),
                start_new_session=True,
            )
            on_failure.callback(self._process.kill)
            reader, self._writer = await asyncio.open_connection(sock=ours)
            on_failure.pop_all()
        self._listening = background.awaited(
            self._listen(self._process, reader, self._writer), "talk with the fork server"
        )

    async def _listen(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Read its messages until it ends. The kernel then ends its forks. It is killed if a message is
        invalid."""
        try:
            async for line in reader:
                self._hear(_news.decode(line))
        except ConnectionError:
            pass
        except Exception as error:
            background.incident("talk with the fork server", error)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        code = await process.wait()
        writer.close()
        for forked in self._forked.values():
            forked.end(-signal.SIGKILL)
        self._forked.clear()
        if self._started is not None and not self._started.done():
            self._started.set_result(_ended(code))

    def _hear(self, news: _News) -> None:
        asked = self._started
        match news:
            case Started(pid):
                self._forked[pid] = Forked(pid)
                if asked is not None and not asked.done():
                    asked.set_result(self._forked[pid])
            case NotStarted(reason):
                if asked is not None and not asked.done():
                    asked.set_exception(OSError(f"no process can be started: {reason}"))
            case Ended(pid, code):
                self._forked.pop(pid).end(code)


def _ended(code: int) -> Forked:
    """A process that was never started."""
    forked = Forked(0)
    forked.end(code)
    return forked


# --- the process -------------------------------------------------------------------------------------
def _preload(modules: Sequence[str]) -> bool:
    """Import the modules if that is useful. Returns whether this process can be forked."""
    if not sys.platform.startswith("linux"):  # on other systems, libraries used by torch do not support fork
        return False
    gc.disable()  # imports create almost no garbage; collecting it takes a sixth of the time
    try:
        for module in modules:
            importlib.import_module(module)
    except Exception:
        # The worker that needs the module will fail and report the reason.
        log.exception("cannot import a module that workers need")
    threads = [
        (task / "comm").read_text(encoding="utf-8").strip() for task in Path("/proc/self/task").iterdir()
    ]
    if len(threads) > 1:
        log.warning(
            "workers will start slowly: the fork server has threads (%s) and cannot fork", ", ".join(threads)
        )
    # Existing objects are never garbage. Collecting them in a fork would copy their memory pages.
    gc.collect()
    gc.freeze()
    gc.enable()
    return len(threads) == 1


def _obey(channel: socket.socket, *, can_fork: bool) -> str | None:
    """Start what is ordered and report how it ends, until the supervisor is gone. In a fork, returns the
    module to run."""

    def tell(news: _News) -> None:
        channel.sendall(msgspec.json.encode(news) + b"\n")

    def reap(*_: object) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                tell(Ended(ended[0], os.waitstatus_to_exitcode(ended[1])))

    signal.signal(signal.SIGCHLD, reap)
    with channel.makefile("rb") as orders:
        for line in orders:
            order = msgspec.json.decode(line, type=Order)
            # A worker must end with this process, not with the supervisor.
            environment = {**order.environment, SUPERVISOR_VARIABLE: str(os.getpid())}
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # report the start before the end
            try:
                pid = _fork() if can_fork else _spawn(order.module, environment)
            except OSError as error:  # too many processes or too little memory; running processes continue
                tell(NotStarted(str(error)))
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
                continue
            if pid == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.environ.clear()
                os.environ.update(environment)
            else:
                tell(Started(pid))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            if pid == 0:
                return order.module
    return None


def _fork() -> int:
    """Fork a process that has one thread, which ``_preload`` checks. Python 3.12 and later count threads,
    too, but split /proc/self/stat at spaces, of which the name of this process has two, and warn of
    threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _spawn(module: str, environment: Mapping[str, str]) -> int:
    command = [sys.executable, "-m", module]
    return os.posix_spawn(sys.executable, command, environment, setsigmask=())


def main() -> None:
    """The command line is FILE_DESCRIPTOR MODULE...: the supervisor's socket, and what to import."""
    settings = Settings.model_validate_json(os.environ["TRIMVIT_SETTINGS"])
    die_with_parent()
    leave_removed_folder()
    setproctitle("trimvit: fork server")
    configure_logging(settings.log_level, "fork server", settings.log_format)
    descriptor, *modules = sys.argv[1:]
    with socket.socket(fileno=int(descriptor)) as channel:
        module = _obey(channel, can_fork=_preload(modules))
    if module is not None:
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
