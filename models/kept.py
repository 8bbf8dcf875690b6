"""The patches that the images of a batch keep at each stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from models.ragged import Tokens


@dataclass(frozen=True, slots=True, eq=False)
class Kept(Sequence[tuple[Tensor, ...]]):
    """``kept[s][b]``: the patches of image b left after stage s, as ascending row-major indices in the patch
    grid. With `merge`, these are the patches that others were merged into; with `pool`, the positions of the
    queries; with `transform`, the patches that the tokens started from.

    The indices are ``ids[start : start + count]`` with ``starts[s, b]`` and ``counts[s, b]``. The counts are
    on the host; ``ids`` is one tensor on the device.
    """

    ids: Int[Tensor, " _"]
    starts: Int[np.ndarray, "stages B"]
    counts: Int[np.ndarray, "stages B"]

    @staticmethod
    def of(stages: Sequence[Tokens], prefix: int, places: Sequence[int]) -> "Kept":
        """``stages``: the tokens after each stage. ``places[b]``: the position of image b in these tokens."""
        parts: list[Tensor] = []
        starts = np.empty((len(stages), len(places)), np.int64)
        counts = np.empty_like(starts)
        order = np.asarray(places, np.int64)
        ends = 0
        for stage, tokens in enumerate(stages):
            if not parts or tokens.ids is not parts[-1]:  # if nothing is pruned, all stages share them
                parts.append(tokens.ids)
                ends += len(tokens.ids)
            starts[stage] = np.asarray(tokens.packing.starts)[order] + (ends - len(tokens.ids) + prefix)
            counts[stage] = np.asarray(tokens.patches)[order]
        if not parts:
            return Kept(torch.empty(0, dtype=torch.int64), starts, counts)
        return Kept(torch.cat(parts) if len(parts) > 1 else parts[0], starts, counts)

    def __len__(self) -> int:
        return len(self.counts)

    @overload
    def __getitem__(self, stage: int) -> tuple[Tensor, ...]: ...
    @overload
    def __getitem__(self, stage: slice) -> list[tuple[Tensor, ...]]: ...
    def __getitem__(self, stage: int | slice) -> "tuple[Tensor, ...] | list[tuple[Tensor, ...]]":
        if isinstance(stage, slice):
            return [self[one] for one in range(*stage.indices(len(self)))]
        return tuple(
            self.ids[start : start + count]
            for start, count in zip(self.starts[stage].tolist(), self.counts[stage].tolist(), strict=True)
        )

    def replaced(self, images: Sequence[int], other: "Kept") -> "Kept":
        """A copy in which ``images`` keep the patches of the images of ``other``, in this order."""
        starts, counts = self.starts.copy(), self.counts.copy()
        starts[:, images] = other.starts + len(self.ids)
        counts[:, images] = other.counts
        return Kept(torch.cat((self.ids, other.ids)), starts, counts)

    def on_host(self) -> list[tuple[Int[np.ndarray, " _"], ...]]:
        """The kept patches as ``[b][s]``, with a single copy to the host."""
        ids = self.ids.cpu().numpy()
        return [
            tuple(
                ids[start : start + count]
                for start, count in zip(self.starts[:, image], self.counts[:, image], strict=True)
            )
            for image in range(self.counts.shape[1])
        ]
