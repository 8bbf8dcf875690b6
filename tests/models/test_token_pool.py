"""Learned pooling of tokens: what its queries look at, what follows from them, and where it can be used.

That logits and gradients are right, alone and in any batch, is asked where all reducers are
(test_pruned_vit.py, test_ragged.py, test_planning.py), as is that a GPU need not wait (test_cuda.py).
"""

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.classifier import Classifier
from models.load import input_spec_of
from models.pruned_vit import PrunedViT
from models.reducer_macs import KEY_WIDTH, pool_macs
from models.schedule import (
    REDUCERS,
    UNPRUNED,
    Architecture,
    Pruning,
    Stages,
    compute,
    default_stages,
    every_block,
    keep_ratio_for,
    macs,
)
from models.token_pool import TokenPool, add_pools, pool_of, pooling_blocks, spread_order
from tests.models.reference import reference_order

MakeViT = Callable[..., VisionTransformer]
MakePixels = Callable[..., Tensor]

STAGES = Stages((1, 3))
GRIDS = st.tuples(st.integers(1, 9), st.integers(1, 9))
DEIT_SMALL = Architecture(
    depth=12, dim=384, mlp_dim=1536, grid=(14, 14), prefix_tokens=1, patch_inputs=768, classes=1000
)


def begun(dim: int = 40, grid: tuple[int, int] = (5, 7)) -> TokenPool:
    torch.manual_seed(0)
    pool = TokenPool(dim, grid)
    pool.begin()
    return pool


# Which queries are used.


@given(grid=GRIDS)
def test_an_order_has_every_place_once_and_is_spread(grid: tuple[int, int]) -> None:
    """From the middle on, the farthest place next, as a slow search finds it."""
    order = spread_order(*grid).tolist()
    assert sorted(order) == list(range(grid[0] * grid[1]))
    if grid[0] * grid[1] <= 25:
        assert tuple(order) == reference_order(*grid)


def test_queries_of_fewer_tokens_are_among_those_of_more() -> None:
    """And give the same tokens: what a ratio leaves is a part of what a higher one leaves."""
    pool, rows = begun(), torch.randn(2, 35, 40)
    places, sizes = torch.arange(35).expand(2, -1), torch.ones(2, 35)
    with torch.no_grad():
        more, _, where = pool(rows, sizes, places, 20)
        fewer, _, among = pool(rows, sizes, places, 11)
    assert (where.diff(dim=1) > 0).all()
    numbers = [where[0].tolist().index(place) for place in among[0].tolist()]
    torch.testing.assert_close(fewer, more[:, numbers])


def test_pooling_by_hand() -> None:
    """Three patches in a row, two tokens. Of new queries, weights fall with the square of the distance; a
    patch that stands for two counts twice, and is divided as it is weighed."""
    pool = begun(dim=1, grid=(1, 3))
    rows, sizes = torch.tensor([[[1.0], [10.0], [100.0]]]), torch.tensor([[1.0, 2.0, 1.0]])
    with torch.no_grad():
        pooled, left, places = pool(rows, sizes, torch.tensor([[0, 1, 2]]), 2)
    assert places.tolist() == [[0, 1]]  # the middle, and the first of the farthest
    near, far = np.exp(-4.0), np.exp(-16.0)
    first = np.array([1, 2 * near, far]) / (1 + 2 * near + far)
    second = np.array([near, 2, near]) / (2 + 2 * near)
    wanted = [[first @ [1, 10, 100]], [second @ [1, 10, 100]]]
    torch.testing.assert_close(pooled[0], torch.tensor(wanted, dtype=torch.float32))
    shares = first / (first + second)
    of_first = float(shares @ [1, 2, 1])
    torch.testing.assert_close(left[0], torch.tensor([of_first, 4 - of_first], dtype=torch.float32))


@given(grid=GRIDS, data=st.data())
def test_sizes_are_those_of_the_patches_there_were(grid: tuple[int, int], data: st.DataObject) -> None:
    """However few tokens are left, they stand for all patches together."""
    patches = grid[0] * grid[1]
    count = data.draw(st.integers(1, patches))
    pool = begun(8, grid)
    torch.nn.init.normal_(pool.queries, std=0.3)
    sizes = torch.rand(3, patches) + 0.5
    with torch.no_grad():
        _, left, _ = pool(torch.randn(3, patches, 8), sizes, torch.arange(patches).expand(3, -1), count)
    torch.testing.assert_close(left.sum(dim=1), sizes.sum(dim=1), rtol=1e-3, atol=1e-3 * patches)


def test_new_queries_look_at_their_own_places() -> None:
    """At least three quarters of a token are the patch at its place."""
    pool, rows = begun(40, (5, 7)), torch.randn(1, 35, 40)
    with torch.no_grad():
        pooled, _, places = pool(rows, torch.ones(1, 35), torch.arange(35)[None], 12)
    others = (pooled[0] - rows[0, places[0]]).norm(dim=1) / rows[0, places[0]].norm(dim=1)
    assert others.max() < 0.5
    # Moving a patch's content moves nothing but its share: queries read nothing of it yet.
    assert pool.queries[:, 3:].abs().max() == 0


# In a network.


def test_every_parameter_matters_and_learns(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """Gradients reach all of a trained pool's, in a ragged batch with other reducers, also where lives decide
    for other images; and the queries of a new one."""
    vit = make_vit(pool=True, life=1)
    prunings = [Pruning(0.9, reducer="pool"), Pruning(0.5, "life", "pool"), Pruning(0.7, reducer="merge")]
    PrunedViT(vit, STAGES).train()(make_pixels(3), prunings).logits.square().sum().backward()
    for block in STAGES.blocks:
        for name, parameter in pool_of(vit.blocks[block]).named_parameters():  # type: ignore[union-attr]
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 1e-7, name
    vit = make_vit()
    add_pools(tuple(vit.blocks), STAGES.blocks, vit.embed_dim, (5, 7))
    for block in STAGES.blocks:
        vit.blocks[block].token_pool.begin()
    prunings = [Pruning(0.6, "mad", "pool")] * 3
    PrunedViT(vit, STAGES).train()(make_pixels(3), prunings).logits.square().sum().backward()
    assert vit.blocks[1].token_pool.queries.grad.abs().max() > 1e-7


def test_a_criterion_changes_nothing(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """Tokens are pooled, and not chosen; also in training, where patches that lives judge would fade."""
    model, pixels = PrunedViT(make_vit(pool=True, life=1), STAGES), make_pixels(2)
    by_variance, by_life = ([Pruning(0.5, name, "pool")] * 2 for name in ("variance", "life"))
    for training in (False, True):
        model.train(training)
        one, other = model(pixels, by_variance), model(pixels, by_life)
        assert torch.equal(one.logits, other.logits)
        assert one.kept.counts.tolist() == [[18, 18], [9, 9]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_low_precision_is_near_float32(
    make_vit: MakeViT, make_pixels: MakePixels, dtype: torch.dtype
) -> None:
    """Queries keep their precision, whatever the network's is."""
    vit, pixels = make_vit(pool=True), make_pixels(3)
    queries = vit.blocks[1].token_pool.queries.detach().clone()
    prunings = [Pruning(0.7, reducer="pool"), Pruning(0.5, reducer="pool"), Pruning(0.5)]
    with torch.inference_mode():
        wanted = PrunedViT(deepcopy(vit), STAGES)(pixels, prunings).logits[:2]
        classifier = Classifier(PrunedViT(vit, STAGES), input_spec_of(vit), "cpu", dtype)
        own = pixels.to(next(vit.parameters()).dtype)
        got = classifier.model(own, prunings).logits[:2].float()
    assert torch.equal(vit.blocks[1].token_pool.queries, queries)
    assert ((got - wanted).norm() / wanted.norm()).item() <= 0.1
    assert vit.half().blocks[1].token_pool.key.dtype == torch.float32
    assert vit.double().blocks[1].token_pool.key.dtype == torch.float64


def test_a_model_without_queries_refuses_the_reducer(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """By name, also for an image that is not pruned; and so does one that prunes in other blocks than those
    that have queries, has them for another grid of patches, or prunes nowhere."""
    some, other_grid = make_vit(), make_vit()
    add_pools(tuple(some.blocks), (1, 3), 66, (5, 7))
    add_pools(tuple(other_grid.blocks), (1, 3), 66, (7, 5))
    for vit, stages in (
        (make_vit(), STAGES),
        (some, Stages((1, 2))),
        (some, every_block(5)),
        (some, Stages(())),
        (other_grid, STAGES),
    ):
        model = PrunedViT(vit, stages)
        assert model.reducers == ("drop", "fuse", "merge", "transform")
        for ratio in (0.5, 1.0):
            with pytest.raises(
                ValueError, match="the reducer pool needs learned queries in every block that"
            ):
                model(make_pixels(2), [UNPRUNED, Pruning(ratio, reducer="pool")])
    for stages in (STAGES, Stages((3,))):
        assert PrunedViT(some, stages).reducers == REDUCERS


def test_queries_are_modules_of_their_blocks(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """Saved, copied and moved with the network; timm's own forward pass does not know them."""
    vit, pixels = make_vit(), make_pixels(2)
    before = vit(pixels)
    assert pooling_blocks(tuple(vit.blocks)) == ()
    add_pools(tuple(vit.blocks), (1, 3), 66, (5, 7))
    assert pooling_blocks(tuple(deepcopy(vit).blocks)) == (1, 3)
    assert {name for name in vit.state_dict() if ".token_pool." in name} == {
        f"blocks.{block}.token_pool.{name}" for block in (1, 3) for name in ("key", "positions", "queries")
    }
    assert torch.equal(vit(pixels), before)
    with pytest.raises(ValueError, match="block 6 cannot pool tokens: the network has 5 blocks"):
        add_pools(tuple(vit.blocks), (5,), 66, (5, 7))


# What it costs.


@pytest.mark.parametrize("keep_ratio", [1.0, 0.6])
def test_macs_are_those_that_are_computed(
    make_vit: MakeViT, make_pixels: MakePixels, keep_ratio: float
) -> None:
    """As PyTorch counts them, but for the products that divide sizes."""
    vit = make_vit(pool=True)
    for block in vit.blocks:
        block.attn.fused_attn = False  # of which PyTorch counts nothing on a CPU
    model = PrunedViT(vit, STAGES)
    # Under `random` no stage computes anything to decide.
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(make_pixels(2), [Pruning(keep_ratio, "random", "pool")] * 2)
    counts = STAGES.keep_counts(35, keep_ratio)
    of_sizes = 35 * counts[0] + counts[0] * counts[1] if keep_ratio < 1 else 0
    assert counter.get_total_flops() == 2 * 2 * (macs(model.arch, STAGES, counts, "pool") + of_sizes)


def test_cost_by_hand() -> None:
    """Of DeiT-S: keys, products and means of three stages; a ratio that keeps all costs nothing more."""
    stages = default_stages(12)
    counts = stages.keep_counts(196, 0.7)
    assert counts == (138, 97, 68)
    more = macs(DEIT_SMALL, stages, counts, "pool") - macs(DEIT_SMALL, stages, counts)
    assert more == sum(pool_macs(384, *pair) for pair in ((196, 138), (138, 97), (97, 68)))
    assert pool_macs(384, 196, 138) == 196 * 384 * KEY_WIDTH + 196 * 138 * (KEY_WIDTH + 384)
    assert compute(DEIT_SMALL, stages, 1.0, "pool") == 1.0
    assert compute(DEIT_SMALL, stages, 0.99, "pool") > 1.0
    assert keep_ratio_for(DEIT_SMALL, stages, 1.0, "pool") == 1.0


@given(share=st.floats(0.45, 1))
def test_the_ratio_of_a_cost_is_the_largest(share: float) -> None:
    """As for every reducer."""
    stages = default_stages(12)
    ratio = keep_ratio_for(DEIT_SMALL, stages, share, "pool")
    assert compute(DEIT_SMALL, stages, ratio, "pool") <= share
    assert ratio == 1 or compute(DEIT_SMALL, stages, round(ratio + 1e-4, 4), "pool") > share
