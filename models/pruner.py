"""Runs the stages of one forward pass: holds its plan and the plan's tables on the device."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from models.blocks import Blocks
from models.head import pooled_of
from models.plan import Asked, Group, Plan
from models.planning import order_of, plan_of
from models.ragged import Run, Tokens, all_on_device
from models.schedule import Criterion, Pruning, Stages
from models.select import Criteria
from models.stage import Look, Stage

# Steps per power of two to which rows are rounded up (see `ragged.rounded`): on a GPU, each number of rows
# costs the selection of a kernel and an allocation of another size.
_ON_A_GPU = 32


class Pruner:
    """Prunes a batch stage by stage, with its images in the order of `planning.order_of`.

    ``like``: the rows of the first stage's tokens, for their device. ``lives``: the life predictor's output,
    in the order of ``prunings``, if an image is pruned by `life`.

    All tables are copied to the device together; a batch whose images are alike needs none. With `keep_mass`,
    the lengths depend on the importance at the first stage, which takes one copy back to the host and a
    second copy to the device.
    """

    def __init__(
        self,
        blocks: Blocks,
        stages: Stages,
        like: Tensor,
        prunings: Sequence[Pruning],
        lives: Float[Tensor, "B patches"] | None = None,
    ) -> None:
        order = order_of(prunings)
        # The position of each image in the new order.
        self.places: Sequence[int] = sorted(range(len(order)), key=order.__getitem__)
        self._order = order
        prunings = [stages.allowing(prunings[image]) for image in order]
        self.blocks, self._stages, self._prunings = blocks, stages, prunings
        self._arch, self._in_one = blocks.family.architecture, in_one(like)
        self._next = 0
        self._plan: Plan | None = None
        self._by_mass = [image for image, one in enumerate(prunings) if one.keep_mass is not None]
        masses: list[np.ndarray] = []
        if self._by_mass:
            wanted = np.array([prunings[image].keep_mass for image in self._by_mass], np.float64)
            masses = [np.array(self._by_mass), wanted]
        else:
            self._plan = self._plan_for([pruning.keep_ratio for pruning in prunings])
        own = () if self._plan is None else self._plan.tables
        moves = [] if order == sorted(order) else [np.array(order), np.array(self.places)]
        parts = (own, moves, masses, Criteria.arrays(prunings))
        given = iter(all_on_device([array for part in parts for array in part], like.device))
        self._tables, self._moves, self._masses, criteria = ([next(given) for _ in part] for part in parts)
        if lives is not None and self._moves:
            lives = lives.index_select(0, self._moves[0])
        self._criteria = Criteria.of(prunings, criteria, self._arch.patches, lives)
        self._fuses = any(pruning.reducer == "fuse" for pruning in prunings)

    def ordered(self, tokens: Tokens) -> Tokens:
        """Put the images of the first stage's tokens into the pruner's order."""
        return tokens.of_images(self._order, self._moves[0]) if self._moves else tokens

    def as_asked(self, rows: Float[Tensor, "B _"]) -> Float[Tensor, "B _"]:
        """Put rows [images, ...] back into the order of the prunings."""
        return rows.index_select(0, self._moves[1]) if self._moves else rows

    def first_look(self, tokens: Tokens) -> Look:
        """Compute what the first stage decides by."""
        whole = Group(Run(0, len(tokens.patches), 0, tokens.packing.lengths[0]), self._arch.patches)
        return self._stage(self._stages.blocks[0]).look(tokens, (whole,), None)

    @classmethod
    def planned(
        cls,
        blocks: Blocks,
        stages: Stages,
        plan: Plan,
        tables: Sequence[Tensor],
        criterion: Criterion,
        lives: Float[Tensor, "B patches"] | None = None,
    ) -> "Pruner":
        """A pruner for a given ``plan`` whose ``tables`` are on the device, without reordering images.

        ``criterion``: any criterion except `random`, for all images. ``lives``: for the criterion `life`.
        """
        pruner = cls.__new__(cls)
        pruner.places = range(len(plan.stages[0].patches))
        pruner.blocks, pruner._stages, pruner._arch = blocks, stages, blocks.family.architecture
        pruner._plan, pruner._tables, pruner._moves = plan, list(tables), []
        given: dict[Criterion, Tensor] = {} if lives is None else {"life": lives}
        pruner._criteria, pruner._next = Criteria((criterion,), None, given), 0
        pruner._fuses = False
        return pruner

    def stage(self, index: int, tokens: Tokens) -> Tokens:
        """Compute the next stage, which is block ``index``."""
        seen = None
        if self._plan is None:
            seen = self.first_look(tokens)
            self._plan = self._plan_for(self._ratios(seen.values))
            self._tables = all_on_device(self._plan.tables, tokens.rows.device)
        plan, tables = self._plan.stages[self._next], self._tables
        self._next += 1
        tokens = tokens.bounded(None if plan.bounds_before is None else tables[plan.bounds_before])
        stage = self._stage(index)
        if seen is None:
            first_rows = None if plan.first_rows is None else tables[plan.first_rows]
            seen = stage.look(tokens, plan.groups, first_rows)
        return stage.prune(tokens, seen, plan)

    def pooled(self, tokens: Tokens) -> Float[Tensor, "B pooled"]:
        """The input of the head, from the tokens after the last block, in the order of the prunings."""
        assert self._plan is not None
        return self.as_asked(pooled_of(self.blocks.family, tokens, self._plan.end, self._tables))

    def _stage(self, index: int) -> Stage:
        prefix = self._arch.prefix_tokens
        return Stage(self.blocks, index, self._criteria, self._stages.rows, self._fuses, prefix, self._tables)

    def _plan_for(self, ratios: Sequence[float]) -> Plan:
        return plan_of(
            Asked(
                tuple(ratios),
                tuple(pruning.reducer for pruning in self._prunings),
                self._arch.patches,
                self._arch.prefix_tokens,
                len(self._stages.blocks),
                self._stages.rows,
                self.blocks.family.pools_patches,
                self.blocks.way.rounding or (_ON_A_GPU if self._in_one else 0),
                self._in_one,
                self._stages.evenly,
            )
        )

    @torch.no_grad()
    def _ratios(self, values: Float[Tensor, "B N"]) -> list[float]:
        """The keep ratio of each image, from the importance ``values`` at the first stage. Waits for the
        device once."""
        patches = self._arch.patches
        images, wanted = self._masses
        own = values[images].double().clamp(min=0)
        total = own.sum(dim=1, keepdim=True)
        share = own.sort(dim=1, descending=True).values.cumsum(dim=1) / total
        # The tolerance keeps rounding from requiring one more patch than there is.
        below = (share < wanted.unsqueeze(1) - 1e-9) | ~(total > 0)  # no importance at all: keep everything
        ratios = [pruning.keep_ratio for pruning in self._prunings]
        for image, count in zip(self._by_mass, below.sum(dim=1).tolist(), strict=True):
            ratios[image] = min(count + 1, patches) / patches
        return ratios


def in_one(rows: Tensor) -> bool:
    """Whether to compute images of different lengths side by side in one table with gaps, instead of run by
    run. True on a GPU without gradients, where a kernel launch costs more than computing gaps."""
    return rows.is_cuda and not torch.is_grad_enabled()
