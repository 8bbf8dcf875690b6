"""A time limit that costs nothing where there is nothing to wait for: most bodies come with their head."""

import asyncio
from collections.abc import Awaitable, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


async def in_time(work: Awaitable[T], until: float | None) -> T:
    """What the work comes to. Raises TimeoutError where that has not come at this time of the loop (None: it
    may take any time). A timer is set only once the work waits for something."""
    steps = work.__await__()
    try:
        waits_for = next(steps)
    except StopIteration as done:
        result: T = done.value
        return result
    async with asyncio.timeout_at(until):
        return await _Rest(steps, waits_for)


class _Rest(Generic[T]):
    """The rest of work that has begun, and waits for something that the event loop is to be told of."""

    def __init__(self, steps: Generator[Any, Any, T], waits_for: Any) -> None:
        self._steps = steps
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, T]:
        """As the work itself would go on (PEP 380)."""
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
