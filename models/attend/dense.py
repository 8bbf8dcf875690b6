"""Attention of images of one length."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from models.attend.heads import Attention


def dense(
    attn: Attention,
    q: Float[Tensor, "images H queries D"],
    k: Float[Tensor, "images H keys D"],
    v: Float[Tensor, "images H keys D"],
    bias: Float[Tensor, "images 1 1 keys"] | None,
    *,
    fused: bool,
) -> Float[Tensor, "images queries HD"]:
    """Attention with timm's operations in timm's order.

    ``bias``: added to the logits of each key. ``fused``: use PyTorch's fused attention instead of separate
    operations.
    """
    if fused:
        dropout = attn.attn_drop.p if attn.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    else:
        logits = (q * attn.scale) @ k.transpose(-2, -1)
        if bias is not None:
            logits = logits + bias
        mixed = attn.attn_drop(logits.softmax(dim=-1)) @ v
    return mixed.transpose(1, 2).flatten(2)
