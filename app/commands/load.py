"""Load on a running server: when each image is sent, and its outcome. Independent of HTTP.

A closed loop keeps a number of images in flight; an open loop sends at random times, independently of the
server.
All times are seconds of the event loop's clock, from the start of the load.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate

ANSWERED = "200"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of an image: the HTTP status, or a word if there was none; the type of the problem, if
    there was one; the share of the unpruned model's multiply-accumulates, if it was answered; and whether the
    answer came from the server's answer cache."""

    status: str
    problem: str | None = None
    compute: float | None = None
    cached: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """One image: when it was due, when it was sent, when its answer arrived, its keep ratio, and its outcome.
    In a closed loop, an image is due when it is sent."""

    due_s: float
    sent_s: float
    done_s: float
    keep_ratio: float | None
    outcome: Outcome

    @property
    def latency_s(self) -> float:
        """The latency from the time when the image was due. So neither a stalled server nor a slow load
        generator can hide how long the images behind it waited (coordinated omission; G. Tene, "How NOT to
        measure latency")."""
        return self.done_s - self.due_s

    @property
    def latency_from_send_s(self) -> float:
        """The latency from the time when the image was sent, which is often reported instead."""
        return self.done_s - self.sent_s


Send = Callable[[float | None], Awaitable[Outcome]]
Observe = Callable[[Sample], None]


def poisson_arrivals(rate: float, draw: random.Random) -> Iterator[float]:
    """Times in seconds from the start at which images are due: ``rate`` per second on average, independent of
    one another, like the requests of many users."""
    return accumulate(iter(lambda: draw.expovariate(rate), None))


class Mix:
    """Draws the keep ratio of each image. Without ratios, the server's default is used."""

    def __init__(self, keep_ratios: tuple[float, ...], draw: random.Random) -> None:
        self._keep_ratios = keep_ratios
        self._draw = draw

    def __call__(self) -> float | None:
        """Draw a ratio; None for the server's default."""
        return self._draw.choice(self._keep_ratios) if self._keep_ratios else None


async def closed_loop(send: Send, mix: Mix, concurrency: int, duration_s: float, observe: Observe) -> None:
    """Keep ``concurrency`` images in flight until the duration is over, and wait for the last answers."""
    loop = asyncio.get_running_loop()
    start = loop.time()

    async def worker() -> None:
        while (sent := loop.time() - start) < duration_s:
            keep_ratio = mix()
            outcome = await send(keep_ratio)
            observe(Sample(sent, sent, loop.time() - start, keep_ratio, outcome))

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker())


async def open_loop(
    send: Send, mix: Mix, arrivals: Iterator[float], most_under_way: int, duration_s: float, observe: Observe
) -> None:
    """Send an image at each of the ``arrivals`` until the duration is over, and wait for the last answers.

    While ``most_under_way`` images are unanswered, the next ones wait. Their latency counts from when they
    were due.
    """
    loop = asyncio.get_running_loop()
    start = loop.time()
    places = asyncio.Semaphore(most_under_way)

    async def one(due: float, keep_ratio: float | None) -> None:
        async with places:
            sent = loop.time() - start
            outcome = await send(keep_ratio)
        observe(Sample(due, sent, loop.time() - start, keep_ratio, outcome))

    async with asyncio.TaskGroup() as group:
        for due in arrivals:
            if due >= duration_s:
                break
            await asyncio.sleep(max(0.0, start + due - loop.time()))
            group.create_task(one(due, mix()))
