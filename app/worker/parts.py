"""Computes a batch that fails in parts, so that only the faulty images get no result.

A batch whose computation raises is halved, and its halves are computed separately, down to single images.
With one image at fault, that is at most three times the batch's work, and with any number log2(n) + 1 times.
If an image fails alone, the cause may be the image or the device. A broken device cannot compute anything,
which is tested with a known harmless image. If the error itself says that the device is lost, nothing is
tried. Pure: the function that computes is passed in.
"""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from app.messages.image import Fault
from app.worker.device_errors import is_lost, is_out_of_memory

J = TypeVar("J")


class BackendBroken(Exception):
    """Not even a harmless image can be computed. Only a new process may help."""


class Checkable(Protocol):
    """The fields of a result that are checked."""

    @property
    def is_finite(self) -> bool:
        """Whether all its numbers are finite: an overflow or a broken device leaves NaN, which is not an
        answer."""


R = TypeVar("R", bound=Checkable)


@dataclass(slots=True)
class Computed(Generic[R]):
    """``results`` in the order of the jobs, each a result or the reason why there is none. ``at_once``: the
    size of the largest part that was computed at once. ``memory_was_short``: whether a part did not fit into
    memory. ``errors``: the tracebacks, of the whole batch first and then of single images."""

    results: list[R | Fault] = field(default_factory=list)
    at_once: int = 0
    memory_was_short: bool = False
    errors: list[str] = field(default_factory=list)


def compute_in_parts(
    compute: Callable[[Sequence[J]], Sequence[R]], jobs: Sequence[J], harmless: J
) -> Computed[R]:
    """Compute the jobs at once or, if that fails, in parts.

    Raises BackendBroken if the first image fails and ``harmless`` fails after it, and if an error says that
    the device is lost.
    """
    return _Parts(compute, harmless).computed(jobs)


class _Parts(Generic[J, R]):
    def __init__(self, compute: Callable[[Sequence[J]], Sequence[R]], harmless: J) -> None:
        self._compute = compute
        self._harmless = harmless
        self._found: Computed[R] = Computed()
        self._sound = False

    def computed(self, jobs: Sequence[J]) -> Computed[R]:
        found = self._found
        try:
            results = self._counted(jobs)
        except Exception as error:
            raise_if_lost(error)
            short = is_out_of_memory(error)
            found.memory_was_short |= short
            if not short and (len(jobs) == 1 or not found.errors):
                found.errors.append("".join(traceback.format_exception(error)))
        else:
            found.at_once = max(found.at_once, len(jobs))
            checked: list[R | Fault] = [one if one.is_finite else "no-number" for one in results]
            if "no-number" in checked:
                self._try_harmless()
            found.results += checked
            return found
        # Outside the exception handler, because the traceback would keep the tensors of the failed batch
        # alive.
        if len(jobs) == 1:
            if not short:
                self._try_harmless()
            found.results.append("out-of-memory" if short else "worker-fault")
            return found
        half = len(jobs) // 2
        self.computed(jobs[:half])
        return self.computed(jobs[half:])

    def _counted(self, jobs: Sequence[J]) -> Sequence[R]:
        results = self._compute(jobs)
        if len(results) != len(jobs):
            raise RuntimeError(f"a batch of {len(jobs)} images has {len(results)} results")
        return results

    def _try_harmless(self) -> None:
        """Try the harmless image, once per batch: a device that breaks later is detected by the next
        batch."""
        if self._sound:
            return
        try:
            (result,) = self._counted([self._harmless])
        except Exception as error:
            raise_if_lost(error)
            if is_out_of_memory(error):  # a temporary problem
                return
            raise BackendBroken(
                f"not even a blank image can be computed: {type(error).__name__}: {error}"
            ) from error
        if not result.is_finite:
            raise BackendBroken("the network's scores are not finite numbers even for a blank image")
        self._sound = True


def raise_if_lost(error: Exception) -> None:
    """Raises BackendBroken for an error after which the device cannot be used in this process."""
    if is_lost(error):
        raise BackendBroken(f"the device is lost: {error}".partition("\n")[0]) from error
