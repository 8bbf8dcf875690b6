"""Pooling that timm's VisionTransformer has no name for, as modules in the place of its `attn_pool`."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ClsAndPatches(nn.Module):
    """CLS and the mean of the patches, side by side, as transformers' DINOv2 classifiers read them.

    It takes all tokens, prefix tokens first (timm: ``pool_include_prefix``).
    """

    def __init__(self, prefix_tokens: int) -> None:
        super().__init__()
        self.prefix_tokens = prefix_tokens

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B two_D"]:
        """The CLS token, then the mean of the patches."""
        return torch.cat([tokens[:, 0], tokens[:, self.prefix_tokens :].mean(dim=1)], dim=-1)
