"""Patch embedding as a product is the convolution."""

from collections.abc import Callable

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models.patch_embed import set_patch_stride
from models.patch_product import PatchProduct, is_a_product

MakeViT = Callable[..., VisionTransformer]
MakePixels = Callable[..., Tensor]


@pytest.mark.parametrize("stride", [1, 3, 4])
@pytest.mark.parametrize("pre_norm", [False, True], ids=["bias", "no bias"])
def test_it_gives_what_the_convolution_gives(
    make_vit: MakeViT, make_pixels: MakePixels, stride: int, pre_norm: bool
) -> None:
    """For patches that overlap and not, with a bias and without."""
    vit = make_vit(pre_norm=pre_norm)
    set_patch_stride(vit, stride)
    embed = vit.patch_embed
    assert is_a_product(embed)
    assert (embed.proj.bias is None) == pre_norm
    pixels = make_pixels(3)
    with torch.inference_mode():
        torch.testing.assert_close(PatchProduct(embed.proj)(pixels), embed(pixels), rtol=1e-5, atol=1e-5)


def test_what_does_more_is_left_alone(make_vit: MakeViT) -> None:
    """A norm behind the convolution, or patches that are not in a row."""
    embed = make_vit().patch_embed
    embed.norm = nn.LayerNorm(66)
    assert not is_a_product(embed)
    embed.norm, embed.flatten = nn.Identity(), False
    assert not is_a_product(embed)
