"""Pruned batches in few different shapes, for a CPU in bfloat16.

oneDNN makes a kernel for every shape that it has not seen, which takes longer than the attention of one
image (docs/design/0023). So a packed batch has one of few numbers of rows, and attention is computed in
windows of rows whose number is a multiple of `STEP`: an image's own, and some of the next one's, which are
masked as keys and left out as queries. An image's windows, and so its answer, are the same in any batch.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import Attention
from torch import Tensor

from models.ragged import Packing, Run

STEP = 16
# Logits of one product, so that they stay in a core's cache between product, softmax and product.
MOST_LOGITS = 1 << 19


def takes_windows(rows: Tensor) -> bool:
    """Whether new shapes are slow for such rows: on a CPU in bfloat16. Training has forms of its own."""
    return rows.device.type == "cpu" and rows.dtype == torch.bfloat16 and not torch.is_grad_enabled()


def windowed(
    attn: Attention,
    q: Float[Tensor, "rows H D"],
    k: Float[Tensor, "source_rows H D"],
    v: Float[Tensor, "source_rows H D"],
    packing: Packing,
    source: Packing,
    bias: Float[Tensor, " unpadded"] | None,
) -> Float[Tensor, "rows HD"]:
    """Attention of the queries of each image in ``packing`` to the keys of the same one in ``source``, with
    ``bias`` for each key. Rows behind the last image become 0."""
    mixed = q.new_empty(q.shape)
    mixed[sum(packing.lengths) :] = 0
    for run, source_run in packing.runs_beside(source):
        size, source_size = (-(-some.tokens // STEP) * STEP for some in (run, source_run))
        most = max(1, MOST_LOGITS // (q.shape[1] * size * source_size))
        for first, images in _groups(run.images, most):
            group, source_group = (_part(some, first, images) for some in (run, source_run))
            keys = _windows(k, source_group, source_size).permute(0, 2, 3, 1)
            logits = (_windows(q, group, size).transpose(1, 2) * attn.scale) @ keys
            if bias is not None:
                logits += _windows(bias, source_group, source_size).view(images, 1, 1, source_size)
            logits[..., source_run.tokens :] = -torch.inf
            answers = logits.softmax(dim=-1) @ _windows(v, source_group, source_size).transpose(1, 2)
            own = mixed[group.start :][: images * run.tokens].view(images, run.tokens, *q.shape[1:])
            own.copy_(answers[:, :, : run.tokens].transpose(1, 2))
    return mixed.flatten(1)


def _groups(images: int, most: int) -> Iterator[tuple[int, int]]:
    """Images as groups (first, images) of a power of two and at most ``most``: few sizes."""
    first = 0
    while first < images:
        group = 1 << min(most, images - first).bit_length() - 1
        yield first, group
        first += group


def _part(run: Run, first: int, images: int) -> Run:
    return Run(run.first_image + first, images, run.start + first * run.tokens, run.tokens)


def _windows(
    rows: Float[Tensor, "rows *width"], run: Run, size: int
) -> Float[Tensor, "images {size} *width"]:
    """Of each image in the run the ``size`` rows from its first one, as a view that overlaps itself; where
    the rows end before, with zeros."""
    start, end = run.start, run.start + (run.images - 1) * run.tokens + size
    if end > len(rows):
        rows = F.pad(rows[start:], (*[0] * (2 * rows.ndim - 1), end - len(rows)))
        start = 0
    row, *within = rows.stride()
    return rows.as_strided(
        (run.images, size, *rows.shape[1:]),
        (run.tokens * row, row, *within),
        rows.storage_offset() + start * row,
    )
