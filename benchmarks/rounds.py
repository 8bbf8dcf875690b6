"""Paired timing: every contestant runs once per round, in random order, so that a temporary slowdown of the
machine affects all of them. Compare ratios within a round, because absolute figures drift with the machine.
"""

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tqdm import tqdm

# Threads of other runtimes spin briefly after their last call, so wait until the cores are free.
PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class Contestant:
    """``run(turn)`` processes ``images`` images, selected by the turn."""

    images: int
    run: Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Plan:
    """The settings of a measurement.

    ``warm_up`` rounds are discarded, then ``rounds`` are measured. In each round, a contestant is called
    often enough to fill ``sample_s`` seconds (determined during the warm-up), at least once. ``cpu_time``:
    measure the process's CPU time, which is only meaningful on one thread.
    """

    rounds: int
    warm_up: int
    sample_s: float
    seed: int = 0
    cpu_time: bool = False

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.warm_up < 1:
            raise ValueError(f"there must be at least 1 round and 1 to warm up: {self}")


def measure(
    contestants: Mapping[str, Contestant],
    plan: Plan,
    title: str,
    clock: Callable[[], float] | None = None,
    sleep: Callable[[float], None] = time.sleep,
    finish: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Measure the seconds per image of each contestant in each round. ``finish`` waits for asynchronous work,
    as on a GPU; it is called before and after each sample."""
    clock = clock or (time.process_time if plan.cpu_time else time.perf_counter)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    calls = dict.fromkeys(contestants, 1)
    draw = random.Random(plan.seed)
    order = list(contestants)
    total = (plan.warm_up + plan.rounds) * len(order)
    with tqdm(total=total, desc=title, unit="sample", dynamic_ncols=True) as progress:
        for round_ in range(plan.warm_up + plan.rounds):
            draw.shuffle(order)
            for name in order:
                sleep(PAUSE_S)
                taken = _time(contestants[name], calls[name], round_, clock, finish)
                if round_ < plan.warm_up:
                    calls[name] = max(1, math.ceil(plan.sample_s * calls[name] / taken))
                else:
                    seconds[name].append(taken / (calls[name] * contestants[name].images))
                progress.update()
    return seconds


def _time(
    contestant: Contestant,
    calls: int,
    round_: int,
    clock: Callable[[], float],
    finish: Callable[[], object],
) -> float:
    finish()
    started = clock()
    for call in range(calls):
        contestant.run(round_ * calls + call)
    finish()
    return clock() - started
