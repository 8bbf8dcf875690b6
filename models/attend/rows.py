"""Queries and keys normed and rotated in the rows of a whole batch, where no layout has to be timm's."""

from torch import nn

from models.attend.heads import Attention, Parts, apart, placed
from models.ragged import Tokens


def changes(attn: Attention, tokens: Tokens) -> bool:
    """Whether queries and keys are compared otherwise than layers give them."""
    plain = type(attn.q_norm) is nn.Identity and type(attn.k_norm) is nn.Identity
    return not plain or tokens.rotations is not None


def placed_rows(attn: Attention, parts: Parts, tokens: Tokens, source: Tokens, block: int) -> Parts:
    """The ``parts`` of `Way.attend`, one by one, queries and keys as they are compared."""
    q, k, v = apart(attn, parts)
    done = []
    for norm, part, rotation in (
        (attn.q_norm, q, tokens.rotation(block)),
        (attn.k_norm, k, source.rotation(block)),
    ):
        vectors = part.reshape(-1, attn.num_heads, attn.head_dim)
        done.append(placed(attn, norm, vectors, rotation).flatten(1).to(part.dtype).view(part.shape))
    return (*done, v)
