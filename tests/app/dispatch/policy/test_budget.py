"""Smaller batches are formed where one did not fit into memory."""

from hypothesis import given
from hypothesis import strategies as st

from app.dispatch.policy.budget import Budget
from app.messages.capacity import Limits

LIMITS = Limits(batch_tokens=1000, threads=1, streams=1)


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
