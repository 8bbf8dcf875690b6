"""A batch that fails is computed in parts, and only the images at fault are refused."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.worker.parts import BackendBroken, compute_in_parts
from tests.app.worker.cuda_errors import cuda_error

HARMLESS = 0


@dataclass(frozen=True)
class Found:
    of: int
    scores: tuple[float, ...] = (0.5,)

    @property
    def is_finite(self) -> bool:
        return all(map(math.isfinite, self.scores))


def found(jobs: Sequence[int]) -> list[Found]:
    return [Found(job) for job in jobs]


@given(st.lists(st.integers(1, 100), min_size=1, max_size=40), st.integers(1, 200))
def test_every_image_that_fits_alone_is_computed_once_and_in_order(sizes: list[int], memory: int) -> None:
    """However memory and images are: only those that are too large by themselves are given up."""
    done: list[int] = []

    def compute(jobs: Sequence[int]) -> list[Found]:
        if sum(jobs) > memory:
            raise MemoryError
        done.extend(jobs)
        return found(jobs)

    computed = compute_in_parts(compute, sizes, HARMLESS)
    assert computed.results == [Found(size) if size <= memory else "out-of-memory" for size in sizes]
    assert done == [size for size in sizes if size <= memory]
    assert (computed.at_once == len(sizes)) == (sum(sizes) <= memory)
    assert (computed.at_once == 0) == (min(sizes) > memory)
    assert computed.memory_was_short == (sum(sizes) > memory)
    assert computed.errors == []


@given(st.lists(st.sampled_from(["sound", "raises", "nan"]), min_size=1, max_size=64))
def test_only_the_images_at_fault_are_refused(kinds: list[str]) -> None:
    """Whichever and however many they are, all others are answered, in order, and the work is bounded."""
    images = list(range(1, len(kinds) + 1))
    kind = dict(zip(images, kinds, strict=True))
    work = 0

    def compute(jobs: Sequence[int]) -> list[Found]:
        nonlocal work
        work += len(jobs)
        if any(kind.get(job) == "raises" for job in jobs):
            raise RuntimeError(f"bad: {[job for job in jobs if kind.get(job) == 'raises']}")
        return [Found(job, (math.nan if kind.get(job) == "nan" else 0.5,)) for job in jobs]

    computed = compute_in_parts(compute, images, HARMLESS)
    refusals = {"raises": "worker-fault", "nan": "no-number"}
    assert computed.results == [refusals.get(kind[image], Found(image)) for image in images]
    guilty = kinds.count("raises")
    halvings = math.ceil(math.log2(len(kinds)))
    assert work <= len(kinds) * (1 + halvings) + 1
    if guilty == 1:
        assert work <= 3 * len(kinds) + halvings + 1  # halves of odd numbers are rounded up
        assert f"bad: [{images[kinds.index('raises')]}]" in computed.errors[-1]
    assert bool(computed.errors) == bool(guilty)
    assert not computed.memory_was_short


@pytest.mark.parametrize("broken", ["raises", "nan", "miscounts"])
def test_a_backend_that_fails_for_every_image_is_broken(broken: str) -> None:
    """It is found out by a harmless image, before every image of the batch has been tried."""
    calls: list[int] = []

    def compute(jobs: Sequence[int]) -> list[Found]:
        calls.append(len(jobs))
        if broken == "raises":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return [Found(job, (math.nan,)) for job in jobs[broken == "miscounts" :]]

    with pytest.raises(BackendBroken, match="blank image"):
        compute_in_parts(compute, list(range(1, 65)), HARMLESS)
    assert calls == ([64, 1] if broken == "nan" else [64, 32, 16, 8, 4, 2, 1, 1])


@pytest.mark.parametrize("fails", [[1], [2]], ids=["the first", "a half"])
def test_a_lost_device_is_asked_nothing_more(fails: list[int]) -> None:
    """Every later call would fail as well: no half and no harmless image is tried."""
    calls: list[int] = []

    def compute(jobs: Sequence[int]) -> list[Found]:
        calls.append(len(jobs))
        if len(calls) in fails:
            raise cuda_error(700, "an illegal memory access was encountered")
        raise RuntimeError("bad")

    with pytest.raises(BackendBroken, match=r"is lost: CUDA error: an illegal memory\D+$"):
        compute_in_parts(compute, list(range(1, 9)), HARMLESS)
    assert len(calls) == fails[0]


@pytest.mark.parametrize(
    "raised",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        cuda_error(2, "out of memory"),
    ],
    ids=["PyTorch's", "CUDA's"],
)
def test_a_batch_that_a_gpu_has_no_memory_for_is_halved(raised: Exception) -> None:
    """Until it fits; nobody is refused."""
    calls: list[int] = []

    def compute(jobs: Sequence[int]) -> list[Found]:
        calls.append(len(jobs))
        if len(jobs) > 3:
            raise raised
        return found(jobs)

    computed = compute_in_parts(compute, list(range(1, 9)), HARMLESS)
    assert computed.results == found(range(1, 9))
    assert calls == [8, 4, 2, 2, 4, 2, 2]
    assert (computed.at_once, computed.memory_was_short, computed.errors) == (2, True, [])


def test_a_lack_of_memory_is_no_broken_backend() -> None:
    """It passes: the image at fault is refused, and the process lives."""

    def compute(jobs: Sequence[int]) -> list[Found]:
        if HARMLESS in jobs:
            raise MemoryError
        raise RuntimeError("bad")

    assert compute_in_parts(compute, [1], HARMLESS).results == ["worker-fault"]


def test_results_that_are_too_few_go_to_nobody() -> None:
    """A part that gets another number of results than it has images is halved like one that fails."""

    def compute(jobs: Sequence[int]) -> list[Found]:
        return found(jobs if len(jobs) < 3 else jobs[1:])

    computed = compute_in_parts(compute, [1, 2, 3, 4], HARMLESS)
    assert computed.results == [Found(1), Found(2), Found(3), Found(4)]
    assert "a batch of 4 images has 3 results" in computed.errors[0]
