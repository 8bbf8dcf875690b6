"""Applies norms and rotary embeddings to the queries and keys of a whole batch, for implementations that do
not need timm's memory layout."""

import torch
from jaxtyping import Complex64
from torch import Tensor, nn

from models.attend.heads import Attention, Parts, apart, placed
from models.ragged import Tokens

# The rotary embedding of each row: the complex number by which each pair of neighbouring values, as a complex
# number, is multiplied.
Turns = Complex64[Tensor, "rows heads pairs"]


def changes(attn: Attention, tokens: Tokens) -> bool:
    """Whether queries and keys have a norm or a rotary embedding."""
    plain = type(attn.q_norm) is nn.Identity and type(attn.k_norm) is nn.Identity
    return not plain or tokens.rotations is not None


def placed_rows(attn: Attention, parts: Parts, tokens: Tokens, source: Tokens, block: int) -> Parts:
    """The ``parts`` of `Way.attend` as separate queries, keys and values, with norms and rotary embeddings
    applied."""
    q, k, v = apart(attn, parts)
    if q.device.type == "cpu" and source.rotations is not None and rotates_pairs(attn):
        of_source = turns(source, block)
        of_tokens = of_source if tokens is source else turns(tokens, block)
        return turned(attn, attn.q_norm, q, of_tokens), turned(attn, attn.k_norm, k, of_source), v
    done = []
    for norm, part, rotation in (
        (attn.q_norm, q, tokens.rotation(block)),
        (attn.k_norm, k, source.rotation(block)),
    ):
        placed_part = placed(attn, norm, _of_heads(attn, part), rotation)
        done.append(placed_part.flatten(1).to(part.dtype).view(part.shape))
    return (*done, v)


def rotates_pairs(attn: Attention) -> bool:
    """Whether neighboring values are rotated as pairs, instead of each value with one in the other half."""
    return not getattr(attn, "rotate_half", False)


def turns(tokens: Tokens, block: int) -> Turns:
    """Like `Tokens.rotation`, as complex numbers, for pairs of neighboring values, which share an angle."""
    assert tokens.rotations is not None
    table = tokens.rotations[block % len(tokens.rotations)]
    width = table.shape[-1] // 2
    sines, cosines = table[..., :width:2], table[..., width::2]
    return torch.view_as_complex(tokens.by_place(torch.stack((cosines, sines), dim=-1).float()))


def turned(attn: Attention, norm: nn.Module, part: Tensor, by: Turns) -> Tensor:
    """Like `placed`, in a quarter to a half of the time on a CPU: timm rotates the pairs in six passes, two
    of which read every other value. Computed in float32 and rounded once."""
    normed = norm(_of_heads(attn, part)).float()
    pairs = torch.view_as_complex(normed.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * by).flatten(1).to(part.dtype).view(part.shape)


def _of_heads(attn: Attention, part: Tensor) -> Tensor:
    """[*rows, H * D] -> [rows, H, D]."""
    return part.reshape(-1, attn.num_heads, attn.head_dim)
