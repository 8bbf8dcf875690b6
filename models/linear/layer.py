"""The protocol of the linear layers of a block, however their weight is stored and multiplied."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from jaxtyping import Float
from torch import Tensor, nn


class Linear(Protocol):
    """A linear layer: all of its outputs, some of them, or GELU of all."""

    in_features: int
    out_features: int

    def __call__(self, x: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        """All outputs, in the dtype of ``x``."""

    def part(self, x: Float[Tensor, "*rows inputs"], outputs: slice) -> Float[Tensor, "*rows some_outputs"]:
        """These outputs alone. KeyError for a range that the layer was not made for."""

    def with_gelu(self, x: Float[Tensor, "*rows inputs"], approximate: str) -> Float[Tensor, "*rows outputs"]:
        """GELU of all outputs; ``approximate`` as `nn.GELU` has it."""


# Makes a layer that takes the place of one of PyTorch's; the second argument: the ranges of outputs that
# `part` will be asked for.
Make = Callable[[nn.Linear, Sequence[slice]], nn.Module]


def replace_linears(
    module: nn.Module, make: Make, parts: Mapping[str, Sequence[slice]] | None = None
) -> None:
    """Replace every linear layer of PyTorch's within ``module``, in place; ``parts`` by the layer's name."""
    for name, child in list(module.named_modules()):
        if isinstance(child, nn.Linear):
            module.set_submodule(name, make(child, (parts or {}).get(name, ())))
