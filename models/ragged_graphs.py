"""CUDA graphs of ragged batches: one for each of a few budgets of images and rows (budget.py).

They are captured when a thread warms up, largest first and in one memory pool, so that smaller graphs reuse
the memory of larger ones. A batch uses the smallest graph that it fits into: its pixels and the tables of its
plan are copied into the graph's memory, and one launch computes it. Batches that fit into none are left to
the model.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from models.attend.varlen import Varlen
from models.budget import Budget, budgets, kept_of, plan_within
from models.kept import Kept
from models.pruned_vit import Output, PrunedViT
from models.pruner import Pruner
from models.ragged import end_to_end, into_device, on_device, views_of
from models.schedule import Criterion, Pruning

log = logging.getLogger(__name__)

# The outputs of a graph: logits, input of the head, and `Kept.ids`.
Tables = tuple[Tensor, ...]
Capture = Callable[[Callable[[], Tables]], tuple[Callable[[], None], Tables]]

# The keep ratios of a batch that fits into every budget: one image that keeps a single patch.
_LEAST = (1e-6,)


@dataclass(frozen=True, slots=True)
class _Graph:
    """A captured graph. ``replay`` computes ``found`` (see `Tables`) from the content of ``pixels`` and
    ``tables`` (see `end_to_end`). ``starts`` [stages]: the index of each stage's first patch in
    `Kept.ids`."""

    budget: Budget
    pixels: Tensor
    tables: Tensor
    found: Tables
    starts: Int[np.ndarray, " stages"]
    replay: Callable[[], None]


class RaggedGraphs:
    """A thread's graphs for images with the reducer `drop` that are all pruned by ``criterion``. In inference
    mode only."""

    def __init__(self, model: PrunedViT, criterion: Criterion, capture: Capture) -> None:
        self._model, self._criterion, self._capture = model, criterion, capture
        self._graphs: list[_Graph] = []  # smallest first

    def warm_up(self, like: Float[Tensor, "_ C height width"]) -> None:
        """Capture the graphs, for images like ``like``.

        Captures none if the batches of a budget would not all run the same kernels, and stops at the first
        capture that fails.
        """
        if not self._possible(like):
            return
        for budget in budgets(self._model.arch, self._model.stages):
            try:
                self._graphs.insert(0, self._captured(budget, like))
            except RuntimeError:
                log.exception("cannot capture a CUDA graph of %s or smaller, computing them eagerly", budget)
                return

    def compute(
        self, pixels: Float[Tensor, "B C height width"], prunings: Sequence[Pruning]
    ) -> Output | None:
        """Compute the model's output; None if the batch fits into no graph."""
        if not self._graphs or any(map(self._is_other, prunings)):
            return None
        arch, stages = self._model.arch, self._model.stages
        ratios = tuple(pruning.keep_ratio for pruning in prunings)
        kept = kept_of(ratios, arch, stages)
        graph = next((one for one in self._graphs if one.budget.holds(kept, arch.prefix_tokens)), None)
        if graph is None:
            return None
        # The other images are from an earlier batch and end at the first stage. Images do not affect each
        # other.
        graph.pixels[: len(ratios)].copy_(pixels)
        into_device(end_to_end(plan_within(graph.budget, ratios, arch, stages).tables), graph.tables)
        graph.replay()
        logits, pooled, ids = (table.clone() for table in graph.found)
        lengths = arch.prefix_tokens + kept
        starts = graph.starts + lengths.cumsum(axis=0) - lengths
        images = len(ratios)
        return Output(logits[:images], Kept(ids, starts.T, kept.T), pooled[:images])

    def _possible(self, like: Tensor) -> bool:
        """Whether all batches of a budget run the same kernels: the head reads prefix tokens only, attention
        is a single call, and the criterion is not `random`."""
        family = self._model.family
        return (
            bool(self._model.stages.blocks)
            and self._criterion != "random"
            and not family.pools_patches
            and isinstance(self._model.blocks_for(like).way, Varlen)
        )

    def _is_other(self, pruning: Pruning) -> bool:
        return (
            pruning.keep_mass is not None or pruning.reducer != "drop" or pruning.criterion != self._criterion
        )

    def _captured(self, budget: Budget, like: Tensor) -> _Graph:
        model = self._model
        plan = plan_within(budget, _LEAST, model.arch, model.stages)
        flat = on_device(end_to_end(plan.tables), like.device)
        tables = views_of(flat, plan.tables)
        pixels = like.new_zeros((budget.images, *like.shape[1:]))

        starts: list[np.ndarray] = []

        def forward() -> Tables:
            tokens = model.begin(pixels)
            lives = model.lives_for(tokens, [self._criterion])
            pruner = Pruner.planned(
                model.blocks_for(tokens.rows), model.stages, plan, tables, self._criterion, lives
            )
            output = model.finish_by(pruner, tokens)
            starts[:] = [output.kept.starts[:, 0]]
            return output.logits, output.pooled, output.kept.ids

        replay, found = self._capture(forward)
        return _Graph(budget, pixels, flat, found, starts[0], replay)
