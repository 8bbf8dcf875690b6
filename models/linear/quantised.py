"""Quantised weights and rows, and their products: the forms of an int8 layer on different CPUs.

The product is the oneDNN kernel to which TorchInductor compiles torchao's int8 layers. It is called here
without the compiler, because every batch has another shape (docs/design/0013).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from models.ragged import rounded

# The zero point of the rows of `EightBitWeight`. Rows are unsigned, because oneDNN has no fast kernel for
# int8 times int8 without AMX: its fallback is a thousand times slower.
ZERO_POINT = 128
# The integer for the largest magnitude of such a row. Not 127, because in bfloat16 the scale and the quotient
# are rounded by up to 1 / 256, which could result in 128, which int8 does not have.
LARGEST = 126
# The largest integer of a seven-bit weight: the sum of two products with 255 is below 2 ** 15.
LARGEST_OF_SEVEN_BITS = 64
# The minimum magnitude, so that rows and channels of zeros have a scale too.
SMALLEST = 1e-30

# oneDNN creates and caches a kernel for each number of rows, so rows are rounded up to one of few numbers: by
# 2 % on average (`models.ragged.rounded`).
_PARTS = 32

_BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}
# The bytes at the end of a row of `embedding_bag_byte_prepack`: its scale and its minimum, in float32.
_TAIL = 8


class EightBitWeight:
    """Eight-bit rows and weights, for bfloat16 rows on a CPU with VNNI, which accumulates in 32 bits.

    Both are quantised symmetrically, as in torchao's `Int8DynamicActivationInt8WeightConfig`.
    """

    def __init__(self, weight: Float[Tensor, "outputs inputs"]) -> None:
        integers, self._scales = quantise_weight(weight, 127)
        self._packed = torch.ops.onednn.qlinear_prepack(integers, None)

    def times(self, x: Float[Tensor, "*rows inputs"], bias: Tensor | None) -> Float[Tensor, "*rows outputs"]:
        """Quantise the rows of ``x``, multiply them by the weight and add the bias."""
        integers, scales = quantise_rows(x)
        product = _product(integers, ZERO_POINT, self._packed, self._scales, x.dtype)
        return product.mul_(scales) if bias is None else torch.addcmul(bias, product, scales)


class EightBitsByRange:
    """Eight-bit rows and weights, for float32 rows on a CPU with VNNI.

    Rows are quantised asymmetrically, from their minimum (0) to their maximum (255), so that no integers are
    wasted if most values of a row have the same sign, as after GELU.
    """

    largest = 127  # the largest integer of a weight

    def __init__(self, weight: Float[Tensor, "outputs inputs"]) -> None:
        integers, self._scales = quantise_weight(weight, self.largest)
        self._sums = integers.sum(dim=1) * self._scales
        # The rows end with their scale and minimum; zeros exclude these from the product.
        self._packed = torch.ops.onednn.qlinear_prepack(F.pad(integers, (0, _TAIL)), None)

    def times(self, x: Float[Tensor, "*rows inputs"], bias: Tensor | None) -> Float[Tensor, "*rows outputs"]:
        """Quantise the rows of ``x``, multiply them by the weight and add the bias."""
        rows, scales, least = rows_by_range(x.reshape(-1, x.shape[-1]).float())
        product = _product(rows, 0, self._packed, self._scales, torch.float32)
        # In place: two passes over the product take less time than one that allocates new memory.
        if bias is None:
            product.mul_(scales)
        else:
            torch.addcmul(bias, product, scales, out=product)
        product.addcmul_(least, self._sums)
        return product.to(x.dtype).view(*x.shape[:-1], -1)


class SevenBitWeight(EightBitsByRange):
    """Eight-bit rows and seven-bit weights, for a CPU with AVX2 but no VNNI, which adds pairs of products in
    16 bits. Two products of eight bits each would overflow."""

    largest = LARGEST_OF_SEVEN_BITS


def quantise_weight(
    weight: Float[Tensor, "outputs inputs"], largest: int
) -> tuple[Int8[Tensor, "outputs inputs"], Float[Tensor, " outputs"]]:
    """Quantise a weight symmetrically, per output. Returns integers of up to ``largest`` and the scales:
    weight = integers * scale, with an error of at most half a scale."""
    scales = weight.abs().amax(dim=1).clamp_(min=SMALLEST).div_(largest)
    return (weight / scales.unsqueeze(1)).round_().to(torch.int8), scales


def rows_by_range(
    x: Float[Tensor, "rows width"],
) -> tuple[UInt8[Tensor, "rows width_and_tail"], Float[Tensor, "rows 1"], Float[Tensor, "rows 1"]]:
    """Quantise float32 rows by their range. Returns the integers, each row followed by 8 bytes to ignore, and
    the scale and minimum of each row: x = integers * scale + minimum, with an error of at most half a scale.

    PyTorch's kernel for embedding tables does this in one pass, five times as fast as separate operations.
    Rows whose range is below about 1e-6 are less accurate.
    """
    rows = torch.ops.quantized.embedding_bag_byte_prepack(x)
    ends = rows[:, -_TAIL:].clone(memory_format=torch.contiguous_format).view(torch.float32)
    scales, least = ends.split(1, dim=1)
    return rows, scales, least


def _product(
    rows: UInt8[Tensor, "*rows inputs"], zero_point: int, packed: Tensor, scales: Tensor, dtype: torch.dtype
) -> Float[Tensor, "*rows outputs"]:
    """(``rows`` - ``zero_point``) times the packed weight, multiplied by its ``scales``."""
    flat = rows.flatten(0, -2)
    more = rows_of_a_kernel(len(flat)) - len(flat)
    padded = F.pad(flat, (0, 0, 0, more)) if more else flat
    product = product_of(padded, zero_point, packed, scales, dtype)
    return product[: len(flat)].unflatten(0, rows.shape[:-1])


def rows_of_a_kernel(rows: int) -> int:
    """The number of rows that a product of ``rows`` rows is padded to."""
    return rounded(rows, _PARTS)


def product_of(
    padded: UInt8[Tensor, "rows inputs"], zero_point: int, packed: Tensor, scales: Tensor, dtype: torch.dtype
) -> Float[Tensor, "rows outputs"]:
    """(``padded`` - ``zero_point``) times the packed weight, multiplied by its ``scales``, for a number of
    rows from `rows_of_a_kernel`."""
    product: Tensor = torch.ops.onednn.qlinear_pointwise(
        padded,
        1.0,  # the kernel takes one scale for all rows, so the rows' scales are applied to the product
        zero_point,
        packed,
        scales,
        torch.zeros(len(scales), dtype=torch.int32),  # zero points of the weight
        None,  # no bias before the rows' scales are applied
        1.0,  # scale and zero point of an integer output
        0,
        dtype,
        "none",  # operation to fuse, and its arguments
        [],
        "",
    )
    return product


def quantise_rows(
    x: Float[Tensor, "*rows width"],
) -> tuple[UInt8[Tensor, "*rows width"], Float[Tensor, "*rows 1"]]:
    """Quantise rows symmetrically. Returns the integers, and the scale of each row in the dtype of ``x``:
    x = (integers - ZERO_POINT) * scale. The error is at most half a scale in float32, and three quarters in
    bfloat16, where the quotient is rounded first."""
    # Magnitudes have the same order as their bits, and the maximum of integers is five times as fast.
    largest = x.abs().view(_BITS[x.dtype]).amax(dim=-1, keepdim=True).view(x.dtype)
    scales = largest.clamp_(min=SMALLEST).div_(LARGEST)
    integers = x.div(scales).round_().to(torch.int8)
    # Add 128 modulo 256. A direct conversion to uint8 is several times slower.
    return integers.view(torch.uint8).add_(ZERO_POINT), scales
