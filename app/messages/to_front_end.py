"""Messages of the dispatcher to a front end."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from app.messages.image import Fault, Lowered, Prediction
from app.messages.model import ModelInfo
from app.messages.repository import ChangeFault, ModelEntry
from app.priority import Priority

RefusalReason = (
    Literal[
        "not-ready",
        "queue-full",
        "deadline-unmeetable",
        "deadline-passed",
        "worker-lost",
        "model-unloaded",
    ]
    | Fault
)


class Models(msgspec.Struct, frozen=True, tag=True):
    """The models that the workers serve, the default one first. Sent at the start and on changes."""

    infos: Annotated[list[ModelInfo], Meta(min_length=1)]


class Repository(msgspec.Struct, frozen=True, tag=True):
    """The models that are served or may be loaded, if models may be loaded: sent once, and again on
    changes."""

    models: list[ModelEntry]


class ModelChanged(msgspec.Struct, frozen=True, tag=True):
    """The outcome of a LoadModel or UnloadModel with that ``id``. If it was not done, ``words`` say why."""

    id: int
    fault: ChangeFault | None = None
    words: str = ""


class WorkerState(msgspec.Struct, frozen=True, array_like=True):
    """One worker that has loaded its model. ``ready``: it was heard of recently."""

    name: str
    device: str
    ready: bool
    images: int


class Workers(msgspec.Struct, frozen=True, tag=True):
    """The state of the workers: sent when it changes, and a few times a second as a sign of life."""

    workers: list[WorkerState]


class Terms(msgspec.Struct, frozen=True, array_like=True):
    """The predicted cost of an image of one model: see app.dispatch.policy.admission.

    A batch takes ``overhead_s``, and for each image in it ``image_s`` plus ``compute_s`` times its share of
    compute. A single image on idle workers takes ``alone_s`` and ``alone_compute_s`` in the same way. A full
    batch has ``batch_tokens``, an unpruned image ``image_tokens``. ``caution``: the factor with which
    predictions hold.
    """

    overhead_s: float = 0.0
    image_s: float = 0.0
    compute_s: float = 0.0
    alone_s: float = 0.0
    alone_compute_s: float = 0.0
    batch_tokens: int = 1
    image_tokens: int = 1
    caution: float = 1.0


class Load(msgspec.Struct, frozen=True, tag=True):
    """The predicted work that waits and runs, with all images lowered that allow it. With it, a front end
    need not decode images that would be refused.

    ``work_s``: the work before an image, in seconds of one stream. It applies to callers who have little
    waiting, by priority. ``callers``: those with the most work waiting, each with the work before it in one
    priority. ``free_in_s``: when each stream is free, ascending. ``seen``: the last record of the front end
    that is counted here. ``idle``: nothing waits and nothing runs. ``terms``: by model.
    """

    work_s: dict[Priority, float]
    callers: tuple[tuple[str, Priority, float], ...]
    free_in_s: Annotated[list[float], Meta(min_length=1)]
    seen: int
    idle: bool = False
    terms: dict[str, Terms] = {}


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """One classified image. ``queue_s`` and ``compute_s``: its times of waiting and computing. ``lowered``:
    why its ratio is below the requested one, None if it is not."""

    id: int
    prediction: Prediction
    queue_s: float
    compute_s: float
    lowered: Lowered | None = None


class Refuse(msgspec.Struct, frozen=True, array_like=True):
    """One image that will not be computed, and why. ``retry_after_s`` is a prediction; None if waiting would
    not help."""

    id: int
    reason: RefusalReason
    retry_after_s: float | None


class Outcomes(msgspec.Struct, frozen=True, tag=True):
    """The outcomes of a front end's images that ended in one turn of the dispatcher's loop."""

    answers: list[Answer]
    refusals: list[Refuse]


ToFrontEnd = Models | Repository | ModelChanged | Workers | Load | Outcomes

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ToFrontEnd)


def encode(message: ToFrontEnd) -> bytes:
    """The message as msgpack."""
    return _encoder.encode(message)


def decode(data: bytes | bytearray | memoryview) -> ToFrontEnd:
    """Raises msgspec.DecodeError for anything but a message to a front end."""
    return _decoder.decode(data)
