"""KServe's protocol v1, which TensorFlow Serving and Vertex AI use, too.

Its text: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol
"""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.convertors import register_url_convertor

from app.decoding.images import Data
from app.errors import InvalidValue, Problem, TooLarge, UnreadableRequest
from app.http.answers import WARNINGS_HEADER_SCHEMA, image_headers, server_timing, status_and_headers
from app.http.bodies.base64_images import from_base64
from app.http.bodies.body import EncodedImage, check_errors_agree, read_content, requested_image
from app.http.bodies.content import JSON, BodyLimits, Hold, parse_json
from app.http.bodies.documents import LongText
from app.http.classification import Classification
from app.http.health import Health
from app.http.paths import KSERVE_V1
from app.http.problems import PROBLEMS, each
from app.http.rendering import results_of, timings_ms
from app.http.routes.model_names import (
    ModelName,
    ModelNameConvertor,
    ModelReady,
    check_early,
    model_of,
    ready_model,
)
from app.http.routes.plain_errors import errors
from app.http.schemas import EXAMPLE_IMAGE, ImageResult, ProblemDocument
from app.inference.option_layers import merged, single_values
from app.inference.options import ImageOptions, option_schemas
from app.wrong_values import no_such

# Names that clients of various servers use for an image.
_IMAGE_NAMES = ("image", "image_bytes", "b64", "data", "content")
_MEMBERS = ("instances", "parameters")
# The default signature of TensorFlow Serving, which is accepted.
_TENSORFLOWS_DEFAULT = ("signature_name", "serving_default")
_PIXELS = (
    "send an image encoded (JPEG, PNG, ...) and in base64; for pixels as numbers, use /v2/models/NAME/infer"
)


class UnpredictedConvertor(ModelNameConvertor):
    """The name of a model in a path that does not end in the verb, which is another route."""

    regex = f"{ModelNameConvertor.regex}(?<!:predict)"


register_url_convertor("unpredicted", UnpredictedConvertor())


class Base64(BaseModel):
    """Bytes, in JSON."""

    b64: str = Field(description="The encoded image (JPEG, PNG, ...), in base64.", examples=[EXAMPLE_IMAGE])


class Instance(BaseModel):
    """An image, under one of these names, and optionally its own options."""

    model_config = ConfigDict(
        json_schema_extra={"additionalProperties": True, "examples": [{"image": {"b64": EXAMPLE_IMAGE}}]}
    )

    image: Base64 | str | None = Field(
        None, description="The encoded image in base64, as a string or in an object with `b64`."
    )
    image_bytes: Base64 | str | None = Field(None, description="The same.")
    b64: str | None = Field(None, description="The same, as a string.")
    data: Base64 | str | None = Field(None, description="The same.")
    content: Base64 | str | None = Field(None, description="The same.")


class PredictRequest(BaseModel):
    """Images and their options."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"instances": [{"image": {"b64": EXAMPLE_IMAGE}}, {"b64": EXAMPLE_IMAGE, "keep_ratio": 0.7}]},
                {"instances": [EXAMPLE_IMAGE], "parameters": {"top_k": 3}},
            ]
        }
    )

    instances: list[Instance | str] = Field(
        min_length=1, description="The images, each as an object that contains it or as a base64 string."
    )
    parameters: dict[str, Any] | None = Field(
        None,
        description="Options of /v1/classify for all images. Options of an instance take precedence.",
        json_schema_extra={"properties": {**option_schemas()}},
    )


class PredictResponse(BaseModel):
    """One prediction for each instance, in their order."""

    predictions: list[ImageResult] = Field(description="One result per image, as in /v1/classify.")


class PredictEachResponse(BaseModel):
    """With errors=each, one prediction or problem for each instance, in their order."""

    predictions: list[ImageResult | ProblemDocument] = Field(
        description="One per image: its result, or the problem document of its error."
    )


def kserve_v1_router(classification: Classification, health: Health) -> APIRouter:
    """The routes, with images answered by ``classification``."""
    router = APIRouter(tags=["kserve v1"])

    @router.get(
        KSERVE_V1.path + "{model_name:unpredicted}",
        operation_id="kserve_v1_model_ready",
        summary="Whether the model answers",
        responses=errors(404, 503),
    )
    async def ready(model_name: ModelName) -> ModelReady:
        return ready_model(classification, health, model_name, KSERVE_V1.path)

    @router.post(
        KSERVE_V1.path + "{model_name:model}:predict",
        operation_id="kserve_v1_predict",
        summary="Classify photographs, in KServe's protocol v1",
        response_model=PredictResponse,
        responses={
            200: {"headers": WARNINGS_HEADER_SCHEMA},
            **each(PredictEachResponse),
            **errors(*PROBLEMS, 404),
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {JSON: {"schema": {"$ref": f"#/components/schemas/{PredictRequest.__name__}"}}},
            }
        },
    )
    async def predict(request: Request, model_name: ModelName) -> Response:
        """Images in base64. The Content-Type is not read."""
        check_early(classification, model_name, KSERVE_V1.path)
        images = await _read(request, classification.body_limits)
        options = [image.options for image in images]
        model = await model_of(request, classification, options, model_name, KSERVE_V1.path)
        answered = await classification.answers_or_problems(request, images, model)
        results = await results_of(request.scope, images, answered, model, classification.work)
        timings = timings_ms(answered, model, request.scope)
        status, headers = status_and_headers(answered)
        return Response(
            b'{"predictions":[' + b",".join(results) + b"]}",
            status,
            media_type=JSON,
            headers={"Server-Timing": server_timing(timings), **headers, **image_headers(answered)},
        )

    return router


async def _read(request: Request, limits: BodyLimits) -> list[EncodedImage[ImageOptions]]:
    """The images, each with its options: its own take precedence over the parameters, and those over the
    query."""
    query = single_values(request.query_params.multi_items())

    def read(body: bytearray, _: Hold) -> list[EncodedImage[ImageOptions]]:
        return _images_in(body, limits, query)

    return await read_content(request, limits, read, lambda images: [image.data for image in images])


def _images_in(
    body: bytearray, limits: BodyLimits, query: Mapping[str, Any]
) -> list[EncodedImage[ImageOptions]]:
    try:
        document = parse_json(body, "the body", limits)
    except TooLarge as error:
        raise TooLarge(f"{error.detail}: {_PIXELS}") from error
    if not isinstance(document, dict) or not isinstance(document.get("instances"), list):
        raise UnreadableRequest(
            'the body must be JSON with a list of instances, such as {"instances": [{"b64": "..."}]}'
        )
    for name in document:
        if name not in _MEMBERS and (name, document[name]) != _TENSORFLOWS_DEFAULT:
            raise InvalidValue(no_such("member", name, _MEMBERS))
    instances, parameters = document["instances"], document.get("parameters")
    if not isinstance(parameters, dict | None):
        raise InvalidValue('parameters must be an object, such as {"keep_ratio": 0.5}')
    if not instances:
        raise UnreadableRequest("the list of instances is empty; send at least one image")
    if len(instances) > limits.images:
        raise TooLarge(f"the request has {len(instances)} images; at most {limits.images} are allowed")
    common = merged(query, parameters or {})
    images = [_image(instance, index, common) for index, instance in enumerate(instances)]
    check_errors_agree(images)
    return images


def _image(instance: object, index: int, common: Mapping[str, Any]) -> EncodedImage[ImageOptions]:
    data: Data | Problem
    values = common
    try:
        given, own = _parted(instance, index)
        values = merged(common, own)
        data = from_base64(given, index, "the image of the instance")
    except Problem as problem:
        data = problem
    return requested_image(data, values, index, ImageOptions)


def _parted(instance: object, index: int) -> tuple[object, dict[str, Any]]:
    """The image of an instance, in base64, and the instance's own options."""
    if isinstance(instance, str | LongText):
        return instance, {}
    if not isinstance(instance, dict):
        raise InvalidValue(f"an instance must be an object or a base64 string: {_PIXELS}", image=index)
    # TensorFlow models have arbitrary input names, so bytes under any name are the image.
    instance = {name: value for name, value in instance.items() if value is not None}
    names = [name for name in instance if name in _IMAGE_NAMES or _has_bytes(instance[name])]
    if len(names) != 1:
        found = "has more than one image" if names else "has no image"
        raise InvalidValue(
            f"the instance {found}: give one, as {', '.join(_IMAGE_NAMES[:-1])} or {_IMAGE_NAMES[-1]}",
            image=index,
        )
    given = instance[names[0]]
    if _has_bytes(given):
        given = given["b64"]
    if not isinstance(given, str | LongText):
        raise InvalidValue(f'{names[0]} must be a base64 string or {{"b64": "..."}}: {_PIXELS}', image=index)
    return given, {name: value for name, value in instance.items() if name != names[0]}


def _has_bytes(value: object) -> bool:
    """Whether it is the protocol's JSON form of bytes."""
    return isinstance(value, dict) and set(value) == {"b64"}
