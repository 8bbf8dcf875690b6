"""Memory that the bodies of requests take in one HTTP process, with all that is made of them.

Every request counts what it holds, whoever made it: bytes that came, bytes that were inflated, images decoded
from base64, copies that resizing needs. What all of them hold together is bounded, so a request that would
go beyond it is refused, and its memory is free for the others.
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
# Pieces of work given to the thread. The results of all that are done meanwhile come in one turn of the event
# loop, which others wait for: with 100 bodies inflated at once, 0.07 s.
_GIVEN_AT_ONCE = 4


class Memory:
    """What one HTTP process may hold of bodies, and its one thread for work on them that takes long: one
    request's at a time, so that what such work needs for itself is there only once."""

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
        """Hold more. Raises Overloaded where there is not so much left, and TooLarge where there never is."""
        memory = self._memory
        with memory.lock:
            if self._taken + size > memory.most_bytes:
                raise TooLarge(
                    f"the request needs more than the {memory.most_bytes} bytes of memory that all request "
                    "bodies together may have; send less in one request"
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
        """Around work that needs memory for itself: one request's at a time, in what is set apart for it."""
        with self._memory.working:
            yield

    def give_back(self, size: int) -> None:
        """Hold less."""
        with self._memory.lock:
            self._change(-min(size, self._taken))

    def keep(self, size: int) -> None:
        """Hold no more than this: the rest is no longer needed."""
        with self._memory.lock:
            self._change(min(0, size - self._taken))

    def _change(self, by: int) -> None:
        self._taken += by
        self._memory.taken += by

    async def run(self, function: Callable[[], _T], keeps: Callable[[_T], int] | None = None) -> _T:
        """Call the function off the event loop, when it is this request's turn. Afterwards the request holds
        what it held before, or what ``keeps`` says of the result. Raises what the function raises."""

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
        """As `run`; work on so few bytes that it takes no longer than another thread's turn is done here."""
        return function() if size <= _SMALL else await self.run(function, keeps)


def most_held(most_bytes: int, most_bytes_of_one: int) -> int:
    """What bodies may hold of the memory allowed. The rest is for work on one of them, which takes up to a
    copy and a half of it (the pixels of an image, as Pillow lays them out), for buffers, and for what malloc
    cannot give back at once: with four times in place of six, 16 JSON documents of 31 MB took 40 MiB more
    than the limit of 512."""
    return most_bytes - min(most_bytes // 2, 6 * most_bytes_of_one)


def share_of(scope: Scope) -> Share:
    """The request's share; without limits where nobody set any."""
    state = scope.setdefault("state", {})
    if _SHARE not in state:
        state[_SHARE] = Share(Memory())
    share: Share = state[_SHARE]
    return share


def set_share(scope: Scope, share: Share) -> None:
    """Count what is made of this request's body there."""
    scope.setdefault("state", {})[_SHARE] = share
