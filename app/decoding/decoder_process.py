"""The front end's end of one decoding process: it is started, asked for one image at a time, and ended.

The event loop waits for what the process says, no thread does. What it says is checked before it is believed.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from functools import lru_cache

import msgspec

from app.decoding.decoder import (
    MEMORY_VARIABLE,
    PIXELS_VARIABLE,
    SIZES,
    SOCKET_VARIABLE,
    STARTED,
    Outcome,
    Task,
)
from app.decoding.images import Data, ImageLimits, Take
from app.decoding.shared_pixels import SharedPixels
from app.errors import TooLarge, UndecodableImage, UnsupportedMediaType
from app.processes.lifeline import SUPERVISOR_VARIABLE
from models.transforms import InputSpec

_LONGEST_HEAD = 65_536
_LONGEST_ANSWER = SIZES.size + _LONGEST_HEAD
_PROBLEMS = {problem.slug: problem for problem in (TooLarge, UndecodableImage, UnsupportedMediaType)}
# What a decoding process may see of the environment: where Python is, and no secrets.
_ENVIRONMENT = (
    "PATH",
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONSAFEPATH",
    "LD_LIBRARY_PATH",
    "LANG",
    "LC_ALL",
    "VIRTUAL_ENV",
)


class Died(Exception):
    """The process is gone, or talks nonsense."""


class DecoderProcess:
    """One decoding process, used from one event loop."""

    def __init__(self, memory_bytes: int) -> None:
        """Start the process. Raises OSError where the system has no room for it, its socket or its memory."""
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as on_failure, theirs:
            on_failure.callback(ours.close)
            self._pixels = SharedPixels()
            on_failure.callback(self._pixels.close)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "app.decoding.decoder"],
                env={
                    **{name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                    "OPENBLAS_NUM_THREADS": "1",
                    SUPERVISOR_VARIABLE: str(os.getpid()),
                    SOCKET_VARIABLE: str(theirs.fileno()),
                    PIXELS_VARIABLE: str(self._pixels.number),
                    MEMORY_VARIABLE: str(memory_bytes),
                },
                pass_fds=(theirs.fileno(), self._pixels.number),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
            on_failure.pop_all()
        ours.setblocking(False)  # noqa: FBT003
        self._connection = ours
        self._loop: asyncio.AbstractEventLoop | None = None
        self._received = bytearray()
        self._news: asyncio.Future[None] | None = None
        self._started = self._over = False

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    async def wait_until_started(self, within_s: float) -> None:
        """Nothing where it has started before, and runs. Raises TimeoutError or Died."""
        if self._over or not self.alive:
            raise Died("it has ended")
        if not self._started:
            async with asyncio.timeout(within_s):
                said = await self._receive(len(STARTED))
            if said != STARTED:
                raise Died("it said something else")
            self._started = True

    async def decode(
        self, data: Data, spec: InputSpec, limits: ImageLimits, take: Take, timeout_s: float
    ) -> tuple[str, ...]:
        """Have the pixels taken, and give back the warnings. Raises the Problem that the process found, what
        ``take`` raises, TimeoutError, or Died."""
        height, width = spec.size
        size = height * width * 3
        try:
            self._pixels.reserve(size)
            async with asyncio.timeout(timeout_s):
                await self._send(_head_of(spec, limits), data)
                head_size, pixels = SIZES.unpack(await self._receive(SIZES.size))
                if head_size > _LONGEST_HEAD:
                    raise Died("it answered out of turn")
                outcome = msgspec.msgpack.decode(await self._receive(head_size), type=Outcome)
        except TimeoutError:
            raise
        except (OSError, msgspec.DecodeError) as error:
            raise Died(str(error)) from error
        if pixels != (0 if outcome.slug else size):
            raise Died("it answered with another size")
        if outcome.slug is not None:
            raise _PROBLEMS.get(outcome.slug, UndecodableImage)(outcome.detail)
        take(self._pixels.view(height, width))
        return outcome.warnings

    def hang_up(self) -> None:
        """Say and hear nothing more. Whoever waits for an answer gets Died."""
        was_over, self._over = self._over, True
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
            if self._loop is not None and not was_over:
                self._loop.remove_reader(self._connection)
            self._tell()

    def end(self, grace_s: float = 0) -> str:
        """Kill the process, if it still runs after the grace time, and say how it ended. `hang_up` comes
        first. It takes as long as the process does, and may be called in a thread."""
        try:
            ended = self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return "was killed"
        finally:
            self._connection.close()
            self._pixels.close()
        return f"ended by {signal.Signals(-ended).name}" if ended < 0 else f"ended with exit code {ended}"

    async def _send(self, head: bytes, data: Data) -> None:
        """Most images go out at once; none is copied on the way. Raises OSError."""
        first = SIZES.pack(len(head), len(data)) + head
        try:
            sent = self._connection.sendmsg((first, data))
        except BlockingIOError:
            sent = 0
        for part in (memoryview(first)[sent:], memoryview(data)[max(0, sent - len(first)) :]):
            if part:
                await asyncio.get_running_loop().sock_sendall(self._connection, part)

    async def _receive(self, size: int) -> bytes:
        """Exactly so many bytes. Raises Died."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._connection, self._hear)
        while len(self._received) < size:
            if self._over:
                raise Died("it hung up")
            self._news = self._loop.create_future()
            await self._news
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    def _hear(self) -> None:
        """Take what it says; nothing more where it hangs up, or says more than any answer has."""
        try:
            data = self._connection.recv(_LONGEST_ANSWER)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._received += data
        if not data or len(self._received) > _LONGEST_ANSWER:
            self.hang_up()
        self._tell()

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


@lru_cache(8)
def _head_of(spec: InputSpec, limits: ImageLimits) -> bytes:
    return msgspec.msgpack.encode(Task(spec, limits))
