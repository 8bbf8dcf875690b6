"""Stages, keep counts and MACs: by hand, against published figures, and as inverses of one another."""

import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import models
from models.schedule import (
    Architecture,
    Pruning,
    Stages,
    UnreachableComputeError,
    compute,
    default_stages,
    every_block,
    keep_count,
    keep_counts,
    keep_ratio_for,
    macs,
)

REPOSITORY = Path(models.__file__).parents[1]

DEIT_SMALL = Architecture(
    depth=12, dim=384, mlp_dim=1536, grid=(14, 14), prefix_tokens=1, patch_inputs=768, classes=1000
)
STAGES = default_stages(12)

# Shares on the grid of keep ratios and between its points.
RATIOS = st.integers(1, 10_000).map(lambda step: step / 10_000)


@st.composite
def networks(draw: st.DrawFn) -> tuple[dict[str, Any], set[int]]:
    depth = draw(st.integers(1, 13))
    numbers = {
        "depth": depth,
        "dim": draw(st.integers(1, 400)),
        "mlp_dim": draw(st.integers(1, 1600)),
        "grid": (draw(st.integers(1, 17)), draw(st.integers(1, 17))),
        "prefix_tokens": draw(st.integers(0, 5)),
        "patch_inputs": draw(st.integers(1, 768)),
        "classes": draw(st.integers(0, 1000)),
    }
    return numbers, draw(st.sets(st.integers(0, depth - 1), min_size=1, max_size=4))


def built(network: tuple[dict[str, Any], set[int]]) -> tuple[Architecture, Stages]:
    # Not in the strategy: the type checks of these classes draw random numbers, which is forbidden there.
    return Architecture(**network[0]), Stages(tuple(sorted(network[1])))


# Where patches are pruned.


@pytest.mark.parametrize(
    ("depth", "blocks"),
    [
        (12, (3, 6, 9)),  # 4, 7 and 10, counted from 1
        (24, (6, 12, 18)),
        (6, (1, 3, 4)),
        (5, (1, 2, 3)),
        (4, (1, 2, 3)),
        (3, (0, 1, 2)),
        (2, (0, 1)),
        (1, (0,)),
    ],
)
def test_default_stages(depth: int, blocks: tuple[int, ...]) -> None:
    """The default prunes in blocks 4, 7 and 10 of 12, scaled to the depth, never twice in a block."""
    stages = default_stages(depth, "all")
    assert stages == Stages(blocks, "all")
    assert stages.fitting(depth) is stages


def test_default_stages_read_the_cls_row() -> None:
    """Unless told otherwise, a stage reads the attention of the CLS query."""
    assert default_stages(12).rows == "cls"


@pytest.mark.parametrize("blocks", [(3, 2), (2, 2), (-1, 4)])
def test_stages_out_of_order_are_refused(blocks: tuple[int, ...]) -> None:
    """Stages ascend from block 0, each block once."""
    with pytest.raises(ValueError, match="ascending block indices from 0, got"):
        Stages(blocks)


def test_unknown_rows_are_refused() -> None:
    """Only the CLS row and all rows can be read, also where no type checker watches."""
    code = "from models.schedule import Stages; Stages((1,), 'first')"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert "ValueError: rows must be one of cls, all, got 'first'" in result.stderr


def test_a_stage_beyond_the_model_is_refused() -> None:
    """A stage in block 8 does not fit 7 blocks; the message counts from 1."""
    assert Stages((2, 6)).fitting(7) == Stages((2, 6))
    assert Stages(()).fitting(1) == Stages(())
    with pytest.raises(ValueError, match="stage in block 8, but the model has 7 blocks"):
        Stages((2, 7)).fitting(7)


# How many patches are kept.


@pytest.mark.parametrize(
    ("patches", "keep_ratio", "count"),
    [
        (30, 0.1, 3),  # in floats 0.1 * 30 is above 3
        (100, 0.07, 7),  # 0.07 * 100 is 7.000000000000001
        (100, 0.29, 29),  # 0.29 * 100 is below 29
        (196, 0.7, 138),  # 137.2
        (196, 0.5, 98),
        (7, 1.0, 7),
        (7, 0.999, 7),
        (1, 0.5, 1),
        (196, 1e-9, 1),
        (196, 1e-300, 1),
    ],
)
def test_keep_count_by_hand(patches: int, keep_ratio: float, count: int) -> None:
    """ceil(ratio * patches), at least one, and float noise is not a patch."""
    assert keep_count(patches, keep_ratio) == count


@given(patches=st.integers(1, 2000), percent=st.integers(1, 100))
def test_keep_count_is_the_exact_ceiling(patches: int, percent: int) -> None:
    """For ratios of whole per cents, the count is that of exact arithmetic."""
    assert keep_count(patches, percent / 100) == math.ceil(Fraction(percent, 100) * patches)


def test_keep_counts_are_of_what_is_left() -> None:
    """Each stage keeps its share of what the one before left: 196, 138, 97, 68 at 0.7 (EViT's counts)."""
    assert keep_counts(196, 0.7, 3) == (138, 97, 68)
    assert keep_counts(196, 1.0, 2) == (196, 196)
    assert keep_counts(3, 0.01, 4) == (1, 1, 1, 1)
    assert keep_counts(196, 0.5, 0) == ()


@pytest.mark.parametrize("keep_ratio", [0.0, -0.1, 1.0001, math.nan, math.inf])
def test_keep_ratio_outside_its_range_is_refused(keep_ratio: float) -> None:
    """A keep ratio is above 0 and at most 1."""
    with pytest.raises(ValueError, match="keep_ratio must be above 0 and at most 1"):
        keep_counts(196, keep_ratio, 3)


@given(patches=st.integers(1, 700), stages=st.integers(1, 5), ratios=st.tuples(RATIOS, RATIOS))
def test_a_smaller_ratio_never_keeps_more(patches: int, stages: int, ratios: tuple[float, float]) -> None:
    """At every stage the smaller ratio keeps at most as many: the order of a ragged batch rests on it."""
    fewer, more = (keep_counts(patches, ratio, stages) for ratio in sorted(ratios))
    assert all(1 <= few <= many <= patches for few, many in zip(fewer, more, strict=True))


# What it costs.


def test_macs_by_hand() -> None:
    """Two blocks on 2 x 3 patches and 1 prefix token, pruned to 2 patches in the second one."""
    arch = Architecture(depth=2, dim=5, mlp_dim=11, grid=(2, 3), prefix_tokens=1, patch_inputs=13, classes=17)
    embedding = 6 * 13 * 5
    attention = 4 * 7 * 5 * 5 + 2 * 7 * 7 * 5
    head = 5 * 17
    whole = embedding + 2 * attention + 2 * (2 * 7 * 5 * 11) + head
    pruned = embedding + 2 * attention + 2 * 7 * 5 * 11 + 2 * 3 * 5 * 11 + head
    assert macs(arch, Stages((1,)), (6,)) == whole
    assert macs(arch, Stages((1,)), (2,)) == pruned
    # A prune in block 1 thins its MLP and all of block 2.
    assert macs(arch, Stages((0,)), (2,)) == (
        embedding + attention + 2 * (2 * 3 * 5 * 11) + (4 * 3 * 5 * 5 + 2 * 3 * 3 * 5) + head
    )


def test_macs_need_one_count_per_stage() -> None:
    """Counts for fewer stages than there are fail loudly."""
    with pytest.raises(ValueError, match="zip"):
        macs(DEIT_SMALL, STAGES, (98,))


@pytest.mark.parametrize(
    ("keep_ratio", "billions"), [(1.0, 4.6), (0.9, 4.0), (0.8, 3.5), (0.7, 3.0), (0.6, 2.6), (0.5, 2.3)]
)
def test_macs_of_deit_small_are_the_published_ones(keep_ratio: float, billions: float) -> None:
    """EViT's table 1 (arXiv 2202.07800), to the digit it prints, with the fused token it adds a stage."""
    patches, counts = 196, []
    for _ in STAGES.blocks:
        patches = keep_count(patches, keep_ratio) + (keep_ratio < 1)
        counts.append(patches)
    assert round(macs(DEIT_SMALL, STAGES, tuple(counts)) / 1e9, 1) == billions
    # Dropping where EViT fuses costs a token less per stage, which is no more than 0.05 G.
    dropping = macs(DEIT_SMALL, STAGES, keep_counts(196, keep_ratio, 3))
    assert dropping / 1e9 == pytest.approx(billions, abs=0.06)


@pytest.mark.parametrize(("side", "billions"), [(15, 5.34), (18, 7.97), (21, 11.3)])
def test_macs_of_overlapping_patches(side: int, billions: float) -> None:
    """Strides of 14, 12 and 10 under a kernel of 16 give DeiT-S 225, 324 and 441 patches and these MACs."""
    arch = Architecture(
        depth=12, dim=384, mlp_dim=1536, grid=(side, side), prefix_tokens=1, patch_inputs=768, classes=1000
    )
    unpruned = macs(arch, Stages(()), ())
    assert unpruned / 1e9 == pytest.approx(billions, rel=0.005)


def test_compute_is_a_share_of_the_unpruned_macs() -> None:
    """Ratio 0.7 leaves DeiT-S about 65 % of its MACs, ratio 1 all of them."""
    assert compute(DEIT_SMALL, STAGES, 1.0) == 1.0
    assert compute(DEIT_SMALL, STAGES, 0.7) == macs(DEIT_SMALL, STAGES, (138, 97, 68)) / macs(
        DEIT_SMALL, STAGES, (196, 196, 196)
    )
    assert compute(DEIT_SMALL, STAGES, 0.7) == pytest.approx(0.65, abs=0.005)


@given(network=networks(), ratios=st.tuples(RATIOS, RATIOS))
def test_compute_never_falls_as_the_ratio_rises(
    network: tuple[dict[str, Any], set[int]], ratios: tuple[float, float]
) -> None:
    """More patches never cost less, and nothing costs more than the unpruned model."""
    arch, stages = built(network)
    lower, higher = (compute(arch, stages, ratio) for ratio in sorted(ratios))
    assert 0 < lower <= higher <= 1


# And the way back.


@given(network=networks(), share=st.floats(0, 1, exclude_min=True))
def test_keep_ratio_for_is_the_largest_that_fits(
    network: tuple[dict[str, Any], set[int]], share: float
) -> None:
    """The ratio found costs at most the share asked for, and the next step of 0.0001 costs more."""
    model = built(network)
    try:
        ratio = keep_ratio_for(*model, share)
    except UnreachableComputeError:
        assert compute(*model, 0.0001) > share
        return
    steps = round(ratio * 10_000)
    assert ratio == steps / 10_000
    assert compute(*model, ratio) <= share
    assert steps == 10_000 or compute(*model, (steps + 1) / 10_000) > share


@given(network=networks(), keep_ratio=RATIOS)
def test_keep_ratio_for_inverts_compute(network: tuple[dict[str, Any], set[int]], keep_ratio: float) -> None:
    """The cost of a ratio leads back to a ratio that keeps as many patches at every stage."""
    arch, stages = built(network)
    found = keep_ratio_for(arch, stages, compute(arch, stages, keep_ratio))
    assert found >= keep_ratio
    assert keep_counts(arch.patches, found, len(stages.blocks)) == keep_counts(
        arch.patches, keep_ratio, len(stages.blocks)
    )


def test_keep_ratio_for_the_whole_cost_is_one() -> None:
    """All of the compute is no pruning."""
    assert keep_ratio_for(DEIT_SMALL, STAGES, 1.0) == 1.0


def test_unreachable_compute_says_what_can_be_reached() -> None:
    """Blocks before the first stage cannot be pruned away; the message gives the floor."""
    floor = macs(DEIT_SMALL, STAGES, (1, 1, 1)) / macs(DEIT_SMALL, STAGES, (196, 196, 196))
    with pytest.raises(UnreachableComputeError) as caught:
        keep_ratio_for(DEIT_SMALL, STAGES, 0.05)
    assert "compute 0.05 is too low" in str(caught.value)
    assert f"{floor:.3f}" in str(caught.value)
    assert keep_ratio_for(DEIT_SMALL, STAGES, floor) > 0


def test_without_stages_only_the_whole_cost_can_be_reached() -> None:
    """A model that is never pruned has one cost."""
    assert keep_ratio_for(DEIT_SMALL, Stages(()), 1.0) == 1.0
    with pytest.raises(UnreachableComputeError, match=r"compute 0\.9 is too low"):
        keep_ratio_for(DEIT_SMALL, Stages(()), 0.9)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01, math.nan])
def test_compute_outside_its_range_is_refused(share: float) -> None:
    """A share of the compute is above 0 and at most 1; beyond that the request is wrong, not unreachable."""
    with pytest.raises(ValueError, match="compute must be above 0 and at most 1") as caught:
        keep_ratio_for(DEIT_SMALL, STAGES, share)
    assert not isinstance(caught.value, UnreachableComputeError)


def test_imports_no_torch() -> None:
    """Front ends count with this module, and never load torch."""
    code = "import sys, models.schedule; sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


# What an image may ask for.


@pytest.mark.parametrize(
    ("pruning", "words"),
    [
        ({"keep_ratio": 0.0}, "keep_ratio must be above 0 and at most 1, got 0"),
        ({"keep_ratio": 1.1}, "keep_ratio must be above 0 and at most 1, got 1.1"),
        ({"keep_ratio": math.nan}, "keep_ratio must be above 0"),
        ({"keep_mass": 0.0}, "keep_mass must be above 0"),
        ({"keep_mass": math.nan}, "keep_mass must be above 0"),
        ({"keep_mass": 0.5, "keep_ratio": 0.5}, "keep_ratio or keep_mass, not both"),
        ({"keep_mass": 0.5, "reducer": "merge"}, "merge does not compute; use drop, fuse or transform"),
        ({"keep_mass": 0.5, "reducer": "pool"}, "pool does not compute; use drop, fuse or transform"),
        ({"seed": -1}, "seed must be from 0 to"),
        ({"seed": 2**63}, "seed must be from 0 to"),
    ],
    ids=str,
)
def test_a_pruning_that_cannot_be_is_refused(pruning: dict[str, Any], words: str) -> None:
    """Where it is made, so that no batch fails of it; the text names what is allowed."""
    with pytest.raises(ValueError, match=words):
        Pruning(**pruning)


# The same number in every block.


@pytest.mark.parametrize(
    ("pairs", "rounded", "gmacs"), [(8, 0.9454, 3.4), (13, 0.8759, 2.7), (16, 0.723, 2.3)]
)
def test_macs_of_tome_are_those_published(pairs: int, rounded: float, gmacs: float) -> None:
    """Off-the-shelf DeiT-S of ToMe (arXiv 2210.09461): r tokens go in each of twelve blocks."""
    ratio = ((196 - 12 * pairs) / 196) ** (1 / 12)
    every = every_block(12)
    counts = every.keep_counts(196, ratio)
    assert counts == tuple(196 - pairs * block for block in range(1, 13))
    assert counts == every.keep_counts(196, rounded)
    assert round(macs(DEIT_SMALL, every, counts, "merge") / 1e9, 1) == gmacs


def test_a_number_that_does_not_divide_is_spread() -> None:
    """35 patches become ceil(0.8 ** 5 * 35) = 12 in five stages: 23 go, 4 or 5 at a time."""
    assert Stages((0, 1, 2, 3, 4), evenly=True).keep_counts(35, 0.8) == (31, 26, 22, 17, 12)


@given(patches=st.integers(1, 1000), ratio=RATIOS, stages=st.integers(1, 24))
def test_an_even_schedule_ends_where_a_share_each_would(patches: int, ratio: float, stages: int) -> None:
    """In steps that differ by one at most, and where the ratio is 1 in none."""
    counts = keep_counts(patches, ratio, stages, evenly=True)
    assert counts[-1] == keep_count(patches, ratio**stages)
    steps = [before - after for before, after in zip((patches, *counts), counts, strict=False)]
    assert max(steps) - min(steps) <= 1
    assert min(steps) >= 0


@given(share=st.floats(0.5, 1))
def test_a_compute_is_met_by_an_even_schedule(share: float) -> None:
    """The ratio that is found costs no more, and the next one more, or it is 1."""
    every = every_block(12)
    ratio = keep_ratio_for(DEIT_SMALL, every, share, "merge")
    assert compute(DEIT_SMALL, every, ratio, "merge") <= share
    assert ratio == 1 or compute(DEIT_SMALL, every, round(ratio + 1e-4, 4), "merge") > share


def test_mass_is_refused_where_all_stages_lose_as_many() -> None:
    """It would say how many the first stage keeps."""
    with pytest.raises(ValueError, match="use keep_ratio or compute"):
        every_block(12).allowing(Pruning(keep_mass=0.5))
    assert every_block(12).allowing(Pruning(0.5)) == Pruning(0.5)
    assert STAGES.allowing(Pruning(keep_mass=0.5)) == Pruning(keep_mass=0.5)
