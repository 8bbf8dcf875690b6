"""The description of a served model."""

import msgspec

from models.cascade import Cascade
from models.offered import OF_ANY_MODEL, REDUCERS_OF_ANY_MODEL
from models.schedule import Architecture, Criterion, Method, Reducer
from models.scores import Scores
from models.transforms import InputSpec

# Indices of kept patches are sent as uint16.
MOST_PATCHES = 2**16


class ModelInfo(msgspec.Struct, frozen=True):
    """What a front end must know of the model to prepare images and read answers.

    ``patch_size`` and ``patch_stride`` are (vertical, horizontal), in pixels. ``device`` and ``dtype`` are
    those of the worker that sends it. ``scores``: how logits become scores. ``features``: the length of a
    feature vector. Without a head, the model has no ``labels``. ``fingerprint``: a digest of the weights, if
    there is an answer cache. ``criteria`` and ``reducers``: those that the model supports.
    """

    name: str
    labels: tuple[str, ...]
    input: InputSpec
    architecture: Architecture
    method: Method
    cascade: Cascade | None
    patch_size: tuple[int, int]
    patch_stride: tuple[int, int]
    device: str
    dtype: str
    scores: Scores = "softmax"
    features: int = 0
    fingerprint: str = ""
    criteria: tuple[Criterion, ...] = OF_ANY_MODEL
    reducers: tuple[Reducer, ...] = REDUCERS_OF_ANY_MODEL

    @property
    def pixel_bytes(self) -> int:
        """The number of bytes of one image's pixels: uint8 [height, width, 3]."""
        height, width = self.input.size
        return height * width * 3

    def serves_as(self, other: "ModelInfo") -> bool:
        """Whether two workers with these models give the same answers: everything except the device is
        equal."""
        return self == msgspec.structs.replace(other, device=self.device)
