"""Plans within a budget: one shape for every batch that fits, and the numbers of the batch in its tables."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.budget import Budget, budgets, kept_of, plan_within
from models.plan import Plan
from models.schedule import Architecture, Rows, Stages, keep_counts

# 35 patches and two prefix tokens, as the small networks of these tests have.
ARCH = Architecture(depth=5, dim=66, mlp_dim=99, grid=(5, 7), prefix_tokens=2, patch_inputs=48, classes=13)
STAGES = Stages((1, 2, 3), "cls")
TOKENS = 37

ratios = st.sampled_from([1.0, 0.7, 0.5, 0.03]) | st.floats(0.01, 1)
some_batches = st.lists(ratios, min_size=1, max_size=8).map(tuple)
stage_rows: st.SearchStrategy[Rows] = st.sampled_from(["cls", "all"])

WHOLE = Budget(8, (8 * TOKENS,) * 3)


def shape(plan: Plan) -> object:
    """All of a plan but the numbers in its tables."""
    return plan.stages, plan.end, [(table.shape, table.dtype) for table in plan.tables]


@given(one=some_batches, other=some_batches, rows=stage_rows)
def test_all_batches_of_a_budget_are_computed_alike(
    one: tuple[float, ...], other: tuple[float, ...], rows: Rows
) -> None:
    """The same stages and the same tables, but for what they hold: so the same list of kernels."""
    stages = Stages((1, 2, 3), rows)
    assert shape(plan_within(WHOLE, one, ARCH, stages)) == shape(plan_within(WHOLE, other, ARCH, stages))


@given(own=some_batches)
def test_tables_hold_the_batchs_own_numbers(own: tuple[float, ...]) -> None:
    """Bounds are where its images begin, with the last value again for images that are not there; the rows
    that stay are as many as it keeps, and behind them the first one again."""
    plan = plan_within(WHOLE, own, ARCH, STAGES)
    tables = plan.tables
    for index, stage in enumerate(plan.stages):
        kept = [2 + keep_counts(35, ratio, 3)[index] for ratio in own]
        assert stage.bounds_after is not None
        bounds = tables[stage.bounds_after].tolist()
        assert bounds == [0, *np.cumsum(kept), *[sum(kept)] * (8 - len(own))]
        assert stage.selection is not None
        assert stage.selection.entries is not None
        entries = tables[stage.selection.entries].tolist()
        assert entries == [
            *(TOKENS * image + place for image, count in enumerate(kept) for place in range(count)),
            *[0] * (8 * TOKENS - sum(kept)),
        ]
        assert sum(stage.after.lengths) + stage.after.padding == 8 * TOKENS
        assert len(stage.after.runs) > 1  # or it would be computed densely
        assert stage.after.longest == TOKENS
    assert plan.end.prefix_rows is not None
    starts = [0, *np.cumsum(kept)[:-1]]
    assert tables[plan.end.prefix_rows].reshape(8, 2).tolist() == [
        *([start, start + 1] for start in starts),
        *[[0, 0]] * (8 - len(own)),
    ]


@given(own=some_batches, rows=stage_rows)
def test_no_image_is_without_a_place_to_look_at(own: tuple[float, ...], rows: Rows) -> None:
    """A softmax over gaps alone is no number, and every row that is named exists."""
    plan = plan_within(WHOLE, own, ARCH, Stages((1, 2, 3), rows))
    for stage in plan.stages:
        (group,) = stage.groups
        if group.gaps is not None and group.rows is not None:
            assert not plan.tables[group.gaps].all(axis=1).any()
            assert plan.tables[group.rows].max() < 8 * TOKENS
        assert (group.shares is None) == (rows == "cls" or group.gaps is None)


@given(own=some_batches)
def test_a_budget_holds_what_its_rows_hold(own: tuple[float, ...]) -> None:
    """Of images and of rows behind every stage."""
    kept = kept_of(own, ARCH, STAGES)
    rows = tuple(sum(2 + keep_counts(35, ratio, 3)[stage] for ratio in own) for stage in range(3))
    assert Budget(len(own), rows).holds(kept, prefix=2)
    assert not Budget(len(own) - 1, rows).holds(kept, prefix=2)
    for stage in range(3):
        short = tuple(count - (stage == own_stage) for own_stage, count in enumerate(rows))
        assert not Budget(len(own), short).holds(kept, prefix=2)


@given(own=st.lists(ratios, min_size=2, max_size=32))
def test_every_batch_has_a_budget(own: list[float]) -> None:
    """Of two to 32 images, in one of fewer than twice as many; those pruned by half, in one of the least."""
    all_of_them = budgets(ARCH, STAGES)
    assert all_of_them == sorted(all_of_them, key=lambda one: (one.images, one.rows), reverse=True)
    fitting = [one for one in all_of_them if one.holds(kept_of(own, ARCH, STAGES), 2)]
    assert 0 <= fitting[-1].images - len(own) < len(own)


@pytest.mark.parametrize("rows", [(36, 37, 37), (37, 37, 0)])
def test_what_does_not_fit_is_no_batch_of_it(rows: tuple[int, ...]) -> None:
    """It would be cut off."""
    with pytest.raises(AssertionError):
        plan_within(Budget(2, rows), (1.0,), ARCH, STAGES)


def test_a_plan_is_all_that_is_compared() -> None:
    """Should a plan get another part, these tests must know of it."""
    assert {field.name for field in fields(Plan)} == {"stages", "end", "tables"}
