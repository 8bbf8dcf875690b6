"""What reducers read, and what they give."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int, Shaped
from torch import Tensor

from models.plan import Group, StagePlan
from models.ragged import Tokens
from models.token_pool import TokenPool

# The keys [images, tokens, K] of a group's images as they came to the stage, which `merge` and `transform`
# compare.
KeysOf = Callable[[Group], Tensor]


@dataclass(frozen=True, slots=True)
class Reducible:
    """A batch behind the attention of a stage's block, and what its reducers go by.

    ``sizes`` [tokens]: how many patches each token stands for. ``pool``: the block's, if it has one.
    ``weights``: the attention that patches get, as a mean over heads; only `fuse` reads it. ``weights`` and
    ``values``, the importance, are of the patches before the stage, of which images that do not drop have
    lost none. ``prefix``: tokens of an image that are never pruned. ``tables``: those of the plan, on the
    device.
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
    """Tokens of a whole batch or of some of its images: rows, packed or dense; where each patch stood in its
    image, below 0 for other tokens; and how many patches each stands for."""

    rows: Shaped[Tensor, "*rows D"]
    ids: Int[Tensor, " tokens"]
    sizes: Float[Tensor, " tokens"]
