"""A GPU of PyTorch's fake tensors, which know devices but hold no numbers.

An operation that needs a number on the host, or tensors of two devices, cannot be computed with them.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import models.attend.varlen
from models.pruned_vit import PrunedViT
from models.token_pool import TokenPool

# Operations that are no views and launch nothing all the same.
NO_KERNEL = {"empty", "empty_like", "new_empty", "empty_strided", "_unsafe_view", "detach"}


class WaitsError(Exception):
    """The thread would have to wait for the device here."""


class Watch(TorchDispatchMode):
    """Refuses copies from host to device that wait, and counts the others, and the operations that launch a
    kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = 0
        self.kernels: Counter[str] = Counter()
        self._pinned: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        aten = torch.ops.aten
        if func is aten._pin_memory.default:
            self._pinned.append(args[0].clone())
            return self._pinned[-1]
        if func is aten.is_pinned.default:
            return any(args[0] is tensor for tensor in self._pinned)
        if func is aten._to_copy.default and args[0].device != kwargs.get("device", args[0].device):
            if not any(args[0] is tensor for tensor in self._pinned) or not kwargs.get("non_blocking"):
                raise WaitsError(f"a copy of {args[0]} to {kwargs['device']}")
            self.copies += 1
        if func is aten.copy_.default and args[0].device != args[1].device:
            raise WaitsError(f"a copy of {args[1]} into {args[0]}")
        result = func(*args, **kwargs)
        first = result[0] if isinstance(result, tuple | list) and result else result
        name = func.overloadpacket.__name__
        if (
            isinstance(first, Tensor)
            and first.device.type == "cuda"
            and name not in NO_KERNEL
            and all(one.alias_info is None or one.alias_info.is_write for one in func._schema.returns)
        ):
            self.kernels[name] += 1
        return result


def flash(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0) -> Tensor:
    """Dense attention as a GPU has it: in one kernel. Without a GPU PyTorch would take it apart."""
    assert dropout_p == 0
    if attn_mask is None:
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
    bias = attn_mask.expand(*q.shape[:3], k.shape[2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, compute_log_sumexp=False)[0]


@contextmanager
def fake_gpu(capturing: bool = False) -> Iterator[Watch]:
    """A GPU of fake tensors, in which nothing waits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models.attend.varlen, "built_for", lambda _device: True)
        patch.setattr(F, "scaled_dot_product_attention", flash)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
        # In inference mode PyTorch shows `to`, not the copy that it is made of.
        with torch.no_grad(), FakeTensorMode(), Watch() as watch:
            yield watch


def to_fake_gpu(model: PrunedViT) -> None:
    """Give it fake parameters on the fake GPU, in bfloat16 but for those that stay in float32."""
    for module in model.modules():
        dtype = torch.float32 if isinstance(module, TokenPool) else torch.bfloat16
        for name, parameter in list(module.named_parameters(recurse=False)):
            fake = torch.empty(parameter.shape, dtype=dtype, device="cuda")
            setattr(module, name, torch.nn.Parameter(fake, requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda"))


def fake_pixels(images: int, height: int = 20, width: int = 28) -> Tensor:
    """Images that exist in name only."""
    return torch.empty(images, 3, height, width, dtype=torch.bfloat16, device="cuda")
