"""The MLP of timm's blocks."""

from timm.layers import Mlp
from torch import Tensor, nn

from models.packed import PackedLinear


def mlp(module: nn.Module, normed: Tensor, exact: bool) -> Tensor:
    """What the MLP gives for ``normed`` rows; ``exact`` with timm's own operations. Otherwise GELU is part of
    the first product where that is packed, which saves a pass and a rounding between the two."""
    if not exact and type(module) is Mlp and type(module.norm) is nn.Identity:
        first, act, second = module.fc1, module.act, module.fc2
        if isinstance(first, PackedLinear) and isinstance(second, PackedLinear) and type(act) is nn.GELU:
            return second.forward(first.with_gelu(normed, act.approximate))
    update: Tensor = module(normed)
    return update
