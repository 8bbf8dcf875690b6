"""Pruned batches in few different shapes, for a CPU in bfloat16.

oneDNN makes a kernel for every new shape, which takes longer than the attention of one image
(docs/design/0023). So a packed batch has one of few numbers of rows, and attention is computed in windows of
few sizes: an image's own rows, and zeros, which are masked as keys and left out as queries. The size of an
image's window only depends on its number of tokens, so its answer is the same in any batch.

The attention of a window is two matrix products and a softmax between them. On a CPU with AMX, it is
PyTorch's one operation for all three, which is faster there and rounds less.
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

# Windows of queries are a multiple of this, or one more: half of the patches of a square image and one CLS
# token are one more than such a multiple.
QUERY_STEP = 16
# Windows of keys. They are what softmax goes along, 32 values of bfloat16 at a time; it takes the values
# behind the last 32 one by one, and a few of them still cost less than 32 more columns of both products.
KEY_STEP = 32
_FEW_BEHIND = 8
# Logits of one product, so that they stay in a core's cache between product, softmax and product.
MOST_LOGITS = 1 << 19


def takes_windows(rows: Tensor) -> bool:
    """Whether new shapes are slow for such rows: on a CPU in bfloat16. Training has ways of its own."""
    return rows.device.type == "cpu" and rows.dtype == torch.bfloat16 and not torch.is_grad_enabled()


def fused_is_faster() -> bool:
    """Whether PyTorch's fused attention in bfloat16 takes less time than `Windows` without it: where its
    products are AMX's (docs/design/0023)."""
    return cpu_has_amx()


@dataclass(frozen=True, slots=True)
class Windows:
    """An image's own rows and zeros: a window of a size that many lengths share. ``unpruned``: the number of
    tokens of an unpruned image. Every image has this length in the blocks before the first stage, so it has a
    size of its own. ``fused``: by PyTorch's one operation, or one after the other."""

    unpruned: int
    fused: bool = False

    @property
    def rounding(self) -> int:
        """Each number of rows costs a kernel of its own."""
        return 16

    def attend(self, attn: Attention, parts: Parts, tokens: Tokens, source: Tokens, block: int) -> Tensor:
        """As `Way.attend`. Rows behind the last image become 0."""
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
            # Fused attention keeps no logits, and makes no kernel for a number of images.
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
        """Queries, keys, values, or several of these that lie side by side in the rows of a run, of each head
        the tokens of an image and zeros behind them. This is the copy that a product of matrices makes of its
        operands, if they do not lie like this; fused attention needs it for the zeros alone."""
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
        """The number of rows of the window for the queries of this many tokens."""
        exact = tokens == self.unpruned or tokens % QUERY_STEP == 1
        return tokens if exact else -(-tokens // QUERY_STEP) * QUERY_STEP

    def key_size(self, tokens: int) -> int:
        """The number of rows of the window for the keys and values of this many tokens."""
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
    """Attention to the first ``tokens`` keys, by products of matrices and a softmax."""
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
    """As `_one_by_one`, in one operation."""
    zeros = k.shape[2] - tokens
    if zeros:
        bias = q.new_zeros((1, tokens)) if bias is None else bias
        bias = F.pad(bias, (0, zeros), value=-torch.inf)
    mask = None if bias is None else bias[:, None, None].expand(len(q), 1, 1, -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=attn.scale)


def _groups(images: int, most: int) -> Iterator[tuple[int, int]]:
    """Images as groups (first, images) of a power of two and at most ``most``: few sizes."""
    first = 0
    while first < images:
        group = 1 << min(most, images - first).bit_length() - 1
        yield first, group
        first += group


def _part(run: Run, first: int, images: int) -> Run:
    return Run(run.first_image + first, images, run.start + first * run.tokens, run.tokens)
