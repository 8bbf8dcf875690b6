"""The MLP of timm's blocks."""

from timm.layers import GluMlp, Mlp, SwiGLU
from torch import Tensor, nn


def is_plain(module: nn.Module) -> bool:
    """Whether an MLP is two layers with GELU between them."""
    return type(module) is Mlp and type(module.norm) is nn.Identity and type(module.act) is nn.GELU


def mlp(module: Mlp | GluMlp | SwiGLU, normed: Tensor) -> Tensor:
    """Compute the MLP of ``normed`` rows. The first layer computes GELU, which saves a pass and a rounding if
    it is fused."""
    if is_plain(module):
        inner = module.fc1.with_gelu(normed, module.act.approximate)
        return module.drop2(module.fc2(module.drop1(inner)))
    update: Tensor = module(normed)
    return update
