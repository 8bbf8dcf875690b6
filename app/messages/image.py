"""The request for one image and its prediction, the same from HTTP or the command line to the network and
back."""

import math
from typing import Annotated, Literal

import msgspec
import numpy as np
from jaxtyping import Float32, UInt16
from msgspec import Meta

from models.schedule import Pruning

# Why a worker has no result for an image.
Fault = Literal["out-of-memory", "worker-fault", "no-number"]
# Why an image was computed at a lower ratio than requested.
Lowered = Literal["brown-out", "deadline"]


class Ask(msgspec.Struct, frozen=True, array_like=True):
    """The request for one image.

    ``top_k``: the number of labels, best first. ``kept_patches``, ``logits``, ``features``: whether these are
    requested, too. With a ``margin``, the image is computed again without pruning if the probability of its
    first label is at most that much above that of the second one (see models.cascade). With a
    ``min_keep_ratio``, the dispatcher may lower the ratio to it.
    """

    pruning: Pruning  # validates itself, also after decoding
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
    """The prediction for one image.

    ``classes`` and ``scores`` (from 0 to 1) of the top_k labels, best first. ``kept_counts[s]``: patches left
    after stage s. ``keep_ratio``: the applied ratio (with keep_mass, the resulting ratio; 1 if the image was
    computed again without pruning). ``compute``: the share of the unpruned model's MACs, over all ``runs``, 1
    or 2. ``kept``, ``logits`` and ``features`` are the bytes of `kept_patches`, `all_logits` and
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
        """For each stage, the indices of the patches left after it, ascending, row by row in the patch grid.
        Empty if they were not requested. Raises ValueError for invalid bytes."""
        return tuple(np.frombuffer(stage, "<u2") for stage in self.kept)

    @property
    def all_logits(self) -> Float32[np.ndarray, " classes"] | None:
        """The logits of all classes in their order. None if they were not requested. Raises ValueError for
        invalid bytes."""
        return None if self.logits is None else np.frombuffer(self.logits, "<f4")

    @property
    def feature_vector(self) -> Float32[np.ndarray, " features"] | None:
        """The vector that the head reads. None if it was not requested. Raises ValueError for invalid
        bytes."""
        return None if self.features is None else np.frombuffer(self.features, "<f4")

    @property
    def is_finite(self) -> bool:
        """Whether all its numbers are finite: an overflow or a broken device leaves NaN, which is not an
        answer."""
        more = (values for values in (self.all_logits, self.feature_vector) if values is not None)
        return all(map(math.isfinite, self.scores)) and all(np.isfinite(values).all() for values in more)
