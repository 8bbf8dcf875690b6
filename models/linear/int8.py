"""Linear layers that compute in int8 on a CPU, every row by itself.

The arithmetic is that of torchao's `Int8DynamicActivationInt8WeightConfig`, and the product is the oneDNN
kernel of PyTorch that TorchInductor makes of it; here it is called without a compiler, as every batch has
another shape. (torchao without the compiler takes three to nine times as long as bfloat16.)
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

# What stands for 0 among the integers of a row. They are unsigned because oneDNN has no fast kernel for int8
# times int8 without AMX: the one it falls back to is a thousand times slower.
ZERO_POINT = 128
# What the largest magnitude of a row becomes. Not 127, because in bfloat16 the scale and the quotient are
# rounded by up to a 256th: that could end at 128, which int8 does not have.
LARGEST = 126
# The least magnitude that is looked at: rows and channels of zeros need a scale, too.
SMALLEST = 1e-30

_BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}


class Int8Linear(nn.Module):
    """A linear layer of bfloat16 or float32 rows, computed in int8: the weight has one scale per output
    channel, found once, the input one per row, found as it comes; both are symmetric.

    No row has a say in another's scale and sums of integers are exact, so a row's output is the same to the
    bit in any batch, and an output is whether it is computed with the others or apart. It is not for
    training. ``parts``: the ranges of outputs that `part` can be asked for.
    """

    def __init__(self, linear: nn.Linear, parts: Sequence[slice] = ()) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        # Attributes and not buffers: `to` must neither round the scales nor move what oneDNN has packed.
        self._whole = _Weight(weight)
        self._parts = {(part.start, part.stop): _Weight(weight[part]) for part in parts}
        self.bias = linear.bias

    def forward(self, x: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        """``x`` times the weight plus the bias, in the dtype of ``x``."""
        return self._whole.product(x, self.bias)

    def part(self, x: Float[Tensor, "*rows inputs"], outputs: slice) -> Float[Tensor, "*rows some_outputs"]:
        """These outputs alone. KeyError for a range that was not among ``parts``."""
        bias = None if self.bias is None else self.bias[outputs]
        return self._parts[outputs.start, outputs.stop].product(x, bias)

    def with_gelu(self, x: Float[Tensor, "*rows inputs"], approximate: str) -> Float[Tensor, "*rows outputs"]:
        """GELU of all outputs; ``approximate`` as `nn.GELU` has it."""
        return F.gelu(self(x), approximate=approximate)


class _Weight:
    """A weight [outputs, inputs] as oneDNN multiplies by it: integers, and a scale for each output."""

    def __init__(self, weight: Float[Tensor, "outputs inputs"]) -> None:
        self.scales = weight.abs().amax(dim=1).clamp_(min=SMALLEST).div_(127)
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        integers = (weight / self.scales.unsqueeze(1)).round_().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(integers, None)

    def product(
        self, x: Float[Tensor, "*rows inputs"], bias: Tensor | None
    ) -> Float[Tensor, "*rows outputs"]:
        """``x``, its rows quantised, times the weight plus the bias."""
        integers, scales = quantise_rows(x)
        product = torch.ops.onednn.qlinear_pointwise(
            integers,
            1.0,  # the kernel takes one scale for all rows, so theirs follow below
            ZERO_POINT,
            self.packed,
            self.scales,
            self.zeros,
            None,  # bias: neither before the rows' scales
            1.0,  # scale and zero point of an integer output
            0,
            x.dtype,
            "none",  # operation to fuse, and its arguments
            [],
            "",
        )
        return product.mul_(scales) if bias is None else torch.addcmul(bias, product, scales)


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
