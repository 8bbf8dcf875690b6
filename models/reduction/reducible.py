"""The input and the output of reducers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int, Shaped
from torch import Tensor

from models.plan import Group, StagePlan
from models.ragged import Tokens
from models.token_pool import TokenPool

# Returns the keys [images, tokens, K] of a group's images before the stage, which `merge` and `transform`
# compare.
KeysOf = Callable[[Group], Tensor]


@dataclass(frozen=True, slots=True)
class Reducible:
    """A batch after the attention of a stage's block, and the other inputs of its reducers.

    ``sizes`` [tokens]: the number of patches that each token represents. ``keys``: see `KeysOf`. ``pool``:
    the block's `TokenPool`, if it has one. ``weights``: the attention that patches receive, averaged over
    heads; only `fuse` reads it. ``values``: the importance of the patches. ``weights`` and ``values`` are for
    the patches before the stage, all of which are still there in images that do not drop. ``stage``: the plan
    of the stage. ``prefix``: the number of prefix tokens, which are never pruned. ``tables``: the plan's
    tables on the device.
    """

    tokens: Tokens
    sizes: Float[Tensor, " tokens"]
    keys: KeysOf
    pool: TokenPool | None
    weights: Float[Tensor, "B N"]
    values: Float[Tensor, "B N"]
    stage: StagePlan
    prefix: int
    tables: Sequence[Tensor]


@dataclass(frozen=True, slots=True)
class Reduced:
    """The tokens of a batch or of some of its images.

    ``rows``: packed or dense. ``ids``: the position of each patch in its image's grid, negative for other
    tokens. ``sizes``: the number of patches that each token represents.
    """

    rows: Shaped[Tensor, "*rows D"]
    ids: Int[Tensor, " tokens"]
    sizes: Float[Tensor, " tokens"]
