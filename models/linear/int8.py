"""Linear layers that compute in int8 on a CPU, every row by itself.

The weight is quantised once, with a scale for each output; the rows as they come, each with a scale of its
own. The product is the oneDNN kernel of PyTorch that TorchInductor makes of torchao's int8 layers; here it is
called without a compiler, as every batch has another shape. How many bits there are depends on the CPU
(docs/design/0013).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, UInt8
from torch import Tensor, nn

from models.device import cpu_has_bfloat16, cpu_has_vnni
from models.ragged import rounded

# What stands for 0 among the integers of a row of `EightBitWeight`. They are unsigned because oneDNN has no
# fast kernel for int8 times int8 without AMX: the one it falls back to is a thousand times slower.
ZERO_POINT = 128
# What the largest magnitude of such a row becomes. Not 127, because in bfloat16 the scale and the quotient
# are rounded by up to a 256th: that could end at 128, which int8 does not have.
LARGEST = 126
# The largest integer of a weight in seven bits: two of its products with 255 are below 2 ** 15.
LARGEST_OF_SEVEN_BITS = 64
# The least magnitude that is looked at: rows and channels of zeros need a scale, too.
SMALLEST = 1e-30

# oneDNN makes and keeps a kernel for each number of rows, so they are rounded up to one of few: by 2 % on
# average (`models.ragged.rounded`).
_PARTS = 32

_BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}
# A row as `embedding_bag_byte_prepack` gives it ends with two numbers in float32: scale and least value.
_TAIL = 8


class Int8Linear(nn.Module):
    """A linear layer of bfloat16 or float32 rows, computed in int8.

    No row has a say in another's scale and sums of integers are exact, so a row's output is the same to the
    bit in any batch, and an output is whether it is computed with the others or apart. It is not for
    training. ``parts``: the ranges of outputs that `part` can be asked for; ``quantised``: the form of the
    weight, by default the one for this CPU.
    """

    def __init__(
        self,
        linear: nn.Linear,
        parts: Sequence[slice] = (),
        quantised: "type[Quantised] | None" = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        if quantised is None:
            quantised = form_of_this_cpu()
        # Attributes and not buffers: `to` must neither round the scales nor move what oneDNN has packed.
        self._whole = quantised(weight)
        self._parts = {(part.start, part.stop): quantised(weight[part]) for part in parts}
        self.bias = linear.bias

    def forward(self, x: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        """``x`` times the weight plus the bias, in the dtype of ``x``."""
        return self._whole.times(x, self.bias)

    def part(self, x: Float[Tensor, "*rows inputs"], outputs: slice) -> Float[Tensor, "*rows some_outputs"]:
        """These outputs alone. KeyError for a range that was not among ``parts``."""
        bias = None if self.bias is None else self.bias[outputs]
        return self._parts[outputs.start, outputs.stop].times(x, bias)

    def with_gelu(self, x: Float[Tensor, "*rows inputs"], approximate: str) -> Float[Tensor, "*rows outputs"]:
        """GELU of all outputs; ``approximate`` as `nn.GELU` has it."""
        return F.gelu(self(x), approximate=approximate)


class EightBitWeight:
    """Rows and weights of eight bits, for bfloat16 rows on a CPU with VNNI: it adds products up in 32 bits.

    Both are symmetric, as in torchao's `Int8DynamicActivationInt8WeightConfig`.
    """

    def __init__(self, weight: Float[Tensor, "outputs inputs"]) -> None:
        integers, self._scales = quantise_weight(weight, 127)
        self._packed = torch.ops.onednn.qlinear_prepack(integers, None)

    def times(self, x: Float[Tensor, "*rows inputs"], bias: Tensor | None) -> Float[Tensor, "*rows outputs"]:
        """``x``, its rows quantised, times the weight plus the bias."""
        integers, scales = quantise_rows(x)
        product = _product(integers, ZERO_POINT, self._packed, self._scales, x.dtype)
        return product.mul_(scales) if bias is None else torch.addcmul(bias, product, scales)


class EightBitsByRange:
    """Rows and weights of eight bits, for float32 rows on a CPU with VNNI.

    A row's integers go from its least value (0) to its largest one (255), so that none are wasted where most
    of a row lies on one side of 0, as after GELU.
    """

    largest = 127  # integer of a weight

    def __init__(self, weight: Float[Tensor, "outputs inputs"]) -> None:
        integers, self._scales = quantise_weight(weight, self.largest)
        self._sums = integers.sum(dim=1) * self._scales
        # The rows come with their scales behind them; zeros take these out of the product.
        self._packed = torch.ops.onednn.qlinear_prepack(F.pad(integers, (0, _TAIL)), None)

    def times(self, x: Float[Tensor, "*rows inputs"], bias: Tensor | None) -> Float[Tensor, "*rows outputs"]:
        """``x``, its rows quantised, times the weight plus the bias."""
        rows, scales, least = rows_by_range(x.reshape(-1, x.shape[-1]).float())
        product = _product(rows, 0, self._packed, self._scales, torch.float32)
        # In place: two passes over it take less time than one over new memory.
        if bias is None:
            product.mul_(scales)
        else:
            torch.addcmul(bias, product, scales, out=product)
        product.addcmul_(least, self._sums)
        return product.to(x.dtype).view(*x.shape[:-1], -1)


class SevenBitWeight(EightBitsByRange):
    """Rows of eight bits and weights of seven, for a CPU with AVX2: it adds products up in 16 bits, two by
    two, and two products of eight bits each would not fit in."""

    largest = LARGEST_OF_SEVEN_BITS


Quantised = EightBitWeight | EightBitsByRange


def form_of_this_cpu() -> type[Quantised]:
    """The fastest form of a weight here (docs/design/0013)."""
    if not cpu_has_vnni():
        return SevenBitWeight
    return EightBitWeight if cpu_has_bfloat16() else EightBitsByRange


def quantise_weight(
    weight: Float[Tensor, "outputs inputs"], largest: int
) -> tuple[Int8[Tensor, "outputs inputs"], Float[Tensor, " outputs"]]:
    """Integers of up to ``largest``, and a scale for each output: weight = integers * scale, to half a
    scale."""
    scales = weight.abs().amax(dim=1).clamp_(min=SMALLEST).div_(largest)
    return (weight / scales.unsqueeze(1)).round_().to(torch.int8), scales


def rows_by_range(
    x: Float[Tensor, "rows width"],
) -> tuple[UInt8[Tensor, "rows width_and_tail"], Float[Tensor, "rows 1"], Float[Tensor, "rows 1"]]:
    """Integers of float32 rows, each with 8 bytes behind them that mean nothing here, and the scale and the
    least value of each row: x = integers * scale + least, to half a scale.

    PyTorch's kernel for tables of embeddings makes them in one pass, five times as fast as operations of its
    own one by one. Rows whose values are all within about 1e-6 are kept less well.
    """
    rows = torch.ops.quantized.embedding_bag_byte_prepack(x)
    ends = rows[:, -_TAIL:].clone(memory_format=torch.contiguous_format).view(torch.float32)
    scales, least = ends.split(1, dim=1)
    return rows, scales, least


def _product(
    rows: UInt8[Tensor, "*rows inputs"], zero_point: int, packed: Tensor, scales: Tensor, dtype: torch.dtype
) -> Float[Tensor, "*rows outputs"]:
    """(``rows`` - ``zero_point``) times the weight, in its ``scales``."""
    flat = rows.flatten(0, -2)
    more = rounded(len(flat), _PARTS) - len(flat)
    product: Tensor = torch.ops.onednn.qlinear_pointwise(
        F.pad(flat, (0, 0, 0, more)) if more else flat,
        1.0,  # the kernel takes one scale for all rows, so theirs follow on the product
        zero_point,
        packed,
        scales,
        torch.zeros(len(scales), dtype=torch.int32),  # zero points of the weight
        None,  # bias: neither before the rows' scales
        1.0,  # scale and zero point of an integer output
        0,
        dtype,
        "none",  # operation to fuse, and its arguments
        [],
        "",
    )
    return product[: len(flat)].unflatten(0, rows.shape[:-1])


def quantise_rows(
    x: Float[Tensor, "*rows width"],
) -> tuple[UInt8[Tensor, "*rows width"], Float[Tensor, "*rows 1"]]:
    """Integers, and the scale of each row in the dtype of ``x``: x = (integers - ZERO_POINT) * scale, to
    half a scale in float32 and three quarters in bfloat16, where the quotient is rounded first."""
    # Magnitudes sort as their bits do, and the largest of integers is found five times faster.
    largest = x.abs().view(_BITS[x.dtype]).amax(dim=-1, keepdim=True).view(x.dtype)
    scales = largest.clamp_(min=SMALLEST).div_(LARGEST)
    integers = x.div(scales).round_().to(torch.int8)
    # Plus 128 modulo 256; the conversion straight to uint8 is several times slower.
    return integers.view(torch.uint8).add_(ZERO_POINT), scales
