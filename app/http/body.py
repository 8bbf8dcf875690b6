"""A request's body -> encoded images, each with its options. Nothing is decoded here."""

import asyncio
import base64
import binascii
import math
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from app.errors import (
    DeadlinePassed,
    InvalidValue,
    Problem,
    TooLarge,
    UnreadableRequest,
    UnsupportedMediaType,
)
from app.http.arrival import seconds_since
from app.http.schemas import CHOSEN_BY_A_CASCADE, WAYS_TO_CHOOSE, ImageOptions
from app.image_work import ImageWork
from app.images import Data, ModelInput
from app.wrong_values import no_such, wrong_values
from models.transforms import InputSpec

MULTIPART = "multipart/form-data"
JSON = "application/json"
RAW = "application/octet-stream"
SAGEMAKERS = "application/x-image"  # of its own image classifiers
CURLS_DEFAULT = "application/x-www-form-urlencoded"  # what curl --data-binary says of any bytes
_FLAGS = TypeAdapter(bool)
_MOST_FAULTS = 3
_DEADLINES = (b"deadline_ms", b"timeout")  # what says it in a form or in JSON

# Other requests go on after so many bytes of a form or of base64, which take about a millisecond.
_PIECE = 2**18  # divisible by 4, as pieces of base64 must be
# A JSON of many small values takes seconds to parse and gigabytes to hold; an image takes a dozen values.
_VALUES_PER_IMAGE = 64


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """One image as it came, and what is asked of it."""

    data: Data
    options: ImageOptions

    async def input_for(self, spec: InputSpec, work: ImageWork, caller: str, /) -> ModelInput:
        """What the model sees of it. Raises what `app.images.decode` raises."""
        return await work.decode(self.data, spec, caller)


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """What one request may carry."""

    bytes: int
    images: int
    deadline_s: float = math.inf  # of requests that say none


async def read_images(request: Request, limits: BodyLimits) -> list[EncodedImage]:
    """The images of a request: the raw body, the files of a form, or base64 in JSON.

    Options come from the query, for all images; a form's fields or JSON's top level go before them, and an
    image's own before those. Raises UnreadableRequest, TooLarge, UnsupportedMediaType or InvalidValue.
    """
    kind = kind_of_body(request.headers)
    common: dict[str, Any] = single_values(request.query_params.multi_items())
    if kind == MULTIPART:
        pairs = await _from_form(request, limits, common)
    elif kind == JSON:
        pairs = await _from_json(await read_body(request, limits), limits, common)
    elif is_raw_image(kind):
        pairs = [(await read_body(request, limits), common)]
    else:
        raise UnsupportedMediaType(
            f"the Content-Type is {kind!r}; allowed are image/*, {RAW}, {MULTIPART} and {JSON}"
        )
    if not pairs:
        raise UnreadableRequest("the request has no image")
    if len(pairs) > limits.images:
        raise TooLarge(f"the request has {len(pairs)} images; at most {limits.images} are allowed")
    return [EncodedImage(data, options_of(values, index)) for index, (data, values) in enumerate(pairs)]


def kind_of_body(headers: Headers) -> str:
    """The body's Content-Type without its parameters; raw bytes where there is none."""
    return headers.get("content-type", RAW).partition(";")[0].strip().lower()


def is_raw_image(kind: str) -> bool:
    """Whether a body of this Content-Type is one encoded image as it stands."""
    return kind in (RAW, CURLS_DEFAULT, SAGEMAKERS) or kind.startswith("image/")


Pairs = list[tuple[Data, dict[str, Any]]]


async def read_body(request: Request, limits: BodyLimits) -> bytearray:
    """The whole body. Raises TooLarge, ClientDisconnect where it does not come, and DeadlinePassed as soon as
    the deadline passes."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.bytes:
        raise _body_too_large(int(declared), limits)
    deadline_s = _deadline_s(request, limits)
    in_body = not is_raw_image(kind_of_body(request.headers))  # it may still be said there; then it counts
    left_s = None if math.isinf(deadline_s) else deadline_s - seconds_since(request.scope)
    body = bytearray()
    try:
        async with asyncio.timeout(left_s) as timeout:
            async for chunk in request.stream():
                if len(body) + len(chunk) > limits.bytes:
                    raise _body_too_large(len(body) + len(chunk), limits)
                body += chunk
                if in_body and any(
                    body.find(name, max(0, len(body) - len(chunk) - len(name))) >= 0 for name in _DEADLINES
                ):
                    in_body = False
                    timeout.reschedule(None)
    except TimeoutError:
        raise DeadlinePassed(
            f"the deadline of {deadline_s:g} s passed while the body came, of which {len(body)} bytes are "
            "here; where more time is wanted, say so by deadline_ms in the query"
        ) from None
    return body


def _deadline_s(request: Request, limits: BodyLimits) -> float:
    """What the query says of it, or the server's. What is wrong in the query is told when all is there."""
    given = request.query_params.get("deadline_ms", "").strip()
    if given.isascii() and given.isdecimal() and len(given) < 10:
        return int(given) / 1000
    return limits.deadline_s


def _body_too_large(size: int, limits: BodyLimits) -> Problem:
    return TooLarge(f"the body has {size} bytes or more; at most {limits.bytes} are allowed")


async def _from_form(request: Request, limits: BodyLimits, common: dict[str, Any]) -> Pairs:
    body = await read_body(request, limits)

    async def stream() -> AsyncIterator[bytes]:
        for start in range(0, len(body), _PIECE):
            yield bytes(body[start : start + _PIECE])
            await asyncio.sleep(0)

    parser = MultiPartParser(
        request.headers,
        stream(),  # type: ignore[arg-type]
        max_files=limits.images + 1,
        max_fields=len(ImageOptions.model_fields) + 1,
        max_part_size=limits.bytes,
    )
    # The body is in memory already and its size is limited; the parser need not spool parts to disk.
    parser.spool_max_size = limits.bytes
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        message = getattr(error, "message", None) or str(error)
        if "Too many files" in message:
            raise TooLarge(f"the form has more than {limits.images} images") from error
        raise UnreadableRequest(f"the form cannot be read: {message}") from error
    try:
        files = [await part.read() for _, part in form.multi_items() if isinstance(part, UploadFile)]
        fields = single_values([(name, part) for name, part in form.multi_items() if isinstance(part, str)])
    finally:
        await form.close()
    each = _options_of_each(fields.pop("options", None), limits, len(files))
    return [(data, merged(common, fields, own)) for data, own in zip(files, each, strict=True)]


def _options_of_each(text: str | None, limits: BodyLimits, images: int) -> Sequence[Mapping[str, Any]]:
    """The form's `options` field: a JSON object for all images, or a list with one object per image."""
    if text is None:
        return [{}] * images
    value = parse_json(text.encode(), "the form field 'options'", limits)
    if isinstance(value, dict):
        return [value] * images
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        if len(value) != images:
            raise InvalidValue(f"'options' lists {len(value)} objects, but the form has {images} images")
        return value
    raise InvalidValue("the form field 'options' must be a JSON object or a list of objects, one per image")


async def _from_json(body: bytes | bytearray, limits: BodyLimits, common: dict[str, Any]) -> Pairs:
    document = parse_json(body, "the body", limits)
    if not isinstance(document, dict):
        raise UnreadableRequest("the JSON body must be an object with 'image' or 'images'")
    if ("image" in document) == ("images" in document):
        raise InvalidValue("the JSON body must have either 'image' or 'images'")
    images = document.pop("images") if "images" in document else [{"image": document.pop("image")}]
    if not isinstance(images, list) or not all(isinstance(item, dict) for item in images):
        raise InvalidValue("'images' must be a list of objects, each with 'image' and options of its own")
    pairs: Pairs = []
    for index, item in enumerate(images):
        own = dict(item)
        data = await from_base64_in_pieces(own.pop("image", None), index)
        pairs.append((data, merged(common, document, own)))
    return pairs


def from_base64(text: object, index: int | None, name: str = "image") -> bytes:
    """The bytes of the image at this place. Raises InvalidValue or UnreadableRequest, naming the member."""
    return b"".join(_base64_pieces(text, index, name))


async def from_base64_in_pieces(text: object, index: int | None, name: str = "image") -> bytes:
    """As `from_base64`; between the pieces of a large image others go on."""
    pieces = []
    for piece in _base64_pieces(text, index, name):
        pieces.append(piece)
        await asyncio.sleep(0)
    return b"".join(pieces)


def _base64_pieces(text: object, index: int | None, name: str) -> Iterator[bytes]:
    if not isinstance(text, str):
        raise InvalidValue(f"'{name}' must be a string in base64", image=index)
    start = text.find(",") + 1 if text.startswith("data:") else 0
    try:
        for place in range(start, len(text), _PIECE):
            piece = text[place : place + _PIECE]
            if place + _PIECE < len(text) and "=" in piece:
                raise ValueError("data after the padding")
            yield base64.b64decode(piece, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UnreadableRequest(f"'{name}' is not base64: {error}", image=index) from error


def parse_json(text: bytes | bytearray, what: str, limits: BodyLimits | None = None) -> Any:
    """The value. Raises UnreadableRequest, and TooLarge for more values than the images allowed can need
    (without ``limits``, any number: tensors may come as numbers)."""
    most = None if limits is None else _VALUES_PER_IMAGE * (limits.images + 1)
    if (
        most is not None and text.count(b",") > most
    ):  # strings count, but neither base64 nor an option has any
        raise TooLarge(f"{what} has more than {most} values, {_VALUES_PER_IMAGE} per image allowed")
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableRequest(f"{what} is not JSON: {error}") from error


def single_values(items: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Names and values of a query or a form. Raises InvalidValue for a name that comes twice."""
    values: dict[str, Any] = {}
    for name, value in items:
        if name in values:
            raise InvalidValue(f"{name!r} is given more than once")
        values[name] = value
    return values


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later layers go before earlier ones; a way to choose replaces any other, a cascade also criterion and
    reducer, which it chooses itself."""
    values: dict[str, Any] = {}
    for layer in layers:
        cascade = _is_true(layer.get("cascade"))
        if cascade or any(layer.get(name) is not None for name in WAYS_TO_CHOOSE if name != "cascade"):
            for name in WAYS_TO_CHOOSE + (CHOSEN_BY_A_CASCADE if cascade else ()):
                values.pop(name, None)
        values.update(layer)
    return values


def _is_true(flag: object) -> bool:
    """Whether a flag is set, as JSON's or as a word; what is no flag is refused later."""
    try:
        return _FLAGS.validate_python(flag)
    except ValidationError:
        return False


def options_of(
    values: Mapping[str, Any], index: int | None, besides: Sequence[str] = (), kind: str = "option"
) -> ImageOptions:
    """The options of the image at this place (None: of all). Raises InvalidValue.

    ``besides``: names that the route takes too, and has read already; ``kind``: what it calls an option.
    """
    unknown = next((name for name in values if name not in ImageOptions.model_fields), None)
    if unknown is not None:
        allowed = [*ImageOptions.model_fields, *besides]
        raise InvalidValue(no_such(kind, unknown, allowed), image=index)
    try:
        return ImageOptions.model_validate(values)
    except ValidationError as error:
        raise InvalidValue(said(error, ImageOptions), image=index) from error


def said(error: ValidationError, model: type[BaseModel]) -> str:
    """What is wrong, in words; of many faults, the first few."""
    return ". ".join(wrong_values(error, model)[:_MOST_FAULTS])
