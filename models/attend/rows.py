"""Queries and keys normed and rotated in the rows of a whole batch, if timm's memory layout is not needed."""

import torch
from jaxtyping import Complex64
from torch import Tensor, nn

from models.attend.heads import Attention, Parts, apart, placed
from models.ragged import Tokens

# How each pair of neighbouring values is rotated, row by row: by multiplying them, as a complex number.
Turns = Complex64[Tensor, "rows heads pairs"]


def changes(attn: Attention, tokens: Tokens) -> bool:
    """Whether queries and keys are normed or rotated before they are compared."""
    plain = type(attn.q_norm) is nn.Identity and type(attn.k_norm) is nn.Identity
    return not plain or tokens.rotations is not None


def placed_rows(attn: Attention, parts: Parts, tokens: Tokens, source: Tokens, block: int) -> Parts:
    """The ``parts`` of `Way.attend`, one by one, with queries and keys normed and rotated."""
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
    """Whether neighboring values are rotated together, instead of each with one of the other half."""
    return not getattr(attn, "rotate_half", False)


def turns(tokens: Tokens, block: int) -> Turns:
    """As `Tokens.rotation`, if neighboring values are rotated together and so have the same angle."""
    assert tokens.rotations is not None
    table = tokens.rotations[block % len(tokens.rotations)]
    width = table.shape[-1] // 2
    sines, cosines = table[..., :width:2], table[..., width::2]
    return torch.view_as_complex(tokens.by_place(torch.stack((cosines, sines), dim=-1).float()))


def turned(attn: Attention, norm: nn.Module, part: Tensor, by: Turns) -> Tensor:
    """As `placed`, in a quarter to a half of the time on a CPU: timm rotates the pairs in six passes, two of
    which read every other value. Computed in float32, rounded once."""
    normed = norm(_of_heads(attn, part)).float()
    pairs = torch.view_as_complex(normed.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * by).flatten(1).to(part.dtype).view(part.shape)


def _of_heads(attn: Attention, part: Tensor) -> Tensor:
    """[*rows, H * D] -> [rows, H, D]."""
    return part.reshape(-1, attn.num_heads, attn.head_dim)
