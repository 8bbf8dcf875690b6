"""The protocol of the linear layers of a block, independent of how the weight is stored and multiplied."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from jaxtyping import Float
from torch import Tensor, nn


class Linear(Protocol):
    """A linear layer that can compute all of its outputs, some of them, or GELU of all."""

    in_features: int
    out_features: int

    def __call__(self, x: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        """All outputs, in the dtype of ``x``."""

    def part(self, x: Float[Tensor, "*rows inputs"], outputs: slice) -> Float[Tensor, "*rows some_outputs"]:
        """Compute only these outputs. Raises KeyError for a range that the layer was not created for."""

    def with_gelu(self, x: Float[Tensor, "*rows inputs"], approximate: str) -> Float[Tensor, "*rows outputs"]:
        """GELU of all outputs. ``approximate``: see `nn.GELU`."""


# Creates a replacement for a PyTorch layer. The second argument: the ranges of outputs that `part` must
# support.
Make = Callable[[nn.Linear, Sequence[slice]], nn.Module]


def replace_linears(
    module: nn.Module, make: Make, parts: Mapping[str, Sequence[slice]] | None = None
) -> None:
    """Replace every `nn.Linear` in ``module``, in place. ``parts``: the ranges of outputs by layer name."""
    for name, child in list(module.named_modules()):
        if isinstance(child, nn.Linear):
            module.set_submodule(name, make(child, (parts or {}).get(name, ())))
