"""Images are decoded in processes of their own, which may hang, crash or run out of memory.

For its users it is an executor that runs `app.decoding.images.decode` in such a process (docs/design/0016).
"""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from app.decoding.decoder_process import DecoderProcess, Died
from app.decoding.images import Data, ImageLimits, ModelInput, decode
from app.errors import NotReady, Problem, UndecodableImage
from app.telemetry import metrics
from models.transforms import InputSpec

log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

# What the interpreter and its libraries reserve, and what decoding takes of a pixel at most: a WebP with
# transparency, of which its decoder holds four copies, and the RGB of it (measured in docs/design/0016).
_OWN_BYTES, _BYTES_PER_PIXEL = 640 * 2**20, 20

_DEATH_S = 1.0  # from a process's hanging up to its end
_START_S = 30.0
_RETRY_AFTER_S = 5.0


def memory_for(pixels: int) -> int:
    """Bytes of memory with which an image of so many pixels can be decoded, whatever its format."""
    return _OWN_BYTES + _BYTES_PER_PIXEL * pixels


@dataclass(slots=True)
class _Place:
    """For one process after the other; none where the system had no room for one."""

    child: DecoderProcess | None


class DecodingProcesses(Executor):
    """So many processes that decode, each replaced when an image takes longer than ``timeout_s`` or kills it.

    The sender of such an image gets UndecodableImage. An image whose process died is tried once more in
    another, for it may not have been the image. It is not where a process dies before it takes any: NotReady.
    """

    def __init__(self, processes: int, timeout_s: float, memory_bytes: int) -> None:
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="decode")
        # All from the start: one that the system has no room for later would be the fault of an image.
        meeting = threading.Barrier(processes)
        for _ in range(processes):
            self._threads.submit(meeting.wait, _START_S)
        self._closing = False
        self._trouble: str | None = None
        for cause in ("slow", "died"):  # there from the start, so that the first shows as a rise
            metrics.DECODERS_REPLACED.labels(cause)
        self._children: set[DecoderProcess] = set()
        self._idle: queue.LifoQueue[_Place] = queue.LifoQueue()
        for _ in range(processes):
            self._idle.put(_Place(self._new()))
        self._trial = self._threads.submit(self._try)

    def look_for_trouble(self) -> str | None:
        """Why images cannot be decoded, where the last process that was started did not come up; another one
        is tried meanwhile. One that has died unnoticed, having nothing to do, is replaced."""
        wanted = self._trouble is not None or not all(child.alive for child in list(self._children))
        if wanted and self._trial.done() and not self._closing:
            with contextlib.suppress(RuntimeError):  # it is being closed at this moment
                self._trial = self._threads.submit(self._try)
        return self._trouble

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Decode in one of the processes. Raises TypeError for another function than `decode`."""
        if fn is not decode:
            raise TypeError(f"decoding processes run app.decoding.images.decode and nothing else, not {fn!r}")
        return self._threads.submit(self._decode, *args, **kwargs)  # type: ignore[arg-type]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes. Images under way are given up."""
        self._closing = True
        for child in list(self._children):
            child.kill()
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        for child in list(self._children):
            child.end()

    def _decode(self, data: Data, spec: InputSpec, limits: ImageLimits) -> ModelInput:
        place = self._idle.get()
        try:
            for _ in range(2):
                child = self._started(place)
                try:
                    return child.decode(data, spec, limits, self._timeout_s)
                except TimeoutError:
                    self._replace(place, "slow")
                    raise UndecodableImage(
                        f"decoding the image took longer than the {self._timeout_s:g} s allowed"
                    ) from None
                except Died:
                    self._replace(place, "died")
            raise UndecodableImage("the image broke its decoder, twice")
        finally:
            self._idle.put(place)

    def _try(self) -> None:
        """See whether a process comes up, one that has died before others. Where it does not, the log has
        it."""
        place = self._one_that_died() or self._idle.get()
        try:
            with contextlib.suppress(Problem):
                self._started(place)
        finally:
            self._idle.put(place)

    def _one_that_died(self) -> _Place | None:
        """Taken from the idle ones."""
        idle, died = [], None
        with contextlib.suppress(queue.Empty):
            while died is None:
                place = self._idle.get_nowait()
                if place.child is not None and not place.child.alive:
                    died = place
                else:
                    idle.append(place)
        for place in reversed(idle):
            self._idle.put(place)
        return died

    def _started(self, place: _Place) -> DecoderProcess:
        """The process there, once it has started. Raises NotReady where not even a second one does."""
        for _ in range(2):
            if place.child is None:
                place.child = self._new()
            if place.child is None:
                ending = "could not be made"
                continue
            cause = "died"
            try:
                if place.child.alive:
                    place.child.wait_until_started(_START_S)
                    self._trouble = None
                    return place.child
            except TimeoutError:
                cause = "slow"
            except Died:
                pass
            ending = self._replace(place, cause)
        self._trouble = f"no decoding process starts; the last one {ending}"
        log.error("%s", self._trouble)
        raise NotReady(self._trouble, retry_after_s=_RETRY_AFTER_S)

    def _replace(self, place: _Place, cause: str) -> str:
        """Gives back how the old one ended."""
        assert place.child is not None
        ending = place.child.end(_DEATH_S if cause == "died" else 0)
        self._children.discard(place.child)
        if self._closing:
            raise UndecodableImage("the server is shutting down")
        log.warning("a decoding process %s (%s) and is replaced", ending, cause)
        metrics.DECODERS_REPLACED.labels(cause).inc()
        place.child = self._new()
        return ending

    def _new(self) -> DecoderProcess | None:
        """None where the system has no room for it; the log has why."""
        try:
            child = DecoderProcess(self._memory_bytes)
        except OSError as error:
            log.warning("a decoding process cannot be made: %s", error)
            return None
        self._children.add(child)
        return child
