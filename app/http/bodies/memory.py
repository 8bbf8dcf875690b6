"""The memory that request bodies take in one HTTP process, with everything that is made of them.

Every request counts what it holds: received bytes, inflated bytes, images decoded from base64, copies for
resizing. The total is limited: a request that would exceed it is refused, and its memory is freed.
"""

import asyncio
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from starlette.types import Scope

from app.errors import Overloaded, TooLarge

_T = TypeVar("_T")

_RETRY_AFTER_S = 1.0
_SHARE = "memory"
_SMALL = 2**16  # bytes
# Number of work items passed to the thread at once. All results that are ready arrive in one turn of the
# event loop, which delays other requests: 0.07 s with 100 bodies inflated at once.
_GIVEN_AT_ONCE = 4


class Memory:
    """The limit of one HTTP process for bodies, and its one thread for work on them that takes long: one
    request at a time, so that the extra memory for such work is needed only once."""

    def __init__(self, most_bytes: float = math.inf) -> None:
        self.most_bytes = most_bytes
        self.taken = 0
        self.working = threading.Lock()
        self.lock = threading.Lock()
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="bodies")
        self.given = asyncio.Semaphore(_GIVEN_AT_ONCE)

    def __repr__(self) -> str:
        return f"<Memory {self.taken} of {self.most_bytes} bytes taken>"


class Share:
    """The memory that one request holds. All methods are thread-safe."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._taken = 0

    def take(self, size: int) -> None:
        """Count more memory. Raises Overloaded if not enough is left, and TooLarge if there never would
        be."""
        memory = self._memory
        with memory.lock:
            if self._taken + size > memory.most_bytes:
                raise TooLarge(
                    f"the request needs more than the {memory.most_bytes} bytes of memory allowed for all "
                    "request bodies together; send fewer or smaller images in one request"
                )
            if memory.taken + size > memory.most_bytes:
                raise Overloaded(
                    f"the bodies of all requests together need more than the {memory.most_bytes} bytes of "
                    "memory allowed; retry later",
                    retry_after_s=_RETRY_AFTER_S,
                )
            self._change(size)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """A context manager for work that needs extra memory: one request at a time, in memory that is
        reserved for it."""
        with self._memory.working:
            yield

    def give_back(self, size: int) -> None:
        """Count less memory."""
        with self._memory.lock:
            self._change(-min(size, self._taken))

    def keep(self, size: int) -> None:
        """Count only this much from now on: the rest is no longer needed."""
        with self._memory.lock:
            self._change(min(0, size - self._taken))

    def _change(self, by: int) -> None:
        self._taken += by
        self._memory.taken += by

    async def run(self, function: Callable[[], _T], keeps: Callable[[_T], int] | None = None) -> _T:
        """Call the function off the event loop, when it is this request's turn. Afterwards the request counts
        what it counted before, or what ``keeps`` returns for the result. Raises what the function raises."""

        def counted() -> _T:
            with self.alone():
                result = function()
                if keeps is not None:
                    self.keep(keeps(result))
                return result

        async with self._memory.given:
            return await asyncio.get_running_loop().run_in_executor(self._memory.worker, counted)

    async def run_if_large(
        self, size: int, function: Callable[[], _T], keeps: Callable[[_T], int] | None = None
    ) -> _T:
        """As `run`. Work on so few bytes that it takes no longer than a thread switch is done at once."""
        return function() if size <= _SMALL else await self.run(function, keeps)


def most_held(most_bytes: int, most_bytes_of_one: int) -> int:
    """The part of the allowed memory that bodies may hold. The rest is for work on one of them, which takes
    up to one and a half times its size (the pixels of an image in Pillow's layout), for buffers, and for what
    malloc cannot return at once: with four times instead of six, 16 JSON documents of 31 MB took 40 MiB more
    than the limit of 512."""
    return most_bytes - min(most_bytes // 2, 6 * most_bytes_of_one)


def share_of(scope: Scope) -> Share:
    """The request's share. It has no limit if nobody set one."""
    state = scope.setdefault("state", {})
    if _SHARE not in state:
        state[_SHARE] = Share(Memory())
    share: Share = state[_SHARE]
    return share


def set_share(scope: Scope, share: Share) -> None:
    """Set the share in which the body of this request is counted."""
    scope.setdefault("state", {})[_SHARE] = share
