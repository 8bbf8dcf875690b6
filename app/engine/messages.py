"""What a front end and an engine say to each other: msgpack frames over ZeroMQ, never pickle.

A message is one encoded structure, followed by raw frames where it says so. Times are durations, so that
neither side trusts the other's clock.
"""

import math
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from app.priority import Priority as Priority
from models.cascade import Cascade
from models.schedule import Architecture, Method, Pruning
from models.transforms import InputSpec

RefusalReason = Literal[
    "not-ready",
    "queue-full",
    "deadline-unmeetable",
    "deadline-passed",
    "out-of-memory",
    "engine-fault",
    "no-number",
]
# Why an image was computed at a lower ratio than it asked for.
Lowered = Literal["brown-out", "deadline"]


# The numbers of kept patches are told as uint16.
MOST_PATCHES = 2**16


class ModelInfo(msgspec.Struct, frozen=True):
    """What a front end must know of the model to prepare images and read answers.

    ``patch_size`` and ``patch_stride`` are (vertical, horizontal), in pixels.
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


# --- from the front end ------------------------------------------------------------------------------
class Submit(msgspec.Struct, frozen=True, tag=True):
    """Classify one image. Followed by one frame: its uint8 pixels [height, width, 3].

    With a ``margin`` it is run again unpruned where it is unsure: see models.classifier.ImageRequest.
    With a ``min_keep_ratio`` the engine may lower the ratio to it. ``caller`` is whose share of the engine it
    takes. ``own_deadline``: the deadline was asked for, and is not the server's default. ``suspect``: an
    engine died computing it, so that it is to be computed alone.
    """

    id: int
    pruning: Pruning  # checks itself, when it is decoded too
    margin: Annotated[float, Meta(ge=0, le=1)] | None
    top_k: Annotated[int, Meta(ge=1)]
    kept_patches: bool
    deadline_s: float
    logits: bool = False
    own_deadline: bool = False
    min_keep_ratio: Annotated[float, Meta(gt=0, le=1)] | None = None
    caller: str = ""
    priority: Priority = "normal"
    suspect: bool = False

    def __post_init__(self) -> None:
        if math.isnan(self.deadline_s):
            raise ValueError("a deadline must be a number")
        if self.margin is not None and self.pruning.keep_mass is not None:
            raise ValueError("a cascade's first run goes by keep_ratio, not by keep_mass")
        if self.min_keep_ratio is None:
            return
        if self.margin is not None or self.pruning.keep_mass is not None:
            raise ValueError("only a keep_ratio can be lowered")
        if self.min_keep_ratio > self.pruning.keep_ratio:
            raise ValueError("min_keep_ratio is above keep_ratio")


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Nobody waits for this image any more."""

    id: int


class Ping(msgspec.Struct, frozen=True, tag=True):
    """Asks for a Status."""


# --- from the engine ---------------------------------------------------------------------------------
class Status(msgspec.Struct, frozen=True, tag=True):
    """How the engine is. ``incarnation`` differs after every start of the process; ``model`` is there once
    it is loaded and warmed up."""

    incarnation: str
    model: ModelInfo | None
    waiting_tokens: int


class Terms(msgspec.Struct, frozen=True):
    """What an image must leave of its deadline, beside its wait (app.engine.spare): a batch takes
    ``overhead_s``, and for each image in it ``image_s`` and, times its share of compute, ``compute_s``; a
    lone image on an idle engine in the same way ``alone_s`` and ``alone_compute_s``. A full batch holds
    ``batch_compute`` unpruned images; predictions hold with ``caution``."""

    overhead_s: float = 0.0
    image_s: float = 0.0
    compute_s: float = 0.0
    alone_s: float = 0.0
    alone_compute_s: float = 0.0
    batch_compute: float = 1.0
    caution: float = 1.0


class Load(msgspec.Struct, frozen=True, tag=True):
    """How long an image would wait, as predicted, with all lowered that allow it; so that a front end need
    not decode what has no chance.

    ``wait_s`` holds for callers who have little waiting, by priority; ``callers`` are those with the most, a
    caller's wait in one priority each. ``image_s`` is by how much one unpruned image prolongs the wait.
    ``seen`` is the last Submit of the front end that all this counts. ``idle``: nothing waits and nothing
    runs; ``running_s`` is the part of every wait that what is being computed takes. ``terms``: see there.
    """

    wait_s: dict[Priority, float]
    callers: tuple[tuple[str, Priority, float], ...]
    image_s: float
    seen: int
    idle: bool = False
    running_s: float = 0.0
    terms: Terms = Terms()


class Answer(msgspec.Struct, frozen=True, tag=True):
    """One classified image: see models.classifier.Prediction. Followed by a frame per stage with the kept
    patches as little-endian uint16, if they were asked for, and by one with the logits as little-endian
    float32, if they were. ``lowered``: why its ratio is below the asked one, None if it is not."""

    id: int
    classes: list[int]
    scores: list[float]
    kept_counts: tuple[int, ...]
    keep_ratio: float
    compute: float
    runs: int
    queue_s: float
    compute_s: float
    lowered: Lowered | None = None


class Begun(msgspec.Struct, frozen=True, tag=True):
    """These images are being computed now: where the engine dies, one of them may be why."""

    ids: list[int]


class Refuse(msgspec.Struct, frozen=True, tag=True):
    """One image that will not be computed, and why. ``retry_after_s`` is a prediction; None where waiting
    would not help."""

    id: int
    reason: RefusalReason
    retry_after_s: float | None


FromFrontEnd = Submit | Cancel | Ping
FromEngine = Status | Load | Begun | Answer | Refuse

_encoder = msgspec.msgpack.Encoder()
_from_front_end = msgspec.msgpack.Decoder(FromFrontEnd)
_from_engine = msgspec.msgpack.Decoder(FromEngine)


def encode(message: FromFrontEnd | FromEngine) -> bytes:
    """The message as one frame."""
    return _encoder.encode(message)


def decode_from_front_end(frame: bytes) -> FromFrontEnd:
    """Raises msgspec.DecodeError for anything but a front end's message."""
    return _from_front_end.decode(frame)


def decode_from_engine(frame: bytes) -> FromEngine:
    """Raises msgspec.DecodeError for anything but an engine's message."""
    return _from_engine.decode(frame)
