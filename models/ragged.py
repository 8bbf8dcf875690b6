"""Batches whose images differ in length: tokens of all images packed as [rows, D], lengths known on the host.

Row-wise layers (norms, linears, MLP) compute all packed rows and do not know about images. Only attention,
pooling and pruning distinguish images. They iterate over runs of neighboring images of one length; each run
is a dense [images, tokens, D] view. A batch of a single length is one run and keeps its dense [B, T, D] shape
(and memory layout), so the dense path is the same code.
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
    """Neighboring images of one length in a batch: ``images`` * ``tokens`` rows, from row ``start`` on."""

    first_image: int
    images: int
    start: int
    tokens: int

    @property
    def of_images(self) -> slice:
        """This run's part of what has one entry per image of the batch."""
        return slice(self.first_image, self.first_image + self.images)

    def dense(self, rows: Shaped[Tensor, "*rows D"]) -> Shaped[Tensor, "images tokens D"]:
        """A view of this run's rows in a batch that is packed or dense."""
        if rows.ndim == 3:
            return rows[self.of_images]
        return rows[self.start : self.start + self.images * self.tokens].view(self.images, self.tokens, -1)


@dataclass(frozen=True)
class Packing:
    """Token counts of the images in packed order.

    ``rows``: if not 0, the batch is always packed and padded to this number of rows, so that few different
    numbers of rows occur (`rounded`). Rows after the images are never read. If 0, there is no padding, and a
    batch of a single length is dense.
    """

    lengths: tuple[int, ...]
    rows: int = 0

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The images grouped by length, in packed order."""
        return tuple(runs_of(self.lengths, self.lengths))

    def pack(self, parts: Sequence[Float[Tensor, "_images _tokens D"]]) -> Float[Tensor, "*rows D"]:
        """Concatenate dense parts, one or several per run, to the rows of the whole batch."""
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
        """Shape the rows of the whole batch: dense if there is only one run and ``rows`` is 0."""
        return flat if self.rows or len(self.runs) > 1 else self.runs[0].dense(flat)

    def map_runs(
        self, module: Callable[[Tensor], Tensor], rows: Float[Tensor, "*rows D"]
    ) -> Float[Tensor, "*rows D"]:
        """Apply a module to the dense view of each run."""
        return self.pack([module(run.dense(rows)) for run in self.runs])

    def runs_beside(self, other: "Packing") -> Iterator[tuple[Run, Run]]:
        """Pairs of runs of the same images, here and in ``other``, whose images have one length in both."""
        if other is self:
            return ((run, run) for run in self.runs)
        mine = runs_of(self.lengths, other.lengths)
        theirs = runs_of(other.lengths, self.lengths)
        return zip(mine, theirs, strict=True)

    def select(
        self, rows: Float[Tensor, "*rows D"], index: Int[Tensor, " kept"], kept_packing: "Packing"
    ) -> Float[Tensor, "*kept_rows D"]:
        """The rows at the flat ``index``, shaped for ``kept_packing``. ``index`` may include the padding of
        ``kept_packing``; otherwise it is padded with row 0."""
        if kept_packing.padding and len(index) < kept_packing.rows:
            index = torch.nn.functional.pad(index, (0, kept_packing.padding))  # repeats row 0
        return kept_packing.shaped(rows.flatten(0, -2).index_select(0, index))

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The flat index of each image's first row."""
        return (0, *accumulate(self.lengths[:-1]))

    @cached_property
    def longest(self) -> int:
        """The number of tokens of the longest image."""
        return max(self.lengths)


# The rotary embedding of queries and keys: sines, then cosines. The sizes of blocks and heads are 1 if all
# share it. Place 0 is for tokens other than patches, which are not rotated; place n + 1 is for patch n.
Rotations = Float[Tensor, "blocks places heads sin_cos"]


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a batch between two blocks.

    ``rows``: packed or dense (see `Packing`). The rows of image b are its prefix tokens, its ``patches[b]``
    patches in their order, and its fused tokens.
    ``ids`` [tokens]: the index of each patch in its image's grid, negative for other tokens.
    ``sizes`` [tokens]: the number of patches that each token represents, 1 for prefix tokens; None until
    patches have been fused, merged, pooled or transformed.
    ``bias`` [tokens]: added to the attention logits of each token as a key; None until patches have been
    merged, pooled or transformed.
    These three may include the padding rows. In training by `life`, ``sizes`` and ``bias`` are the weights of
    fading patches and their logarithms.
    ``bounds`` [B + 1]: the first row of each image, then the total number of rows (int32); None before the
    first stage, and in batches whose images are all alike.
    ``rotations``: None unless positions are rotary.
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
        """A copy with other rows. (`dataclasses.replace` would take as long as some tensor operations.)"""
        sizes, bias = self.sizes, self.bias
        return Tokens(rows, self.packing, self.patches, self.ids, sizes, bias, self.bounds, self.rotations)

    def bounded(self, bounds: Tensor | None) -> "Tokens":
        """A copy with these ``bounds``."""
        if bounds is self.bounds:
            return self
        sizes, bias = self.sizes, self.bias
        return Tokens(self.rows, self.packing, self.patches, self.ids, sizes, bias, bounds, self.rotations)

    def of_images(self, images: Sequence[int], index: Int[Tensor, " images"] | None = None) -> "Tokens":
        """Select ``images``, in this order, from unpruned tokens. ``index``: ``images`` as a tensor on the
        device, if there is one already."""
        assert len(self.packing.runs) == 1
        lengths = tuple(self.packing.lengths[image] for image in images)
        return Tokens(
            self.rows.index_select(0, on_device(images, self.rows.device) if index is None else index),
            replace(self.packing, lengths=lengths),
            tuple(self.patches[image] for image in images),
            self.ids[: sum(lengths)],  # all images have the same ids
            rotations=self.rotations,
        )

    def selected(self, numbers: Int[Tensor, " kept"], packing: Packing, patches: tuple[int, ...]) -> "Tokens":
        """Select the tokens with these flat ``numbers``. ``patches``: the patches left in each image."""
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
        """The rotary embedding of the queries and keys in a block, for each row."""
        return None if self.rotations is None else self.by_place(self.rotations[block % len(self.rotations)])

    def by_place(self, table: Shaped[Tensor, "places *values"]) -> Shaped[Tensor, "rows *values"]:
        """Look up the place of each row in a table (see `Rotations`)."""
        places = (self.ids + 1).clamp(min=0)
        if len(places) < self.packing.rows:
            places = torch.nn.functional.pad(places, (0, self.packing.rows - len(places)))
        return table.index_select(0, places)


def rounded(rows: int, parts: int = 16) -> int:
    """Round up to one of the few numbers of rows that packed batches have: multiples of 4 up to 256, then
    ``parts`` steps per power of two. ``parts`` is a power of two up to 64."""
    step = 4 if rows <= 256 else (1 << rows.bit_length() - 1) // parts
    return rows + -rows % step


def runs_of(lengths: Sequence[int], keys: Sequence[object]) -> Iterator[Run]:
    """The runs of neighbouring images with the same length and the same key, in order."""
    image = start = 0
    for (length, _), members in groupby(zip(lengths, keys, strict=True)):
        images = len(list(members))
        yield Run(image, images, start, length)
        image += images
        start += images * length


def on_device(values: Sequence[int] | np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Copy numbers from the host to the device (ints become int64), asynchronously to a GPU.

    This is the only way that numbers get from the host to a device. A CUDA graph must not contain this copy:
    every replay would read pinned memory that has been freed.
    """
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else torch.as_tensor(values)
    if device.type != "cuda":
        return tensor
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("numbers of the host cannot be part of a CUDA graph")
    return tensor.pin_memory().to(device, non_blocking=True)


def into_device(values: np.ndarray, target: Tensor) -> None:
    """Like `on_device`, into an existing tensor."""
    tensor = torch.from_numpy(values)
    pinned = tensor.pin_memory() if target.is_cuda else tensor
    target.copy_(pinned, non_blocking=True)


def all_on_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Like `on_device`, for several arrays with a single copy."""
    if device.type != "cuda" or not arrays:
        return [torch.from_numpy(array) for array in arrays]
    return views_of(on_device(end_to_end(arrays), device), arrays)


def end_to_end(arrays: Sequence[np.ndarray]) -> UInt8[np.ndarray, " bytes"]:
    """Concatenate arrays of any dtypes and shapes as bytes, aligned to 8 bytes."""
    flat = np.zeros(_places(arrays)[-1].stop, np.uint8)
    for array, place in zip(arrays, _places(arrays), strict=True):
        flat[place][: array.nbytes] = array.reshape(-1).view(np.uint8)
    return flat


def views_of(flat: UInt8[Tensor, " bytes"], arrays: Sequence[np.ndarray]) -> list[Tensor]:
    """Views of a result of `end_to_end`, with the dtypes and shapes of ``arrays``."""
    return [
        flat[place][: array.nbytes].view(torch.from_numpy(array).dtype).view(array.shape)
        for array, place in zip(arrays, _places(arrays), strict=True)
    ]


def _places(arrays: Sequence[np.ndarray]) -> list[slice]:
    """The bytes of each array. They start at multiples of 8, the largest item size, as views require."""
    sizes = [array.nbytes + -array.nbytes % 8 for array in arrays]
    return [slice(end - size, end) for end, size in zip(accumulate(sizes), sizes, strict=True)]
