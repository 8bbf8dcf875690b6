"""Batches computed and timed before the first worker is ready: what the cost model is learned from."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from threading import Barrier

from app.messages.capacity import Limits, Measured, Work
from models.schedule import Architecture, Pruning, Stages, compute

_RATIOS = (1.0, 0.7, 0.5, 0.3)
_ENOUGH_S = 4.0

Classify = Callable[[Sequence[Pruning], int], object]


def time_batches(
    classify: Classify, arch: Architecture, stages: Stages, limits: Limits
) -> tuple[Measured, ...]:
    """Time ``classify(prunings, threads)`` as the worker will call it: what the cost model is fitted to.

    Lone images run on all threads, batches up to the token budget in all streams at once. Batches of the
    smallest size are always measured, larger ones until some seconds are over.
    """

    def timed(prunings: Sequence[Pruning], threads: int) -> Measured:
        began = time.perf_counter()
        classify(prunings, threads)
        seconds = time.perf_counter() - began
        shares = [compute(arch, stages, pruning.keep_ratio) for pruning in prunings]
        return Measured(threads, Work(len(prunings), sum(shares)), max(seconds, 1e-6))

    began = time.perf_counter()
    largest = max(1, limits.batch_tokens // (arch.patches + arch.prefix_tokens))
    sizes = sorted({1, min(4, largest), largest})
    with ThreadPoolExecutor(limits.streams) as pool:
        measured = [timed([Pruning(ratio)], limits.threads) for ratio in _RATIOS for _ in range(2)]
        for size, ratio in product(sizes, _RATIOS):
            if size > 1 and time.perf_counter() > began + _ENOUGH_S:
                break
            measured += _at_once(pool, limits, [Pruning(ratio)] * size, timed)
    return tuple(measured)


def _at_once(
    pool: ThreadPoolExecutor,
    limits: Limits,
    batch: Sequence[Pruning],
    timed: Callable[[Sequence[Pruning], int], Measured],
) -> Iterator[Measured]:
    """The same batch in every stream."""
    begin = Barrier(limits.streams)

    def one(_: int) -> Measured:
        begin.wait()
        return timed(batch, limits.stream_threads)

    return pool.map(one, range(limits.streams))
