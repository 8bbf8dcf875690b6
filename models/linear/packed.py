"""Layers whose bfloat16 weights are packed into oneDNN's layout once.

PyTorch's own `linear` packs a bfloat16 weight in every call. If it is packed once, the same oneDNN product
takes 0.5 to 0.9 of the time, and the results are bitwise equal. These are the operations to which
TorchInductor compiles a frozen linear layer. They are called here without the compiler, because every batch
has another shape.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from timm.layers import PatchEmbed
from torch import Tensor, nn

from models.device import cpu_has_bfloat16


class PackedLinear(nn.Module):
    """A linear layer on a CPU in bfloat16. Inference only.

    ``parts``: the ranges of outputs that `part` supports.
    """

    def __init__(self, linear: nn.Linear, parts: Sequence[slice] = ()) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        bias = None if linear.bias is None else linear.bias.detach()
        # Attributes and not buffers: `to` cannot move or cast oneDNN's packed weights.
        self._whole = (_pack(weight), bias)
        self._parts = {
            (part.start, part.stop): (_pack(weight[part]), None if bias is None else bias[part])
            for part in parts
        }

    def forward(self, x: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        """All outputs."""
        return _linear(x, *self._whole)

    def with_gelu(self, x: Float[Tensor, "*rows inputs"], approximate: str) -> Float[Tensor, "*rows outputs"]:
        """GELU of all outputs, applied before rounding. ``approximate``: see `nn.GELU`."""
        return _linear(x, *self._whole, "gelu", approximate)

    def part(self, x: Float[Tensor, "*rows inputs"], outputs: slice) -> Float[Tensor, "*rows some_outputs"]:
        """Compute only these outputs. Raises KeyError for a range that is not in ``parts``."""
        return _linear(x, *self._parts[outputs.start, outputs.stop])


class PackedPatches(nn.Module):
    """Replaces the patch convolution by a matrix product, for patches that do not overlap, on a CPU in
    bfloat16. Takes 0.6 to 0.9 of the convolution's time; the results are equal up to rounding."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self._sides: tuple[int, int] = convolution.kernel_size  # type: ignore[assignment]
        self._weight = _pack(convolution.weight.detach().permute(0, 2, 3, 1).flatten(1))
        self._bias = None if convolution.bias is None else convolution.bias.detach()

    def forward(self, pixels: Float[Tensor, "B C height width"]) -> Float[Tensor, "B patches dim"]:
        """Embed the patches. Pixels left over at the right and at the bottom are ignored, as in the
        convolution."""
        images, channels, height, width = pixels.shape
        (down, across), rows, columns = self._sides, height // self._sides[0], width // self._sides[1]
        whole = pixels[:, :, : rows * down, : columns * across].permute(0, 2, 3, 1)  # as in memory
        patches = whole.reshape(images, rows, down, columns, across, channels).transpose(2, 3)
        return _linear(patches.reshape(images, rows * columns, -1), self._weight, self._bias)


def packs_patches(embed: PatchEmbed) -> bool:
    """Whether `PackedPatches` can replace the whole of ``embed``."""
    convolution = embed.proj
    return (
        embed.flatten
        and type(embed.norm) is nn.Identity
        and convolution.stride == convolution.kernel_size
        and convolution.padding == (0, 0)
        and convolution.dilation == (1, 1)
        and convolution.groups == 1
    )


def can_pack(dtype: torch.dtype) -> bool:
    """Whether to pack weights of ``dtype`` on this machine. On a CPU without native bfloat16, packed layers
    are as slow as plain ones, and some of their results are rounded differently."""
    return dtype == torch.bfloat16 and torch.backends.mkldnn.is_available() and cpu_has_bfloat16()


def _pack(weight: Tensor) -> Tensor:
    # No batch size, because a layout for a given batch size was no faster.
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)


def _linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, then: str = "none", algorithm: str = ""
) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], algorithm)
