"""Futures that may have been cancelled."""

import asyncio
from typing import TypeVar

T = TypeVar("T")


def set_result(future: asyncio.Future[T], result: T) -> None:
    """Set the result. Does nothing if the future is done or cancelled."""
    if not future.done():
        future.set_result(result)


def set_exception(future: asyncio.Future[T], error: BaseException) -> None:
    """Set the exception. Does nothing if the future is done or cancelled."""
    if not future.done():
        future.set_exception(error)


def pass_on(future: asyncio.Future[T], done: asyncio.Future[T]) -> None:
    """Copy the outcome of a future that is done to another one."""
    if done.cancelled():
        future.cancel()
    elif (error := done.exception()) is not None:
        set_exception(future, error)
    else:
        set_result(future, done.result())
