"""Messages of the dispatcher to a worker."""

from typing import Annotated

import msgspec
from msgspec import Meta

from app.messages.image import Ask


class Order(msgspec.Struct, frozen=True, array_like=True):
    """One image of a batch, whose pixels are in the slot. With a ``hold``, the worker keeps a copy of them
    under that number, for a `Check`."""

    slot: Annotated[int, Meta(ge=0)]
    ask: Ask
    hold: int | None = None


class Batch(msgspec.Struct, frozen=True, tag=True):
    """Images of one model to compute together on this number of threads. ``tokens``: the weight of the
    batch."""

    number: int
    threads: Annotated[int, Meta(ge=1)]
    tokens: int
    images: Annotated[list[Order], Meta(min_length=1)]
    model: str = ""


class Check(msgspec.Struct, frozen=True, tag=True):
    """Compute the image that is held under that number again, without pruning."""

    hold: int


class LoadModel(msgspec.Struct, frozen=True, tag=True):
    """Load that model in addition to the others, which are computed meanwhile. Only the name is sent: the
    settings say what it stands for."""

    name: str


class UnloadModel(msgspec.Struct, frozen=True, tag=True):
    """Drop that model: no batch of it follows, and none is being computed. If it is still being loaded, the
    load is given up."""

    name: str


ToWorker = Batch | Check | LoadModel | UnloadModel

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ToWorker)


def encode(message: ToWorker) -> bytes:
    """The message as msgpack."""
    return _encoder.encode(message)


def decode(data: bytes | bytearray | memoryview) -> ToWorker:
    """Raises msgspec.DecodeError for anything but a message to a worker."""
    return _decoder.decode(data)
