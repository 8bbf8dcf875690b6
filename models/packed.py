"""Linear layers whose bfloat16 weights lie as oneDNN computes with them.

PyTorch's own `linear` lays a bfloat16 weight out anew at every call; laid out once, the same oneDNN product
takes 0.5 to 0.9 of the time and gives the same bits. These are the operations that TorchInductor makes of
a frozen linear layer; here they are called without a compiler, as every batch has another shape.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """A linear layer on a CPU in bfloat16, for inference; also of some of its outputs alone.

    ``parts``: the ranges of outputs that `part` can be asked for.
    """

    def __init__(self, linear: nn.Linear, parts: Sequence[slice] = ()) -> None:
        super().__init__()
        weight = linear.weight.detach()
        bias = None if linear.bias is None else linear.bias.detach()
        # Attributes and not buffers: `to` can move or cast none of what oneDNN has packed.
        self._whole = (_pack(weight), bias)
        self._parts = {
            (part.start, part.stop): (_pack(weight[part]), None if bias is None else bias[part])
            for part in parts
        }

    def forward(self, x: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        """All outputs."""
        return _linear(x, *self._whole)

    def with_gelu(self, x: Float[Tensor, "*rows inputs"], approximate: str) -> Float[Tensor, "*rows outputs"]:
        """GELU of all outputs, before they are rounded; ``approximate`` as `nn.GELU` has it."""
        return _linear(x, *self._whole, "gelu", approximate)

    def part(self, x: Float[Tensor, "*rows inputs"], outputs: slice) -> Float[Tensor, "*rows some_outputs"]:
        """These outputs alone. KeyError for a range that was not among ``parts``."""
        return _linear(x, *self._parts[outputs.start, outputs.stop])


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this PyTorch on this machine packs weights of ``dtype``."""
    return (
        dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def pack_linears(module: nn.Module, parts: Mapping[str, Sequence[slice]]) -> None:
    """Replace every plain linear layer within ``module``, in place; ``parts`` by the layer's name."""
    for name, child in list(module.named_modules()):
        if type(child) is nn.Linear:
            module.set_submodule(name, PackedLinear(child, parts.get(name, ())))


def _pack(weight: Tensor) -> Tensor:
    # No batch size is given: a layout chosen for one was no faster at it than this.
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)


def _linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, then: str = "none", algorithm: str = ""
) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], algorithm)
