"""A CUDA graph on the CPU."""

from collections.abc import Callable

import torch

from models.ragged_graphs import Tables


class FakeCapture:
    """Computes anew, from and into the same memory, when it is replayed. ``shapes``, ``replayed``: those of
    the logits, in the order in which they were captured and replayed."""

    def __init__(self, fails: bool = False) -> None:
        self.captures = self.replays = 0
        self.shapes: list[tuple[int, ...]] = []
        self.replayed: list[tuple[int, ...]] = []
        self._fails = fails

    def __call__(self, forward: Callable[[], Tables]) -> tuple[Callable[[], None], Tables]:
        self.captures += 1
        if self._fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        tables = tuple(torch.full_like(table, -1) for table in forward())
        self.shapes.append(tuple(tables[0].shape))

        def replay() -> None:
            self.replays += 1
            self.replayed.append(tuple(tables[0].shape))
            for table, new in zip(tables, forward(), strict=True):
                table.copy_(new)

        return replay, tables
