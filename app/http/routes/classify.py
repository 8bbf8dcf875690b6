"""POST /v1/classify: photographs in, labels out."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.http.answers import (
    WARNINGS_HEADER_SCHEMA,
    image_headers,
    pieces_of_results,
    server_timing,
    status_and_headers,
)
from app.http.bodies.body import read_images
from app.http.bodies.content import JSON, MULTIPART, RAW
from app.http.classification import Classification
from app.http.paths import CLASSIFY
from app.http.pieces import in_pieces
from app.http.problems import PROBLEMS, each
from app.http.rendering import results_of, timings_ms
from app.http.routes.direct import DirectRoute
from app.http.schemas import ClassifyEachResponse, ClassifyRequest, ClassifyResponse, JsonImage
from app.inference.options import ImageOptions, option_schemas


def classify_router(classification: Classification) -> APIRouter:
    """The route, on this way of images to their answers."""
    router = APIRouter(tags=["classify"], route_class=DirectRoute)

    @router.post(
        CLASSIFY.path,
        operation_id="classify",
        response_model=ClassifyResponse,
        responses={200: {"headers": WARNINGS_HEADER_SCHEMA}, **each(ClassifyEachResponse), **PROBLEMS},
        openapi_extra=BODY,
        summary="Classify photographs, each at its own keep ratio",
    )
    async def classify(request: Request) -> Response:
        """Send an image as the raw body (options in the query), one or many files in a form (options as
        fields), or base64 in JSON. All images are answered, or the first problem is; with errors=each, the
        problem of an image takes the place of its result."""
        return await classified(request, classification)

    return router


async def classified(request: Request, classification: Classification) -> Response:
    """The answer to a request with the body and the options of /v1/classify."""
    images = await read_images(request, classification.body_limits)
    model = await classification.model(request, [image.options for image in images])
    answered = await classification.answers_or_problems(request, images, model)
    results = await results_of(request.scope, images, answered, model, classification.work)
    timings = timings_ms(answered, model, request.scope)
    status, headers = status_and_headers(answered)
    return in_pieces(
        pieces_of_results(model.name, results, timings),
        media_type=JSON,
        headers={"Server-Timing": server_timing(timings), **headers, **image_headers(answered)},
        status=status,
    )


def body_of(options_type: type[ImageOptions], *json_types: type[ImageOptions]) -> dict[str, Any]:
    """The three forms of the body for OpenAPI, and the options in the query, which FastAPI does not read."""
    options = option_schemas(of=options_type)
    image = {"type": "string", "format": "binary"}
    json_bodies = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in json_types]
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
                            "image": {
                                "type": "array",
                                "items": image,
                                "minItems": 1,
                                "description": "Encoded images (JPEG, PNG, ...), under any field name.",
                            },
                            **options,
                            "options": {
                                "type": "string",
                                "description": "JSON: an object for all images, or a list, one per image.",
                            },
                        },
                        "required": ["image"],
                    }
                },
                JSON: {"schema": {"oneOf": json_bodies}},
            },
        },
    }


BODY = body_of(ImageOptions, JsonImage, ClassifyRequest)
