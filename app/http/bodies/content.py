"""The content of a body -> encoded images, each with its options. Nothing is decoded here.

The bytes take precedence over the Content-Type: an image is an image whatever it is called, and so is JSON
with the Content-Type that curl sends for any data. All of it is plain computation; large bodies are read off
the event loop.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote_plus, unquote_to_bytes

from app.decoding.images import Data
from app.decoding.signatures import begins_as_image
from app.errors import (
    InvalidValue,
    Problem,
    TooLarge,
    UndecodableImage,
    UnreadableRequest,
    UnsupportedMediaType,
)
from app.http.bodies.base64_images import from_base64, image_or_problem, look_of
from app.http.bodies.documents import read_document
from app.http.bodies.forms import Part, read_form
from app.inference.option_layers import asks_for_each, merged
from app.inference.options import ImageOptions
from app.wrong_values import short

MULTIPART = "multipart/form-data"
JSON = "application/json"
RAW = "application/octet-stream"
SAGEMAKERS = "application/x-image"  # SageMaker's own image classifiers use it
CURLS_DEFAULT = "application/x-www-form-urlencoded"  # curl --data-binary sends it for any content
_TEXT = "text/plain"

# A JSON document of many small values takes seconds to parse and gigabytes of memory. An image needs a dozen
# values.
_VALUES_PER_IMAGE = 64
_JSON_BYTES_PER_IMAGE = 16_384  # in addition to long strings
_PARTS_BESIDE_IMAGES = len(ImageOptions.model_fields) + 8
_STRIPPED = 1024  # an image of this many bytes without a single line end is not a coincidence
_TEXT_ONLY = re.compile(rb"[\t\r\n\x20-\x7e]+")
_FIELD = re.compile(rb"[\w.\-\[\]%]{1,100}=")
# Names of form fields that contain an image in base64. They may be followed by a number or brackets.
_IMAGE_FIELDS = frozenset(
    {"image", "images", "img", "file", "files", "photo", "photos", "picture", "pictures", "upload", "data",
     "input", "inputs", "base64", "b64", "bytes"}
)  # fmt: skip

Hold = Callable[[int], None]
# An image, or its error if each image gets an answer; and the options for it.
Pairs = list[tuple[Data | Problem, dict[str, Any]]]
Body = bytes | bytearray


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Limits of one request body."""

    bytes: int
    images: int
    deadline_s: float = math.inf  # for requests that do not set one


def kind_of(content_type: str) -> str:
    """A Content-Type without its parameters. Raw bytes if there is none."""
    return content_type.partition(";")[0].strip().lower() or RAW


def is_raw_image(kind: str) -> bool:
    """Whether a body of this Content-Type is one encoded image."""
    return kind in (RAW, CURLS_DEFAULT, SAGEMAKERS) or kind.startswith("image/")


def is_json(kind: str) -> bool:
    """Whether a body of this Content-Type is JSON."""
    return kind in (JSON, "text/json", "application/x-json") or (
        kind.startswith("application/") and kind.endswith("+json")
    )


Form = Literal["image", "form", "json", "fields"]


def form_of(body: Body, kind: str, allowed: str) -> Form:
    """The form of the body, from its bytes or else from its Content-Type. Raises UnsupportedMediaType."""
    if begins_as_image(body):
        return "image"
    if kind.startswith("multipart/"):
        return "form"
    if is_json(kind):
        return "json"
    if not is_raw_image(kind) and kind != _TEXT:
        raise UnsupportedMediaType(f"the Content-Type is {short.repr(kind)}; allowed are {allowed}")
    if bytes(body[:64]).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return "json"
    if kind == CURLS_DEFAULT and _FIELD.match(body):
        return "fields"
    return "image"


def images_in(body: Body, content_type: str, limits: BodyLimits, common: dict[str, Any], hold: Hold) -> Pairs:
    """The images of a body with their options. The ``common`` options have the lowest precedence. ``hold`` is
    called with the size of memory that is taken in addition to the body and kept. Raises UnreadableRequest,
    TooLarge, UnsupportedMediaType, InvalidValue or UndecodableImage."""
    kind = kind_of(content_type)
    allowed = f"image/*, {RAW}, {MULTIPART} and {JSON}"
    match form_of(body, kind, allowed):
        case "image":
            return [(raw_image(body, kind, allowed), common)]
        case "json":
            return _from_json(body, limits, common)
        case "form":
            parts = read_form(body, content_type, limits.images + _PARTS_BESIDE_IMAGES, hold)
            return _from_parts(parts, limits, common, hold)
        case "fields":
            return _from_parts(_fields(body, limits), limits, common, hold)


def raw_image(body: Body, kind: str, allowed: str) -> Data:
    """The image of a body that is a single image: its bytes, or the bytes that it has in base64. Other data
    is left to the decoder, unless it is recognized as something else."""
    if begins_as_image(body):
        _check_line_ends(body, kind)
        return body
    beginning = bytes(body[:64])
    if (
        beginning
        and beginning.isascii()
        and beginning.replace(b"\n", b"").replace(b"\r", b"").decode().isprintable()
    ):
        try:
            data = from_base64(memoryview(body), None, "the body")
        except Problem:
            data = bytearray()
        if begins_as_image(data):
            return data
        if kind == _TEXT:
            raise UnsupportedMediaType(
                f"the Content-Type is {kind!r} and the body is not a base64-encoded image; "
                f"allowed are {allowed}"
            )
        if look := look_of(body):
            raise UndecodableImage(
                f"the body is not an image: it is {look} (in curl: --data-binary @photo.jpg)"
            )
    elif kind == _TEXT:
        raise UnsupportedMediaType(f"the Content-Type is {kind!r}; allowed are {allowed}")
    return body


def _check_line_ends(body: Body, kind: str) -> None:
    """Detects a file sent with curl -d @photo.jpg, which removes line ends; the rest may even be decodable.
    Raises UnreadableRequest."""
    if kind != CURLS_DEFAULT:
        return
    png_without = body.startswith(b"\x89PNG") and not body.startswith(b"\x89PNG\r\n")
    if png_without or (len(body) >= _STRIPPED and b"\n" not in body and b"\r" not in body):
        raise UnreadableRequest(
            "the image has lost all its line breaks, which curl -d removes: send it with "
            "curl --data-binary @photo.jpg, or -F image=@photo.jpg"
        )


def parse_json(text: Body, what: str, limits: BodyLimits) -> Any:
    """The value of a JSON document with images. Raises UnreadableRequest and TooLarge."""
    images = limits.images + 1
    hint = f"{_VALUES_PER_IMAGE} values and {_JSON_BYTES_PER_IMAGE} bytes per image are allowed"
    return read_document(text, what, _JSON_BYTES_PER_IMAGE * images, _VALUES_PER_IMAGE * images, hint)


def _from_json(body: Body, limits: BodyLimits, common: dict[str, Any]) -> Pairs:
    document = parse_json(body, "the body", limits)
    if not isinstance(document, dict):
        raise UnreadableRequest("the JSON body must be an object with 'image' or 'images'")
    if ("image" in document) == ("images" in document):
        raise InvalidValue(
            "the JSON body must have either 'image' or 'images', for example {\"image\": \"iVBORw0KGgo...\"}"
        )
    images = document.pop("images") if "images" in document else [{"image": document.pop("image")}]
    if not isinstance(images, list) or not all(isinstance(item, dict) for item in images):
        raise InvalidValue(
            "'images' must be a list of objects, each with 'image' and optionally its own options"
        )
    if len(images) > limits.images:
        raise TooLarge(f"the request has {len(images)} images; at most {limits.images} are allowed")
    pairs: Pairs = []
    for index, item in enumerate(images):
        own = dict(item)
        image = own.pop("image", None)
        values = merged(common, document, own)
        pairs.append((image_or_problem(image, index, each=asks_for_each(values)), values))
    return pairs


def _fields(body: Body, limits: BodyLimits) -> list[Part]:
    """The fields of an urlencoded form. A + means a blank, but in base64 without any escapes it is a +: then
    the client has not encoded it."""
    pieces = bytes(body).split(b"&", limits.images + _PARTS_BESIDE_IMAGES)
    parts = []
    for piece in filter(None, pieces):
        name, _, value = piece.partition(b"=")
        plain = unquote_plus(name.decode("latin-1"), errors="replace")
        is_image = _is_image_field(plain, value)
        data = unquote_to_bytes(value if is_image and b"%" not in value else value.replace(b"+", b" "))
        parts.append(Part(plain, None, _TEXT, data))
    return parts


def _is_image_field(name: str, value: Data) -> bool:
    if name in ImageOptions.model_fields or name == "options":
        return False
    plain = re.sub(r"(\[\w*\]|[-_]?\d+)$", "", name.lower())
    return plain in _IMAGE_FIELDS or bytes(value[:8]).lower().startswith(b"data:")


def _from_parts(parts: Sequence[Part], limits: BodyLimits, common: dict[str, Any], hold: Hold) -> Pairs:
    images: list[Data | Problem] = []
    fields: dict[str, str] = {}
    for part in parts:
        if part.is_left_empty:
            continue
        if part.kind != JSON and part.is_file:
            images.append(part.data)
        elif part.kind != JSON and _is_image_field(part.name, part.data):
            hold(len(part.data) * 3 // 4)
            try:
                images.append(from_base64(memoryview(part.data), len(images), part.name))
            except Problem as problem:  # a later field may ask for an answer per image
                images.append(problem)
        else:
            name = "options" if part.kind == JSON else part.name
            if name in fields:
                raise InvalidValue(
                    f"{short.repr(name)} is given more than once: give it once for all images, or a value "
                    f'for each image in the field options, as a list: [{{"{name[:20]}": ...}}, ...]'
                )
            fields[name] = part.text
        if len(images) > limits.images:
            raise TooLarge(f"the form has more than {limits.images} images")
    each = _options_of_each(fields.pop("options", None), limits, len(images))
    pairs = [(data, merged(common, fields, own)) for data, own in zip(images, each, strict=True)]
    for data, values in pairs:
        if isinstance(data, Problem) and not asks_for_each(values):
            raise data
    return pairs


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
