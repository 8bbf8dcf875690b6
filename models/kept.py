"""The remaining patches of the images of a batch."""

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
    """``kept[s][b]``: ascending indices, row by row in the patch grid of image b, of the patches left after
    stage s (with `merge`, of the ones that the others went into; with `pool`, the places of the queries; with
    `transform`, of the ones that its tokens started from).

    They are ``counts[s, b]`` of the numbers in ``ids``, from ``starts[s, b]`` on. The host knows the counts;
    ``ids`` is one tensor on the device.
    """

    ids: Int[Tensor, " _"]
    starts: Int[np.ndarray, "stages B"]
    counts: Int[np.ndarray, "stages B"]

    @staticmethod
    def of(stages: Sequence[Tokens], prefix: int, places: Sequence[int]) -> "Kept":
        """``stages``: the tokens after each stage; ``places[b]``: which of their images is image b."""
        parts: list[Tensor] = []
        starts = np.empty((len(stages), len(places)), np.int64)
        counts = np.empty_like(starts)
        order = np.asarray(places, np.int64)
        ends = 0
        for stage, tokens in enumerate(stages):
            if not parts or tokens.ids is not parts[-1]:  # if nothing is pruned, all stages have the same
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
        """The same, but for these ``images``, which keep what the images of ``other`` do, in their order."""
        starts, counts = self.starts.copy(), self.counts.copy()
        starts[:, images] = other.starts + len(self.ids)
        counts[:, images] = other.counts
        return Kept(torch.cat((self.ids, other.ids)), starts, counts)

    def on_host(self) -> list[tuple[Int[np.ndarray, " _"], ...]]:
        """For each image what it keeps after each stage, by one copy for all."""
        ids = self.ids.cpu().numpy()
        return [
            tuple(
                ids[start : start + count]
                for start, count in zip(self.starts[:, image], self.counts[:, image], strict=True)
            )
            for image in range(self.counts.shape[1])
        ]
