"""Computes and times batches before the worker is ready. The cost model is fitted to them."""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count, takewhile

from app.messages.capacity import Limits, Measured, Work
from app.worker.streams import OnAll
from models.schedule import Architecture, Method, Pruning, compute

_RATIOS = (1.0, 0.7, 0.5, 0.3)
_LONE_PASSES = 2
_MIXED = 4  # images of a small batch

# The minimum time to measure batches of all sizes. With more time, larger ones are measured.
TIMING_S = 1.5

Classify = Callable[[Sequence[Pruning], int], object]


def time_batches(
    classify: Classify,
    arch: Architecture,
    method: Method,
    limits: Limits,
    on_all: OnAll,
    enough_s: float = TIMING_S,
) -> tuple[Measured, ...]:
    """Time ``classify(prunings, threads)`` in the threads and in the way in which the worker will call it.
    Images are pruned by ``method``, the default of requests.

    Single images run on all threads, batches up to the token budget in all streams at the same time. The
    first run of each does not count, because it allocates memory and chooses kernels. Single images are
    always measured, and larger batches as far as ``enough_s`` allows.
    """

    def cost_of(batch: Sequence[Pruning]) -> float:
        return sum(compute(arch, method.stages, pruning.keep_ratio, pruning.reducer) for pruning in batch)

    def timed(prunings: Sequence[Pruning], threads: int) -> Measured:
        began = time.perf_counter()
        classify(prunings, threads)
        seconds = time.perf_counter() - began
        return Measured(threads, Work(len(prunings), cost_of(prunings)), max(seconds, 1e-6))

    def lone(index: int) -> list[Measured]:
        if index > 0:
            return []
        alone = [[method.pruning(ratio)] for ratio in _RATIOS]
        passes = [[timed(batch, limits.threads) for batch in alone] for _ in range(_LONE_PASSES)]
        return [measured for one in passes[1:] for measured in one]

    def at_once(batch: Sequence[Pruning]) -> list[Measured]:
        return on_all(lambda _: timed(batch, limits.stream_threads))

    began = time.perf_counter()
    measured = [one for part in on_all(lone) for one in part]

    def is_time_for(batch: Sequence[Pruning]) -> bool:
        """Whether there is time to compute it twice, if its work takes as long as the same work did in the
        best case so far."""
        fastest = min(one.seconds / one.work.compute for one in measured)
        return time.perf_counter() + 2 * cost_of(batch) * fastest < began + enough_s

    for batch in _batches(arch, method, limits):
        if len(batch) == 1 or is_time_for(batch):
            at_once(batch)
            measured += at_once(batch)
    return tuple(measured)


def _batches(arch: Architecture, method: Method, limits: Limits) -> Iterator[list[Pruning]]:
    """The batches to expect: for each ratio one image, 4, and so on, times four, up to a full batch; and a
    full one with different ratios. The most informative come first."""
    tokens = arch.patches + arch.prefix_tokens
    alike = {ratio: method.pruning(ratio) for ratio in _RATIOS}
    shares = {ratio: compute(arch, method.stages, ratio, method.reducer) for ratio in _RATIOS}
    full = {ratio: max(1, int(limits.batch_tokens / (tokens * share))) for ratio, share in shares.items()}
    yield from ([alike[ratio]] for ratio in _RATIOS)
    yield _mixed(method, min(full[0.5], _MIXED))
    yield _mixed(method, full[0.5])
    yield from ([alike[ratio]] * full[ratio] for ratio in (1.0, 0.5) if full[ratio] > 1)
    for size in takewhile(lambda size: size == 4 or 4 * size <= full[1.0], (4**power for power in count(1))):
        yield from ([alike[ratio]] * size for ratio in _RATIOS if size < full[ratio])
    yield from ([alike[ratio]] * full[ratio] for ratio in (0.3, 0.7) if full[ratio] > 1)


def _mixed(method: Method, images: int) -> list[Pruning]:
    """Ratios from 0.3 to 1, more low ones than high ones, none twice."""
    places = ((image + 0.5) / images for image in range(images))
    return [method.pruning(round(0.3 + 0.7 * place**2, 6)) for place in places]
