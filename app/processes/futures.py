"""Futures that somebody may have stopped waiting for."""

import asyncio
from typing import TypeVar

T = TypeVar("T")


def set_result(future: asyncio.Future[T], result: T) -> None:
    """Nothing if nobody waits any more."""
    if not future.done():
        future.set_result(result)


def set_exception(future: asyncio.Future[T], error: BaseException) -> None:
    """Nothing if nobody waits any more."""
    if not future.done():
        future.set_exception(error)


def pass_on(future: asyncio.Future[T], done: asyncio.Future[T]) -> None:
    """What came of the one that is done is what comes of the other."""
    if done.cancelled():
        future.cancel()
    elif (error := done.exception()) is not None:
        set_exception(future, error)
    else:
        set_result(future, done.result())
