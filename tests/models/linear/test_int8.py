"""Linear layers in int8: exact where integers are, near float32 elsewhere, and every row by itself."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import Attention, SwiGLU
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models import device
from models.linear.int8 import LARGEST, ZERO_POINT, Int8Linear, quantise_rows
from models.linear.layer import replace_linears
from models.pruned_vit import PrunedViT, check_against_timm
from models.schedule import UNPRUNED, Pruning

MakeViT = Callable[..., VisionTransformer]
MakePixels = Callable[..., Tensor]

pytestmark = pytest.mark.skipif(not device.cpu_has_int8(), reason="int8 needs a CPU with AVX-512 VNNI")

DTYPES = [torch.float32, torch.bfloat16]

# The largest of 66 normal values is about 2.6 deviations, so a step is a 48th of one, and an error 0.6 % of
# the values; that of the weights is as large. A layer makes 0.9 % of them, and the twenty layers of five
# blocks, whose errors are independent, 4 %; bfloat16 between them adds half as much. Allowed is twice that.
TOLERANCE = 0.08


def integer_linear(inputs: int, outputs: int, bias: bool = True, seed: int = 0) -> nn.Linear:
    """Weights that are whole numbers with 127 in every output channel, so that their scales are 1."""
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        linear.weight.copy_(torch.randint(-127, 128, (outputs, inputs), generator=generator))
        linear.weight[:, 3] = 127
        if bias:
            linear.bias.copy_(torch.randint(-999, 1000, (outputs,), generator=generator))
    return linear


def integer_rows(*shape: int, seed: int = 1) -> Tensor:
    """Whole numbers with one of the largest magnitude in every row, so that their scales are 1."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(-LARGEST, LARGEST + 1, shape, generator=generator).float()
    rows[..., 2] = -LARGEST
    return rows


# Rows.


def test_rows_by_hand() -> None:
    """The largest magnitude becomes 126 on either side of the zero point, and the others follow."""
    rows = torch.tensor([[0.0, 1.0, -2.0], [0.0, 0.0, 0.0], [630.0, 5.0, 13.0]])
    integers, scales = quantise_rows(rows)
    assert integers.tolist() == [[128, 191, 2], [128, 128, 128], [254, 129, 131]]
    assert scales[0].item() == pytest.approx(2 / 126)
    assert scales[2].item() == 5


@pytest.mark.parametrize(("dtype", "bits"), [(torch.bfloat16, torch.int16), (torch.float32, torch.int32)])
def test_no_magnitude_wraps_around(dtype: torch.dtype, bits: torch.dtype) -> None:
    """Whatever the largest magnitude (all there are in bfloat16; as many in float32), rounding does not
    carry it past what a signed byte holds."""
    places = torch.arange(0x0E00, 0x7F00)  # 1.6e-30 to 1.7e38
    if bits == torch.int32:
        places = places * 0x10000 + torch.randint(
            0x10000, places.shape, generator=torch.Generator().manual_seed(0)
        )
    magnitudes = places.to(bits).view(dtype)
    integers, scales = quantise_rows(torch.stack((magnitudes, -magnitudes), dim=1))
    assert scales.isfinite().all()
    signed = integers.int() - ZERO_POINT
    assert (signed[:, 0] >= 125).all()
    assert (signed[:, 0] <= 127).all()
    assert torch.equal(signed[:, 1], -signed[:, 0])


@pytest.mark.parametrize(("dtype", "steps"), [(torch.float32, 0.501), (torch.bfloat16, 0.751)])
@given(seed=st.integers(0, 2**31), exponent=st.integers(-20, 20))
def test_rows_are_kept_to_a_step(dtype: torch.dtype, steps: float, seed: int, exponent: int) -> None:
    """Every value comes back to within half a step in float32 and three quarters in bfloat16."""
    rows = torch.randn(3, 5, 67, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    rows = rows.to(dtype)
    integers, scales = quantise_rows(rows)
    assert scales.shape == (3, 5, 1)
    back = (integers.double() - ZERO_POINT) * scales.double()
    assert ((back - rows.double()).abs() <= steps * scales.double()).all()


# Layers.


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 67), (41, 67), (3, 5, 67)])
def test_whole_numbers_are_exact(shape: tuple[int, ...], bias: bool) -> None:
    """Where every scale is 1, the layer is the float32 one to the last bit, biases and all."""
    linear, rows = integer_linear(67, 29, bias), integer_rows(*shape)
    with torch.inference_mode():
        assert torch.equal(Int8Linear(linear)(rows), linear(rows))


def test_the_largest_integers_do_not_saturate() -> None:
    """Sums are kept in 32 bits, also between the products."""
    linear = nn.Linear(1536, 19, bias=False)
    rows = torch.full((7, 1536), float(LARGEST))
    rows[1] *= -1
    with torch.inference_mode():
        linear.weight.fill_(127)
        linear.weight[1] *= -1
        assert torch.equal(Int8Linear(linear)(rows), linear(rows))


def test_rows_that_do_not_lie_side_by_side_are_read_right() -> None:
    """Strides make no difference."""
    linear, rows = integer_linear(67, 29), integer_rows(67, 41)
    rows[3] = LARGEST
    with torch.inference_mode():
        assert torch.equal(Int8Linear(linear)(rows.t()), linear(rows.t()))


def test_a_channel_and_a_row_of_zeros_give_the_bias() -> None:
    """Nothing is divided by 0."""
    linear, rows = integer_linear(67, 29), integer_rows(5, 67)
    rows[1] = 0
    with torch.inference_mode():
        linear.weight[4] = 0
        assert torch.equal(Int8Linear(linear)(rows), linear(rows))


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=2, max_size=5),
    inputs=st.sampled_from([17, 66, 384]),
    outputs=st.sampled_from([13, 198]),
    seed=st.integers(0, 2**31),
)
def test_a_row_is_the_same_to_the_bit_in_any_company(
    dtype: torch.dtype, lengths: list[int], inputs: int, outputs: int, seed: int
) -> None:
    """Packed with the rows of other images, however many and however large, an image's rows give what they
    give alone."""
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(inputs, outputs)
    sizes = 10 * torch.rand(sum(lengths), 1, generator=generator)
    rows = (sizes * torch.randn(sum(lengths), inputs, generator=generator)).to(dtype)
    layer = Int8Linear(linear).to(dtype)
    with torch.inference_mode():
        alone = torch.cat([layer(image) for image in rows.split(lengths)])
        assert torch.equal(layer(rows), alone)


@pytest.mark.parametrize("bias", [True, False])
def test_a_part_is_that_of_the_whole(bias: bool) -> None:
    """To the bit, and only the parts that were named can be had."""
    linear = nn.Linear(67, 29, bias=bias)
    layer = Int8Linear(linear, [slice(0, 11), slice(11, 29)])
    rows = torch.randn(7, 67, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = layer(rows)
        for part in (slice(0, 11), slice(11, 29)):
            assert torch.equal(layer.part(rows, part), whole[:, part])
        with pytest.raises(KeyError):
            layer.part(rows, slice(0, 12))


def test_scales_keep_their_precision_in_a_model_of_another_dtype() -> None:
    """`to` rounds the bias and neither the scales nor the packed weight."""
    layer = Int8Linear(nn.Linear(67, 29)).to(torch.bfloat16)
    assert layer.bias.dtype == torch.bfloat16
    assert layer.channel_scales.dtype == torch.float32
    rows = torch.randn(5, 67, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert layer(rows.bfloat16()).dtype == torch.bfloat16


# Networks.

FAMILIES: dict[str, dict[str, Any]] = {
    "ViT": {},
    "LayerScale": {"init_values": 1.0},
    "distilled": {"cls": VisionTransformerDistilled},
    "registers, average": {"class_token": False, "reg_tokens": 2, "global_pool": "avg"},
    "SwiGLU": {"mlp_layer": SwiGLU},
    "query and key norm": {"qk_norm": True},
    "no biases": {"qkv_bias": False, "proj_bias": False},
    "gated attention": {"gated": True},
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, make_vit: MakeViT, randomise: Callable[..., nn.Module]) -> Any:
    arguments = dict(FAMILIES[request.param])
    if not arguments.pop("gated", False):
        return make_vit(**arguments)
    vit = make_vit()
    for block in vit.blocks:
        block.attn = Attention(66, 6, qkv_bias=True, gated=True)
    return randomise(vit).eval()


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_are_near_those_of_float32(
    family: VisionTransformer, make_pixels: MakePixels, dtype: torch.dtype
) -> None:
    """Every family's logits are float32's but for the error of quantisation, and not float32's own."""
    pixels = make_pixels(3)
    quantised = deepcopy(family)
    replace_linears(quantised.blocks, Int8Linear)
    quantised.to(dtype)
    with torch.inference_mode():
        want = PrunedViT(family)(pixels, [UNPRUNED] * 3).logits
        got = PrunedViT(quantised)(pixels.to(dtype), [UNPRUNED] * 3).logits.float()
    error = ((got - want).norm() / want.norm()).item()
    assert 1e-4 < error < TOLERANCE


def test_blocks_only_are_quantised(family: VisionTransformer) -> None:
    """No plain linear layer is left in a block; patch embedding and head stay as they are."""
    head, embedding = family.head, family.patch_embed.proj
    plain = {name for name, module in family.named_modules() if type(module) is nn.Linear}
    replace_linears(family.blocks, Int8Linear)
    replaced = {name for name, module in family.named_modules() if type(module) is Int8Linear}
    assert replaced == {name for name in plain if name.startswith("blocks.")}
    assert len(replaced) >= 4 * len(family.blocks)
    assert family.head is head
    assert family.patch_embed.proj is embedding


def test_ratio_1_is_still_timms_forward(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """Quantised layers do for timm's own forward pass what they do for the pruned one."""
    vit = make_vit()
    replace_linears(vit.blocks, Int8Linear)
    check_against_timm(PrunedViT(vit), make_pixels(2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_image_in_a_ragged_batch_is_treated_as_alone(
    make_vit: MakeViT, make_pixels: MakePixels, dtype: torch.dtype
) -> None:
    """Among images of other ratios, an image keeps the patches that it keeps alone and has nearly the logits
    it has alone. (The layers give the same bits. Attention is left, whose differences may tip a rounding.)"""
    model = PrunedViT(make_vit())
    parts = {f"{stage}.attn.qkv": (slice(0, 66), slice(66, 198)) for stage in model.stages.blocks}
    replace_linears(model.vit.blocks, Int8Linear, parts)
    model.to(dtype)
    prunings = [
        Pruning(0.7),
        Pruning(1.0),
        Pruning(0.3, "mad"),
        Pruning(0.7),
        Pruning(0.5, "mean"),
        Pruning(0.5, reducer="fuse"),
        Pruning(0.6, reducer="merge"),
    ]
    pixels = make_pixels(len(prunings)).to(dtype)
    with torch.inference_mode():
        together = model(pixels, prunings)
        for image, pruning in enumerate(prunings):
            alone = model(pixels[image : image + 1], [pruning])
            for stage in range(3):
                assert torch.equal(together.kept[stage][image], alone.kept[stage][0])
            torch.testing.assert_close(
                together.logits[image], alone.logits[0], rtol=0, atol=0.02 if dtype == torch.float32 else 0.25
            )
