"""Networks built without drawing weights."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timm
import torch
from timm.layers import trunc_normal_
from torch import nn
from torch.overrides import TorchFunctionMode

from models.load.timm_models import blank
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


class _Seen(TorchFunctionMode):
    """Notes the names of the functions that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self.names.add(func.__name__)
        return func(*args, **(kwargs or {}))


def test_a_network_without_values_draws_none() -> None:
    """PyTorch would draw for the meta device in Python, which is most of what building one takes."""
    with _Seen() as seen:
        blank("test_vit")
    assert "erfinv_" not in seen.names
    with _Seen() as seen, torch.device("meta"):
        timm.create_model("test_vit")
    assert "erfinv_" in seen.names, "the check above can fail"
