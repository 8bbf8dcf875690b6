"""PyTorch's variable-length attention, slow and obvious, on the CPU."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import models.attend.choice


class Reference:
    """varlen_attn, slow and obvious, on the CPU: each image cut out by the bounds and computed alone."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[int], list[int]]] = []

    def of_2_10(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        is_causal: bool = False,
        return_aux: None = None,
    ) -> Tensor:
        """As PyTorch 2.10 has it: scaled by the width of the heads it is given."""
        scale = query.shape[2] ** -0.5
        return self.varlen_attn(
            query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, num_splits=1
        )

    def varlen_attn(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float,
        num_splits: int,
    ) -> Tensor:
        """As PyTorch 2.14 has it."""
        ends_q, ends_k = cu_seq_q.tolist(), cu_seq_k.tolist()
        # What FlashAttention checks, or reads beyond its rows without.
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
        assert ends_q[0] == ends_k[0] == 0
        assert ends_q[-1] <= len(query)  # rows behind the images are nobody's
        assert ends_k[-1] <= len(key) == len(value)
        assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
        lengths_q, lengths_k = cu_seq_q.diff().tolist(), cu_seq_k.diff().tolist()
        assert max(lengths_q) <= max_q
        assert max(lengths_k) <= max_k
        assert num_splits == 1
        self.calls.append((lengths_q, lengths_k))
        mixed = []
        keys, values = (part[: ends_k[-1]].split(lengths_k) for part in (key, value))
        for q, k, v in zip(query[: ends_q[-1]].split(lengths_q), keys, values, strict=True):
            heads = (part.transpose(0, 1) for part in (q, k, v))
            mixed.append(F.scaled_dot_product_attention(*heads, scale=scale).transpose(0, 1))
        # The kernel leaves their rows as it finds them.
        mixed.append(torch.full_like(query[ends_q[-1] :], torch.nan))
        return torch.cat(mixed)


def take_varlen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the device."""
    monkeypatch.setattr(models.attend.choice, "takes_varlen", lambda _attn, _rows: True)
