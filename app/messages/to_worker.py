"""What the dispatcher tells a worker."""

from typing import Annotated

import msgspec
from msgspec import Meta

from app.messages.image import Ask


class Order(msgspec.Struct, frozen=True, array_like=True):
    """One image of a batch: its pixels are in the slot. With a ``hold`` the worker keeps a copy of them under
    that number, for a `Check`."""

    slot: Annotated[int, Meta(ge=0)]
    ask: Ask
    hold: int | None = None


class Batch(msgspec.Struct, frozen=True, tag=True):
    """Images of one model to compute together, at once, on so many threads. ``tokens`` is the weight of the
    batch."""

    number: int
    threads: Annotated[int, Meta(ge=1)]
    tokens: int
    images: Annotated[list[Order], Meta(min_length=1)]
    model: str = ""


class Check(msgspec.Struct, frozen=True, tag=True):
    """Run the image that is held under that number again, unpruned."""

    hold: int


class LoadModel(msgspec.Struct, frozen=True, tag=True):
    """Load that model beside the others, which are computed meanwhile. A name is all that is said: what it
    stands for is in the settings."""

    name: str


class UnloadModel(msgspec.Struct, frozen=True, tag=True):
    """No batch of that model follows, and none is being computed: drop it. If it is still being loaded,
    the load is given up."""

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
