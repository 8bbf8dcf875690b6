"""Batches whose images differ in length: tokens of all images packed as [rows, D], lengths known on the host.

Row-wise layers (norms, linears, MLP) run on the packed rows and never see an image's border. Only
attention, pooling and pruning do; they walk over runs of neighbouring images of one length, each run a
dense [images, tokens, D] view. A batch of one common length is one run and keeps its dense [B, T, D]
shape (and memory layout): the dense path is the same code, not another one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, groupby

import numpy as np
import torch
from jaxtyping import Float, Int
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
    """Token counts of the images in packed order.

    ``rounded``: always packed, also if there is one length only, and with rows behind the images that nobody
    reads, at most three or a 16th, so that batches have few different numbers of rows.
    """

    lengths: tuple[int, ...]
    rounded: bool = False

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The images grouped by length, in packed order."""
        return tuple(runs_of(self.lengths, self.lengths))

    def pack(self, parts: Sequence[Float[Tensor, "_images _tokens D"]]) -> Float[Tensor, "*rows D"]:
        """Dense parts, one or several per run, as the rows of the whole batch."""
        if len(parts) == 1 and not self.rounded:
            return parts[0]
        flat = [part.flatten(0, 1) for part in parts]
        if self.padding:
            flat.append(flat[0].new_zeros((self.padding, flat[0].shape[1])))
        return self.shaped(torch.cat(flat))

    @cached_property
    def padding(self) -> int:
        """Rows behind the images."""
        rows = sum(self.lengths)
        return rounded(rows) - rows if self.rounded else 0

    def shaped(self, flat: Float[Tensor, "rows D"]) -> Float[Tensor, "*rows D"]:
        """The rows of the whole batch, dense if there is one run only."""
        return flat if self.rounded or len(self.runs) > 1 else self.runs[0].dense(flat)

    def map_runs(
        self, module: Callable[[Tensor], Tensor], rows: Float[Tensor, "*rows D"]
    ) -> Float[Tensor, "*rows D"]:
        """Apply a module that tells images apart to each run."""
        return self.pack([module(run.dense(rows)) for run in self.runs])

    def runs_beside(self, other: "Packing") -> Iterator[tuple[Run, Run]]:
        """Runs of images that share their length both here and in ``other``, with the same images there."""
        mine = runs_of(self.lengths, other.lengths)
        theirs = runs_of(other.lengths, self.lengths)
        return zip(mine, theirs, strict=True)

    def select(
        self, rows: Float[Tensor, "*rows D"], index: Int[Tensor, " kept"], kept_packing: "Packing"
    ) -> Float[Tensor, "*kept_rows D"]:
        """The rows numbered by ``index`` (flat), shaped for ``kept_packing``."""
        if kept_packing.padding:
            index = torch.nn.functional.pad(index, (0, kept_packing.padding))  # the first row, again
        return kept_packing.shaped(rows.flatten(0, -2).index_select(0, index))

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The flat number of each image's first row."""
        return (0, *accumulate(self.lengths[:-1]))

    @cached_property
    def longest(self) -> int:
        """The most tokens that an image has."""
        return max(self.lengths)

    def bounds(self, device: torch.device) -> Int[Tensor, " images_and_one"]:
        """The first row of each image and, behind them, the number of all rows: int32, made once."""
        if device not in self._bounds:
            host = np.array((*self.starts, sum(self.lengths)), np.int32)
            self._bounds[device] = on_device(host, device)
        return self._bounds[device]

    @cached_property
    def _bounds(self) -> dict[torch.device, Tensor]:
        return {}


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a batch between two blocks.

    ``rows`` as `Packing` says; an image's are its prefix tokens, its ``patches[b]`` patches in their
    order, and its fused tokens. ``patch_ids``: where each patch stood in its image, flat, without entries
    for other tokens. ``sizes`` [rows]: how many patches each token stands for, once any were merged.
    """

    rows: Tensor
    packing: Packing
    patches: tuple[int, ...]
    patch_ids: Tensor
    sizes: Tensor | None = None

    def with_rows(self, rows: Tensor) -> "Tokens":
        """The same tokens with other values. (`dataclasses.replace` takes as long as some operations.)"""
        return Tokens(rows, self.packing, self.patches, self.patch_ids, self.sizes)

    def of_images(self, images: Sequence[int]) -> "Tokens":
        """Only these images, in this order. For tokens that nothing was pruned of."""
        assert len(self.packing.runs) == 1
        index = on_device(images, self.rows.device)
        return Tokens(
            self.rows.index_select(0, index),
            replace(self.packing, lengths=tuple(self.packing.lengths[image] for image in images)),
            tuple(self.patches[image] for image in images),
            self.patch_ids.view(len(self.patches), -1).index_select(0, index).flatten(),
        )


def rounded(rows: int) -> int:
    """The next of the few numbers of rows that packed batches have: 16 from each power of two to the next, up
    to 256 the multiples of 4."""
    step = 4 if rows <= 256 else 1 << rows.bit_length() - 5
    return rows + -rows % step


def runs_of(lengths: Sequence[int], keys: Sequence[object]) -> Iterator[Run]:
    """Neighbours that share both their length and their key, in order."""
    image = start = 0
    for (length, _), members in groupby(zip(lengths, keys, strict=True)):
        images = len(list(members))
        yield Run(image, images, start, length)
        image += images
        start += images * length


def on_device(values: Sequence[int] | np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Numbers that the host knows (ints become int64); on a GPU without waiting for it.

    The one way in which the host's numbers get to a device. A CUDA graph must not take it: each replay would
    copy from pinned memory that was given back long ago.
    """
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else torch.as_tensor(values)
    if device.type != "cuda":
        return tensor
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("numbers of the host cannot be part of a CUDA graph")
    return tensor.pin_memory().to(device, non_blocking=True)


def starts_of(lengths: Sequence[int], device: torch.device) -> Int[Tensor, " parts"]:
    """Where each of several parts begins that lie one behind the other. Of equal ones, the device counts
    itself."""
    if min(lengths) == max(lengths):
        return torch.arange(len(lengths), device=device) * lengths[0]
    return on_device((0, *accumulate(lengths[:-1])), device)
