"""int8 layers whose passes over the rows are compiled into one loop each (row_passes.py).

PyTorch runs what stands between two int8 products (the scales, the bias, GELU, the residual, the norm and the
quantisation) one operation at a time, each of them over all rows. Here it is a single pass over a row that
stays in the cache (docs/design/0043). Needs numba, which the extra `int8` installs.
"""

import itertools
import logging
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import BFloat16, Float
from torch import Tensor, nn

from models.device import cores
from models.linear.quantised import ZERO_POINT, EightBitWeight, product_of, rows_of_a_kernel

# A thread is given at least so many values, because handing work over takes tens of microseconds.
_VALUES_OF_A_THREAD = 100_000

log = logging.getLogger(__name__)


@cache
def can_fuse() -> bool:
    """Whether numba is installed."""
    found = find_spec("numba") is not None
    if not found:
        log.info("int8 is faster with the extra int8, which installs numba")
    return found


@cache
def _passes() -> ModuleType:
    """The compiled passes. Imported at their first use, because numba takes long to import."""
    from models.linear import row_passes

    return row_passes


class Rows(NamedTuple):
    """Quantised rows. ``integers`` [padded rows, width]: the rows, followed by as many undefined ones as the
    product needs. ``scales`` [rows] in float32: row = (integers - ZERO_POINT) * scale."""

    integers: Tensor
    scales: Tensor

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Both, without the undefined rows."""
        return self.integers[: len(self.scales)].numpy(), self.scales.numpy()


class FusedEightBits(EightBitWeight):
    """`EightBitWeight` with compiled passes, for bfloat16 rows. Scales stay in float32, so that a row is
    quantised with an error of at most half a scale. Rows of another dtype are treated as in
    `EightBitWeight`."""

    def times(self, x: Float[Tensor, "*rows inputs"], bias: Tensor | None) -> Float[Tensor, "*rows outputs"]:
        """Quantise the rows of ``x``, multiply them by the weight and add the bias."""
        if x.dtype != torch.bfloat16:
            return super().times(x, bias)
        return self.scaled(quantised_rows(x.reshape(-1, x.shape[-1])), bias).view(*x.shape[:-1], -1)

    def scaled(self, rows: Rows, bias: Tensor | None) -> BFloat16[Tensor, "rows outputs"]:
        """Multiply quantised rows by the weight and add the bias."""
        product = self.product(rows)
        bits = _bits(product)
        _run("scale", (bits, rows.scales.numpy(), bits), _floats(bias, product.shape[1]))
        return product

    def product(self, rows: Rows) -> BFloat16[Tensor, "rows outputs"]:
        """The product of the integers with the weight, multiplied by the weight's scales: without the scales
        of the rows and without the bias."""
        whole = product_of(rows.integers, ZERO_POINT, self._packed, self._scales, torch.bfloat16)
        return whole[: len(rows.scales)]


def quantised_rows(x: BFloat16[Tensor, "rows width"]) -> Rows:
    """Quantise each row symmetrically."""
    rows = _room_for(*x.shape)
    _run("quantise", (_bits(x), *rows.arrays))
    return rows


def projection_of_norm(
    layer: FusedEightBits, rows: BFloat16[Tensor, "rows dim"], norm: nn.LayerNorm, bias: Tensor | None
) -> BFloat16[Tensor, "rows outputs"]:
    """The layer's output for the norm of ``rows``."""
    return layer.scaled(_normed(rows, norm), bias)


def mlp_update(
    first: FusedEightBits,
    second: FusedEightBits,
    rows: BFloat16[Tensor, "rows dim"],
    norm: nn.LayerNorm,
    biases: tuple[Tensor | None, Tensor | None],
    layer_scale: Tensor | None,
) -> BFloat16[Tensor, "rows dim"]:
    """Add to ``rows`` the MLP (two layers with exact GELU between them) of their norm, times
    ``layer_scale``."""
    normed = _normed(rows, norm)
    wide = first.product(normed)
    inner = _room_for(*wide.shape)
    bias = _floats(biases[0], wide.shape[1])
    _run("gelu_quantise", (_bits(wide), normed.scales.numpy(), *inner.arrays), bias)
    return _added(rows, second.product(inner), inner.scales, biases[1], layer_scale)


def projection_update(
    layer: FusedEightBits,
    x: BFloat16[Tensor, "rows inputs"],
    rows: BFloat16[Tensor, "rows dim"],
    bias: Tensor | None,
    layer_scale: Tensor | None,
) -> BFloat16[Tensor, "rows dim"]:
    """Add to ``rows`` the layer's output for ``x``, times ``layer_scale``."""
    quantised = quantised_rows(x)
    return _added(rows, layer.product(quantised), quantised.scales, bias, layer_scale)


def _normed(rows: Tensor, norm: nn.LayerNorm) -> Rows:
    normed, dim = _room_for(*rows.shape), rows.shape[1]
    weight, bias = _floats(norm.weight, dim, 1.0), _floats(norm.bias, dim)
    _run("norm_quantise", (_bits(rows), *normed.arrays), weight, bias, np.float32(norm.eps))
    return normed


def _added(
    rows: Tensor, product: Tensor, scales: Tensor, bias: Tensor | None, layer_scale: Tensor | None
) -> Tensor:
    dim, bits = rows.shape[1], _bits(product)
    per_row = (_bits(rows), bits, scales.numpy(), bits)
    _run("scale_add", per_row, _floats(bias, dim), _floats(layer_scale, dim, 1.0))
    return product


def _run(name: str, per_row: tuple[np.ndarray, ...], *common: np.ndarray | np.floating) -> None:
    """Run a pass on as many threads as PyTorch uses, or on this one if there is little to do."""
    run, rows = getattr(_passes(), name), len(per_row[0])
    threads = min(torch.get_num_threads(), per_row[0].size // _VALUES_OF_A_THREAD)
    if threads < 2:
        run(*per_row, *common)
        return
    bounds = [rows * thread // threads for thread in range(threads + 1)]
    parts = [[*(each[start:end] for each in per_row), *common] for start, end in itertools.pairwise(bounds)]
    helped = [_helpers().submit(run, *part) for part in parts[1:]]
    run(*parts[0])
    for other in helped:
        other.result()


@cache
def _helpers() -> ThreadPoolExecutor:
    """Threads for the other parts of a pass. numba's own parallel loops need a library that not every machine
    has, to be safe in several threads."""
    return ThreadPoolExecutor(max(1, cores() - 1), thread_name_prefix="passes")


def _room_for(rows: int, width: int) -> Rows:
    integers = torch.empty((rows_of_a_kernel(rows), width), dtype=torch.uint8)
    return Rows(integers, torch.empty(rows, dtype=torch.float32))


def _bits(x: Tensor) -> np.ndarray:
    """The bits of bfloat16 values, which NumPy does not have."""
    return x.contiguous().view(torch.uint16).numpy()


def _floats(vector: Tensor | None, width: int, default: float = 0.0) -> np.ndarray:
    if vector is None:
        return np.full(width, default, np.float32)
    return vector.detach().float().numpy()
