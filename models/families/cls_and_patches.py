"""Poolings that timm's VisionTransformer does not have, as modules that replace its `attn_pool`."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ClsAndPatches(nn.Module):
    """Concatenates CLS and the mean of the patches, as in transformers' DINOv2 classifiers.

    The input is all tokens, prefix tokens first (timm: ``pool_include_prefix``).
    """

    def __init__(self, prefix_tokens: int) -> None:
        super().__init__()
        self.prefix_tokens = prefix_tokens

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B two_D"]:
        """Concatenate the CLS token and the mean of the patches."""
        return torch.cat([tokens[:, 0], tokens[:, self.prefix_tokens :].mean(dim=1)], dim=-1)
