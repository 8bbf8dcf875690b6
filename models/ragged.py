"""Batches whose images differ in length: tokens of all images packed as [rows, D], lengths known on the host.

Row-wise layers (norms, linears, MLP) run on the packed rows and never see an image's border. Only
attention, pooling and pruning do; they walk over runs of neighbouring images of one length, each run a
dense [images, tokens, D] view. A batch of one common length is one run and keeps its dense [B, T, D]
shape (and memory layout): the dense path is the same code, not another one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring images of one length in a batch: ``images`` times ``tokens`` rows, from row ``start``."""

    first_image: int
    images: int
    start: int
    tokens: int

    def dense(self, rows: Float[Tensor, "*rows D"]) -> Float[Tensor, "images tokens D"]:
        """This run's part of the rows of a batch, packed or dense, as a view."""
        if rows.ndim == 3:
            return rows[self.first_image : self.first_image + self.images]
        return rows[self.start : self.start + self.images * self.tokens].view(self.images, self.tokens, -1)


@dataclass(frozen=True)
class Packing:
    """Token counts of the images in packed order."""

    lengths: tuple[int, ...]

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The images grouped by length, in packed order."""
        return tuple(runs_of(self.lengths, self.lengths))

    def pack(self, parts: Sequence[Float[Tensor, "_images _tokens D"]]) -> Float[Tensor, "*rows D"]:
        """The runs' dense parts as the rows of the whole batch."""
        return parts[0] if len(parts) == 1 else torch.cat([part.flatten(0, 1) for part in parts])

    def map_runs(
        self, module: Callable[[Tensor], Tensor], rows: Float[Tensor, "*rows D"]
    ) -> Float[Tensor, "*rows D"]:
        """Apply a module that tells images apart to each run."""
        return self.pack([module(run.dense(rows)) for run in self.runs])

    def select(
        self, rows: Float[Tensor, "*rows D"], kept: Sequence[Tensor], kept_packing: "Packing"
    ) -> Float[Tensor, "*kept_rows D"]:
        """The rows numbered by ``kept`` (flat indices, a part per run), shaped for ``kept_packing``."""
        flat = rows.flatten(0, -2).index_select(0, torch.cat(list(kept)))
        return flat if len(kept_packing.runs) > 1 else kept_packing.runs[0].dense(flat)


def runs_of(lengths: Sequence[int], keys: Sequence[object]) -> Iterator[Run]:
    """Neighbours that share both their length and their key, in order."""
    image = start = 0
    for (length, _), members in groupby(zip(lengths, keys, strict=True)):
        images = len(list(members))
        yield Run(image, images, start, length)
        image += images
        start += images * length
