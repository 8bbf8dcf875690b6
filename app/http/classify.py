"""POST /v1/classify: photographs in, labels out."""

import asyncio
import time
from collections.abc import Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from app import metrics
from app.engine.client import Classified, Question
from app.engine.messages import ModelInfo
from app.errors import DeadlinePassed, NotReady, Problem
from app.http.answers import image_result, longest, server_timing
from app.http.body import JSON, MULTIPART, RAW, BodyLimits, EncodedImage, read_images
from app.http.pruning import asked_of
from app.http.schemas import ClassifyRequest, ClassifyResponse, ImageOptions, JsonImage, ProblemDocument
from app.images import ImageLimits, decode
from app.settings import Settings

T = TypeVar("T")

_RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": meaning,
        "content": {"application/problem+json": {"schema": ProblemDocument.model_json_schema()}},
        "headers": _RETRY_AFTER if "Retry-After" in meaning else {},
    }
    for status, meaning in {
        400: "The request cannot be read.",
        408: "The body came too slowly.",
        413: "More bytes, pixels or images than allowed.",
        415: "Not an image type.",
        422: "A value is out of range, or an image cannot be decoded.",
        429: "The queue is full; see Retry-After.",
        500: "A bug, or two engines died while they computed the image.",
        503: "Not ready, stopping, or holding too much; see Retry-After.",
        504: "The deadline passed.",
    }.items()
}


class Engines(Protocol):
    """What the front end needs of the engines; app.engine.client.EngineClient in a server."""

    @property
    def model(self) -> ModelInfo | None:
        """None until an engine is ready."""

    @property
    def engines(self) -> list[dict[str, object]]:
        """How each engine is."""

    @property
    def trouble(self) -> str | None:
        """Why no engine is ready, where none is expected soon."""

    async def wait_until_ready(self, within_s: float) -> ModelInfo:
        """The model, once an engine is ready; raises NotReady or QueueFull."""

    async def classify(self, question: Question) -> Classified:
        """Answer one image or raise a Problem."""


@dataclass(frozen=True, slots=True)
class _Answered:
    result: dict[str, Any]
    decode_s: float
    queue_s: float
    compute_s: float


def classify_router(settings: Settings, engines: Engines, decoders: Executor) -> APIRouter:
    """The route, on these engines, with images decoded by ``decoders``."""
    router = APIRouter(tags=["classify"])
    body_limits = BodyLimits(settings.max_body_bytes, settings.max_images_per_request)
    image_limits = ImageLimits(settings.max_image_pixels)

    @router.post(
        "/v1/classify",
        response_model=ClassifyResponse,
        responses=PROBLEMS,
        openapi_extra=_openapi(),
        summary="Classify photographs, each at its own keep ratio",
    )
    async def classify(request: Request) -> JSONResponse:
        """Send an image as the raw body (options in the query), one or many files in a form (options as
        fields), or base64 in JSON. All images are answered, or the first problem is."""
        started = time.perf_counter()
        images = await read_images(request, body_limits)
        try:
            model = await _unless_gone(request, engines.wait_until_ready(min(map(deadline_s, images))))
            waited_s = time.perf_counter() - started
            answered = await _unless_gone(
                request,
                _all_or_first_problem(
                    [answer(image, index, model, waited_s) for index, image in enumerate(images)]
                ),
            )
        except Problem as problem:
            metrics.IMAGES.labels(problem.slug).inc(len(images))
            raise
        except ClientDisconnect:
            metrics.IMAGES.labels("client-gone").inc(len(images))
            raise
        metrics.IMAGES.labels("answered").inc(len(images))
        timings_ms = {
            "decode": longest([image.decode_s for image in answered]),
            "queue": longest([image.queue_s for image in answered]),
            "compute": longest([image.compute_s for image in answered]),
            "total": longest([time.perf_counter() - started]),
        }
        for image in answered:
            metrics.PHASE_SECONDS.labels("decode").observe(image.decode_s)
            metrics.PHASE_SECONDS.labels("queue").observe(image.queue_s)
            metrics.PHASE_SECONDS.labels("compute").observe(image.compute_s)
            metrics.PHASE_SECONDS.labels("total").observe(timings_ms["total"] / 1000)
        return JSONResponse(
            {"model": model.name, "results": [image.result for image in answered], "timings_ms": timings_ms},
            headers={"Server-Timing": server_timing(timings_ms)},
        )

    def deadline_s(image: EncodedImage) -> float:
        return (image.options.deadline_ms or settings.default_deadline_ms) / 1000

    async def answer(image: EncodedImage, index: int, model: ModelInfo, waited_s: float) -> _Answered:
        try:
            asked = asked_of(image.options, settings, model)
            if asked.keep_ratio is not None:
                metrics.REQUESTED_KEEP_RATIO.observe(asked.keep_ratio)
            left_s = deadline_s(image) - waited_s
            started = time.perf_counter()
            pixels = await asyncio.get_running_loop().run_in_executor(
                decoders, decode, image.data, model.input, image_limits
            )
            decode_s = time.perf_counter() - started
            if decode_s >= left_s:
                raise DeadlinePassed("the deadline passed while the image was being decoded")
            question = Question(
                pixels=pixels,
                pruning=asked.pruning,
                margin=asked.margin,
                top_k=min(image.options.top_k, len(model.labels)),
                kept_patches=image.options.mask != "none",
                deadline_s=left_s - decode_s,
            )
            classified = await engines.classify(question)
        except Problem as problem:
            problem.image = index
            raise
        result = image_result(
            classified,
            model,
            pruning=asked.pruning,
            mask=image.options.mask,
            every_stage=image.options.mask_stages,
            pixels=pixels,
        )
        return _Answered(result, decode_s, classified.answer.queue_s, classified.answer.compute_s)

    return router


def no_model_yet() -> NotReady:
    """What a route says that needs the model, while there is none."""
    return NotReady("no engine has loaded the model yet; see /readyz", retry_after_s=1.0)


async def _all_or_first_problem(answers: list[Any]) -> list[_Answered]:
    """All answers, or the first problem, with what was still under way withdrawn."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answer) for answer in answers]
    except* Problem as problems:
        raise problems.exceptions[0] from None
    return [task.result() for task in tasks]


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work comes to. Where the client goes away first, the work is withdrawn and ClientDisconnect
    raised: a queue must not keep what nobody waits for."""
    working, gone = asyncio.create_task(work), asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        gone.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait({working})


async def _disconnect(request: Request) -> None:
    """Returns when the client has gone away. The body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _openapi() -> dict[str, Any]:
    """The three forms of the body and the options in the query, which are parsed by hand."""
    options = {
        name: _without_null(schema) for name, schema in ImageOptions.model_json_schema()["properties"].items()
    }
    image = {"type": "string", "format": "binary"}
    one = JsonImage.model_json_schema()
    many = ClassifyRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    many["properties"]["images"]["items"] = one
    many.pop("$defs", None)
    return {
        "parameters": [
            {
                "name": name,
                "in": "query",
                "required": False,
                "description": schema.get("description", ""),
                "schema": schema,
            }
            for name, schema in options.items()
        ],
        "requestBody": {
            "required": True,
            "content": {
                "image/*": {"schema": image},
                RAW: {"schema": image},
                MULTIPART: {
                    "schema": {
                        "type": "object",
                        "properties": {
                            "image": {"type": "array", "items": image, "minItems": 1},
                            **options,
                            "options": {
                                "type": "string",
                                "description": "JSON: an object for all images, or a list, one per image.",
                            },
                        },
                        "required": ["image"],
                    }
                },
                JSON: {"schema": {"oneOf": [one, many]}},
            },
        },
    }


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of an option in the query or a form, where only JSON can say null."""
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "examples")}
    typed = [choice for choice in schema.get("anyOf", []) if choice != {"type": "null"}]
    return {**rest, **(typed[0] if typed else {})}
