"""The forward pass on a GPU: nothing in it waits for the device, and a dense one takes nothing from the host.

It is asked of PyTorch's fake tensors (fake_gpu.py); tests/gpu asks the same of a real one.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from models.criteria import OF_THE_MATRIX
from models.normalise import levels_of, normalise
from models.patch_embed import set_patch_stride
from models.patch_product import PatchProduct
from models.pruned_vit import PrunedViT
from models.ragged import on_device
from models.schedule import CRITERIA, REDUCERS, Pruning, Reducer, Stages
from tests.models import graphed
from tests.models.cuda_batches import BATCHES, HEADS_OF_8, MODELS, SPEC
from tests.models.fake_gpu import WaitsError, fake_gpu, fake_pixels, to_fake_gpu

MakeViT = Callable[..., VisionTransformer]

# Shapes are the same on a CPU, where others check them.
pytestmark = pytest.mark.usefixtures("without_shape_checks")


# The watch itself: what it must not let pass.


@pytest.mark.parametrize(
    "waits",
    [
        lambda rows: rows[0].item(),
        lambda rows: rows.tolist(),
        lambda rows: rows[rows > 0],
        lambda rows: rows.nonzero(),
        lambda rows: bool(rows.any()),
        lambda rows: rows.cpu(),
        lambda rows: torch.tensor([1, 2], device=rows.device),
        lambda rows: torch.tensor([1, 2]).to(rows.device, non_blocking=True),
        lambda rows: torch.tensor([1, 2]).pin_memory().to(rows.device),
        lambda rows: rows + torch.ones(4),
        lambda rows: rows.index_select(0, torch.tensor([1, 2])),
    ],
    ids=range(11),
)
def test_the_watch_sees_what_waits(waits: Callable[[Tensor], object]) -> None:
    """Numbers asked for, shapes that hang on numbers, copies not pinned, tensors left on the host."""
    with (
        fake_gpu(),
        pytest.raises((WaitsError, DataDependentOutputException, DynamicOutputShapeException, RuntimeError)),
    ):
        waits(torch.empty(4, device="cuda"))


def test_the_watch_lets_the_one_way_pass() -> None:
    """Numbers by on_device are on the device, without waiting."""
    device = torch.device("cuda:0")
    with fake_gpu() as watch:
        assert on_device([1, 2, 3], device).device == device
        assert on_device(np.arange(3), device).device == device
    assert watch.copies == 2


def test_the_hosts_numbers_are_kept_out_of_graphs() -> None:
    """While a graph is captured, on_device refuses: a replay would copy from memory that was given back."""
    with fake_gpu(capturing=True), pytest.raises(RuntimeError, match="cannot be part of a CUDA graph"):
        on_device([1, 2, 3], torch.device("cuda:0"))


# The forward pass.

# How the last tokens are pooled has no part in what a criterion decides: models that differ by it alone have
# no batch for each criterion.
ANOTHER_POOLING = {"map", "maximum", "residual"}
OF_A_CRITERION = {f"dense {name}" for name in CRITERIA} - {"dense variance"}


@pytest.mark.parametrize(
    ("arguments", "batch"),
    [
        (model, batch)
        for model in MODELS
        for batch in BATCHES
        if model not in ANOTHER_POOLING or batch not in OF_A_CRITERION
    ],
)
def test_nothing_waits_in_a_forward_pass(make_vit: MakeViT, arguments: str, batch: str) -> None:
    """From pixels to logits, under every criterion and reducer, dense and ragged."""
    model, prunings = PrunedViT(make_vit(**HEADS_OF_8, **MODELS[arguments])), BATCHES[batch]
    with fake_gpu():
        to_fake_gpu(model)
        output = model(fake_pixels(len(prunings)), prunings)
        assert (output.logits.device.type, output.logits.shape) == ("cuda", (len(prunings), 13))


@pytest.mark.parametrize("rows", ["cls", "all"])
@pytest.mark.parametrize("pruning", [Pruning(), *(Pruning(0.6, reducer=name) for name in REDUCERS)], ids=str)
def test_a_dense_pass_takes_nothing_from_the_host(make_vit: MakeViT, pruning: Pruning, rows: Any) -> None:
    """With one pruning for all, places are counted on the device: what a CUDA graph needs."""
    model = PrunedViT(make_vit(**HEADS_OF_8), Stages((1, 2, 3), rows))
    with fake_gpu(capturing=True) as watch:
        to_fake_gpu(model)
        model(fake_pixels(3), [pruning] * 3)
    assert watch.copies == 0


def test_keep_mass_alone_asks_the_device(make_vit: MakeViT) -> None:
    """Its counts hang on the image: the one place where the host waits, as the design says."""
    model = PrunedViT(make_vit(**HEADS_OF_8))
    with fake_gpu():
        to_fake_gpu(model)
        with pytest.raises(DataDependentOutputException):
            model(fake_pixels(2), [Pruning(keep_mass=0.5)] * 2)


# How many operations.

# 64 images of 64 ratios, no two of them alike in length, in no order.
RATIOS = [0.5 + (37 * image % 64) / 128 for image in range(64)]


def launched(
    make_vit: MakeViT, prunings: list[Pruning], depth: int = 12, **arguments: Any
) -> tuple[int, int]:
    """As `graphed.launched`, of a network that offers every criterion and reducer."""
    return graphed.launched(make_vit, prunings, depth, life=depth // 4, pool=True, **arguments)


@pytest.mark.parametrize(
    ("reducer", "most"), [("drop", 1.2), ("fuse", 1.2), ("merge", 1.25), ("pool", 1.3), ("transform", 1.3)]
)
def test_many_ratios_take_as_many_operations_as_one(make_vit: MakeViT, reducer: Reducer, most: float) -> None:
    """64 ratios launch at most 1.2 times the kernels of one, 1.25 where patches are merged and 1.3 where they
    are pooled or transformed, and take one copy of what the host knows. (The largest and the smallest of
    these ratios are merged in as many rounds.)"""
    one, copies_of_one = launched(make_vit, [Pruning(0.5, reducer=reducer)] * 64)
    many, copies = launched(make_vit, [Pruning(ratio, reducer=reducer) for ratio in RATIOS])
    assert many <= most * one, (many, one)
    assert (copies_of_one, copies) == (0, 1)


def test_many_criteria_take_few_operations_more(make_vit: MakeViT) -> None:
    """All criteria of one row and 64 ratios launch at most 1.5 times the kernels of one ratio and one
    criterion. Each that reads the attention of all queries is computed by itself: with all five of them
    it is 2.5 times, with one of them still 1.5."""
    one, _ = launched(make_vit, [Pruning(0.5)] * 64)
    without_lives = [name for name in CRITERIA if name != "life"]
    of_a_row = [name for name in without_lives if name not in OF_THE_MATRIX]
    for criteria, most in ((of_a_row, 1.5), (("variance", "renyi_2"), 1.5), (without_lives, 2.5)):
        mixed = [Pruning(ratio, criteria[image % len(criteria)]) for image, ratio in enumerate(RATIOS)]
        many, copies = launched(make_vit, mixed)
        assert many <= most * one, (criteria, many, one)
        assert copies == 1


def test_lives_take_fewer_operations_than_attention(make_vit: MakeViT) -> None:
    """They are predicted once; then no stage computes attention to decide: in all, fewer than by attention,
    with one ratio and with 64. In a mixed batch it is 21 more."""
    for ratios in ([0.5] * 64, RATIOS):
        lives, copies = launched(make_vit, [Pruning(ratio, "life") for ratio in ratios])
        attention, copies_of_attention = launched(make_vit, [Pruning(ratio) for ratio in ratios])
        assert lives < attention, (lives, attention)
        assert copies == copies_of_attention
    mixed = [Pruning(ratio, ("variance", "random")[image % 2]) for image, ratio in enumerate(RATIOS)]
    some = [Pruning(ratio, ("variance", "random", "life")[image % 3]) for image, ratio in enumerate(RATIOS)]
    assert launched(make_vit, some)[0] <= launched(make_vit, mixed)[0] + 21


@pytest.mark.parametrize("pooling", ["avg", "max", "avgmax", "map", "prr"])
def test_pooling_takes_as_many_operations_for_many_lengths(make_vit: MakeViT, pooling: str) -> None:
    """Whatever the head reads, 64 ratios launch at most 1.2 times the kernels of one."""
    one, _ = launched(make_vit, [Pruning(0.5)] * 64, global_pool=pooling)
    many, copies = launched(make_vit, [Pruning(ratio) for ratio in RATIOS], global_pool=pooling)
    assert many <= 1.2 * one, (many, one)
    assert copies == 1


def test_operations_do_not_grow_with_the_batch(make_vit: MakeViT) -> None:
    """With everything that images can differ in, 63 launch what 33 do."""
    mixed = [
        Pruning(ratio, CRITERIA[image % len(CRITERIA)], REDUCERS[image % len(REDUCERS)])
        for image, ratio in enumerate(RATIOS[:63])
    ]
    assert launched(make_vit, mixed, depth=4) == launched(make_vit, mixed[:33], depth=4)


@pytest.mark.parametrize("stride", [4, 3])
def test_patches_are_embedded_by_two_operations(make_vit: MakeViT, stride: int) -> None:
    """Pixels gathered, and a product."""
    vit = make_vit(**HEADS_OF_8)
    set_patch_stride(vit, stride)
    model = PrunedViT(vit)
    with fake_gpu() as watch:
        to_fake_gpu(model)
        product = PatchProduct(model.vit.patch_embed.proj)
        watch.kernels.clear()
        rows = product(fake_pixels(2))
    assert rows.shape == (2, vit.patch_embed.num_patches, 48)
    assert watch.kernels.total() <= 3, watch.kernels


def test_pixels_are_normalised_on_the_device() -> None:
    """In one operation. Raw bytes go there by a pinned copy, and mean and deviation only once."""
    with fake_gpu() as watch:
        pixels = on_device(torch.empty(2, 20, 28, 3, dtype=torch.uint8), torch.device("cuda:0"))
        levels = levels_of(SPEC, pixels.device)
        watch.copies = 0
        watch.kernels.clear()
        inputs = normalise(pixels, SPEC, torch.bfloat16, levels)
        assert (watch.copies, watch.kernels.total()) == (0, 1)
        assert (inputs.device.type, inputs.dtype, inputs.shape) == ("cuda", torch.bfloat16, (2, 3, 20, 28))
