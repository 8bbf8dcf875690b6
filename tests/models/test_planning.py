"""The plan of a batch, and images computed in one table, with gaps, as run by run."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import models.pruner
import models.stage
from models.plan import Asked, Table
from models.planning import order_of, plan_of
from models.pruned_vit import PrunedViT
from models.ragged import all_on_device, rounded
from models.schedule import REDUCERS, Pruning, Stages, keep_counts
from models.select import decide
from tests.models.batches import batches
from tests.support.examples import examples

MakeViT = Callable[..., VisionTransformer]
MakePixels = Callable[..., Tensor]

PATCHES, PREFIX, STAGES = 35, 2, 3

images = st.lists(
    st.tuples(st.sampled_from([1.0, 0.7, 0.5, 0.03]) | st.floats(0.01, 1), st.sampled_from(REDUCERS)),
    min_size=1,
    max_size=8,
).map(lambda own: sorted(own, key=lambda one: (one[1], -one[0])))


def asked(
    own: list[tuple[float, Any]], *, in_one: bool = False, pools: bool = False, rounding: int = 0
) -> Asked:
    ratios, reducers = zip(*own, strict=True)
    return Asked(
        ratios,
        reducers,
        PATCHES,
        PREFIX,
        STAGES,
        "cls",
        pools_patches=pools,
        rounding=rounding,
        in_one=in_one,
    )


@given(own=images, in_one=st.booleans())
def test_counts_and_lengths_are_the_schedules(own: list[tuple[float, Any]], in_one: bool) -> None:
    """Each image has at each stage the patches that the schedule gives it, prefix tokens, and a fused token
    for each stage that took patches away; each stage begins where the one before ended."""
    plan = plan_of(asked(own, in_one=in_one))
    for image, (ratio, reducer) in enumerate(own):
        counts = keep_counts(PATCHES, ratio, STAGES)
        fused, before = 0, PATCHES
        for stage, count in zip(plan.stages, counts, strict=True):
            assert (stage.patches[image], stage.counts[image]) == (before, count)
            assert stage.before.lengths[image] == PREFIX + before + fused
            dropped = count if reducer == "drop" else before
            assert stage.selected.lengths[image] == PREFIX + dropped + fused
            fused += reducer == "fuse" and count < before
            assert stage.after.lengths[image] == PREFIX + count + fused
            before = count
    assert all(one.after.lengths == other.before.lengths for one, other in pairwise(plan.stages))


@given(own=images)
def test_a_table_has_every_row_in_its_place(own: list[tuple[float, Any]]) -> None:
    """Side by side, an image's rows are numbered one after the other from where it begins; gaps are marked,
    and hold a row of the same image."""
    plan = plan_of(asked(own, in_one=True, pools=True))

    def table(place: Table) -> np.ndarray:
        return plan.tables[place]

    tables = [(stage.groups, stage.before) for stage in plan.stages]
    for (group,), packing in (*tables, (plan.end.groups, plan.stages[-1].after)):
        if group.rows is None or group.gaps is None:
            assert len(set(packing.lengths)) == 1
            continue
        rows = table(group.rows).reshape(len(own), -1)
        for image, (start, length) in enumerate(zip(packing.starts, packing.lengths, strict=True)):
            assert rows[image, :length].tolist() == list(range(start, start + length))
            assert (rows[image, length:] == start).all()
            assert table(group.gaps)[image].tolist() == [False] * length + [True] * (rows.shape[1] - length)


@given(own=images, in_one=st.booleans())
def test_a_head_of_prefix_tokens_gets_only_these(own: list[tuple[float, Any]], in_one: bool) -> None:
    """The first rows of each image, in order, unless all images are of one length."""
    plan = plan_of(asked(own, in_one=in_one))
    starts = plan.stages[-1].after.starts
    if plan.end.prefix_rows is None:
        assert len(set(plan.stages[-1].after.lengths)) == len(plan.end.groups) == 1
    else:
        wanted = [start + place for start in starts for place in range(PREFIX)]
        assert plan.tables[plan.end.prefix_rows].tolist() == wanted


@given(own=images)
def test_run_by_run_the_head_reads_each_image_once(own: list[tuple[float, Any]]) -> None:
    """Neighbours of one length at a time, without gaps."""
    plan = plan_of(asked(own, pools=True))
    after = plan.stages[-1].after
    lengths = [group.run.tokens for group in plan.end.groups for _ in range(group.run.images)]
    assert lengths == list(after.lengths)
    assert all(group.rows is None for group in plan.end.groups)


@given(own=images)
def test_bounds_are_where_images_begin(own: list[tuple[float, Any]]) -> None:
    """One table for each packing that differs; none where all images are alike."""
    plan = plan_of(asked(own))
    for stage in plan.stages:
        for place, packing in (
            (stage.bounds_before, stage.before),
            (stage.bounds_selected, stage.selected),
            (stage.bounds_after, stage.after),
        ):
            if place is None:
                assert len(set(packing.lengths)) == 1
            else:
                assert plan.tables[place].tolist() == [*packing.starts, sum(packing.lengths)]
                assert plan.tables[place].dtype == np.int32
    assert plan.tables or len(set(own)) == 1 or len({keep_counts(PATCHES, ratio, 3) for ratio, _ in own}) == 1


@given(own=images, in_one=st.booleans())
def test_rows_are_few_different_numbers(own: list[tuple[float, Any]], in_one: bool) -> None:
    """Of every packing of a ragged batch; in one table, also of its numbers of rows, and there images that
    are alike stay dense."""
    plan = plan_of(asked(own, in_one=in_one, rounding=32))
    ragged = len({(reducer, *keep_counts(PATCHES, ratio, STAGES)) for ratio, reducer in own}) > 1
    for stage in plan.stages:
        for packing in (stage.before, stage.selected, stage.after):
            assert packing.rows == (rounded(sum(packing.lengths), 32) if ragged or not in_one else 0)
        if in_one and ragged and stage.selection is not None and stage.selection.entries is not None:
            numbers = plan.tables[stage.selection.entries]
            own_rows, behind = np.split(numbers, [sum(stage.selected.lengths)])
            assert len(numbers) == stage.selected.rows
            assert (np.diff(own_rows) > 0).all()
            assert (behind == 0).all()


@pytest.mark.parametrize("in_one", [False, True])
@pytest.mark.parametrize("reducer", REDUCERS)
def test_images_alike_need_no_table(reducer: Any, in_one: bool) -> None:
    """A dense batch takes nothing from the host."""
    assert plan_of(asked([(0.6, reducer)] * 4, in_one=in_one, rounding=32 * in_one)).tables == ()


def test_a_plan_is_remembered() -> None:
    """By all that it depends on."""
    own: list[tuple[float, Any]] = [(0.6, "drop"), (0.5, "drop")]
    assert plan_of(asked(own)) is plan_of(asked(own))
    assert plan_of(asked(own)) is not plan_of(asked(own, in_one=True))


def test_like_images_are_neighbours() -> None:
    """By reducer, then by falling ratio; what is only known later comes last."""
    prunings = [
        Pruning(0.3),
        Pruning(0.9, reducer="merge"),
        Pruning(keep_mass=0.5),
        Pruning(0.9),
        Pruning(0.3),
    ]
    assert order_of(prunings) == [3, 0, 4, 1, 2]


def test_arrays_travel_as_they_are() -> None:
    """Several kinds at once, each with its shape and its dtype."""
    arrays = [np.arange(3), np.array([[True], [False]]), np.array([1.5], np.float32)]
    for array, tensor in zip(arrays, all_on_device(arrays, torch.device("cpu")), strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array, strict=True)


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        ({}, "cls"),
        ({"reg_tokens": 2, "qk_norm": True}, "all"),
        ({"class_token": False, "reg_tokens": 1, "global_pool": "avg"}, "all"),
        ({"global_pool": "avg", "pool_include_prefix": True}, "cls"),
        ({"global_pool": "max", "reg_tokens": 2}, "cls"),
        ({"global_pool": "avgmax"}, "cls"),
        ({"global_pool": "map", "reg_tokens": 2}, "cls"),
        ({"global_pool": "prr"}, "cls"),
        ({"global_pool": "prr", "class_token": False}, "all"),
    ],
    ids=["CLS", "all rows", "avg", "all of avg", "max", "avgmax", "map", "prr", "prr of patches"],
)
@example(  # images that fuse, and are not neighbours
    prunings=[
        Pruning(0.6, reducer="fuse"),
        Pruning(0.3, reducer="merge"),
        Pruning(keep_mass=0.3, reducer="fuse"),
        Pruning(keep_mass=0.9),
    ]
)
@settings(max_examples=examples(5))
@given(prunings=batches())
def test_in_one_table_is_as_run_by_run(
    make_vit: MakeViT, make_pixels: MakePixels, arguments: dict[str, Any], rows: Any, prunings: list[Pruning]
) -> None:
    """Whatever is mixed, in the way of a GPU every image keeps the same patches and has the same logits.

    Where rounding decides which of two patches stays, both ways are right: without a prefix token, the last
    two patches of an image share all attention, and their spread over heads is the same number.
    """
    model, pixels = (
        PrunedViT(make_vit(life=1, pool=True, **arguments), Stages((1, 2, 3), rows)),
        make_pixels(len(prunings)),
    )
    importances: list[Tensor] = []

    def decided(*own: Any) -> tuple[Tensor, Tensor]:
        attention, values = decide(*own)
        importances.append(values)
        return attention, values

    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(models.stage, "decide", decided)
        runs = model(pixels, prunings)
        patch.setattr(models.stage, "decide", decide)
        assume(_least_margin(importances, runs.kept, prunings) > 1e-6)
        patch.setattr(models.pruner, "in_one", lambda _rows: True)
        once = model(pixels, prunings)
    torch.testing.assert_close(once.logits, runs.logits, rtol=0, atol=2e-5)
    for own, wanted in zip(once.kept, runs.kept, strict=True):
        assert [image.tolist() for image in own] == [image.tolist() for image in wanted]


def _least_margin(
    importances: list[Tensor], kept: Sequence[Sequence[Tensor]], prunings: list[Pruning]
) -> float:
    """The least difference, over images and stages, between the importance of the last patch that stays and
    of the first that does not. ``importances``: of each stage, with the images in the order of the plan."""
    least, before = math.inf, [PATCHES] * len(prunings)
    if not importances:  # no image is pruned
        return least
    for values, staying in zip(importances, kept, strict=True):
        for row, image in enumerate(order_of(prunings)):
            count = len(staying[image])
            if count < before[image]:
                falling = values[row, : before[image]].sort(descending=True).values
                least = min(least, float(falling[count - 1] - falling[count]))
            before[image] = count
    return least
