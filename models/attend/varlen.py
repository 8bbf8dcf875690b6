"""Attention over all images of a ragged batch in one call: torch.nn.attention.varlen, on GPUs that have it.

PyTorch has it since 2.10 and has added arguments later, so the accepted ones are read from its signature. The
requirements for device and rows are those that PyTorch 2.14's FlashAttention-2 checks (docs/design/0012).
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from models.attend.heads import Attention, Parts, heads_of_rows
from models.attend.rows import changes, placed_rows
from models.attend.runs import Runs
from models.ragged import Tokens

# Extra values per head that carry a bias: the kernel requires head sizes that are multiples of 8.
_BIAS_WIDTH = 8
# The largest supported head size.
MOST_WIDTH = 256


def takes_varlen(attn: Attention, rows: Tensor) -> bool:
    """Whether `varlen` can compute this module's attention on such rows: on a GPU, in half precision, with
    supported head sizes, in inference."""
    if not rows.is_cuda or rows.dtype not in (torch.bfloat16, torch.float16) or not attn.fused_attn:
        return False
    # It has no dropout, and PyTorch 2.14 may pass FlashAttention's result to cuDNN's backward pass.
    if torch.is_grad_enabled() or attn.training:
        return False
    return attn.head_dim % 8 == 0 and attn.head_dim <= MOST_WIDTH and built_for(rows.device)


@cache
def built_for(device: torch.device) -> bool:
    """Whether this PyTorch has the kernel for the GPU. ROCm's kernel is a different one and has not been
    tested."""
    return (
        _kernel() is not None
        and torch.version.hip is None
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def _kernel() -> Callable[..., Any] | None:
    """PyTorch's function, if it exists. The first call imports the compiler, which takes half a second."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


@cache
def _arguments(kernel: Callable[..., Any]) -> frozenset[str]:
    """The names of the kernel's arguments."""
    return frozenset(inspect.signature(kernel).parameters)


def varlen(
    q: Float[Tensor, "rows H D"],
    k: Float[Tensor, "source_rows H D"],
    v: Float[Tensor, "source_rows H D"],
    tokens: Tokens,
    source: Tokens,
    scale: float,
    bias: Float[Tensor, " source_rows"] | None,
) -> Float[Tensor, "rows HD"]:
    """Attention of each image's queries in ``tokens`` to the keys and values of the same image in ``source``.
    ``bias``: added to the logits of each key."""
    kernel = _kernel()
    assert kernel is not None
    assert tokens.bounds is not None
    assert source.bounds is not None
    width = v.shape[2]
    if bias is not None:
        # The kernel has no bias argument, so extra values add the bias to the products of queries and keys.
        q = F.pad(q, (0, _BIAS_WIDTH), value=1 / (scale * _BIAS_WIDTH))
        k = torch.cat((k, bias[:, None, None].expand(-1, k.shape[1], _BIAS_WIDTH)), dim=2)
        v = F.pad(v, (0, _BIAS_WIDTH))
    options: dict[str, float] = {}
    if "scale" in _arguments(kernel):
        options["scale"] = scale
    elif not math.isclose(factor := scale * math.sqrt(q.shape[2]), 1):
        q = q * factor  # the kernel scales by the head size of its input
    if "num_splits" in _arguments(kernel):
        # Do not split keys by the batch's longest image, so the result for an image does not depend on the
        # batch. This also rules out cuDNN, which builds a plan for every new number of images and maximum
        # length.
        options["num_splits"] = 1
    mixed = kernel(
        q,
        k,
        v,
        tokens.bounds,
        source.bounds,
        tokens.packing.longest,
        source.packing.longest,
        **options,
    )
    assert isinstance(mixed, Tensor)  # no auxiliary outputs were requested
    return mixed[..., :width].flatten(1)


@dataclass(frozen=True, slots=True)
class Varlen:
    """Computes images of different lengths in one call, and images of one length by ``runs``."""

    runs: Runs

    @property
    def rounding(self) -> int:
        """0, because new shapes are not slow."""
        return 0

    def attend(self, attn: Attention, parts: Parts, tokens: Tokens, source: Tokens, block: int) -> Tensor:
        """See `Way.attend`."""
        alike = len(tokens.packing.runs) == 1 and len(source.packing.runs) == 1
        too_wide = source.bias is not None and attn.head_dim > MOST_WIDTH - _BIAS_WIDTH
        if alike or too_wide:
            return self.runs.attend(attn, parts, tokens, source, block)
        if changes(attn, source):
            parts = placed_rows(attn, parts, tokens, source, block)
        q, k, v = (one for rows in parts for one in heads_of_rows(attn, rows))
        bias = source.bias
        if bias is not None and len(bias) < len(k):
            bias = F.pad(bias, (0, len(k) - len(bias)))  # for the padding rows
        return tokens.packing.shaped(varlen(q, k, v, tokens, source, attn.scale, bias))
