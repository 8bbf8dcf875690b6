"""What does not fit into memory is computed in parts, and smaller batches follow."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.engine.memory import Budget, is_out_of_memory
from app.engine.messages import Answer, Refuse
from app.engine.scheduler import Limits
from tests.app.engine.rig import ONE_STREAM, FakeBackend, Peer, pixels, running_engine, submit

LIMITS = Limits(batch_tokens=1000, queue_images=10, threads=1, streams=1)


@pytest.mark.parametrize(
    ("error", "is_so"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("DefaultCPUAllocator: not enough memory"), False),
    ],
    ids=str,
)
def test_only_a_lack_of_memory_is_taken_for_one(error: Exception, is_so: bool) -> None:
    """Anything else is a fault of an image or of the device."""
    assert is_out_of_memory(error) == is_so


def test_pytorch_says_so_in_these_words() -> None:
    """The host's allocator raises what is recognised above."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@given(st.lists(st.one_of(st.just(None), st.tuples(st.integers(1, 2000), st.floats(0, 1))), max_size=300))
def test_the_budget_stays_within_its_limits_and_comes_back(events: list[tuple[int, float] | None]) -> None:
    """Lowered at once, raised slowly, never above what is configured, never to nothing."""
    budget = Budget(LIMITS)
    for event in events:
        before = budget.tokens
        if event is None:
            budget.fitted()
            assert before <= budget.tokens <= LIMITS.batch_tokens
        else:
            budget.did_not_fit(*event)
            assert 1 <= budget.tokens <= before
    for _ in range(5000):
        budget.fitted()
    assert budget.tokens == LIMITS.batch_tokens


def test_an_engine_splits_what_does_not_fit_and_forms_smaller_batches(address: str) -> None:
    """All are answered, and the next batches are no larger than what fitted."""
    backend = FakeBackend(ONE_STREAM, most_at_once=2)
    with running_engine(backend, address), Peer(address) as peer:
        peer.wait_until_ready()
        backend.may_answer.clear()
        peer.say(submit(1), pixels(1))
        assert backend.next_batch() == [1]
        for number in range(2, 10):
            peer.say(submit(number), pixels(number))
        peer.status()
        backend.may_answer.set()
        assert {peer.hear().id for _ in range(9)} == set(range(1, 10))  # type: ignore[union-attr]
        parts = [backend.next_batch() for _ in range(7)]
        assert parts == [
            list(range(2, 10)), [2, 3, 4, 5], [2, 3], [4, 5], [6, 7, 8, 9], [6, 7], [8, 9],
        ]  # fmt: skip
        backend.may_answer.clear()
        peer.say(submit(1), pixels(1))
        assert backend.next_batch() == [1]
        for number in range(2, 6):
            peer.say(submit(number), pixels(number))
        peer.status()
        backend.may_answer.set()
        assert all(isinstance(peer.hear(), Answer) for _ in range(5))
        assert [backend.next_batch() for _ in range(2)] == [[2, 3], [4, 5]]


def test_an_image_that_does_not_fit_alone_is_refused_and_the_engine_lives(address: str) -> None:
    """It is told to come back: the memory may be somebody else's."""
    backend = FakeBackend(most_at_once=0)
    with running_engine(backend, address), Peer(address) as peer:
        peer.wait_until_ready()
        peer.say(submit(1), pixels(1))
        assert peer.hear() == Refuse(id=1, reason="out-of-memory", retry_after_s=1.0)
        backend.most_at_once = 9
        peer.say(submit(2), pixels(2))
        assert isinstance(peer.hear(), Answer)
