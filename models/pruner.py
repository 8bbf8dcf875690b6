"""The stages of one forward pass: its plan, and what of it is on the device."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from timm.models.vision_transformer import Block
from torch import Tensor

from models.blocks import Look, look, prune
from models.plan import Asked, Group, Plan
from models.planning import order_of, plan_of
from models.ragged import Run, Tokens, all_on_device
from models.schedule import Architecture, Criterion, Pruning, Stages
from models.select import Criteria
from models.windows import takes_windows

# Numbers of rows from a power of two to the next (see `ragged.rounded`). On a CPU each costs a kernel that is
# made for it (docs/design/0023); on a GPU the choice of one, and memory of another size.
_ON_A_CPU, _ON_A_GPU = 16, 32


class Pruner:
    """Prunes a batch stage by stage, its images in the order of `planning.order_of`. ``like``: rows of the
    tokens that come to the first stage.

    The device gets all that it has to know of them in one copy; of a batch whose images are alike, nothing.
    Only `keep_mass` is known no sooner than the first stage has been looked at: then it gets a second one.
    """

    def __init__(self, stages: Stages, arch: Architecture, like: Tensor, prunings: Sequence[Pruning]) -> None:
        order = order_of(prunings)
        # Where each image is now.
        self.places: Sequence[int] = sorted(range(len(order)), key=order.__getitem__)
        self._order = order
        prunings = [prunings[image] for image in order]
        self._stages, self._arch, self._prunings = stages, arch, prunings
        self._in_one = in_one(like)
        self._rounding = _ON_A_CPU if takes_windows(like) else _ON_A_GPU if self._in_one else 0
        self._next = 0
        self._plan: Plan | None = None
        self._masses = [image for image, one in enumerate(prunings) if one.keep_mass is not None]
        if not self._masses:
            self._plan = self._plan_for([pruning.keep_ratio for pruning in prunings])
        own = () if self._plan is None else self._plan.tables
        moves = [] if order == sorted(order) else [np.array(order), np.array(self.places)]
        given = all_on_device([*own, *moves, *Criteria.arrays(prunings)], like.device)
        self._tables, given = given[: len(own)], given[len(own) :]
        self._moves, given = given[: len(moves)], given[len(moves) :]
        self._criteria = Criteria.of(prunings, given, arch.patches)

    def ordered(self, tokens: Tokens) -> Tokens:
        """The tokens that come to the first stage, image by image in the order of all that follows."""
        return tokens.of_images(self._order, self._moves[0]) if self._moves else tokens

    def as_asked(self, rows: Float[Tensor, "B _"]) -> Float[Tensor, "B _"]:
        """Back in the order of the prunings."""
        return rows.index_select(0, self._moves[1]) if self._moves else rows

    def first_look(self, block: Block, tokens: Tokens) -> Look:
        """What the first stage, of block ``block``, decides by."""
        whole = Group(Run(0, len(tokens.patches), 0, tokens.packing.lengths[0]), self._arch.patches)
        prefix = self._arch.prefix_tokens
        return look(block, tokens, (whole,), self._criteria, self._stages.rows, prefix, None, ())

    @classmethod
    def planned(
        cls, stages: Stages, arch: Architecture, plan: Plan, tables: Sequence[Tensor], criterion: Criterion
    ) -> "Pruner":
        """For images in the order of a ``plan`` whose ``tables`` are on the device, judged by one criterion
        that draws nothing."""
        pruner = cls.__new__(cls)
        pruner.places = range(len(plan.stages[0].patches))
        pruner._stages, pruner._arch, pruner._plan, pruner._tables = stages, arch, plan, list(tables)
        pruner._moves, pruner._criteria, pruner._next = [], Criteria((criterion,), None, None), 0
        return pruner

    @property
    def prefix_rows(self) -> Tensor | None:
        """The rows of all prefix tokens behind the last stage, where images differ in length and the plan has
        them."""
        if self._plan is None or self._plan.prefix_rows is None:
            return None
        return self._tables[self._plan.prefix_rows]

    def stage(self, block: Block, tokens: Tokens) -> Tokens:
        """The next stage, in block ``block``."""
        seen = None
        if self._plan is None:
            seen = self.first_look(block, tokens)
            self._plan = self._plan_for(self._ratios(seen.values))
            self._tables = all_on_device(self._plan.tables, tokens.rows.device)
        plan, tables = self._plan.stages[self._next], self._tables
        self._next += 1
        prefix = self._arch.prefix_tokens
        tokens = tokens.bounded(None if plan.bounds_before is None else tables[plan.bounds_before])
        if seen is None:
            first_rows = None if plan.first_rows is None else tables[plan.first_rows]
            rows = self._stages.rows
            seen = look(block, tokens, plan.groups, self._criteria, rows, prefix, first_rows, tables)
        return prune(block, tokens, seen, plan, prefix, tables)

    def _plan_for(self, ratios: Sequence[float]) -> Plan:
        return plan_of(
            Asked(
                tuple(ratios),
                tuple(pruning.reducer for pruning in self._prunings),
                self._arch.patches,
                self._arch.prefix_tokens,
                len(self._stages.blocks),
                self._stages.rows,
                self._rounding,
                self._in_one,
            )
        )

    @torch.no_grad()
    def _ratios(self, values: Float[Tensor, "B N"]) -> list[float]:
        """Each image's keep ratio, from what the first stage decides by. The device is asked, once."""
        patches = self._arch.patches
        masses = np.array([self._prunings[image].keep_mass for image in self._masses], np.float64)
        images, wanted = all_on_device([np.array(self._masses), masses], values.device)
        own = values[images].double().clamp(min=0)
        share = own.sort(dim=1, descending=True).values.cumsum(dim=1) / own.sum(dim=1, keepdim=True)
        # Rounding must not ask for a patch more than there is.
        held = (share < wanted.unsqueeze(1) - 1e-9).sum(dim=1).tolist()
        ratios = [pruning.keep_ratio for pruning in self._prunings]
        for image, count in zip(self._masses, held, strict=True):
            ratios[image] = min(count + 1, patches) / patches
        return ratios


def in_one(rows: Tensor) -> bool:
    """Whether images of different lengths are computed side by side in one table, with gaps, rather than run
    by run: on a GPU, where a launch costs more than a gap. Training needs no gradients of gaps."""
    return rows.is_cuda and not torch.is_grad_enabled()
