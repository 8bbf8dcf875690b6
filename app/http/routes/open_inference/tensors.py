"""Tensors as the Open Inference Protocol sends them: in its JSON, or as binary data after it.

The binary tensor data extension is Triton's (docs/protocol/extension_binary_data.md of its server): the
header `Inference-Header-Content-Length` says how many bytes of the body are JSON. Each tensor with
`parameters.binary_data_size` has that many of the following bytes, in the order of the tensors. Numbers are
little-endian and row by row. Each element of a BYTES tensor is preceded by its length, 4 bytes little-endian.

Every claim (a shape, a size, a length) is compared with the data before it is used.
"""

import json
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, TypeGuard

import numpy as np
from jaxtyping import UInt8

from app.decoding.images import Data
from app.errors import InvalidValue, Problem, UnreadableRequest
from app.http.bodies.documents import read_document
from app.wrong_values import short

HEADER_LENGTH = "Inference-Header-Content-Length"
Datatype = Literal["BOOL", "UINT8", "INT32", "FP32", "BYTES"]

_MOST_JSON_BYTES = 8 * 2**20  # in addition to images in base64
MOST_JSON_VALUES = 2**20  # takes about 0.1 s to parse; 590 x 590 pixels

NUMBERS = {"BOOL": "?", "UINT8": "u1", "INT32": "<i4", "FP32": "<f4"}
_PIECE = 2**15
_LENGTH = struct.Struct("<I")


# Stores an output's binary data elsewhere. The response then has neither its data nor its parameters, as in
# Triton.
PutElsewhere = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """A tensor of an answer: ``values`` row by row. BYTES are text, which is sent as UTF-8."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    values: np.ndarray | Sequence[str]

    @property
    def binary(self) -> bytes:
        """Its elements as binary data."""
        if self.datatype == "BYTES":
            return write_elements(str(text).encode() for text in self.values)
        return np.asarray(self.values).astype(NUMBERS[self.datatype]).tobytes()

    @property
    def json(self) -> list[Any]:
        """Its elements as JSON data, flattened."""
        if self.datatype == "BYTES":
            return list(self.values)
        flat: list[Any] = np.asarray(self.values).ravel().tolist()
        return flat


# --- requests ----------------------------------------------------------------------------------------
def json_bytes(size: int, header_length: str | None) -> int:
    """The number of bytes of JSON in a body of that size, if the value of the header is plausible."""
    return min(size, int(header_length)) if _is_length(header_length) else size


def _is_length(header_length: str | None) -> TypeGuard[str]:
    """Whether it is a number of at most ten digits, which is more than any body has bytes; int() would be
    slow for millions of digits."""
    return (
        header_length is not None
        and header_length.isascii()
        and header_length.isdecimal()
        and len(header_length) <= 10
    )


def split(body: bytes | bytearray, header_length: str | None) -> tuple[bytes | bytearray, memoryview]:
    """The JSON of a request, to be read by `parsed`, and the binary data after it.

    ``header_length`` is the value of the header, None if there is none. Raises UnreadableRequest.
    """
    if header_length is None:
        return body, memoryview(b"")
    if not _is_length(header_length):
        raise UnreadableRequest(
            f"{HEADER_LENGTH} must be a number of bytes from 0 to {len(body)} (the length of the body); "
            f"got {short.repr(header_length)}"
        )
    length = int(header_length)
    if length == 0 and body:
        raise UnreadableRequest(
            f"{HEADER_LENGTH} is 0: requests of binary data without JSON are not supported here; send the "
            "image itself to POST /v1/classify or POST /, or JSON before it"
        )
    if length > len(body):
        raise UnreadableRequest(f"{HEADER_LENGTH} is {length}, but the body has only {len(body)} bytes")
    return body[:length], memoryview(body)[length:]


def parsed(text: bytes | bytearray, header_length: str | None) -> Any:
    """The value of the JSON of a request with that header. Raises UnreadableRequest, and TooLarge if it has
    so many values that parsing would delay other requests."""
    what = (
        "the body" if header_length is None else f"the body's first {len(text)} bytes (see {HEADER_LENGTH})"
    )
    return read_document(
        text, what, _MOST_JSON_BYTES, MOST_JSON_VALUES, "send larger tensors as binary data after the JSON"
    )


def allot(sizes: Sequence[int | None], data: memoryview) -> list[memoryview | None]:
    """The binary data of each tensor. ``sizes`` are their binary_data_size, None if not given.

    Raises InvalidValue if the sizes do not add up to all of the data.
    """
    claimed = sum(size for size in sizes if size is not None)
    if claimed != len(data):
        raise InvalidValue(
            f"the binary_data_size values of the inputs add up to {short.repr(claimed)} bytes, but "
            f"{len(data)} bytes follow the JSON, whose length is given by {HEADER_LENGTH}"
        )
    shares: list[memoryview | None] = []
    start = 0
    for size in sizes:
        shares.append(None if size is None else data[start : start + size])
        start += size or 0
    return shares


def read_elements(data: memoryview, count: int) -> list[memoryview]:
    """The elements of a BYTES tensor. Raises InvalidValue unless they are ``count`` and fill the data."""
    elements: list[memoryview] = []
    start = 0
    while start < len(data) and len(elements) < count:
        if len(data) - start < _LENGTH.size:
            raise InvalidValue(
                f"element {len(elements)} has no length: it needs 4 bytes, but {len(data) - start} are left"
            )
        (length,) = _LENGTH.unpack_from(data, start)
        start += _LENGTH.size
        if length > len(data) - start:
            raise InvalidValue(
                f"element {len(elements)} has a length of {length} bytes, but {len(data) - start} are "
                "left (each element starts with its length, 4 bytes little-endian)"
            )
        elements.append(data[start : start + length])
        start += length
    if len(elements) != count or start != len(data):
        raise InvalidValue(
            f"the shape has {count} elements, but the data has {len(elements)} and {len(data) - start} "
            "more bytes"
        )
    return elements


def write_elements(elements: Iterable[bytes]) -> bytes:
    """The elements of a BYTES tensor as binary data."""
    return b"".join(chain.from_iterable((_LENGTH.pack(len(element)), element) for element in elements))


def flat(data: object, shape: Sequence[int]) -> list[Any]:
    """The elements of JSON data, flattened or nested according to the shape.

    Raises InvalidValue if their number does not match the shape.
    """
    if not isinstance(data, list):
        raise InvalidValue("data must be a list, flattened or nested according to the shape")
    level: list[Any] = data
    count = math.prod(shape)
    if data and isinstance(data[0], list):
        for size in shape[1:]:
            if not all(isinstance(part, list) and len(part) == size for part in level):
                raise InvalidValue(f"data is nested, but not according to the shape {_said(shape)}")
            level = list(chain.from_iterable(level))
    if len(level) != count:
        raise InvalidValue(
            f"the shape {_said(shape)} has {short.repr(count)} elements, but data has {len(level)}"
        )
    return level


def image_bytes(
    shape: Sequence[int],
    data: object,
    binary: memoryview | None,
    decoded: Callable[[object, int], Data | Problem],
) -> Sequence[Data | Problem]:
    """The encoded images of a BYTES tensor of shape [n] or [n, 1]; in JSON each is read by ``decoded``."""
    if not (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)) or shape[0] < 1:
        raise InvalidValue(
            f"the input image has the shape {_said(shape)}; allowed are [n] and [n, 1] with n of at least 1"
        )
    if binary is not None:
        return read_elements(binary, shape[0])
    return [decoded(text, index) for index, text in enumerate(flat(data, shape))]


def check_shape(shape: Sequence[int]) -> None:
    """Raises InvalidValue unless it is that of the input pixels."""
    if len(shape) == 3 and shape[2] == 3:
        raise InvalidValue(
            f"the input pixels has the shape {_said(shape)}, without an axis for the images; a single "
            f"image of this size has the shape {_said([1, *shape])}"
        )
    if len(shape) == 4 and shape[1] == 3 and shape[3] != 3:
        raise InvalidValue(
            f"the input pixels has the shape {_said(shape)}, with the channels first; allowed is "
            f"[n, height, width, 3], for example by numpy's transpose(0, 2, 3, 1)"
        )
    if len(shape) != 4 or shape[3] != 3 or min(shape) < 1:
        raise InvalidValue(
            f"the input pixels has the shape {_said(shape)}; allowed is [n, height, width, 3], each from 1"
        )


def image_pixels(
    shape: Sequence[int], data: object, binary: memoryview | None
) -> UInt8[np.ndarray, "n height width 3"]:
    """The images of a UINT8 tensor of shape [n, height, width, 3]."""
    check_shape(shape)
    if binary is None:
        binary = memoryview(_as_bytes(flat(data, shape)))
    elif len(binary) != math.prod(shape):
        raise InvalidValue(
            f"the input pixels has the shape {_said(shape)}, which is {short.repr(math.prod(shape))} bytes, "
            f"but its data has {len(binary)}"
        )
    return np.frombuffer(binary, np.uint8).reshape(shape)


def _as_bytes(values: list[Any]) -> bytearray:
    """Integers from 0 to 255 as bytes, in pieces, because no other thread runs during each."""
    data = bytearray()
    for start in range(0, len(values), _PIECE):
        piece = values[start : start + _PIECE]
        try:
            if set(map(type, piece)) != {int}:
                raise ValueError
            data += bytes(piece)
        except (OverflowError, ValueError) as error:
            raise InvalidValue("data of the input pixels must be integers from 0 to 255") from error
    return data


def _said(shape: Sequence[int]) -> str:
    return short.repr(list(shape))


# --- answers -----------------------------------------------------------------------------------------
def joined(
    head: dict[str, Any], outputs: Sequence[tuple[OutputTensor, bool | PutElsewhere]]
) -> tuple[bytes, int | None]:
    """The body of an answer: ``head`` with its ``outputs``, each with whether it is returned as binary data,
    or a function that writes it.

    Also returns the length of the JSON, or None if nothing follows it.
    """
    described: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for tensor, as_binary in outputs:
        entry: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
        }
        if callable(as_binary):
            as_binary(tensor.binary)
        elif as_binary:
            parts.append(tensor.binary)
            entry["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            entry["data"] = tensor.json
        described.append(entry)
    text = json.dumps({**head, "outputs": described}, allow_nan=False, separators=(",", ":")).encode()
    return b"".join((text, *parts)), len(text) if parts else None
