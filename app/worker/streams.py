"""A worker's compute threads: they warm up what they will serve with.

Much belongs to the thread that made it: a CUDA stream, a library's handle and its workspace, a CUDA graph,
OpenMP's threads. So there are the same threads from before the model is loaded until the end.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from threading import Barrier
from typing import Any, Generic, Protocol, TypeVar

from app.processes import background

R = TypeVar("R")
Order = TypeVar("Order")


class OnAll(Protocol):
    """What `Streams.on_all` is."""

    def __call__(self, work: Callable[[int], R]) -> list[R]:
        """What ``work`` gives in each thread, by its number, all of them at once."""


class Streams(Generic[Order]):
    """``count`` threads, of which each gives one order at a time to ``take``. One that dies takes the process
    with it."""

    def __init__(self, count: int, take: Callable[[Order], None]) -> None:
        self.count = count
        self._take = take
        self._orders: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._threads = [background.thread(self._run, "stream", background.end_process) for _ in range(count)]

    def put(self, order: Order) -> None:
        """Any thread that is free takes it next."""
        self._orders.put(lambda: self._take(order))

    def on_all(self, work: Callable[[int], R]) -> list[R]:
        """Run ``work`` in every thread at once, and wait. It is given numbers from 0 on; what it raises is
        raised here."""
        meeting = Barrier(self.count)
        results: list[Future[Any]] = [Future() for _ in range(self.count)]

        def one(index: int) -> None:
            meeting.wait()  # a thread that waits here takes no other part
            try:
                results[index].set_result(work(index))
            except BaseException as error:
                results[index].set_exception(error)

        for index in range(self.count):
            self._orders.put(partial(one, index))
        return [result.result() for result in results]

    def end(self, wait_s: float | None = None) -> None:
        """Each thread ends after the order it has. Wait for that, all in all so long at most.

        A thread that computes while the interpreter ends aborts the process.
        """
        for _ in range(self.count):
            self._orders.put(None)
        over = None if wait_s is None else time.monotonic() + wait_s
        for thread in self._threads:
            thread.join(None if over is None else max(0.0, over - time.monotonic()))

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            order()
