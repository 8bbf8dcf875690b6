"""The body of a request: read within limits of size and time, and split into encoded images with options."""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from starlette.requests import ClientDisconnect, Request

from app.decoding.image_work import ImageWork
from app.decoding.images import Data, Take
from app.decoding.signatures import begins_as_image
from app.errors import DeadlinePassed, InvalidValue, Problem, TooLarge, UnreadableRequest
from app.http.arrival import seconds_since
from app.http.bodies.content import BodyLimits, Pairs, images_in, is_raw_image, kind_of
from app.http.bodies.memory import share_of
from app.http.head import header_of
from app.http.in_time import in_time
from app.inference.asked_lately import embed_options_of_query, options_of_query, values_of_query
from app.inference.option_layers import Options, asks_for_each, options_of
from app.inference.options import EmbedOptions, ImageOptions
from models.transforms import InputSpec

_T = TypeVar("_T")

_DEADLINES = (b"deadline_ms", b"timeout")  # names of the deadline in forms and JSON


@dataclass(frozen=True, slots=True)
class EncodedImage(Generic[Options]):
    """One encoded image and its options, or the ``problem`` that is already known for it, if each image is to
    be answered."""

    data: Data
    options: Options
    problem: Problem | None = None

    @property
    def size(self) -> int:
        """The number of its bytes."""
        return len(self.data)

    @property
    def content(self) -> tuple[tuple[int, ...], Data]:
        """None as the shape, and the bytes of the file."""
        return (), self.data

    async def decode(self, spec: InputSpec, work: ImageWork, caller: str, take: Take, /) -> tuple[str, ...]:
        """Decode it: ``take`` is called with the input of the model, and the warnings are returned. Raises
        what `app.decoding.images.decode` raises."""
        return await work.decode(self.data, spec, caller, take)


async def read_images(request: Request, limits: BodyLimits) -> list[EncodedImage[ImageOptions]]:
    """The images of a request: the raw body, the files of a form, or base64 in JSON.

    Options in the query apply to all images. The fields of a form or the top level of JSON take precedence
    over them, and the options of an image over those. Raises UnreadableRequest, TooLarge,
    UnsupportedMediaType or InvalidValue.
    """
    return await _read_images(request, limits, ImageOptions, options_of_query)


async def read_images_to_embed(request: Request, limits: BodyLimits) -> list[EncodedImage[EmbedOptions]]:
    """As `read_images`, with the options of embeddings."""
    return await _read_images(request, limits, EmbedOptions, embed_options_of_query)


async def _read_images(
    request: Request,
    limits: BodyLimits,
    options_type: type[Options],
    options_of_query: Callable[[bytes], Options],
) -> list[EncodedImage[Options]]:
    query: bytes = request.scope["query_string"]
    common = values_of_query(query)
    content_type = header_of(request.scope, b"content-type") or ""

    def read(body: bytearray, hold: Callable[[int], None]) -> Pairs:
        return images_in(body, content_type, limits, common, hold)

    def work(body: bytearray) -> int:
        return 0 if begins_as_image(body) else len(body)  # a plain image is used without further work

    pairs = await read_content(request, limits, read, _data_of, work)
    if not pairs:
        raise UnreadableRequest(
            "the request has no image; send one as the body, in a form, or in JSON as base64 (see /docs)"
        )
    if len(pairs) > limits.images:
        raise TooLarge(f"the request has {len(pairs)} images; at most {limits.images} are allowed")
    data, values = pairs[0]
    if len(pairs) == 1 and values is common and not isinstance(data, Problem):  # all options are in the query
        return [EncodedImage(data, options_of_query(query))]
    images = [
        requested_image(data, values, index, options_type) for index, (data, values) in enumerate(pairs)
    ]
    check_errors_agree(images)
    return images


def check_errors_agree(images: Sequence[EncodedImage[Options]]) -> None:
    """Raises InvalidValue unless all images of a request have the same option errors."""
    for index, image in enumerate(images):
        if image.options.errors != images[0].options.errors:
            raise InvalidValue(
                "errors must be the same for all images of a request: it is "
                f"{image.options.errors!r} for this image and "
                f"{images[0].options.errors!r} for the first; give it once, next to the images",
                image=index,
            )


def _data_of(pairs: Pairs) -> list[Data]:
    return [data for data, _ in pairs if not isinstance(data, Problem)]


def requested_image(
    data: Data | Problem, values: Mapping[str, Any], index: int, options_type: type[Options]
) -> EncodedImage[Options]:
    """The image at this index. Raises its problem, unless each image is to be answered."""
    try:
        options = options_of(values, index, options_type=options_type)
    except InvalidValue as problem:
        if not asks_for_each(values):
            raise
        model = values.get("model")
        named = {"model": model} if isinstance(model, str) else {}
        return EncodedImage(b"", options_type(errors="each", **named), problem)
    if isinstance(data, Problem):
        if options.errors != "each":
            raise data
        return EncodedImage(b"", options, data)
    return EncodedImage(data, options)


async def read_content(
    request: Request,
    limits: BodyLimits,
    read: Callable[[bytearray, Callable[[int], None]], _T],
    data_of: Callable[[_T], list[Data]],
    work: Callable[[bytearray], int] = len,
) -> _T:
    """What ``read`` returns for the body. It is called with a function to call before it takes memory, and
    runs off the event loop if ``work`` says that many bytes must be read. Afterwards, only its ``data_of``
    counts as memory."""
    body = await read_body(request, limits)
    share = share_of(request.scope)

    def kept(content: _T) -> int:
        own = [data for data in data_of(content) if not isinstance(data, memoryview) and data is not body]
        views = len(own) < len(data_of(content))
        return sum(map(len, own)) + (len(body) if views else 0)

    return await share.run_if_large(work(body), lambda: read(body, share.take), kept)


async def read_body(request: Request, limits: BodyLimits) -> bytearray:
    """The whole body. Raises TooLarge, ClientDisconnect if it does not arrive, and DeadlinePassed as soon as
    the deadline passes."""
    declared = header_of(request.scope, b"content-length") or ""
    if declared.isdecimal() and int(declared) > limits.bytes:
        raise _body_too_large(int(declared), limits)
    deadline_s = _deadline_s(request, limits)
    left_s = None if math.isinf(deadline_s) else deadline_s - seconds_since(request.scope)
    body = bytearray()
    try:
        if is_raw_image(kind_of(header_of(request.scope, b"content-type") or "")):
            until = None if left_s is None else asyncio.get_running_loop().time() + left_s
            await in_time(_fill(body, request, limits), until)
        else:  # the body may still contain a deadline, which then applies
            async with asyncio.timeout(left_s) as timeout:
                await _fill(body, request, limits, lambda: timeout.reschedule(None))
    except TimeoutError:
        raise DeadlinePassed(
            f"the deadline of {deadline_s:g} s passed when {len(body)} bytes of the body had "
            "arrived; for more time, give deadline_ms in the query"
        ) from None
    except BaseException:
        body.clear()  # free the memory now, even if this frame is still referenced
        share_of(request.scope).keep(0)
        raise
    return body


async def _fill(
    body: bytearray, request: Request, limits: BodyLimits, found: Callable[[], None] | None = None
) -> None:
    """Append the body as it arrives, until it is complete. ``found`` is called once it seems to contain a
    deadline. Raises TooLarge and ClientDisconnect."""
    more = True
    while more:  # like Request.stream(), but without its generator, which would take most of the time here
        message = await request.receive()
        if message["type"] != "http.request":
            raise ClientDisconnect
        more = message.get("more_body", False)
        chunk = message.get("body", b"")
        if len(body) + len(chunk) > limits.bytes:
            raise _body_too_large(len(body) + len(chunk), limits)
        body += chunk
        if found is not None and any(
            body.find(name, max(0, len(body) - len(chunk) - len(name))) >= 0 for name in _DEADLINES
        ):
            found()
            found = None


def _deadline_s(request: Request, limits: BodyLimits) -> float:
    """The deadline in the query, or the server's default. Errors in the query are reported when the body is
    complete."""
    if not request.scope["query_string"]:
        return limits.deadline_s
    given = request.query_params.get("deadline_ms", "").strip()
    if given.isascii() and given.isdecimal() and len(given) < 10 and int(given) > 0:
        return int(given) / 1000
    return limits.deadline_s


def _body_too_large(size: int, limits: BodyLimits) -> Problem:
    return TooLarge(f"the body has at least {size} bytes; at most {limits.bytes} are allowed")
