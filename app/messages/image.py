"""What is asked of one image, and what came out for it: the same from HTTP or the command line to the network
and back."""

import math
from typing import Annotated, Literal

import msgspec
import numpy as np
from jaxtyping import Float32, UInt16
from msgspec import Meta

from models.schedule import Pruning

# Why a worker has no result for an image.
Fault = Literal["out-of-memory", "worker-fault", "no-number"]
# Why an image was computed at a lower ratio than it asked for.
Lowered = Literal["brown-out", "deadline"]


class Ask(msgspec.Struct, frozen=True, array_like=True):
    """How one image is to be answered.

    ``top_k``: labels, best first. ``kept_patches``, ``logits``, ``features``: whether these are wanted, too.
    With a ``margin`` it is run again unpruned where its first label's probability is no more than that above
    the second one's (see models.cascade). With a ``min_keep_ratio`` the dispatcher may lower the ratio to
    it.
    """

    pruning: Pruning  # checks itself, when it is decoded too
    top_k: Annotated[int, Meta(ge=0)]
    margin: Annotated[float, Meta(ge=0, le=1)] | None = None
    kept_patches: bool = False
    logits: bool = False
    min_keep_ratio: Annotated[float, Meta(gt=0, le=1)] | None = None
    features: bool = False

    def __post_init__(self) -> None:
        if self.margin is not None and self.pruning.keep_mass is not None:
            raise ValueError("a cascade's first run goes by keep_ratio, not by keep_mass")
        if self.min_keep_ratio is None:
            return
        if self.margin is not None or self.pruning.keep_mass is not None:
            raise ValueError("only a keep_ratio can be lowered")
        if self.min_keep_ratio > self.pruning.keep_ratio:
            raise ValueError("min_keep_ratio is above keep_ratio")


class Prediction(msgspec.Struct, frozen=True, array_like=True):
    """What came out for one image.

    ``classes`` and ``scores`` (from 0 to 1) of the top_k labels, best first. ``kept_counts[s]``:
    patches left after stage s. ``keep_ratio``: the ratio that was applied (what a keep_mass came to; 1 where
    the image was run again unpruned). ``compute``: share of the unpruned model's MACs, of all ``runs``, 1 or
    2. ``kept``, ``logits`` and ``features`` are the bytes of `kept_patches`, `all_logits` and
    `feature_vector`.
    """

    classes: list[int]
    scores: list[float]
    kept_counts: tuple[int, ...]
    keep_ratio: float
    compute: float
    runs: int
    kept: tuple[bytes, ...] = ()
    logits: bytes | None = None
    features: bytes | None = None

    @property
    def kept_patches(self) -> tuple[UInt16[np.ndarray, " kept"], ...]:
        """Of each stage, the indices of the patches left after it, ascending, row by row in the patch grid;
        none if they were not asked for. Raises ValueError for bytes that are no such numbers."""
        return tuple(np.frombuffer(stage, "<u2") for stage in self.kept)

    @property
    def all_logits(self) -> Float32[np.ndarray, " classes"] | None:
        """The logits of all classes in their order; None if they were not asked for. Raises ValueError for
        bytes that are no such numbers."""
        return None if self.logits is None else np.frombuffer(self.logits, "<f4")

    @property
    def feature_vector(self) -> Float32[np.ndarray, " features"] | None:
        """What the head reads; None if it was not asked for. Raises ValueError for bytes that are no such
        numbers."""
        return None if self.features is None else np.frombuffer(self.features, "<f4")

    @property
    def is_finite(self) -> bool:
        """Whether all its numbers are: an overflow or a broken device leaves NaN, which is no answer."""
        more = (values for values in (self.all_logits, self.feature_vector) if values is not None)
        return all(map(math.isfinite, self.scores)) and all(np.isfinite(values).all() for values in more)
