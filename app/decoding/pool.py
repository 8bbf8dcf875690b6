"""Decodes images in separate processes, which may hang, crash or run out of memory.

An image costs the front end a message over a socket and a copy of its pixels, which ``take`` makes
(docs/design/0016).
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from app.decoding.decoder_process import DecoderProcess, Died, Told
from app.decoding.images import Data, ImageLimits, Take, decode
from app.errors import NotReady, Problem, UndecodableImage
from app.processes import background
from app.processes.futures import pass_on, set_exception, set_result
from app.telemetry import metrics
from models.transforms import InputSpec

log = logging.getLogger(__name__)

_T = TypeVar("_T")

# The memory that the interpreter and libraries reserve, and the maximum that decoding needs per pixel. The
# maximum is for WebP with transparency: the decoder holds four copies, and the RGB image is added (measured
# in docs/design/0016).
_OWN_BYTES, _BYTES_PER_PIXEL = 640 * 2**20, 20

_DEATH_S = 1.0  # between closing its connection and the end of the process
_START_S = 30.0
_RETRY_AFTER_S = 5.0


class Decoders(Protocol):
    """Decodes images."""

    def decode(
        self, data: Data, spec: InputSpec, limits: ImageLimits, take: Take
    ) -> asyncio.Future[tuple[str, ...]]:
        """Start to decode an image. ``take`` is called with the pixels, in the event loop. The result is the
        warnings, or what `app.decoding.images.decode` or ``take`` raises."""

    def look_for_trouble(self) -> str | None:
        """The reason why images cannot be decoded, if there is one."""

    def close(self) -> None:
        """Stop decoding. Images in progress are given up."""


class InExecutor:
    """Decodes in the threads of an executor."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def decode(
        self, data: Data, spec: InputSpec, limits: ImageLimits, take: Take
    ) -> asyncio.Future[tuple[str, ...]]:
        """Raises RuntimeError if the executor accepts no more work."""
        work = asyncio.wrap_future(self._executor.submit(decode, data, spec, limits))

        async def taken() -> tuple[str, ...]:
            seen = await work
            take(seen.pixels)
            return seen.warnings

        return background.awaited(taken(), "decoding")

    def look_for_trouble(self) -> str | None:
        """Always None."""
        return None

    def close(self) -> None:
        """Accept no more images."""
        self._executor.shutdown(wait=False)


def memory_for(pixels: int) -> int:
    """The memory in bytes that is enough to decode an image with this number of pixels in any format."""
    return _OWN_BYTES + _BYTES_PER_PIXEL * pixels


@dataclass(slots=True)
class _Place:
    """A place for one process at a time. It is empty if the system could not create a process."""

    child: DecoderProcess | None


@dataclass(frozen=True, slots=True)
class _Image:
    """An image to decode, and its parameters."""

    data: Data
    spec: InputSpec
    limits: ImageLimits
    take: Take


class DecodingProcesses:
    """Decoding processes. Each is replaced if an image takes longer than ``timeout_s`` or crashes it.

    The sender of such an image gets UndecodableImage. If a process dies, its image is tried once more in
    another process, because the image may not be the cause. If a process dies before it accepts any image,
    the sender gets NotReady.
    """

    def __init__(self, processes: int, timeout_s: float, memory_bytes: int) -> None:
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        # These threads start and end processes. All are created at the start, because a failure to create one
        # later would look like the fault of an image.
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="decode")
        meeting = threading.Barrier(processes)
        for _ in range(processes):
            self._threads.submit(meeting.wait, _START_S)
        self._closing = False
        self._trouble: str | None = None
        for cause in ("slow", "died"):
            # Create the series at the start, so that the first event shows as a rise.
            metrics.DECODERS_REPLACED.labels(cause)
        self._children: set[DecoderProcess] = set()
        self._idle: asyncio.LifoQueue[_Place] = asyncio.LifoQueue()
        for _ in range(processes):
            self._idle.put_nowait(_Place(self._new()))
        self._trial: asyncio.Task[None] | None = None

    def look_for_trouble(self) -> str | None:
        """The reason why images cannot be decoded, if the last process that was started failed. Meanwhile
        another one is tried. An idle process that has died is replaced."""
        wanted = (
            self._trial is None
            or self._trouble is not None
            or not all(child.alive for child in self._children)
        )
        if wanted and (self._trial is None or self._trial.done()) and not self._closing:
            self._trial = background.awaited(self._try(), "trial of a decoding process")
        return self._trouble

    def decode(
        self, data: Data, spec: InputSpec, limits: ImageLimits, take: Take
    ) -> asyncio.Future[tuple[str, ...]]:
        """Decode in the next idle process."""
        image = _Image(data, spec, limits, take)
        if self._idle.empty():
            return background.awaited(self._decode(image), "decoding")
        place = self._idle.get_nowait()
        if place.child is None or not place.child.takes_images:
            return background.awaited(self._decode(image, place), "decoding")
        # No task is created, because that would take longer than the rest of the work for an image.
        work: asyncio.Future[tuple[str, ...]] = asyncio.get_running_loop().create_future()
        self._ask(place.child, image, partial(self._first_try, image, place, work))
        return work

    def close(self) -> None:
        """End the processes. Images in progress are given up."""
        self._closing = True
        children, self._children = self._children, set()
        for child in children:
            child.hang_up()
            child.end()
        self._threads.shutdown(wait=False)

    def _ask(self, child: DecoderProcess, image: _Image, told: Callable[[Told], None]) -> None:
        child.decode(image.data, image.spec, image.limits, image.take, self._timeout_s, told)

    def _first_try(
        self, image: _Image, place: _Place, work: asyncio.Future[tuple[str, ...]], found: Told
    ) -> None:
        """Pass on the outcome of the first try. If the process failed, a task continues with the second
        one."""
        if isinstance(found, (TimeoutError, Died)):
            rest = background.awaited(self._decode(image, place, found), "decoding")
            rest.add_done_callback(partial(pass_on, work))
            return
        self._idle.put_nowait(place)
        if isinstance(found, Exception):
            set_exception(work, found)
        else:
            set_result(work, found)

    async def _decode(
        self, image: _Image, place: _Place | None = None, found: Told | None = None
    ) -> tuple[str, ...]:
        """Decode in that place, or in the next idle one. ``found``: the outcome of the first try there."""
        if place is None:
            place = await self._idle.get()
        try:
            for _ in range(2):
                if found is None:
                    found = await self._tried(image, place)
                if isinstance(found, TimeoutError):
                    await self._replace(place, "slow")
                    raise UndecodableImage(
                        f"decoding the image took longer than the {self._timeout_s:g} s allowed; send a "
                        "smaller image"
                    )
                if not isinstance(found, Died):
                    return _result_of(found)
                found = None
                await self._replace(place, "died")
            raise UndecodableImage("the image crashed the decoder twice; save it again, as JPEG or PNG")
        finally:
            self._idle.put_nowait(place)

    async def _tried(self, image: _Image, place: _Place) -> Told:
        """Decode there once. Raises NotReady if no process can be started."""
        child = await self._started(place)
        found: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        self._ask(child, image, partial(set_result, found))
        return await found

    async def _try(self) -> None:
        """Check whether a process can be started, first of all one that has died. A failure is logged."""
        place = self._one_that_died() or await self._idle.get()
        try:
            with contextlib.suppress(Problem):
                await self._started(place)
        finally:
            self._idle.put_nowait(place)

    def _one_that_died(self) -> _Place | None:
        """An idle place whose process has died, taken from the idle ones."""
        idle, died = [], None
        while died is None and not self._idle.empty():
            place = self._idle.get_nowait()
            if place.child is not None and not place.child.alive:
                died = place
            else:
                idle.append(place)
        for place in reversed(idle):
            self._idle.put_nowait(place)
        return died

    async def _started(self, place: _Place) -> DecoderProcess:
        """The process of the place, once it has started. Raises NotReady if a second one also fails to
        start."""
        for _ in range(2):
            if place.child is None:
                place.child = await self._off_the_loop(self._new)
            if place.child is None:
                ending = "could not be created"
                continue
            cause = "died"
            try:
                await place.child.wait_until_started(_START_S)
                self._trouble = None
                return place.child
            except TimeoutError:
                cause = "slow"
            except Died:
                pass
            ending = await self._replace(place, cause)
        self._trouble = f"no image decoding process can be started: the last one {ending}"
        log.error("%s", self._trouble)
        raise NotReady(self._trouble, retry_after_s=_RETRY_AFTER_S)

    async def _replace(self, place: _Place, cause: str) -> str:
        """Returns how the old process ended."""
        old, place.child = place.child, None
        assert old is not None
        old.hang_up()
        await old.stopped_sending()
        if self._closing:
            raise UndecodableImage("the server is shutting down")
        self._children.discard(old)
        ending = await self._off_the_loop(lambda: old.end(_DEATH_S if cause == "died" else 0))
        log.warning("replacing an image decoding process that %s (cause: %s)", ending, cause)
        metrics.DECODERS_REPLACED.labels(cause).inc()
        place.child = await self._off_the_loop(self._new)
        return ending

    async def _off_the_loop(self, work: Callable[[], _T]) -> _T:
        """Run the work in a thread. Raises UndecodableImage while the pool is being closed."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except RuntimeError as error:
            raise UndecodableImage("the server is shutting down") from error

    def _new(self) -> DecoderProcess | None:
        """A new process. None if the system cannot create one; the reason is logged."""
        try:
            child = DecoderProcess(self._memory_bytes)
        except OSError as error:
            log.warning("cannot start an image decoding process: %s", error)
            return None
        self._children.add(child)
        return child


def _result_of(found: Told) -> tuple[str, ...]:
    if isinstance(found, Exception):
        raise found
    return found
