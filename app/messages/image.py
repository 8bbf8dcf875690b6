"""What is asked of one image, and what a worker finds for it."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from models.schedule import Pruning

# Why a worker has no result for an image.
Fault = Literal["out-of-memory", "engine-fault", "no-number"]
# Why an image was computed at a lower ratio than it asked for.
Lowered = Literal["brown-out", "deadline"]


class Ask(msgspec.Struct, frozen=True, array_like=True):
    """How one image is to be classified.

    With a ``margin`` it is run again unpruned where the first run is unsure: see
    models.classifier.ImageRequest.
    """

    pruning: Pruning  # checks itself, when it is decoded too
    top_k: Annotated[int, Meta(ge=1)]
    margin: Annotated[float, Meta(ge=0, le=1)] | None = None
    kept_patches: bool = False
    logits: bool = False

    def __post_init__(self) -> None:
        if self.margin is not None and self.pruning.keep_mass is not None:
            raise ValueError("a cascade's first run goes by keep_ratio, not by keep_mass")


class Found(msgspec.Struct, frozen=True, array_like=True):
    """A worker's result for one image: see models.classifier.Prediction.

    ``kept``: little-endian uint16 for each stage, if the kept patches were asked for. ``logits``:
    little-endian float32, if they were asked for.
    """

    classes: list[int]
    scores: list[float]
    kept_counts: tuple[int, ...]
    keep_ratio: float
    compute: float
    runs: int
    kept: tuple[bytes, ...] = ()
    logits: bytes | None = None
