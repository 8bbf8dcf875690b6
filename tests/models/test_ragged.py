"""Batches of images that differ in length: as each image alone, and dense where they do not differ."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from models.pruned_vit import PrunedViT
from models.ragged import Packing, Run, rounded, runs_of
from models.schedule import CRITERIA, Pruning, keep_counts
from tests.models.batches import batches
from tests.support.examples import examples

MakeViT = Callable[..., VisionTransformer]
MakePixels = Callable[..., Tensor]

# Logits are of the size of 1. In bfloat16 an image of ratio 1 alone even takes another kernel than among
# others, and every one of some 20 roundings is good for 2^-9.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 0.25}


# Packing, by hand: rows are numbered as they lie.


def numbered(*shape: int) -> Tensor:
    """Rows of two values; row r holds r and -r."""
    count = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)
    return torch.stack((count, -count), dim=-1)


def test_runs_are_neighbours_of_one_length() -> None:
    """Lengths 5 5 3 3 3 2 are three runs, each starting where the one before ends."""
    packing = Packing((5, 5, 3, 3, 3, 2))
    assert packing.runs == (Run(0, 2, 0, 5), Run(2, 3, 10, 3), Run(5, 1, 19, 2))


def test_runs_of_tells_keys_apart() -> None:
    """Neighbours of one length but different keys are different runs; a length that returns is a new run."""
    assert list(runs_of((4, 4, 4, 2, 4), ("a", "a", "b", "b", "b"))) == [
        Run(0, 2, 0, 4),
        Run(2, 1, 8, 4),
        Run(3, 1, 12, 2),
        Run(4, 1, 14, 4),
    ]


def test_runs_of_needs_a_key_for_each_length() -> None:
    """A key too few is an error, not an image left out."""
    with pytest.raises(ValueError, match="zip"):
        list(runs_of((4, 4), ("a",)))


def test_a_run_is_a_view_of_packed_or_dense_rows() -> None:
    """Run 1 of lengths 5 3 3 is rows 5 to 10, as two images of three; nothing is copied."""
    run = Packing((5, 3, 3)).runs[1]
    packed = numbered(11)
    dense = run.dense(packed)
    assert dense.shape == (2, 3, 2)
    assert dense[..., 0].tolist() == [[5, 6, 7], [8, 9, 10]]
    assert dense.untyped_storage().data_ptr() == packed.untyped_storage().data_ptr()
    # A batch of one length may be dense, of which a run can be a part.
    assert Run(1, 2, 3, 3).dense(numbered(4, 3))[..., 0].tolist() == [[3, 4, 5], [6, 7, 8]]


def test_pack_is_the_way_back() -> None:
    """Runs packed again are the rows they were taken from: dense if there is one, flat if there are more."""
    rows = numbered(11)
    packing = Packing((5, 3, 3))
    assert torch.equal(packing.pack([run.dense(rows) for run in packing.runs]), rows)
    dense = numbered(4, 3)
    assert packing.pack([dense]) is dense


def test_rows_behind_the_images_of_a_rounded_batch() -> None:
    """130 rows become 132: packed, those behind the images are zero; selected, they are the first one again.
    No image sees them, and batches of one length are packed, too."""
    packing = Packing((124, 3, 3), rows=132)
    assert packing.padding == 2
    packed = packing.pack([run.dense(numbered(130)) + 1 for run in packing.runs])
    assert packed[:, 0].tolist() == [*range(1, 131), 0, 0]
    assert packing.runs[-1].dense(packed)[-1, :, 0].tolist() == [128, 129, 130]
    kept = packing.select(packed, torch.arange(65), Packing((60, 5), rows=68))
    assert kept[:, 0].tolist() == [*range(1, 66), 1, 1, 1]
    numbered_too = torch.cat((torch.arange(65), torch.tensor([2, 2, 2])))
    assert packing.select(packed, numbered_too, Packing((60, 5), rows=68))[:, 0].tolist()[64:] == [
        65,
        3,
        3,
        3,
    ]
    assert Packing((65, 65), rows=132).pack([numbered(2, 65)]).shape == (132, 2)


@given(rows=st.integers(1, 100_000), parts=st.sampled_from([16, 32]))
def test_rounding_adds_at_most_three_rows_or_a_16th(rows: int, parts: int) -> None:
    """Or a 32nd. It leaves few numbers of rows: from 256 on, so many from one power of two to the next."""
    number = rounded(rows, parts)
    assert 0 <= number - rows <= max(3, rows / parts)
    assert number % 4 == 0
    assert rows <= 256 or number % ((1 << rows.bit_length() - 1) // parts) == 0


@given(rows=st.integers(1, 5000))
def test_the_numbers_of_rows_one_after_the_other(rows: int) -> None:
    """The next one after each is found from it; none is left out."""
    number = rounded(rows)
    assert rounded(number) == number
    assert all(rounded(more) == number for more in range(rows, number))
    assert rounded(number + 1) > number


def test_map_runs_gives_each_length_on_its_own() -> None:
    """A module that tells images apart sees whole images: here each loses its own first row."""
    seen = []

    def minus_first(images: Tensor) -> Tensor:
        seen.append(tuple(images.shape))
        return images - images[:, :1]

    packing = Packing((5, 3, 3))
    assert packing.map_runs(minus_first, numbered(11))[:, 0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2]
    assert seen == [(1, 5, 2), (2, 3, 2)]


def test_select_takes_rows_by_number() -> None:
    """Kept rows come in the order named: flat for different lengths, dense for a common one."""
    rows = numbered(11)
    kept = torch.tensor([0, 2, 4, 5, 7, 8, 10])
    flat = Packing((5, 3, 3)).select(rows, kept, Packing((3, 2, 2)))
    assert flat[:, 0].tolist() == [0, 2, 4, 5, 7, 8, 10]
    dense = Packing((4, 4)).select(numbered(2, 4), torch.tensor([1, 2, 5, 7]), Packing((2, 2)))
    assert dense[..., 0].tolist() == [[1, 2], [5, 7]]


# The network on ragged batches.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        # Of two tokens each gets from every head what the other does not, so that their spreads tie but for
        # rounding. The register sees to it that a patch is never one of two.
        {"class_token": False, "reg_tokens": 1, "global_pool": "avg"},
        {"reg_tokens": 2, "global_pool": "map"},
    ],
    ids=["CLS", "average", "map"],
)
@settings(max_examples=examples(12))
@given(prunings=batches(), seed=st.integers(0, 2**31))
def test_in_any_company_an_image_is_treated_as_alone(
    make_vit: MakeViT,
    make_pixels: MakePixels,
    dtype: torch.dtype,
    arguments: dict[str, Any],
    prunings: list[Pruning],
    seed: int,
) -> None:
    """Whatever mix of prunings it is in, an image keeps the patches that it keeps alone, and has the logits
    it has alone, to 2e-5 in float32 and 0.25 in bfloat16."""
    model = PrunedViT(make_vit(life=1, pool=True, **arguments).to(dtype))
    pixels = make_pixels(len(prunings), seed=seed).to(dtype)
    with torch.inference_mode():
        together = model(pixels, prunings)
        for image, pruning in enumerate(prunings):
            alone = model(pixels[image : image + 1], [pruning])
            torch.testing.assert_close(together.logits[image], alone.logits[0], rtol=0, atol=TOLERANCE[dtype])
            kept = [stage[image].tolist() for stage in together.kept]
            assert kept == [stage[0].tolist() for stage in alone.kept]
            counts = [len(stage) for stage in kept]
            ratio = pruning.keep_ratio if pruning.keep_mass is None else counts[0] / 35
            assert counts == list(keep_counts(35, ratio, 3))


def test_answers_come_in_the_order_of_the_images(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """Ratios rising, falling or mixed: turning the batch round turns the answers round, and no more."""
    model, pixels = PrunedViT(make_vit()), make_pixels(5)
    prunings = [Pruning(ratio) for ratio in (0.2, 0.9, 0.5, 1.0, 0.35)]
    with torch.inference_mode():
        there, back = model(pixels, prunings), model(pixels.flip(0), prunings[::-1])
    torch.testing.assert_close(there.logits, back.logits.flip(0), rtol=0, atol=TOLERANCE[torch.float32])
    for stage_there, stage_back in zip(there.kept, back.kept, strict=True):
        assert [kept.tolist() for kept in stage_there] == [kept.tolist() for kept in reversed(stage_back)]


def shapes_entering(model: PrunedViT, pixels: Tensor, prunings: list[Pruning]) -> list[tuple[int, ...]]:
    """The shapes of the rows that enter each block's MLP half."""
    shapes: list[tuple[int, ...]] = []
    handles = [
        block.norm2.register_forward_hook(lambda _module, args, _result: shapes.append(tuple(args[0].shape)))
        for block in model.vit.blocks
    ]
    with torch.inference_mode():
        model(pixels, prunings)
    for handle in handles:
        handle.remove()
    return shapes


def test_a_common_ratio_stays_dense(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """Images of one ratio are never packed, whatever their criteria: [images, tokens, width] throughout."""
    prunings = [Pruning(0.6, criterion) for criterion in CRITERIA]
    images = len(prunings)
    assert shapes_entering(PrunedViT(make_vit(life=1)), make_pixels(images), prunings) == [
        (images, tokens, 66) for tokens in (36, 22, 14, 9, 9)
    ]


def test_different_ratios_are_packed_without_padding(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """Rows are as many as there are tokens, from the first stage on."""
    prunings = [Pruning(ratio) for ratio in (0.6, 1.0, 0.2)]
    assert shapes_entering(PrunedViT(make_vit()), make_pixels(3), prunings) == [
        (3, 36, 66),
        (22 + 36 + 8, 66),
        (14 + 36 + 3, 66),
        (9 + 36 + 2, 66),
        (9 + 36 + 2, 66),
    ]


def test_lengths_that_meet_again_are_dense_again(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """Of 35 patches, 0.05 and 0.04 keep 2 each: one run, and so no packing, though the ratios differ."""
    shapes = shapes_entering(
        PrunedViT(make_vit()), make_pixels(2), [Pruning(0.05, "mad"), Pruning(0.04, "mean")]
    )
    assert shapes == [(2, 36, 66), (2, 3, 66), (2, 2, 66), (2, 2, 66), (2, 2, 66)]


# Training.


@pytest.mark.parametrize("ratios", [(0.6, 0.6, 0.6), (0.9, 0.3, 0.6), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("arguments", [{}, {"class_token": False, "global_pool": "avg"}])
def test_gradients_reach_every_parameter_and_image(
    make_vit: MakeViT, make_pixels: MakePixels, ratios: tuple[float, ...], arguments: dict[str, Any]
) -> None:
    """In training, dense or ragged, a loss on all images moves all weights and depends on all images."""
    model = PrunedViT(make_vit(**arguments)).train()
    pixels = make_pixels(3).requires_grad_()
    model(pixels, [Pruning(ratio) for ratio in ratios]).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 1e-7, name
    assert pixels.grad is not None
    assert (pixels.grad.abs().amax(dim=(1, 2, 3)) > 1e-5).all()


def test_a_loss_on_one_image_leaves_the_others_alone(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """Packed images do not leak into one another: the gradient for the others' pixels is exactly zero."""
    model = PrunedViT(make_vit()).train()
    pixels = make_pixels(4).requires_grad_()
    model(pixels, [Pruning(ratio) for ratio in (0.4, 1.0, 0.7, 0.7)]).logits[2].sum().backward()
    assert pixels.grad is not None
    assert (pixels.grad.abs().amax(dim=(1, 2, 3)) > 0).tolist() == [False, False, True, False]


def test_the_gradient_is_that_of_the_images_alone(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """The gradient of a ragged batch is the sum of its images' own gradients."""
    model = PrunedViT(make_vit()).train()
    pixels = make_pixels(3)
    prunings = [Pruning(0.4), Pruning(0.8, "mean"), Pruning(0.6)]
    model(pixels, prunings).logits.square().sum().backward()
    weight = model.vit.blocks[1].attn.qkv.weight
    together, weight.grad = weight.grad, None
    for image, pruning in enumerate(prunings):
        model(pixels[image : image + 1], [pruning]).logits.square().sum().backward()
    torch.testing.assert_close(together, weight.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ratios", [(0.6,) * 24, (0.9,) * 7 + (0.3,) * 11 + (0.6,) * 6])
def test_stochastic_depth_drops_whole_images(
    make_vit: MakeViT, make_pixels: MakePixels, ratios: tuple[float, ...]
) -> None:
    """In training each image keeps or loses a block's whole update, whatever its neighbours do."""
    model = PrunedViT(make_vit(drop_path_rate=0.5)).train()
    block = model.vit.blocks[3]  # the last stage: packed from block 1 on, pruned between its halves
    assert isinstance(block.drop_path2, DropPath)
    entering, leaving = [], []
    block.norm2.register_forward_hook(lambda _module, args, _result: entering.append(args[0].detach()))
    model.vit.blocks[4].norm1.register_forward_hook(
        lambda _m, args, _result: leaving.append(args[0].detach())
    )
    torch.manual_seed(0)
    model(make_pixels(24), [Pruning(ratio) for ratio in ratios])
    update = (leaving[0] - entering[0]).flatten(0, -2)
    falling = sorted(ratios, reverse=True)
    lengths = [1 + keep_counts(35, ratio, 3)[2] for ratio in falling]
    moved = [(image != 0).any(dim=1) for image in update.split(lengths)]
    assert all(rows.all() or not rows.any() for rows in moved)
    # Of 24 images, each dropped with probability 0.375, some are and some are not.
    assert 3 < sum(bool(rows.all()) for rows in moved) < 21


def test_stochastic_depth_is_off_in_evaluation(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """The same batch twice is the same answer twice."""
    model = PrunedViT(make_vit(drop_path_rate=0.5))
    prunings = [Pruning(ratio) for ratio in (0.9, 0.3, 0.6)]
    with torch.inference_mode():
        first, second = (model(make_pixels(3), prunings).logits for _ in range(2))
    assert torch.equal(first, second)
