"""The front end's side of a decoding process: starts it, sends it one image at a time, and ends it.

The event loop waits for its answers, without a thread. Every answer is checked before it is used.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from app.processes import background
from app.processes.parent_death import SUPERVISOR_VARIABLE
from models.transforms import InputSpec

_LONGEST_HEAD = 65_536
_LONGEST_ANSWER = SIZES.size + _LONGEST_HEAD
_PROBLEMS = {problem.slug: problem for problem in (TooLarge, UndecodableImage, UnsupportedMediaType)}
# Environment variables that a decoding process gets: those that Python needs, and no secrets.
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
    """The process has exited, or its answer is not valid."""


Told = tuple[str, ...] | Exception  # warnings about an image, or the reason why there are no pixels
_outcomes = msgspec.msgpack.Decoder(Outcome)


class DecoderProcess:
    """One decoding process, used from one event loop."""

    def __init__(self, memory_bytes: int) -> None:
        """Start the process. Raises OSError if the system cannot create the process, its socket or its
        memory."""
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
        self._asked: _Asked | None = None
        self._sending: asyncio.Task[None] | None = None
        self._until = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    async def wait_until_started(self, within_s: float) -> None:
        """Wait until the process has started. Returns at once if it has already. Raises TimeoutError or
        Died."""
        if self._over or not self.alive:
            raise Died("it has exited")
        if not self._started:
            async with asyncio.timeout(within_s):
                said = await self._receive(len(STARTED))
            if said != STARTED:
                raise Died("its first message is not valid")
            self._started = True

    @property
    def takes_images(self) -> bool:
        """Whether it has started and its connection is open."""
        return self._started and not self._over

    def decode(
        self,
        data: Data,
        spec: InputSpec,
        limits: ImageLimits,
        take: Take,
        timeout_s: float,
        told: Callable[[Told], None],
    ) -> None:
        """Decode an image. ``take`` is called with the pixels. ``told`` is called with the outcome: the
        warnings, the Problem that the process found, what ``take`` raised, TimeoutError or Died. It decodes
        one image at a time, after it has started."""
        assert self._asked is None
        assert self._loop is not None
        self._asked = _Asked(spec.size, take, told)
        self._until = self._loop.time() + timeout_s
        if self._timer is None:
            self._timer = self._loop.call_at(self._until, self._look_at_the_time)
        try:
            self._pixels.reserve(self._asked.size)
            self._send(_head_of(spec, limits), data)
        except OSError as error:
            self._tell_of_it(Died(str(error)))
        if self._received:
            self._read_answer()

    def hang_up(self) -> None:
        """Stop sending and receiving. Callers that wait for an answer get Died."""
        was_over, self._over = self._over, True
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits for the result
            if self._loop is not None and not was_over:
                self._loop.remove_reader(self._connection)
            if self._sending is not None:
                self._sending.cancel()
            if self._timer is not None:
                self._timer.cancel()
            self._tell()
            self._tell_of_it(Died("it closed the connection"))

    async def stopped_sending(self) -> None:
        """Call after `hang_up`: waits until the event loop no longer uses the socket, because another socket
        may get its number as soon as it is closed."""
        if self._sending is not None:
            await asyncio.wait({self._sending})

    def end(self, grace_s: float = 0) -> str:
        """Kill the process if it still runs after the grace time, and return how it ended. Call `hang_up`
        first, and, while the loop runs, `stopped_sending`. It blocks until the process has ended and may be
        called in a thread."""
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

    def _send(self, head: bytes, data: Data) -> None:
        """Send the image. Most images are sent at once; none is copied. Raises OSError."""
        first = SIZES.pack(len(head), len(data)) + head
        try:
            sent = self._connection.sendmsg((first, data))
        except BlockingIOError:
            sent = 0
        if sent < len(first) + len(data):
            parts = memoryview(first)[sent:], memoryview(data)[max(0, sent - len(first)) :]
            self._sending = background.awaited(self._send_on(parts), "image for a decoder")

    async def _send_on(self, parts: Sequence[memoryview]) -> None:
        assert self._loop is not None
        try:
            for part in parts:
                if part:
                    await self._loop.sock_sendall(self._connection, part)
        except OSError as error:
            self._tell_of_it(Died(str(error)))
        finally:
            self._sending = None

    async def _receive(self, size: int) -> bytes:
        """Receive exactly so many bytes. Raises Died."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._connection, self._hear)
        while len(self._received) < size:
            if self._over:
                raise Died("it closed the connection")
            self._news = self._loop.create_future()
            await self._news
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    def _hear(self) -> None:
        """Read what has arrived. Ends the connection if the process closed it, or sent more than an answer
        can have."""
        try:
            data = self._connection.recv(_LONGEST_ANSWER)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._received += data
        if not data or len(self._received) > _LONGEST_ANSWER:
            self.hang_up()
        elif self._asked is not None:
            self._read_answer()
        self._tell()

    def _read_answer(self) -> None:
        """Report the answer once it is complete."""
        received, asked = self._received, self._asked
        if asked is None or len(received) < SIZES.size:
            return
        head_size, pixels = SIZES.unpack_from(received)
        end = SIZES.size + head_size
        if head_size > _LONGEST_HEAD or self._sending is not None:
            self._tell_of_it(Died("it sent an answer that was not due"))
        elif len(received) >= end:
            head = bytes(received[SIZES.size : end])
            del received[:end]
            self._tell_of_it(self._what_came(asked, head, pixels))

    def _what_came(self, asked: "_Asked", head: bytes, pixels: int) -> Told:
        try:
            outcome = _outcomes.decode(head)
        except msgspec.DecodeError as error:
            return Died(str(error))
        if pixels != (0 if outcome.slug else asked.size):
            return Died("its answer has the wrong number of pixels")
        if outcome.slug is not None:
            return _PROBLEMS.get(outcome.slug, UndecodableImage)(outcome.detail)
        try:
            asked.take(self._pixels.view(*asked.sides))
        except Exception as error:
            return error
        return outcome.warnings

    def _tell_of_it(self, what: Told) -> None:
        """Report the outcome of the image, unless it has been reported already."""
        asked, self._asked = self._asked, None
        if asked is not None:
            asked.told(what)

    def _look_at_the_time(self) -> None:
        """The timeout. There is one timer for all images, because most images are done long before it
        ends."""
        assert self._loop is not None
        self._timer = None
        if self._asked is None:
            return
        if self._loop.time() < self._until:
            self._timer = self._loop.call_at(self._until, self._look_at_the_time)
        else:
            self._tell_of_it(TimeoutError())

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


@dataclass(frozen=True, slots=True)
class _Asked:
    """An image that is being decoded, to this number of rows and columns."""

    sides: tuple[int, int]
    take: Take
    told: Callable[[Told], None]

    @property
    def size(self) -> int:
        """Bytes of its pixels."""
        return self.sides[0] * self.sides[1] * 3


@lru_cache(8)
def _head_of(spec: InputSpec, limits: ImageLimits) -> bytes:
    return msgspec.msgpack.encode(Task(spec, limits))
