"""Chooses the implementation of attention for a forward pass."""

import torch
from torch import Tensor

from models.attend.heads import Attention
from models.attend.runs import Runs
from models.attend.varlen import Varlen, takes_varlen
from models.attend.way import Way
from models.attend.windows import Windows, fused_is_faster, takes_windows


def way_for(attn: Attention, rows: Tensor, unpruned: int) -> Way:
    """Choose the fastest implementation for the device and dtype of ``rows`` and for modules like ``attn``.
    ``unpruned``: the number of tokens of an unpruned image."""
    if takes_windows(rows):
        return Windows(unpruned, fused_is_faster())
    # When training on a CPU in bfloat16, plain attention takes a third less time than PyTorch's fused one.
    plain_is_faster = rows.device.type == "cpu" and _computed_in(rows) == torch.bfloat16
    runs = Runs(attn.fused_attn and not plain_is_faster)
    return Varlen(runs) if takes_varlen(attn, rows) else runs


def _computed_in(rows: Tensor) -> torch.dtype:
    """The dtype in which products of these rows are computed. Under autocast, as in training, it is not the
    dtype of the rows."""
    device = rows.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else rows.dtype
