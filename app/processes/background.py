"""Background tasks and threads whose failures are always reported.

The exception of a task that nobody awaits is lost: its work stops, and health stays green. So every task and
thread of the service is started here. A failure is an incident: it is logged with its traceback, counted, and
handled, by another try after a pause or by ending what needs the task.
"""

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from app.processes.restarts import Restarts

log = logging.getLogger(__name__)

T = TypeVar("T")

_SLOWEST_S = 10.0  # maximum pause between retries of something that keeps failing
_SETTLED_S = 60.0  # after running this long, the next failure starts with short pauses again
_SAME_AGAIN_S = 60.0  # within this time, the same failure is logged without its traceback

_told: dict[str, tuple[str, float]] = {}


def incident(name: str, error: BaseException) -> None:
    """Log the failure of something in the background with its traceback, and count it. ``name`` is a metric
    label, so there are only a few."""
    text, now = f"{type(error).__name__}: {error}", time.monotonic()
    before, at = _told.get(name, ("", 0.0))
    again = before == text and now - at < _SAME_AGAIN_S
    if not again:
        _told[name] = text, now
    log.error("background task failed: %s: %s", name, text, exc_info=None if again else error)
    with contextlib.suppress(Exception):  # the metrics themselves may fail
        from app.telemetry import metrics  # imported late, when the folder of the metrics is known

        metrics.INCIDENTS.labels(name).inc()


def awaited(work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    """A task that is awaited by whoever starts it, and whose failure is seen there."""
    return asyncio.create_task(work, name=name)


def kept(work: Callable[[], Awaitable[None]], name: str) -> asyncio.Task[None]:
    """A task that is started again after a pause whenever it fails, until it returns or is cancelled."""
    return asyncio.create_task(_keep(work, name), name=name)


def needed(
    work: Callable[[], Awaitable[None]], name: str, failed: Callable[[str], None]
) -> asyncio.Task[None]:
    """A task that must not fail: if it does, ``failed`` is called with the reason."""

    async def run() -> None:
        try:
            await work()
        except Exception as error:
            incident(name, error)
            failed(f"{name} failed: {type(error).__name__}: {error}")

    return asyncio.create_task(run(), name=name)


async def _keep(work: Callable[[], Awaitable[None]], name: str) -> None:
    restarts = Restarts(_SLOWEST_S)
    while True:
        began = time.monotonic()
        try:
            await work()
            return
        except Exception as error:
            incident(name, error)
        await asyncio.sleep(_pause_s(restarts, began))


def thread(work: Callable[[], None], name: str, failed: Callable[[BaseException], None]) -> threading.Thread:
    """Start a thread. If it fails, ``failed`` is called in it, for example `end_process`."""

    def run() -> None:
        try:
            work()
        except BaseException as error:
            incident(name, error)
            failed(error)

    begun = threading.Thread(target=run, name=name, daemon=True)
    begun.start()
    return begun


def kept_thread(work: Callable[[], None], name: str) -> threading.Thread:
    """Start a thread that is started again after a pause whenever it fails, until it returns."""

    def run() -> None:
        restarts = Restarts(_SLOWEST_S)
        while True:
            began = time.monotonic()
            try:
                work()
                return
            except Exception as error:
                incident(name, error)
            time.sleep(_pause_s(restarts, began))

    begun = threading.Thread(target=run, name=name, daemon=True)
    begun.start()
    return begun


def end_process(error: BaseException) -> None:
    """End this process at once, because health must not stay green. The supervisor starts another one."""
    log.critical("unrecoverable error, exiting: %s: %s", type(error).__name__, error)
    os._exit(1)


def report_stray_failures() -> None:
    """Also report failures in the running loop's callbacks, in its transports, and in tasks and threads that
    libraries started."""
    asyncio.get_running_loop().set_exception_handler(_stray)
    threading.excepthook = _stray_in_thread


def _stray(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception") or RuntimeError(context.get("message", "no message"))
    incident("event loop", error)


def _stray_in_thread(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_value is not None and not isinstance(arguments.exc_value, SystemExit):
        incident("thread", arguments.exc_value)


def _pause_s(restarts: Restarts, began: float) -> float:
    lived_s = time.monotonic() - began
    return restarts.ended(lived_s, was_ready=lived_s > _SETTLED_S)
