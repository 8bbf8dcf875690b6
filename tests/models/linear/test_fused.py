"""The compiled passes of int8 layers: each against the same formula in float64, and blocks made of them."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models import device
from models.linear import fused, int8, row_passes
from models.linear.fused import (
    FusedEightBits,
    mlp_update,
    projection_of_norm,
    projection_update,
    quantised_rows,
)
from models.linear.int8 import Int8Linear, with_mlp, with_projection
from models.linear.layer import replace_linears
from models.linear.quantised import ZERO_POINT, EightBitWeight
from models.pruned_vit import PrunedViT
from models.schedule import UNPRUNED

pytestmark = pytest.mark.skipif(not device.cpu_has_vnni(), reason="eight bits saturate without VNNI")

seeds = st.integers(0, 2**31)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bits(x: Tensor) -> np.ndarray:
    return x.view(torch.uint16).numpy()


def back(integers: Tensor, scales: Tensor) -> Tensor:
    """Quantised rows as float64."""
    return (integers[: len(scales)].double() - ZERO_POINT) * scales.double().unsqueeze(1)


def room(rows: int, width: int) -> tuple[Tensor, Tensor]:
    return torch.zeros((rows, width), dtype=torch.uint8), torch.zeros(rows)


def assert_kept_to_half_a_step(integers: Tensor, scales: Tensor, wanted: Tensor) -> None:
    """Beside half a step, an error of float32."""
    allowed = 0.5 * scales.double().unsqueeze(1) + 1e-5 * wanted.abs().amax(dim=1, keepdim=True) + 1e-30
    assert ((back(integers, scales) - wanted).abs() <= allowed).all()


@pytest.mark.parametrize("x", np.linspace(-6, 6, 1201).tolist())
def test_erf(x: float) -> None:
    """To the precision of float32."""
    assert row_passes._erf(np.float32(x)) == pytest.approx(math.erf(np.float32(x)), abs=1e-6)


@given(seed=seeds, exponent=st.integers(-60, 60), width=st.sampled_from([1, 7, 66, 384]))
def test_rows_are_kept_to_half_a_step(seed: int, exponent: int, width: int) -> None:
    """With the largest magnitude at 127 steps."""
    rows = (normal(5, width, seed=seed) * 2.0**exponent).bfloat16()
    integers, scales = quantised_rows(rows)
    assert_kept_to_half_a_step(integers, scales, rows.double())
    farthest = (integers[:5].int() - ZERO_POINT).abs().amax(dim=1)
    assert farthest.tolist() == [127] * 5


def test_rows_of_zeros_and_of_the_smallest_values() -> None:
    """Nothing is divided by 0, and nothing leaves the bytes."""
    rows = torch.tensor([[0.0, 0.0], [1e-38, -1e-38], [3e38, -3e38]]).bfloat16()
    integers, scales = quantised_rows(rows)
    assert integers[:3].tolist() == [[128, 128], [128, 128], [255, 1]]
    assert scales.isfinite().all()


@given(seed=seeds)
def test_norm(seed: int) -> None:
    """Layer norm, quantised."""
    rows = (3 * normal(4, 66, seed=seed) + 1).bfloat16()
    weight, bias = normal(66, seed=seed + 1), normal(66, seed=seed + 2)
    integers, scales = room(4, 66)
    row_passes.norm_quantise(
        bits(rows), integers.numpy(), scales.numpy(), weight.numpy(), bias.numpy(), np.float32(1e-6)
    )
    wanted = F.layer_norm(rows.double(), (66,), weight.double(), bias.double(), 1e-6)
    assert_kept_to_half_a_step(integers, scales, wanted)


@given(seed=seeds)
def test_gelu(seed: int) -> None:
    """Exact GELU of products, with the scales of rows and the bias, quantised."""
    products, factors = (50 * normal(4, 66, seed=seed)).bfloat16(), normal(4, seed=seed + 1).abs() / 10
    bias = normal(66, seed=seed + 2)
    integers, scales = room(4, 66)
    row_passes.gelu_quantise(bits(products), factors.numpy(), integers.numpy(), scales.numpy(), bias.numpy())
    wanted = F.gelu(products.double() * factors.double().unsqueeze(1) + bias.double())
    assert_kept_to_half_a_step(integers, scales, wanted)


@given(seed=seeds)
def test_sums_are_rounded_once(seed: int) -> None:
    """To the nearest bfloat16, or a neighbour of it where float32 was between the two."""
    rows, products = normal(4, 66, seed=seed).bfloat16(), normal(4, 66, seed=seed + 1).bfloat16()
    factors, bias, layer_scale = (normal(*shape, seed=seed + 2) for shape in ((4,), (66,), (66,)))
    scaled = products.double() * factors.double().unsqueeze(1) + bias.double()
    for wanted, computed in (
        (scaled, lambda out: row_passes.scale(bits(products), factors.numpy(), bits(out), bias.numpy())),
        (
            rows.double() + scaled * layer_scale.double(),
            lambda out: row_passes.scale_add(
                bits(rows), bits(products), factors.numpy(), bits(out), bias.numpy(), layer_scale.numpy()
            ),
        ),
    ):
        out = torch.empty_like(rows)
        computed(out)
        torch.testing.assert_close(out.double(), wanted, rtol=2**-8, atol=1e-5)


def test_a_factor_of_1_changes_no_bit() -> None:
    """All that bfloat16 has: rounding what needs no rounding, from zero over the smallest values to
    infinity."""
    every = torch.arange(0, 0x7F81, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    every = torch.cat((every, -every)).view(2, -1)
    one, zeros = np.ones(2, np.float32), np.zeros(every.shape[1], np.float32)
    out = torch.empty_like(every)
    row_passes.scale(bits(every), one, bits(out), zeros)
    assert torch.equal(out, every)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_not_hidden(value: float) -> None:
    """Its row is NaN, and no other row is."""
    linear = nn.Linear(66, 29)
    layer = Int8Linear(linear, quantised=FusedEightBits)
    rows = normal(3, 66).bfloat16()
    rows[1, 5] = value
    with torch.inference_mode():
        assert layer(rows).isnan().all(dim=1).tolist() == [False, True, False]
        first, second = (FusedEightBits(normal(66, 66, seed=seed)) for seed in (1, 2))
        norm = nn.LayerNorm(66)
        updated = mlp_update(first, second, rows, norm, (None, None), None)
        assert updated.isnan().all(dim=1).tolist() == [False, True, False]


@pytest.mark.parametrize("layer_scale", [None, normal(66, seed=9)])
@pytest.mark.parametrize("bias", [True, False])
def test_updates_are_those_of_separate_operations(bias: bool, layer_scale: Tensor | None) -> None:
    """An MLP and a projection, but for the rounding of quantised rows."""
    rows, mixed = normal(21, 66, seed=1).bfloat16(), normal(21, 66, seed=2).bfloat16()
    first, second = nn.Linear(66, 132, bias=bias), nn.Linear(132, 66, bias=bias)
    projection, norm = nn.Linear(66, 66, bias=bias), nn.LayerNorm(66, eps=1e-6)
    factor = 1.0 if layer_scale is None else layer_scale
    with torch.inference_mode():
        norm.weight.copy_(normal(66, seed=3))
        norm.bias.copy_(normal(66, seed=4))
        quantised = [FusedEightBits(linear.weight) for linear in (first, second, projection)]
        biases = (first.bias, second.bias)
        for got, update in (
            (
                mlp_update(*quantised[:2], rows, norm, biases, layer_scale),
                second(F.gelu(first(norm(rows.float())))),
            ),
            (
                projection_update(quantised[2], mixed, rows, projection.bias, layer_scale),
                projection(mixed.float()),
            ),
        ):
            error = got.float() - (rows.float() + update * factor)
            assert error.norm() < 0.02 * (update * factor).norm() + 0.004 * rows.float().norm()
        wanted = projection(norm(rows.float()))
        error = projection_of_norm(quantised[2], rows, norm, projection.bias).float() - wanted
        assert error.norm() < 0.02 * wanted.norm()


def test_several_threads_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes some of the rows."""
    layer = Int8Linear(nn.Linear(66, 29), quantised=FusedEightBits)
    rows = normal(41, 66).bfloat16()
    helped = []
    helpers = fused._helpers()
    monkeypatch.setattr(fused, "_helpers", lambda: helped.append(1) or helpers)
    threads = torch.get_num_threads()
    try:
        with torch.inference_mode():
            torch.set_num_threads(1)
            monkeypatch.setattr(fused, "_VALUES_OF_A_THREAD", 300)
            alone = layer(rows)
            assert not helped
            torch.set_num_threads(3)
            assert torch.equal(layer(rows), alone)
            assert helped
    finally:
        torch.set_num_threads(threads)


def test_only_what_has_compiled_passes_is_fused(make_vit: Callable[..., VisionTransformer]) -> None:
    """Blocks in bfloat16 whose layers are fused; not in float32, and not with layers of another form."""
    rows = normal(5, 66).bfloat16()
    for form, is_fused in ((FusedEightBits, True), (EightBitWeight, False)):
        block = make_vit().blocks[0]
        with torch.inference_mode():
            assert with_mlp(block, rows, None) is None
            replace_linears(block, partial(Int8Linear, quantised=form))
            block.bfloat16()
            assert (with_mlp(block, rows, None) is not None) == is_fused
            assert (with_projection(block, rows, rows, None) is not None) == is_fused
            assert with_mlp(block, rows.float(), None) is None
            assert with_projection(block, rows.float(), rows.float(), None) is None
            assert (int8.projection_of_norm(block, rows) is not None) == is_fused
            assert int8.projection_of_norm(block, rows.float()) is None
            block.mlp.act = nn.GELU(approximate="tanh")
            assert with_mlp(block, rows, None) is None


def test_a_network_computes_with_the_passes(
    make_vit: Callable[..., VisionTransformer],
    make_pixels: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pass of each kind is used, and the logits are near to those of float32."""
    vit, pixels = make_vit(init_values=1.0), make_pixels(3)
    used: set[str] = set()

    class Watched:
        def __getattr__(self, name: str) -> object:
            used.add(name)
            return getattr(row_passes, name)

    monkeypatch.setattr(fused, "_passes", Watched)
    with torch.inference_mode():
        want = PrunedViT(vit)(pixels, [UNPRUNED] * 3).logits
        replace_linears(vit.blocks, partial(Int8Linear, quantised=FusedEightBits))
        got = PrunedViT(vit.bfloat16())(pixels.bfloat16(), [UNPRUNED] * 3).logits.float()
    assert used == {"quantise", "norm_quantise", "gelu_quantise", "scale", "scale_add"}
    assert 1e-4 < (got - want).norm() / want.norm() < 0.08  # as in test_int8.py
