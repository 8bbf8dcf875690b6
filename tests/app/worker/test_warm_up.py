"""What is measured before the worker is ready."""

import threading
from collections.abc import Iterator, Sequence
from typing import TypeVar

import pytest

from app.messages.capacity import Limits
from app.worker import warm_up
from app.worker.streams import Streams
from app.worker.warm_up import time_batches
from models.schedule import Method, Pruning, compute
from tests.app.fakes import MODEL

ARCH, STAGES = MODEL.architecture, MODEL.method.stages
METHOD = Method(STAGES, "mad", "fuse")
LIMITS = Limits(batch_tokens=17 * 6, threads=4, streams=2)
RATIOS = (1.0, 0.7, 0.5, 0.3)
R = TypeVar("R")


@pytest.fixture
def streams() -> Iterator[Streams[None]]:
    streams: Streams[None] = Streams(LIMITS.streams, lambda _: None)
    yield streams
    streams.end()


def test_batches_are_measured_in_the_shapes_and_the_threads_of_serving(streams: Streams[None]) -> None:
    """Lone images on all threads; from one image to a full batch at every ratio, and one of many ratios, on
    a stream's threads, in all streams at once."""
    seen: list[tuple[int, int, tuple[float, ...]]] = []
    together = threading.Barrier(LIMITS.streams)
    serving = set(streams.on_all(lambda _: threading.get_ident()))

    def classify(prunings: Sequence[Pruning], threads: int) -> None:
        assert threading.get_ident() in serving
        assert {(pruning.criterion, pruning.reducer) for pruning in prunings} == {("mad", "fuse")}
        seen.append((threads, len(prunings), tuple(sorted({pruning.keep_ratio for pruning in prunings}))))
        if threads == LIMITS.stream_threads:
            together.wait(30)  # breaks if the streams are not at work at once

    measured = time_batches(classify, ARCH, METHOD, LIMITS, streams.on_all)
    assert {(size, ratios) for threads, size, ratios in seen if threads == 4} == {
        (1, (ratio,)) for ratio in RATIOS
    }
    at_once = {(size, ratios) for threads, size, ratios in seen if threads == 2}
    one_ratio = {(size, ratios[0]) for size, ratios in at_once if len(ratios) == 1}
    full = {ratio: max(size for size, own in one_ratio if own == ratio) for ratio in RATIOS}
    assert full[1.0] == 6 < full[0.7] < full[0.5] < full[0.3]
    assert one_ratio == {(size, ratio) for ratio in RATIOS for size in (1, 4, full[ratio])}
    mixed = {size for size, ratios in at_once if size == len(ratios) > 1}
    assert mixed == {4, full[0.5]}
    # The first pass of each does not count.
    assert {(batch.threads, batch.work.images) for batch in measured} == {
        (threads, size) for threads, size, _ in seen
    }
    assert len(measured) == len(seen) - len(RATIOS) - LIMITS.streams * len(at_once)


def test_a_slow_device_is_not_kept_from_serving(streams: Streams[None]) -> None:
    """Once enough time is over only single images are measured."""
    sizes = set()
    measured = time_batches(
        lambda prunings, _: sizes.add(len(prunings)), ARCH, METHOD, LIMITS, streams.on_all, 0.0
    )
    assert sizes == {1}
    assert {batch.threads for batch in measured} == {4, 2}


def test_a_batch_that_would_take_too_long_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that takes a second for each unpruned image: there is time for the smallest batch of many
    ratios, and then for no other."""
    now = 0.0

    def classify(prunings: Sequence[Pruning], threads: int) -> None:
        nonlocal now
        now += sum(compute(ARCH, STAGES, pruning.keep_ratio, pruning.reducer) for pruning in prunings)

    of_one_each = sum(compute(ARCH, STAGES, ratio, "fuse") for ratio in RATIOS)
    enough_s = 2 * of_one_each + 2 * of_one_each + 2 * 4 * compute(ARCH, STAGES, 0.5, "fuse")
    monkeypatch.setattr(warm_up.time, "perf_counter", lambda: now)
    measured = time_batches(classify, ARCH, METHOD, Limits(17 * 6, 1, 1), lambda work: [work(0)], enough_s)
    assert now <= enough_s
    assert [batch.work.images for batch in measured if batch.work.images > 1] == [4]


def test_a_failing_network_fails_the_start(streams: Streams[None]) -> None:
    """What goes wrong while it is measured would go wrong for every image."""

    def fail(_: Sequence[Pruning], threads: int) -> None:
        if threads == LIMITS.stream_threads:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        time_batches(fail, ARCH, METHOD, LIMITS, streams.on_all)
