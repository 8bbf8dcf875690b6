"""Batches whose images differ in length: tokens of all images packed as [rows, D], lengths known on the host.

Row-wise layers (norms, linears, MLP) compute all packed rows, without knowledge of images. Only attention,
pooling and pruning distinguish images; they go through runs of neighboring images of one length, each run a
dense [images, tokens, D] view. A batch of one common length is one run and keeps its dense [B, T, D] shape
(and memory layout): the dense path is the same code.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, groupby

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Run:
    """Neighboring images of one length in a batch: ``images`` times ``tokens`` rows, from row ``start``."""

    first_image: int
    images: int
    start: int
    tokens: int

    def dense(self, rows: Shaped[Tensor, "*rows D"]) -> Shaped[Tensor, "images tokens D"]:
        """This run's part of the rows of a batch, packed or dense, as a view."""
        if rows.ndim == 3:
            return rows[self.first_image : self.first_image + self.images]
        return rows[self.start : self.start + self.images * self.tokens].view(self.images, self.tokens, -1)


@dataclass(frozen=True)
class Packing:
    """Token counts of the images in packed order.

    ``rows``: always packed, even if there is only one length, in this number of rows, of which those after
    the images are never read. So batches have few different numbers of rows (`rounded`). 0: no more rows than
    the images have, and dense if there is only one length.
    """

    lengths: tuple[int, ...]
    rows: int = 0

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The images grouped by length, in packed order."""
        return tuple(runs_of(self.lengths, self.lengths))

    def pack(self, parts: Sequence[Float[Tensor, "_images _tokens D"]]) -> Float[Tensor, "*rows D"]:
        """Dense parts, one or several per run, as the rows of the whole batch."""
        if len(parts) == 1 and not self.rows:
            return parts[0]
        flat = [part.flatten(0, 1) for part in parts]
        if self.padding:
            flat.append(flat[0].new_zeros((self.padding, flat[0].shape[1])))
        return self.shaped(torch.cat(flat))

    @cached_property
    def padding(self) -> int:
        """The number of rows after the images."""
        return self.rows - sum(self.lengths) if self.rows else 0

    def shaped(self, flat: Float[Tensor, "rows D"]) -> Float[Tensor, "*rows D"]:
        """The rows of the whole batch, dense if there is only one run."""
        return flat if self.rows or len(self.runs) > 1 else self.runs[0].dense(flat)

    def map_runs(
        self, module: Callable[[Tensor], Tensor], rows: Float[Tensor, "*rows D"]
    ) -> Float[Tensor, "*rows D"]:
        """Apply a module that distinguishes images to each run."""
        return self.pack([module(run.dense(rows)) for run in self.runs])

    def runs_beside(self, other: "Packing") -> Iterator[tuple[Run, Run]]:
        """Runs of images that share their length both here and in ``other``, with the same images there."""
        if other is self:
            return ((run, run) for run in self.runs)
        mine = runs_of(self.lengths, other.lengths)
        theirs = runs_of(other.lengths, self.lengths)
        return zip(mine, theirs, strict=True)

    def select(
        self, rows: Float[Tensor, "*rows D"], index: Int[Tensor, " kept"], kept_packing: "Packing"
    ) -> Float[Tensor, "*kept_rows D"]:
        """The rows numbered by ``index`` (flat), shaped for ``kept_packing``; ``index`` may number those
        behind the images, too."""
        if kept_packing.padding and len(index) < kept_packing.rows:
            index = torch.nn.functional.pad(index, (0, kept_packing.padding))  # the first row, again
        return kept_packing.shaped(rows.flatten(0, -2).index_select(0, index))

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The flat number of each image's first row."""
        return (0, *accumulate(self.lengths[:-1]))

    @cached_property
    def longest(self) -> int:
        """The maximum number of tokens of an image."""
        return max(self.lengths)


# How queries and keys are rotated, in all blocks or in each, for all heads or for each: sines, then cosines.
# Place 0 is for tokens that are no patches, which are not rotated; place n + 1 for patch n.
Rotations = Float[Tensor, "blocks places heads sin_cos"]


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a batch between two blocks.

    ``rows`` as `Packing` says; an image's are its prefix tokens, its ``patches[b]`` patches in their
    order, and its fused tokens. ``ids`` [tokens]: where each patch stood in its image, below 0 for other
    tokens. ``sizes`` [tokens]: how many patches each token stands for, once any were fused, merged,
    pooled or transformed; 1 for prefix tokens. ``bias`` [tokens]: what is added to the logits of each token
    as a key, once any were merged, pooled or transformed. All three may go on for the rows behind the images.
    ``bounds`` [B + 1]: the first row of each image and the number of all, int32, where images were of
    different lengths. ``rotations``: where positions are rotary.
    """

    rows: Tensor
    packing: Packing
    patches: tuple[int, ...]
    ids: Tensor
    sizes: Tensor | None = None
    bias: Tensor | None = None
    bounds: Tensor | None = None
    rotations: Rotations | None = None

    def with_rows(self, rows: Tensor) -> "Tokens":
        """The same tokens with other values. (`dataclasses.replace` takes as long as some operations.)"""
        sizes, bias = self.sizes, self.bias
        return Tokens(rows, self.packing, self.patches, self.ids, sizes, bias, self.bounds, self.rotations)

    def bounded(self, bounds: Tensor | None) -> "Tokens":
        """The same tokens with these ``bounds``."""
        if bounds is self.bounds:
            return self
        sizes, bias = self.sizes, self.bias
        return Tokens(self.rows, self.packing, self.patches, self.ids, sizes, bias, bounds, self.rotations)

    def of_images(self, images: Sequence[int], index: Int[Tensor, " images"] | None = None) -> "Tokens":
        """Only these images, in this order. For tokens that nothing was pruned of. ``index``: ``images``, if
        they are on the device already."""
        assert len(self.packing.runs) == 1
        lengths = tuple(self.packing.lengths[image] for image in images)
        return Tokens(
            self.rows.index_select(0, on_device(images, self.rows.device) if index is None else index),
            replace(self.packing, lengths=lengths),
            tuple(self.patches[image] for image in images),
            self.ids[: sum(lengths)],  # they are alike in all images
            rotations=self.rotations,
        )

    def selected(self, numbers: Int[Tensor, " kept"], packing: Packing, patches: tuple[int, ...]) -> "Tokens":
        """Only the tokens of these flat ``numbers``, of which images have ``patches`` patches."""
        return Tokens(
            self.packing.select(self.rows, numbers, packing),
            packing,
            patches,
            self.ids.index_select(0, numbers),
            None if self.sizes is None else self.sizes.index_select(0, numbers),
            None if self.bias is None else self.bias.index_select(0, numbers),
            rotations=self.rotations,
        )

    def rotation(self, block: int) -> Float[Tensor, "rows heads sin_cos"] | None:
        """How the queries and keys of a block are rotated, row by row."""
        return None if self.rotations is None else self.by_place(self.rotations[block % len(self.rotations)])

    def by_place(self, table: Shaped[Tensor, "places *values"]) -> Shaped[Tensor, "rows *values"]:
        """What a table says of each place (see `Rotations`), row by row."""
        places = (self.ids + 1).clamp(min=0)
        if len(places) < self.packing.rows:
            places = torch.nn.functional.pad(places, (0, self.packing.rows - len(places)))
        return table.index_select(0, places)


def rounded(rows: int, parts: int = 16) -> int:
    """The next of the few numbers of rows that packed batches have: ``parts``, a power of two up to 64, from
    each power of two to the next, up to 256 the multiples of 4."""
    step = 4 if rows <= 256 else (1 << rows.bit_length() - 1) // parts
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
    """Numbers from the host on the device (ints become int64); on a GPU without waiting for it.

    This is the only way in which numbers of the host get to a device. A CUDA graph must not contain it: each
    replay would copy from pinned memory that was freed long ago.
    """
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else torch.as_tensor(values)
    if device.type != "cuda":
        return tensor
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("numbers of the host cannot be part of a CUDA graph")
    return tensor.pin_memory().to(device, non_blocking=True)


def into_device(values: np.ndarray, target: Tensor) -> None:
    """As `on_device`, into memory that is there already."""
    tensor = torch.from_numpy(values)
    pinned = tensor.pin_memory() if target.is_cuda else tensor
    target.copy_(pinned, non_blocking=True)


def all_on_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """As `on_device`, several arrays in one copy."""
    if device.type != "cuda" or not arrays:
        return [torch.from_numpy(array) for array in arrays]
    return views_of(on_device(end_to_end(arrays), device), arrays)


def end_to_end(arrays: Sequence[np.ndarray]) -> UInt8[np.ndarray, " bytes"]:
    """Arrays of any kind as one."""
    flat = np.zeros(_places(arrays)[-1].stop, np.uint8)
    for array, place in zip(arrays, _places(arrays), strict=True):
        flat[place][: array.nbytes] = array.reshape(-1).view(np.uint8)
    return flat


def views_of(flat: UInt8[Tensor, " bytes"], arrays: Sequence[np.ndarray]) -> list[Tensor]:
    """What `end_to_end` made one, apart again: of the kinds and the shapes of ``arrays``."""
    return [
        flat[place][: array.nbytes].view(torch.from_numpy(array).dtype).view(array.shape)
        for array, place in zip(arrays, _places(arrays), strict=True)
    ]


def _places(arrays: Sequence[np.ndarray]) -> list[slice]:
    """Each from a multiple of the largest item's size on, as views need it."""
    sizes = [array.nbytes + -array.nbytes % 8 for array in arrays]
    return [slice(end - size, end) for end, size in zip(accumulate(sizes), sizes, strict=True)]
