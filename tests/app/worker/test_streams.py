"""Compute threads: the same ones from the warm-up to the end."""

import threading
from queue import SimpleQueue

import pytest

from app.worker.streams import Streams

PATIENCE_S = 30


def test_what_is_run_in_all_runs_in_the_threads_that_serve() -> None:
    """Each thread once and all at once, by number; orders come to the same threads afterwards."""
    together, served = threading.Barrier(3), threading.Barrier(4)
    serving: list[str] = []

    def take(order: int) -> None:
        serving.append(f"{threading.get_ident()} {order}")
        served.wait(PATIENCE_S)

    streams = Streams(3, take)

    def work(index: int) -> tuple[int, int]:
        together.wait(PATIENCE_S)
        return index, threading.get_ident()

    for _ in range(2):
        found = streams.on_all(work)
        assert [index for index, _ in found] == [0, 1, 2]
        assert len({thread for _, thread in found}) == 3
    for order in range(3):
        streams.put(order)
    served.wait(PATIENCE_S)
    streams.end()
    assert {int(one.split()[0]) for one in serving} == {thread for _, thread in found}
    assert sorted(one.split()[1] for one in serving) == ["0", "1", "2"]


def test_what_is_raised_is_raised_to_who_asked() -> None:
    """And the threads go on."""
    streams: Streams[int] = Streams(2, lambda _: None)

    def work(index: int) -> int:
        if index == 1:
            raise RuntimeError("out of memory")
        return index

    with pytest.raises(RuntimeError, match="out of memory"):
        streams.on_all(work)
    assert streams.on_all(lambda index: index) == [0, 1]
    streams.end()


def test_the_end_waits_for_what_is_computed_but_not_for_ever() -> None:
    """A thread that computes while the interpreter ends aborts the process."""
    let_go, done = threading.Event(), threading.Event()

    def take(_: int) -> None:
        let_go.wait(PATIENCE_S)
        done.set()

    streams = Streams(2, take)
    streams.put(0)
    streams.end(wait_s=0.05)
    assert not done.is_set()
    let_go.set()
    streams.end()
    assert done.is_set()
    assert not any(thread.name == "stream" and thread.is_alive() for thread in streams._threads)


def test_in_turn_each_thread_works_between_its_orders() -> None:
    """While one is at work the others take orders; what is raised is raised to the caller."""
    done: SimpleQueue[str] = SimpleQueue()
    streams: Streams[str] = Streams(2, done.put)
    where = streams.in_turn(lambda index: (index, threading.get_ident()))
    assert [index for index, _ in where] == [0, 1]
    assert len({thread for _, thread in where}) == 2

    def work(index: int) -> int:
        streams.put(f"beside {index}")
        assert done.get(timeout=60) == f"beside {index}"
        return index

    assert streams.in_turn(work) == [0, 1]
    with pytest.raises(ZeroDivisionError):
        streams.in_turn(lambda index: 1 // index)
    streams.end(60)
