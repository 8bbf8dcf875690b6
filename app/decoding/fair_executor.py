"""Blocking work of requests, off the event loop: bounded, and fair between callers."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import ParamSpec, TypeVar

from app.turns import Turns

_P = ParamSpec("_P")
_T = TypeVar("_T")


class FairExecutor:
    """Gives an executor at most so much work at once as it has ``places``, its callers' in turn.

    It is used from one event loop.
    """

    def __init__(self, executor: Executor, places: int) -> None:
        self._executor = executor
        self._turns: Turns[asyncio.Future[None]] = Turns(places)

    def __repr__(self) -> str:
        return f"<FairExecutor: {self._turns!r}>"

    async def run(
        self, caller: str, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """What the function returns or raises. Cancelled before its turn, it is never called."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._turns.add(caller, turn)
        self._give_turns()
        try:
            await turn
        except asyncio.CancelledError:
            self._turns.withdraw(caller, turn)
            if not turn.cancelled():  # it came at the same moment
                self._ended(caller)
            raise
        try:
            work = self._executor.submit(function, *args, **kwargs)
        except BaseException:
            self._ended(caller)
            raise

        def ended(_: Future[_T]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                loop.call_soon_threadsafe(self._ended, caller)

        # Whoever waits may go away; the place is free when the work has ended.
        work.add_done_callback(ended)
        return await asyncio.wrap_future(work)

    def _ended(self, caller: str) -> None:
        self._turns.give_back(caller)
        self._give_turns()

    def _give_turns(self) -> None:
        while (given := self._turns.take()) is not None:
            caller, turn = given
            if turn.cancelled():  # its task has yet to hear of it
                self._turns.give_back(caller)
            else:
                turn.set_result(None)
