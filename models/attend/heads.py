"""Splits the layers' queries, keys and values into heads, and applies norms and rotary embeddings."""

from typing import TYPE_CHECKING, Protocol

from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn

# Queries, keys and values, or some of them, in this order: one tensor [*rows, n * H * D] for each layer that
# computed n of them. So (qkv,), (q, kv) and (q, k, v) are equivalent.
Parts = tuple[Tensor, ...]


if TYPE_CHECKING:

    class Attention(Protocol):
        """The attributes of timm's attention modules that are used, whatever their class."""

        num_heads: int
        head_dim: int
        scale: float
        fused_attn: bool
        attn_drop: nn.Dropout
        q_norm: nn.Module
        k_norm: nn.Module
        training: bool

else:  # from Python 3.12 on, isinstance() with a protocol does not see the submodules of a module
    Attention = nn.Module


def width_of(attn: Attention) -> int:
    """The total width of all heads."""
    return attn.num_heads * attn.head_dim


def heads(attn: Attention, rows: Tensor) -> tuple[Tensor, ...]:
    """Split dense rows [images, tokens, n * H * D] into n tensors [images, H, tokens, D]."""
    images, tokens, width = rows.shape
    split = rows.view(images, tokens, width // width_of(attn), attn.num_heads, attn.head_dim)
    return split.permute(2, 0, 3, 1, 4).unbind(0)


def heads_of_rows(attn: Attention, rows: Tensor) -> tuple[Tensor, ...]:
    """Split the rows [*rows, n * H * D] of all images into n tensors [rows, H, D]."""
    return rows.view(-1, rows.shape[-1] // width_of(attn), attn.num_heads, attn.head_dim).unbind(1)


def placed(attn: Attention, norm: nn.Module, vectors: Tensor, rotation: Tensor | None) -> Tensor:
    """Apply ``norm`` and the rotary embedding ``rotation`` [..., 2 D] to queries or keys [..., D].

    Uses timm's order and memory layout, because the last bits of a product may depend on them.
    """
    normed: Tensor = norm(vectors)
    if rotation is None:
        return normed
    rotated: Tensor = apply_rot_embed_cat(normed, rotation, half=attn.rotate_half)  # type: ignore[attr-defined]
    return rotated.contiguous()


def apart(attn: Attention, parts: Parts) -> tuple[Tensor, ...]:
    """Split parts into separate queries, keys and values [*rows, H * D]."""
    return tuple(one for rows in parts for one in rows.split(width_of(attn), dim=-1))
