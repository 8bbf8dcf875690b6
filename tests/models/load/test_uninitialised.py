"""Networks built without drawing weights."""

import torch
from timm.layers import trunc_normal_
from torch import nn

from models.load.uninitialised import Uninitialised


def test_nothing_is_done_to_weights_that_would_be_drawn() -> None:
    """Neither drawn nor scaled afterwards: they keep what lay in memory."""
    weight = nn.Parameter(torch.full((3, 5), 7.0))
    with Uninitialised():
        for draw in (trunc_normal_, nn.init.normal_, nn.init.kaiming_uniform_):
            draw(weight)
    assert weight.eq(7).all()
    trunc_normal_(weight)
    assert not weight.eq(7).any(), "the check above can fail"


def test_all_else_is_computed() -> None:
    """Tables of positions and the like, which no checkpoint replaces, and what is set rather than drawn."""
    with Uninitialised():
        table = torch.arange(5.0).mul_(2).add_(1).clamp_(max=7)
        norm = nn.LayerNorm(3)
    assert table.tolist() == [1, 3, 5, 7, 7]
    assert norm.weight.tolist() == [1, 1, 1]
