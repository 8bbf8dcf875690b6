"""Attention over all images of a ragged batch in one call: torch.nn.attention.varlen, on GPUs that have it.

What is asked of the device and of the rows is what PyTorch 2.14's FlashAttention-2 checks (docs/design/0012).
"""

from functools import cache

import torch
from jaxtyping import Float
from timm.layers import Attention
from torch import Tensor

from models.ragged import Packing


def takes_varlen(attn: Attention, rows: Tensor) -> bool:
    """Whether `varlen` computes this module's attention on such rows: on a GPU, in half precision, with heads
    it was built for, in inference."""
    if not rows.is_cuda or rows.dtype not in (torch.bfloat16, torch.float16) or not attn.fused_attn:
        return False
    # It knows no dropout, and PyTorch 2.14 may give FlashAttention's result to cuDNN's backward pass.
    if torch.is_grad_enabled() or attn.training:
        return False
    return attn.head_dim % 8 == 0 and attn.head_dim <= 256 and built_for(rows.device)


@cache
def built_for(device: torch.device) -> bool:
    """Whether this PyTorch has the kernel for the GPU. Older ones have it with other arguments; ROCm refuses
    ``num_splits``."""
    return (
        torch.__version__ >= "2.14"  # not a plain string: it compares as a version
        and torch.version.hip is None
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def varlen(
    q: Float[Tensor, "rows H D"],
    k: Float[Tensor, "source_rows H D"],
    v: Float[Tensor, "source_rows H D"],
    packing: Packing,
    source: Packing,
) -> Float[Tensor, "*all_rows HD"]:
    """Attention of the queries of each image in ``packing`` to the keys of the same one in ``source``, shaped
    for ``packing``. The scale is the kernel's own, 1 / sqrt(D), which is timm's."""
    from torch.nn.attention.varlen import varlen_attn  # loads the compiler: half a second

    mixed = varlen_attn(
        q,
        k,
        v,
        packing.bounds(q.device),
        source.bounds(q.device),
        packing.longest,
        source.longest,
        # Keys are not split by the batch's longest image, so an image is computed alike in any company; and
        # cuDNN, which would make a plan for every new number of images and longest one, is not taken.
        num_splits=1,
    )
    assert isinstance(mixed, Tensor)  # no auxiliary result was asked for
    return packing.shaped(mixed.flatten(1))
