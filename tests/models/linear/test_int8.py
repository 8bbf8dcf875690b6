"""Linear layers in int8: exact where integers are, near float32 elsewhere, and every row by itself."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import Attention, SwiGLU
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models import device
from models.linear import int8
from models.linear.fused import FusedEightBits
from models.linear.int8 import Int8Linear, Quantised
from models.linear.layer import replace_linears
from models.linear.quantised import (
    LARGEST,
    ZERO_POINT,
    EightBitsByRange,
    EightBitWeight,
    SevenBitWeight,
    quantise_rows,
    rows_by_range,
)
from models.pruned_vit import PrunedViT, check_against_timm
from models.schedule import UNPRUNED, Pruning

MakeViT = Callable[..., VisionTransformer]
MakePixels = Callable[..., Tensor]

pytestmark = pytest.mark.skipif(not device.cpu_has_int8(), reason="int8 needs a CPU with AVX2")

DTYPES = [torch.float32, torch.bfloat16]

Way = type[Quantised]
# All on a CPU with VNNI; those for eight bits are wrong on others.
needs_vnni = pytest.mark.skipif(not device.cpu_has_vnni(), reason="without VNNI eight bits saturate")
WAYS = [
    pytest.param(EightBitWeight, id="eight bits", marks=needs_vnni),
    pytest.param(FusedEightBits, id="eight bits, fused", marks=needs_vnni),
    pytest.param(EightBitsByRange, id="eight bits by range", marks=needs_vnni),
    pytest.param(SevenBitWeight, id="seven bits"),
]
in_each_way = pytest.mark.parametrize("way", WAYS)

# The largest of 66 normal values is about 2.6 deviations, so a step of eight bits is a 48th of one, and an
# error 0.6 % of the values; with seven bits twice that. A layer makes 0.9 % of them (1.3 %), and the twenty
# layers of five blocks, whose errors are independent, 4 % (6 %); bfloat16 between them adds half as much.
# Allowed is twice that.
TOLERANCE = {EightBitWeight: 0.08, FusedEightBits: 0.08, EightBitsByRange: 0.08, SevenBitWeight: 0.12}


def integer_linear(way: Way, inputs: int, outputs: int, bias: bool = True, seed: int = 0) -> nn.Linear:
    """Weights that are whole numbers with the largest one in every output channel, so that their scales are
    1."""
    largest = 64 if way is SevenBitWeight else 127
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        linear.weight.copy_(torch.randint(-largest, largest + 1, (outputs, inputs), generator=generator))
        linear.weight[:, 3] = largest
        if bias:
            linear.bias.copy_(torch.randint(-999, 1000, (outputs,), generator=generator))
    return linear


def integer_rows(way: Way, *shape: int, seed: int = 1) -> Tensor:
    """Whole numbers with the ends of what there is in every row, so that their scales are 1: magnitudes up to
    126, or a range of 255."""
    least, most = (-LARGEST, LARGEST) if issubclass(way, EightBitWeight) else (-100, 155)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(least, most + 1, shape, generator=generator).float()
    rows[..., 2], rows[..., 5] = least, most
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


def test_rows_by_range_by_hand() -> None:
    """The least value becomes 0 and the largest 255, and 8 bytes follow."""
    rows = torch.tensor([[-2.0, 0.0, 1.0], [0.0, 0.0, 0.0], [5.0, 260.0, 13.0], [7.0, 7.0, 7.0]])
    integers, scales, least = rows_by_range(rows)
    assert integers.shape == (4, 3 + 8)
    assert integers[:3, :3].tolist() == [[0, 170, 255], [0, 0, 0], [0, 255, 8]]
    assert scales.flatten().tolist() == pytest.approx([3 / 255, 0, 1, 0])
    assert least.flatten().tolist() == [-2, 0, 5, 7]


@given(seed=st.integers(0, 2**31), exponent=st.integers(-10, 20), shift=st.floats(-3, 3))
def test_rows_by_range_are_kept_to_half_a_step(seed: int, exponent: int, shift: float) -> None:
    """Every value comes back to within half a step."""
    rows = (torch.randn(15, 67, generator=torch.Generator().manual_seed(seed)) + shift) * 2.0**exponent
    integers, scales, least = rows_by_range(rows)
    back = integers[:, :67].double() * scales.double() + least.double()
    assert ((back - rows.double()).abs() <= 0.501 * scales.double()).all()


# Layers.


@in_each_way
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 67), (41, 67), (3, 5, 67)])
def test_whole_numbers_are_exact(way: Way, shape: tuple[int, ...], bias: bool) -> None:
    """Where every scale is 1, the layer is the float32 one to the last bit, biases and all."""
    linear, rows = integer_linear(way, 67, 29, bias), integer_rows(way, *shape)
    with torch.inference_mode():
        assert torch.equal(Int8Linear(linear, quantised=way)(rows), linear(rows))


@in_each_way
def test_the_largest_integers_do_not_saturate(way: Way) -> None:
    """Sums are kept in 32 bits, and pairs of products in 16 do not run over."""
    largest = 64 if way is SevenBitWeight else 127
    most = LARGEST if issubclass(way, EightBitWeight) else 255
    linear = nn.Linear(512, 19, bias=False)  # so that float32 holds the sums
    rows = torch.full((7, 512), float(most))
    rows[:, 0] = 0
    rows[1] *= -1
    with torch.inference_mode():
        linear.weight.fill_(largest)
        linear.weight[1] *= -1
        assert torch.equal(Int8Linear(linear, quantised=way)(rows), linear(rows))


@in_each_way
def test_rows_that_do_not_lie_side_by_side_are_read_right(way: Way) -> None:
    """Strides make no difference."""
    linear, rows = integer_linear(way, 67, 29), integer_rows(way, 41, 67)
    apart = rows.t().contiguous().t()
    assert not apart.is_contiguous()
    with torch.inference_mode():
        assert torch.equal(Int8Linear(linear, quantised=way)(apart), linear(rows))


@in_each_way
def test_a_channel_and_a_row_of_zeros_give_the_bias(way: Way) -> None:
    """Nothing is divided by 0."""
    linear, rows = integer_linear(way, 67, 29), integer_rows(way, 5, 67)
    rows[1] = 0
    with torch.inference_mode():
        linear.weight[4] = 0
        assert torch.equal(Int8Linear(linear, quantised=way)(rows), linear(rows))


@in_each_way
@pytest.mark.parametrize("dtype", DTYPES)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=2, max_size=5),
    inputs=st.sampled_from([17, 66, 384]),
    outputs=st.sampled_from([13, 198]),
    seed=st.integers(0, 2**31),
)
def test_a_row_is_the_same_to_the_bit_in_any_company(
    way: Way, dtype: torch.dtype, lengths: list[int], inputs: int, outputs: int, seed: int
) -> None:
    """Packed with the rows of other images, however many and however large, an image's rows give what they
    give alone."""
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(inputs, outputs)
    sizes = 10 * torch.rand(sum(lengths), 1, generator=generator)
    rows = (sizes * torch.randn(sum(lengths), inputs, generator=generator)).to(dtype)
    layer = Int8Linear(linear, quantised=way).to(dtype)
    with torch.inference_mode():
        alone = torch.cat([layer(image) for image in rows.split(lengths)])
        assert torch.equal(layer(rows), alone)


@in_each_way
def test_the_kernel_sees_few_numbers_of_rows(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN keeps what it made for each of them."""
    layer = Int8Linear(nn.Linear(16, 8), quantised=way)
    seen = set()
    product = torch.ops.onednn.qlinear_pointwise

    def watched(rows: Tensor, *rest: Any) -> Tensor:
        seen.add(len(rows))
        result: Tensor = product(rows, *rest)
        return result

    monkeypatch.setattr(torch.ops.onednn, "qlinear_pointwise", watched)
    with torch.inference_mode():
        for rows in range(1024, 2048):
            assert layer(torch.ones(rows, 16)).shape == (rows, 8)
    assert len(seen) <= 33


@in_each_way
@pytest.mark.parametrize("bias", [True, False])
def test_a_part_is_that_of_the_whole(way: Way, bias: bool) -> None:
    """To the bit, and only the parts that were named can be had."""
    linear = nn.Linear(67, 29, bias=bias)
    layer = Int8Linear(linear, [slice(0, 11), slice(11, 29)], way)
    rows = torch.randn(7, 67, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = layer(rows)
        for part in (slice(0, 11), slice(11, 29)):
            assert torch.equal(layer.part(rows, part), whole[:, part])
        with pytest.raises(KeyError):
            layer.part(rows, slice(0, 12))


@in_each_way
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_follows_the_product(way: Way, approximate: str) -> None:
    """In each form of it."""
    layer = Int8Linear(nn.Linear(67, 29), quantised=way)
    rows = torch.randn(7, 67, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = F.gelu(layer(rows), approximate=approximate)
        assert torch.equal(layer.with_gelu(rows, approximate), wanted)


@in_each_way
def test_scales_keep_their_precision_in_a_model_of_another_dtype(way: Way) -> None:
    """`to` rounds the bias and neither the scales nor the packed weight."""
    rows = torch.randn(5, 67, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        layer = Int8Linear(nn.Linear(67, 29, bias=False), quantised=way)
        before = layer(rows)
        layer.to(torch.bfloat16)
        assert torch.equal(layer(rows), before)
        assert layer(rows.bfloat16()).dtype == torch.bfloat16
        assert Int8Linear(nn.Linear(67, 29), quantised=way).to(torch.bfloat16).bias.dtype == torch.bfloat16


def test_the_cpu_decides_how_many_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight with VNNI, by range where rows are in float32; else seven. With numba, passes are fused."""
    for vnni, bfloat16, numba, wanted in (
        (True, True, True, FusedEightBits),
        (True, True, False, EightBitWeight),
        (True, False, True, EightBitsByRange),
        (False, False, True, SevenBitWeight),
    ):
        monkeypatch.setattr(int8, "can_fuse", lambda numba=numba: numba)
        monkeypatch.setattr(int8, "cpu_has_vnni", lambda vnni=vnni: vnni)
        monkeypatch.setattr(int8, "cpu_has_bfloat16", lambda bfloat16=bfloat16: bfloat16)
        assert type(Int8Linear(nn.Linear(67, 29)).whole) is wanted


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


@in_each_way
@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_are_near_those_of_float32(
    family: VisionTransformer, make_pixels: MakePixels, dtype: torch.dtype, way: Way
) -> None:
    """Every family's logits are float32's but for the error of quantisation, and not float32's own."""
    pixels = make_pixels(3)
    quantised = deepcopy(family)
    replace_linears(quantised.blocks, partial(Int8Linear, quantised=way))
    quantised.to(dtype)
    with torch.inference_mode():
        want = PrunedViT(family)(pixels, [UNPRUNED] * 3).logits
        got = PrunedViT(quantised)(pixels.to(dtype), [UNPRUNED] * 3).logits.float()
    error = ((got - want).norm() / want.norm()).item()
    assert 1e-4 < error < TOLERANCE[way]


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


@in_each_way
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_image_in_a_ragged_batch_is_treated_as_alone(
    make_vit: MakeViT, make_pixels: MakePixels, dtype: torch.dtype, way: Way
) -> None:
    """Among images of other ratios, an image keeps the patches that it keeps alone and has nearly the logits
    it has alone. (The layers give the same bits. Attention is left, whose differences may tip a rounding.)"""
    model = PrunedViT(make_vit())
    parts = {f"{stage}.attn.qkv": (slice(0, 66), slice(66, 198)) for stage in model.stages.blocks}
    replace_linears(model.vit.blocks, partial(Int8Linear, quantised=way), parts)
    model.to(dtype)
    prunings = [
        Pruning(0.7),
        Pruning(1.0),
        Pruning(0.3, "mad"),
        Pruning(0.7),
        Pruning(0.5, "mean"),
        Pruning(0.5, reducer="fuse"),
        Pruning(0.6, reducer="merge"),
        Pruning(0.6, reducer="transform"),
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
