"""Batches computed and timed before the first worker is ready: what the cost model is learned from."""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count, takewhile

from app.messages.capacity import Limits, Measured, Work
from app.worker.streams import OnAll
from models.schedule import Architecture, Pruning, Stages, compute

_RATIOS = (1.0, 0.7, 0.5, 0.3)
_ENOUGH_S = 2.0
_LONE_PASSES = 3

Classify = Callable[[Sequence[Pruning], int], object]


def time_batches(
    classify: Classify, arch: Architecture, stages: Stages, limits: Limits, on_all: OnAll
) -> tuple[Measured, ...]:
    """Time ``classify(prunings, threads)`` as the worker will call it, in the threads that will: what the
    cost model is fitted to.

    Lone images run on all threads, batches up to the token budget in all streams at once. The first time of
    each does not count: there memory is got, and kernels are chosen. Single images are always measured;
    larger batches until some seconds are over, with what there was time for, even if that is the first time.
    """

    def timed(prunings: Sequence[Pruning], threads: int) -> Measured:
        began = time.perf_counter()
        classify(prunings, threads)
        seconds = time.perf_counter() - began
        shares = [compute(arch, stages, pruning.keep_ratio) for pruning in prunings]
        return Measured(threads, Work(len(prunings), sum(shares)), max(seconds, 1e-6))

    def lone(index: int) -> list[Measured]:
        if index > 0:
            return []
        passes = [[timed([Pruning(ratio)], limits.threads) for ratio in _RATIOS] for _ in range(_LONE_PASSES)]
        return [measured for one in passes[1:] for measured in one]

    def at_once(batch: Sequence[Pruning]) -> list[Measured]:
        return on_all(lambda _: timed(batch, limits.stream_threads))

    began = time.perf_counter()
    measured = [one for part in on_all(lone) for one in part]
    batches = list(_batches(arch, stages, limits))

    def enough() -> bool:
        return time.perf_counter() > began + _ENOUGH_S

    for batch in batches:
        single = len(batch) == 1
        if enough() and not single:
            continue
        found = at_once(batch)
        if single or not enough():
            found = at_once(batch)
        measured += found
    return tuple(measured)


def _batches(arch: Architecture, stages: Stages, limits: Limits) -> Iterator[list[Pruning]]:
    """What serving may bring: for each ratio one image, 4, and so on by four times up to a full batch; and a
    full one of different ratios. What says most comes first."""
    tokens = arch.patches + arch.prefix_tokens
    full = {
        ratio: max(1, int(limits.batch_tokens / (tokens * compute(arch, stages, ratio)))) for ratio in _RATIOS
    }
    yield from ([Pruning(ratio)] for ratio in _RATIOS)
    yield _mixed(full[0.5])
    yield from ([Pruning(ratio)] * full[ratio] for ratio in (1.0, 0.5) if full[ratio] > 1)
    for size in takewhile(lambda size: size == 4 or 4 * size <= full[1.0], (4**power for power in count(1))):
        yield from ([Pruning(ratio)] * size for ratio in _RATIOS if size < full[ratio])
    yield from ([Pruning(ratio)] * full[ratio] for ratio in (0.3, 0.7) if full[ratio] > 1)


def _mixed(images: int) -> list[Pruning]:
    """Ratios from 0.3 to 1, more low ones than high ones, none twice."""
    places = ((image + 0.5) / images for image in range(images))
    return [Pruning(round(0.3 + 0.7 * place**2, 6)) for place in places]
