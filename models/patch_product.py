"""Patch embedding as a matrix product, for GPUs: cuDNN selects a convolution algorithm again for every new
number of images."""

import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import PatchEmbed
from torch import Tensor, nn


class PatchProduct(nn.Module):
    """Replaces the patch convolution by a matrix product, with the same results up to rounding. Patches may
    overlap. The pixels are gathered in one operation."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self._kernel, self._stride = convolution.kernel_size, convolution.stride
        # Attributes and not buffers, because they belong to the convolution.
        self._weight = convolution.weight.detach().flatten(1)
        self._bias = None if convolution.bias is None else convolution.bias.detach()

    def forward(self, pixels: Float[Tensor, "B C height width"]) -> Float[Tensor, "B patches dim"]:
        """Embed the patches. Pixels left over at the right and at the bottom are ignored, as in the
        convolution."""
        (down, across), (step_down, step_across) = self._kernel, self._stride
        patches = pixels.unfold(2, down, step_down).unfold(3, across, step_across)
        rows = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        return F.linear(rows, self._weight, self._bias)


def is_a_product(embed: PatchEmbed) -> bool:
    """Whether `PatchProduct` can replace the whole of ``embed``."""
    convolution = embed.proj
    return bool(
        embed.flatten
        and type(embed.norm) is nn.Identity
        and convolution.padding == (0, 0)
        and convolution.dilation == (1, 1)
        and convolution.groups == 1
    )
