"""A worker's compute threads, which also do the warm-up.

Much belongs to the thread that created it: a CUDA stream, a library's handle and its workspace, a CUDA graph,
OpenMP's threads. So the threads are the same from before the model is loaded until the end.
"""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from threading import Barrier, Condition
from typing import Any, Generic, Protocol, TypeVar

from app.processes import background

R = TypeVar("R")
Order = TypeVar("Order")


class OnAll(Protocol):
    """The signature of `Streams.on_all` and `Streams.in_turn`."""

    def __call__(self, work: Callable[[int], R]) -> list[R]:
        """The results of ``work`` in each thread, by number."""


class Streams(Generic[Order]):
    """``count`` threads, each of which passes one order at a time to ``take``. If one fails, the process
    ends."""

    def __init__(self, count: int, take: Callable[[Order], None]) -> None:
        self.count = count
        self._take = take
        self._orders = _Orders(count)
        self._threads = [
            background.thread(partial(self._run, index), "stream", background.end_process)
            for index in range(count)
        ]

    def put(self, order: Order) -> None:
        """Queue an order for the next free thread."""
        self._orders.put(lambda: self._take(order))

    def on_all(self, work: Callable[[int], R]) -> list[R]:
        """Run ``work`` in every thread at the same time, and wait. It is called with numbers from 0 on. Its
        exceptions are raised here."""
        meeting = Barrier(self.count)
        results: list[Future[Any]] = [Future() for _ in range(self.count)]

        def one(index: int) -> None:
            meeting.wait()  # a waiting thread cannot take another part
            _into(results[index], work, index)

        for index in range(self.count):
            self._orders.put(partial(one, index))
        return [result.result() for result in results]

    def in_turn(self, work: Callable[[int], R]) -> list[R]:
        """Run ``work`` in one thread after the other, each as soon as its current order has ended, and wait.
        Its exceptions are raised here."""
        results = []
        for index in range(self.count):
            result: Future[R] = Future()
            self._orders.put_for(index, partial(_into, result, work, index))
            results.append(result.result())
        return results

    def end(self, wait_s: float | None = None) -> None:
        """End each thread after its current order, and wait for at most this long in total.

        A thread that computes while the interpreter ends aborts the process.
        """
        for _ in range(self.count):
            self._orders.put(None)
        over = None if wait_s is None else time.monotonic() + wait_s
        for thread in self._threads:
            thread.join(None if over is None else max(0.0, over - time.monotonic()))

    def _run(self, index: int) -> None:
        while (order := self._orders.take(index)) is not None:
            order()


class _Orders:
    """Orders for any thread, and orders for one particular thread, which it takes first."""

    def __init__(self, threads: int) -> None:
        self._for_any: deque[Callable[[], object] | None] = deque()
        self._for_one: list[deque[Callable[[], object]]] = [deque() for _ in range(threads)]
        self._come = Condition()

    def put(self, order: Callable[[], object] | None) -> None:
        with self._come:
            self._for_any.append(order)
            self._come.notify()

    def put_for(self, index: int, order: Callable[[], object]) -> None:
        with self._come:
            self._for_one[index].append(order)
            self._come.notify_all()

    def take(self, index: int) -> Callable[[], object] | None:
        """The next order for that thread; waits for it."""
        own = self._for_one[index]
        with self._come:
            while not own and not self._for_any:
                self._come.wait()
            return own.popleft() if own else self._for_any.popleft()


def _into(result: "Future[R]", work: Callable[[int], R], index: int) -> None:
    """Store the outcome of the work."""
    try:
        result.set_result(work(index))
    except BaseException as error:
        result.set_exception(error)
