"""Attention in few different shapes, for a CPU in bfloat16.

oneDNN creates a kernel for every new shape, which takes longer than the attention of one image
(docs/design/0023). So packed batches have one of few numbers of rows, and attention is computed in windows of
few sizes: an image's rows, padded with zeros, which are masked as keys and discarded as queries. The size of
an image's window only depends on its number of tokens, so its result is the same in any batch.

The attention of a window is two matrix products with a softmax between them. On a CPU with AMX, PyTorch's
fused attention is used instead, which is faster there and rounds less.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from models.attend.heads import Attention, Parts
from models.attend.rows import changes, placed_rows
from models.device import cpu_has_amx
from models.ragged import Run, Tokens

# Windows of queries are rounded up to multiples of this, unless they are one more than a multiple, as half of
# the patches of a square image and a CLS token are.
QUERY_STEP = 16
# Windows of keys. The softmax along them processes 32 bfloat16 values at a time and the remaining values one
# by one. A few remaining values still cost less than 32 more columns in both products.
KEY_STEP = 32
_FEW_BEHIND = 8
# The maximum number of logits of one product, so that they stay in a core's cache until the second product.
MOST_LOGITS = 1 << 19


def takes_windows(rows: Tensor) -> bool:
    """Whether to use `Windows`: new shapes are slow on a CPU in bfloat16. Training uses other
    implementations."""
    return rows.device.type == "cpu" and rows.dtype == torch.bfloat16 and not torch.is_grad_enabled()


def fused_is_faster() -> bool:
    """Whether `Windows` is faster with PyTorch's fused attention in bfloat16: on CPUs with AMX
    (docs/design/0023)."""
    return cpu_has_amx()


@dataclass(frozen=True, slots=True)
class Windows:
    """Computes attention in windows: the rows of an image, padded to a size that many lengths share.

    ``unpruned``: the number of tokens of an unpruned image. Every image has this length before the first
    stage, so its windows are padded less. ``fused``: use PyTorch's fused attention.
    """

    unpruned: int
    fused: bool = False

    @property
    def rounding(self) -> int:
        """Each number of rows needs another kernel."""
        return 16

    def attend(self, attn: Attention, parts: Parts, tokens: Tokens, source: Tokens, block: int) -> Tensor:
        """See `Way.attend`. Padding rows become 0."""
        packing = tokens.packing
        if changes(attn, source):
            parts = placed_rows(attn, parts, tokens, source, block)
        first, *others = (rows.view(-1, rows.shape[-1]) for rows in parts)
        mixed = first.new_empty((len(first), attn.num_heads, attn.head_dim))
        if packing.padding:
            mixed[-packing.padding :] = 0
        for run, source_run in packing.runs_beside(source.packing):
            size, source_size = self.query_size(run.tokens), self.key_size(source_run.tokens)
            most = max(1, MOST_LOGITS // (attn.num_heads * size * source_size))
            # Fused attention stores no logits and needs no new kernel for another number of images.
            groups = ((0, run.images),) if self.fused else _groups(run.images, most)
            for first_image, images in groups:
                group, source_group = (_part(some, first_image, images) for some in (run, source_run))
                size_of_first = size if others else max(size, source_size)
                own = self._windows(attn, first, group, size_of_first)
                others_own = (self._windows(attn, rows, source_group, source_size) for rows in others)
                q, k, v = (*own, *(one for windows in others_own for one in windows))
                q, k, v = q[:, :, :size], k[:, :, :source_size], v[:, :, :source_size]
                bias = None
                if source.bias is not None:
                    bias = source.bias[source_group.start :][: images * source_run.tokens].view(images, -1)
                attend = _fused if self.fused else _one_by_one
                answers = attend(attn, q, k, v, source_run.tokens, bias)
                rows = mixed[group.start :][: images * run.tokens]
                rows = rows.view(images, run.tokens, *mixed.shape[1:])
                rows.copy_(answers[:, :, : run.tokens].transpose(1, 2))
        return packing.shaped(mixed.flatten(1))

    def _windows(
        self, attn: Attention, rows: Float[Tensor, "rows _"], run: Run, size: int
    ) -> Float[Tensor, "parts images H {size} D"]:
        """Split the rows of a run, which hold queries, keys, values or several of these, into heads, and pad
        the tokens of each image with zeros to ``size``.

        A matrix product would otherwise make this copy of its operands itself; fused attention only needs it
        for the padding.
        """
        own = rows[run.start : run.start + run.images * run.tokens]
        own = own.view(run.images, run.tokens, -1, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
        if self.fused and size == run.tokens:
            return own
        windows = own.new_empty((*own.shape[:3], size, attn.head_dim))
        windows[..., : run.tokens, :].copy_(own)
        if size > run.tokens:
            windows[..., run.tokens :, :] = 0
        return windows

    def query_size(self, tokens: int) -> int:
        """The window size for the queries of ``tokens`` tokens."""
        exact = tokens == self.unpruned or tokens % QUERY_STEP == 1
        return tokens if exact else -(-tokens // QUERY_STEP) * QUERY_STEP

    def key_size(self, tokens: int) -> int:
        """The window size for the keys and values of ``tokens`` tokens."""
        behind = tokens % KEY_STEP
        exact = behind == 1 or (tokens == self.unpruned and behind <= _FEW_BEHIND)
        return tokens if exact else -(-tokens // KEY_STEP) * KEY_STEP


def _one_by_one(
    attn: Attention,
    q: Float[Tensor, "images H size D"],
    k: Float[Tensor, "images H source_size D"],
    v: Float[Tensor, "images H source_size D"],
    tokens: int,
    bias: Float[Tensor, "images {tokens}"] | None,
) -> Float[Tensor, "images H size D"]:
    """Attention to the first ``tokens`` keys, by two matrix products and a softmax."""
    shape = q.shape
    q, k, v = (part.flatten(0, 1) for part in (q, k, v))
    logits = q.new_empty((len(q), q.shape[1], k.shape[1]))
    torch.baddbmm(logits, q, k.mT, beta=0, alpha=attn.scale, out=logits)
    if bias is not None:
        seen = logits.view(len(bias), -1, *logits.shape[1:])[..., :tokens]
        seen += bias[:, None, None]
    if tokens < k.shape[1]:
        logits[..., tokens:] = -torch.inf
    return torch.bmm(logits.softmax(dim=-1), v).view(shape)


def _fused(
    attn: Attention,
    q: Float[Tensor, "images H size D"],
    k: Float[Tensor, "images H source_size D"],
    v: Float[Tensor, "images H source_size D"],
    tokens: int,
    bias: Float[Tensor, "images {tokens}"] | None,
) -> Float[Tensor, "images H size D"]:
    """Like `_one_by_one`, by PyTorch's fused attention."""
    zeros = k.shape[2] - tokens
    if zeros:
        bias = q.new_zeros((1, tokens)) if bias is None else bias
        bias = F.pad(bias, (0, zeros), value=-torch.inf)
    mask = None if bias is None else bias[:, None, None].expand(len(q), 1, 1, -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=attn.scale)


def _groups(images: int, most: int) -> Iterator[tuple[int, int]]:
    """Split images into groups (first, images). The size of each is a power of two of at most ``most``, so
    that few different sizes occur."""
    first = 0
    while first < images:
        group = 1 << min(most, images - first).bit_length() - 1
        yield first, group
        first += group


def _part(run: Run, first: int, images: int) -> Run:
    return Run(run.first_image + first, images, run.start + first * run.tokens, run.tokens)
