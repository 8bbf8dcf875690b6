"""PyTorch's own linear layer, for training, for GPUs, and where no other layer is faster."""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class PlainLinear(nn.Linear):
    """PyTorch's layer, which shares the parameters of ``linear``, under the same names. `part` supports any
    range."""

    def __init__(self, linear: nn.Linear, parts: Sequence[slice] = ()) -> None:  # noqa: ARG002
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.training = linear.training

    def part(self, x: Float[Tensor, "*rows inputs"], outputs: slice) -> Float[Tensor, "*rows some_outputs"]:
        """Compute only these outputs."""
        return F.linear(x, self.weight[outputs], None if self.bias is None else self.bias[outputs])

    def with_gelu(self, x: Float[Tensor, "*rows inputs"], approximate: str) -> Float[Tensor, "*rows outputs"]:
        """GELU of all outputs. ``approximate``: see `nn.GELU`."""
        return F.gelu(self(x), approximate=approximate)
