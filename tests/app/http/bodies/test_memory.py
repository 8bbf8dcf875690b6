"""Work on bodies off the event loop."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from app.errors import Overloaded, TooLarge
from app.http.bodies.memory import Memory, Share

pytestmark = pytest.mark.anyio


class Counted(ThreadPoolExecutor):
    """Knows how much work it was given and has not done."""

    given = most_given = 0

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.given += 1
        self.most_given = max(self.most_given, self.given)
        future = super().submit(function, *args, **kwargs)
        future.add_done_callback(self._done)
        return future

    def _done(self, _: Future[Any]) -> None:
        self.given -= 1


async def test_a_crowd_has_little_work_done_at_once() -> None:
    """Its results would all come in one turn of the event loop, and everybody else would wait for that."""
    memory, first_ends = Memory(), threading.Event()
    memory.worker = worker = Counted(1)
    shares = [Share(memory) for _ in range(50)]
    work = [asyncio.ensure_future(shares[0].run(first_ends.wait))]
    work += [asyncio.ensure_future(share.run(lambda: True)) for share in shares[1:]]
    await asyncio.sleep(0.05)
    first_ends.set()
    assert await asyncio.gather(*work) == [True] * 50
    assert worker.most_given <= 4
    assert worker.given == 0


async def test_work_that_is_not_waited_for_any_more_keeps_no_place() -> None:
    """Whoever comes then has its turn."""
    memory, first_ends = Memory(), threading.Event()
    first = asyncio.ensure_future(Share(memory).run(first_ends.wait))
    others = [asyncio.ensure_future(Share(memory).run(lambda: True)) for _ in range(20)]
    await asyncio.sleep(0.01)
    for other in others:
        other.cancel()
    first_ends.set()
    assert await first
    assert await Share(memory).run(lambda: "mine") == "mine"


async def test_what_others_hold_is_waited_for_and_what_never_fits_is_not() -> None:
    """A client is told to come again only where that can help."""
    memory = Memory(100)
    one, other = Share(memory), Share(memory)
    one.take(60)
    with pytest.raises(Overloaded):
        other.take(41)
    with pytest.raises(TooLarge, match="more than the 100 bytes"):
        other.take(101)
    with pytest.raises(TooLarge):
        one.take(41)
    other.take(40)
    assert memory.taken == 100
