"""A time limit that costs nothing if there is nothing to wait for: most bodies arrive with their head."""

import asyncio
from collections.abc import Awaitable, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


async def in_time(work: Awaitable[T], until: float | None) -> T:
    """The result of the work. Raises TimeoutError if it is not done at this time of the loop (None: no
    limit). A timer is set only once the work waits for something."""
    steps = work.__await__()
    try:
        waits_for = next(steps)
    except StopIteration as done:
        result: T = done.value
        return result
    async with asyncio.timeout_at(until):
        return await _Rest(steps, waits_for)


class _Rest(Generic[T]):
    """The rest of work that has begun and now waits for something."""

    def __init__(self, steps: Generator[Any, Any, T], waits_for: Any) -> None:
        self._steps = steps
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, T]:
        """Continue like the work itself (PEP 380)."""
        waits_for = self._waits_for
        try:
            while True:
                try:
                    sent = yield waits_for
                except BaseException as error:
                    waits_for = self._steps.throw(error)
                else:
                    waits_for = self._steps.send(sent)
        except StopIteration as done:
            result: T = done.value
            return result
