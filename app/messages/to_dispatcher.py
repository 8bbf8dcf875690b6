"""Messages of front ends and workers to the dispatcher. Times are durations, so neither side depends on the
other's clock."""

import math
from typing import Annotated

import msgspec
from msgspec import Meta

from app.messages.capacity import Limits, Measured
from app.messages.image import Ask, Fault, Prediction
from app.messages.model import ModelInfo
from app.messages.repository import LoadFault
from app.priority import Priority


# --- from front ends ---------------------------------------------------------------------------------
class FrontEnd(msgspec.Struct, frozen=True, tag=True):
    """The first message of a front end. ``index`` is its place among them."""

    index: int


class Record(msgspec.Struct, frozen=True, array_like=True):
    """One image to classify.

    Its pixels, ``size`` bytes, are in the slot. ``caller``: whose share of the workers it uses.
    ``own_deadline``: the deadline was requested and is not the server's default. ``again``: an earlier
    dispatcher accepted it. ``model``: the name of the requested model.
    """

    id: int
    slot: Annotated[int, Meta(ge=0)]
    size: int
    ask: Ask
    deadline_s: float
    own_deadline: bool = False
    caller: str = ""
    priority: Priority = "normal"
    again: bool = False
    model: str = ""

    def __post_init__(self) -> None:
        if math.isnan(self.deadline_s):
            raise ValueError("a deadline must be a number")


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Images to classify: all that arrived in one turn of the front end's event loop."""

    records: list[Record]


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Nobody waits for these images any more."""

    ids: list[int]


class LoadModel(msgspec.Struct, frozen=True, tag=True):
    """Load and serve that model. The answer has the ``id``."""

    id: int
    name: str


class UnloadModel(msgspec.Struct, frozen=True, tag=True):
    """Stop serving that model. The answer has the ``id``."""

    id: int
    name: str


class ModelLeft(msgspec.Struct, frozen=True, tag=True):
    """The front end has no more requests for a model that is no longer served: no image for it follows."""

    name: str


# --- from workers ------------------------------------------------------------------------------------
class Held(msgspec.Struct, frozen=True, array_like=True):
    """A model that a worker has loaded and warmed up. ``measured``: the batches that it timed, from which the
    dispatcher predicts."""

    info: ModelInfo
    measured: Annotated[tuple[Measured, ...], Meta(min_length=1)]


class Worker(msgspec.Struct, frozen=True, tag=True):
    """The first message of a worker, with its models, the default one first."""

    name: str
    models: Annotated[tuple[Held, ...], Meta(min_length=1)]
    limits: Limits


class ModelLoaded(msgspec.Struct, frozen=True, tag=True):
    """The worker has loaded this model, too."""

    held: Held


class ModelUnloaded(msgspec.Struct, frozen=True, tag=True):
    """The worker has unloaded this model."""

    name: str


class ModelNotLoaded(msgspec.Struct, frozen=True, tag=True):
    """The model could not be loaded; ``words`` say why."""

    name: str
    fault: LoadFault
    words: str


class Done(msgspec.Struct, frozen=True, tag=True):
    """A batch is computed.

    ``results`` are in the order of its images. ``at_once``: the size of the largest part that was computed at
    once. ``memory_was_short``: a part did not fit into memory.
    """

    batch: int
    results: list[Prediction | Fault]
    seconds: float
    at_once: int
    memory_was_short: bool = False


class Checked(msgspec.Struct, frozen=True, tag=True):
    """An image that was held was computed again without pruning. ``label``: its first label; None if that
    failed."""

    hold: int
    label: int | None


class Alive(msgspec.Struct, frozen=True, tag=True):
    """The worker's main loop runs."""


ToDispatcher = (
    FrontEnd
    | Submit
    | Cancel
    | LoadModel
    | UnloadModel
    | ModelLeft
    | Worker
    | ModelLoaded
    | ModelUnloaded
    | ModelNotLoaded
    | Done
    | Checked
    | Alive
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ToDispatcher)


def encode(message: ToDispatcher) -> bytes:
    """The message as msgpack."""
    return _encoder.encode(message)


def decode(data: bytes | bytearray | memoryview) -> ToDispatcher:
    """Raises msgspec.DecodeError for anything but a message to the dispatcher."""
    return _decoder.decode(data)
