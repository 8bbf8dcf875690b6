"""Runs work of requests off the event loop, in a limited number of threads and fairly between callers."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import ParamSpec, TypeVar

from app.processes.futures import pass_on
from app.turns import Turns

_P = ParamSpec("_P")
_T = TypeVar("_T")


class FairTurns:
    """Runs at most ``places`` pieces of work at a time, and lets callers take turns.

    It is used from one event loop.
    """

    def __init__(self, places: int) -> None:
        self._turns: Turns[asyncio.Future[None]] = Turns(places)

    def __repr__(self) -> str:
        return repr(self._turns)

    async def run(self, caller: str, start: Callable[[], asyncio.Future[_T]]) -> _T:
        """The result of the work that ``start`` starts. If it is cancelled before its turn, it is never
        started. If it is cancelled later, it continues and keeps its place until it ends."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns.add(caller, turn)
        self._give_turns()
        try:
            await turn
        except asyncio.CancelledError:
            self._turns.withdraw(caller, turn)
            if not turn.cancelled():  # the turn was given at the same moment
                self._ended(caller)
            raise
        try:
            work = start()
        except BaseException:
            self._ended(caller)
            raise

        came: asyncio.Future[_T] = asyncio.get_running_loop().create_future()

        def ended(work: asyncio.Future[_T]) -> None:
            self._ended(caller)
            pass_on(came, work)

        work.add_done_callback(ended)
        return await came

    def _ended(self, caller: str) -> None:
        self._turns.give_back(caller)
        self._give_turns()

    def _give_turns(self) -> None:
        while (given := self._turns.take()) is not None:
            caller, turn = given
            if turn.cancelled():  # its task has not handled the cancellation yet
                self._turns.give_back(caller)
            else:
                turn.set_result(None)


class FairExecutor:
    """Calls functions in an executor, at most ``places`` at a time."""

    def __init__(self, executor: Executor, places: int) -> None:
        self._executor = executor
        self._turns = FairTurns(places)

    def __repr__(self) -> str:
        return f"<FairExecutor: {self._turns!r}>"

    async def run(
        self, caller: str, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """What the function returns or raises. If this is cancelled before its turn, the function is never
        called."""

        def start() -> asyncio.Future[_T]:
            return asyncio.wrap_future(self._executor.submit(function, *args, **kwargs))

        return await self._turns.run(caller, start)
