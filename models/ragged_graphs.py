"""CUDA graphs of ragged batches: one for each of a few budgets of images and rows (budget.py).

They are captured when a thread warms up, the largest first, in one memory pool, so that the smaller ones use
its memory again. A batch takes the first that it fits into, from the smallest on: its pixels and the tables
of its plan are copied into the graph's memory, and one launch computes it. What fits into none is left to the
model.
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

# What a graph gives: the logits, what the head read, and what is left behind the stages.
Tables = tuple[Tensor, ...]
Capture = Callable[[Callable[[], Tables]], tuple[Callable[[], None], Tables]]

# Of a batch that fits into every budget: one image, of which next to nothing is kept.
_LEAST = (1e-6,)


@dataclass(frozen=True, slots=True)
class _Graph:
    """``replay`` computes ``found``, the logits, what the head read and what `Kept.ids` holds, from what is
    in ``pixels`` and ``tables`` (end to end). ``starts`` [stages]: where in `Kept.ids` each stage's first
    patch is."""

    budget: Budget
    pixels: Tensor
    tables: Tensor
    found: Tables
    starts: Int[np.ndarray, " stages"]
    replay: Callable[[], None]


class RaggedGraphs:
    """A thread's graphs, of images that drop their patches and are all judged by ``criterion``. In inference
    mode only."""

    def __init__(self, model: PrunedViT, criterion: Criterion, capture: Capture) -> None:
        self._model, self._criterion, self._capture = model, criterion, capture
        self._graphs: list[_Graph] = []  # the smallest first

    def warm_up(self, like: Float[Tensor, "_ C height width"]) -> None:
        """Capture them, for pixels ``like`` these: none where one list of kernels would not do for every
        batch, and after one that fails no smaller one."""
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
        """As the model; None for a batch that fits into no graph."""
        if not self._graphs or any(map(self._is_other, prunings)):
            return None
        arch, stages = self._model.arch, self._model.stages
        ratios = tuple(pruning.keep_ratio for pruning in prunings)
        kept = kept_of(ratios, arch, stages)
        graph = next((one for one in self._graphs if one.budget.holds(kept, arch.prefix_tokens)), None)
        if graph is None:
            return None
        # Other images are those of an earlier batch, and end at the first stage. No image sees another.
        graph.pixels[: len(ratios)].copy_(pixels)
        into_device(end_to_end(plan_within(graph.budget, ratios, arch, stages).tables), graph.tables)
        graph.replay()
        logits, pooled, ids = (table.clone() for table in graph.found)
        lengths = arch.prefix_tokens + kept
        starts = graph.starts + lengths.cumsum(axis=0) - lengths
        images = len(ratios)
        return Output(logits[:images], Kept(ids, starts.T, kept.T), pooled[:images])

    def _possible(self, like: Tensor) -> bool:
        """Where the head reads prefix tokens only, attention is one call, and what decides draws nothing."""
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
