"""Chooses how attention is computed in a forward pass."""

import torch
from torch import Tensor

from models.attend.heads import Attention
from models.attend.runs import Runs
from models.attend.varlen import Varlen, takes_varlen
from models.attend.way import Way
from models.attend.windows import Windows, fused_is_faster, takes_windows


def way_for(attn: Attention, rows: Tensor, unpruned: int) -> Way:
    """The fastest way for rows of this device and dtype, with modules like ``attn``. ``unpruned``: the number
    of tokens of an unpruned image."""
    if takes_windows(rows):
        return Windows(unpruned, fused_is_faster())
    # On a CPU in bfloat16 the plain form takes a third less in training than PyTorch's fused one.
    plain_is_faster = rows.device.type == "cpu" and _computed_in(rows) == torch.bfloat16
    runs = Runs(attn.fused_attn and not plain_is_faster)
    return Varlen(runs) if takes_varlen(attn, rows) else runs


def _computed_in(rows: Tensor) -> torch.dtype:
    """The dtype in which products of these rows are computed: under autocast, as in training, not their
    own."""
    device = rows.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else rows.dtype
