"""What is measured before the worker is ready."""

import threading
import time
from collections.abc import Sequence

import pytest

from app.messages.capacity import Limits
from app.worker import warm_up
from app.worker.warm_up import time_batches
from models.schedule import Pruning
from tests.app.fakes import MODEL

ARCH, STAGES = MODEL.architecture, MODEL.method.stages
LIMITS = Limits(batch_tokens=17 * 6, threads=4, streams=2)


def test_lone_images_and_full_batches_are_measured_as_they_will_run() -> None:
    """Lone images on all threads, batches to the budget on a stream's, all streams at once, in the ratios
    that predictions are between."""
    seen: list[tuple[int, int, float]] = []
    together = threading.Barrier(LIMITS.streams)

    def classify(prunings: Sequence[Pruning], threads: int) -> None:
        seen.append((threads, len(prunings), prunings[0].keep_ratio))
        assert len(set(prunings)) == 1
        if threads == LIMITS.stream_threads:
            together.wait(30)  # breaks if the streams are not at work at once

    measured = time_batches(classify, ARCH, STAGES, LIMITS)
    assert {(size, ratio) for threads, size, ratio in seen if threads == 4} == {
        (1, ratio) for ratio in (1.0, 0.7, 0.5, 0.3)
    }
    assert {(size, ratio) for threads, size, ratio in seen if threads == 2} == {
        (size, ratio) for size in (1, 4, 6) for ratio in (1.0, 0.7, 0.5, 0.3)
    }
    assert sorted((batch.threads, batch.work.images) for batch in measured) == sorted(
        (threads, size) for threads, size, _ in seen
    )


def test_a_slow_device_is_not_kept_from_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once enough time is over only the smallest batches are measured."""
    monkeypatch.setattr(warm_up, "_ENOUGH_S", -1.0)
    sizes = set()
    time_batches(lambda prunings, _: sizes.add(len(prunings)), ARCH, STAGES, LIMITS)
    assert sizes == {1}


def test_a_failing_network_fails_the_start() -> None:
    """What goes wrong while it is measured would go wrong for every image."""

    def fail(_: Sequence[Pruning], threads: int) -> None:
        if threads == LIMITS.stream_threads:
            raise RuntimeError("out of memory")
        time.sleep(0)

    with pytest.raises(RuntimeError, match="out of memory"):
        time_batches(fail, ARCH, STAGES, LIMITS)
