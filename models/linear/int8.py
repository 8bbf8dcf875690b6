"""Linear layers that compute in int8 on a CPU, with dynamic quantisation per row.

The weight is quantised once, with a scale per output; the rows are quantised in every call, with a scale per
row. The form, such as the number of bits, depends on the CPU (quantised.py, fused.py, docs/design/0013).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.device import cpu_has_bfloat16, cpu_has_vnni
from models.linear import fused
from models.linear.fused import FusedEightBits, can_fuse, mlp_update, projection_update
from models.linear.mlp import is_plain
from models.linear.quantised import EightBitsByRange, EightBitWeight, SevenBitWeight


class Int8Linear(nn.Module):
    """A linear layer for bfloat16 or float32 rows, computed in int8. Inference only.

    The scale of a row does not depend on other rows, and integer sums are exact. So the output of a row is
    bitwise equal in any batch, and each output is bitwise equal in `forward` and in `part`.

    ``parts``: the ranges of outputs that `part` supports. ``quantised``: the form of the weight; by default
    the fastest one for this CPU.
    """

    def __init__(
        self,
        linear: nn.Linear,
        parts: Sequence[slice] = (),
        quantised: "type[Quantised] | None" = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        if quantised is None:
            quantised = form_of_this_cpu()
        # Attributes and not buffers: `to` must neither round the scales nor move oneDNN's packed weights.
        self.whole: Quantised = quantised(weight)
        self._parts = {(part.start, part.stop): quantised(weight[part]) for part in parts}
        self.bias = linear.bias

    def forward(self, x: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        """``x`` times the weight plus the bias, in the dtype of ``x``."""
        return self.whole.times(x, self.bias)

    def part(self, x: Float[Tensor, "*rows inputs"], outputs: slice) -> Float[Tensor, "*rows some_outputs"]:
        """Compute only these outputs. Raises KeyError for a range that is not in ``parts``."""
        bias = None if self.bias is None else self.bias[outputs]
        return self._parts[outputs.start, outputs.stop].times(x, bias)

    def with_gelu(self, x: Float[Tensor, "*rows inputs"], approximate: str) -> Float[Tensor, "*rows outputs"]:
        """GELU of all outputs. ``approximate``: see `nn.GELU`."""
        return F.gelu(self(x), approximate=approximate)


Quantised = EightBitWeight | EightBitsByRange


def form_of_this_cpu() -> type[Quantised]:
    """The fastest form of the weight on this CPU (docs/design/0013)."""
    if not cpu_has_vnni():
        return SevenBitWeight
    if not cpu_has_bfloat16():
        return EightBitsByRange
    return FusedEightBits if can_fuse() else EightBitWeight


def projection_of_norm(block: Any, rows: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows outputs"] | None:
    """The queries, keys and values of the norm of ``rows``, in few passes; None if the layer, the norm or the
    dtype has no compiled passes, or if something else needs the norm, too."""
    attn, norm = block.attn, block.norm1
    whole = None if attn.qkv is None or attn.gate is not None else _fused(attn.qkv, rows)
    if whole is None or not isinstance(norm, nn.LayerNorm):
        return None
    if getattr(attn, "q_bias", None) is not None:  # EvaAttention, whose bias is separate
        return None
    projected = fused.projection_of_norm(whole, rows.flatten(0, -2), norm, attn.qkv.bias)
    return projected.view(*rows.shape[:-1], -1)


def with_projection(
    block: Any,
    mixed: Float[Tensor, "*rows inputs"],
    rows: Float[Tensor, "*rows dim"],
    layer_scale: Tensor | None,
) -> Float[Tensor, "*rows dim"] | None:
    """Add to ``rows`` the projection of the attention's output, in few passes; None if the layer or the dtype
    has no compiled passes."""
    layer = block.attn.proj
    whole = _fused(layer, rows)
    if whole is None:
        return None
    flat = rows.flatten(0, -2)
    added = projection_update(whole, mixed.reshape(len(flat), -1), flat, layer.bias, layer_scale)
    return added.view(rows.shape)


def with_mlp(
    block: Any, rows: Float[Tensor, "*rows dim"], layer_scale: Tensor | None
) -> Float[Tensor, "*rows dim"] | None:
    """Add to ``rows`` the MLP of their norm, in few passes; None if the layers, the norm or the dtype have no
    compiled passes."""
    module, norm = block.mlp, block.norm2
    if not (is_plain(module) and module.act.approximate == "none" and isinstance(norm, nn.LayerNorm)):
        return None
    first, second = _fused(module.fc1, rows), _fused(module.fc2, rows)
    if first is None or second is None:
        return None
    biases = (module.fc1.bias, module.fc2.bias)
    return mlp_update(first, second, rows.flatten(0, -2), norm, biases, layer_scale).view(rows.shape)


def _fused(layer: nn.Module, rows: Tensor) -> FusedEightBits | None:
    """The weight of a layer that has compiled passes for the dtype of ``rows``."""
    whole = layer.whole if isinstance(layer, Int8Linear) and rows.dtype == torch.bfloat16 else None
    return whole if isinstance(whole, FusedEightBits) else None
