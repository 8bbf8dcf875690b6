"""POST /v1/embed: photographs in, feature vectors out."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.errors import InvalidValue, Problem
from app.http.accept import prefers_bytes
from app.http.answers import (
    WARNINGS_HEADER_SCHEMA,
    embedding_json,
    image_headers,
    pieces_of_results,
    server_timing,
    status_and_headers,
)
from app.http.bodies.body import EncodedImage, read_images_to_embed
from app.http.bodies.content import JSON, RAW
from app.http.classification import Classification
from app.http.images import AnsweredImage
from app.http.paths import EMBED
from app.http.pieces import in_pieces
from app.http.problems import PROBLEMS, each
from app.http.rendering import results_of, timings_ms
from app.http.routes.classify import body_of
from app.http.routes.direct import DirectRoute
from app.http.schemas import EmbedEachResponse, EmbedRequest, EmbedResponse, JsonImageToEmbed
from app.inference.embeddings import embedding_of
from app.inference.options import EmbedOptions

SHAPE, COMPUTE, KEPT = SHAPE_HEADERS = ("Embedding-Shape", "Embedding-Compute", "Embedding-Patches-Kept")
_LONGEST_HEADER = 1000  # proxies reject headers of several kilobytes
_VARY = {"Vary": "Accept"}

_NUMBERS = {
    SHAPE: "Number of embeddings, and length of each.",
    COMPUTE: "Cost of each image as a share of the unpruned model's multiply-accumulates. Omitted if "
    "longer than 1,000 bytes.",
    KEPT: "Number of patches of each image left after the last stage. Omitted if longer than 1,000 bytes.",
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The embeddings: as JSON or, if the Accept header names octet-stream, as "
        "little-endian float32 numbers, one image after another.",
        "content": {RAW: {"schema": {"type": "string", "format": "binary"}}},
        "headers": {
            **WARNINGS_HEADER_SCHEMA,
            **{
                name: {
                    "description": f"{said} Only with octet-stream.",
                    "schema": {"type": "string"},
                    "required": False,
                }
                for name, said in _NUMBERS.items()
            },
        },
    },
    **each(EmbedEachResponse),
    **PROBLEMS,
}


def embed_router(classification: Classification) -> APIRouter:
    """The route, on this way of images to their answers."""
    router = APIRouter(tags=["embed"], route_class=DirectRoute)

    @router.post(
        EMBED.path,
        operation_id="embed",
        response_model=EmbedResponse,
        responses=_RESPONSES,
        openapi_extra=body_of(EmbedOptions, JsonImageToEmbed, EmbedRequest),
        summary="Feature vectors of photographs, each at its own keep ratio",
    )
    async def embed(request: Request) -> Response:
        """The bodies and options of /v1/classify. The vector is what the network's head reads; a model
        without a head has one, too. All images are answered, or the first problem is;
        with errors=each, the problem of an image takes the place of its result."""
        images = await read_images_to_embed(request, classification.body_limits)
        as_bytes = prefers_bytes(",".join(request.headers.getlist("accept")))
        if as_bytes:
            _only_vectors(images)
        model = await classification.model(request, [image.options for image in images])
        if as_bytes:
            answered = await classification.answers(request, images, model, features=True)
            content = _bytes_of(images, answered)
            timings = timings_ms(answered, model, request.scope)
            headers = {**_numbers_of(answered, model.features), **_headers(answered, timings)}
            return Response(content, media_type=RAW, headers=headers)
        ended = await classification.answers_or_problems(request, images, model, features=True)
        results = await results_of(request.scope, images, ended, model, classification.work, embedding_json)
        timings = timings_ms(ended, model, request.scope)
        status, headers = status_and_headers(ended)
        return in_pieces(
            pieces_of_results(model.name, results, timings),
            media_type=JSON,
            headers={**_headers(ended, timings), **headers},
            status=status,
        )

    return router


def _headers(answered: Sequence[AnsweredImage | Problem], timings: dict[str, float]) -> dict[str, str]:
    return {"Server-Timing": server_timing(timings), **_VARY, **image_headers(answered)}


def _only_vectors(images: Sequence[EncodedImage[EmbedOptions]]) -> None:
    """Raises InvalidValue for options that an answer of bytes cannot show."""
    for index, image in enumerate(images):
        options = image.options
        beside = {
            "top_k": options.top_k > 0,
            "mask": options.mask != "none",
            "encoding": options.encoding != "float",
            "errors": options.errors != "first",
        }
        for name, is_asked in beside.items():
            if is_asked:
                raise InvalidValue(
                    f"{name}: an answer as {RAW} contains only embeddings; leave this option out, or "
                    f"remove {RAW} from the Accept header",
                    image=index,
                )


def _bytes_of(images: Sequence[EncodedImage[EmbedOptions]], answered: Sequence[AnsweredImage]) -> bytes:
    return b"".join(
        embedding_of(one.answer.prediction, normalize=image.options.normalize).tobytes()
        for image, one in zip(images, answered, strict=True)
    )


def _numbers_of(answered: Sequence[AnsweredImage], features: int) -> dict[str, str]:
    """The headers that say what JSON says in addition to the embeddings."""
    predictions = [image.answer.prediction for image in answered]
    numbers = {
        SHAPE: f"{len(answered)}, {features}",
        COMPUTE: ", ".join(f"{one.compute:.6g}" for one in predictions),
        KEPT: ", ".join(str(one.kept_counts[-1]) for one in predictions if one.kept_counts),
    }
    return {name: text for name, text in numbers.items() if text and len(text) <= _LONGEST_HEADER}
