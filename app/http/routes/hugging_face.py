"""POST / and POST /models/NAME: image classification in the shape of Hugging Face's inference API.

Its text: https://huggingface.co/docs/inference-providers/tasks/image-classification
Choices: docs/design/0018.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.decoding.images import Data
from app.errors import InvalidValue, Problem, UnreadableRequest, UnsupportedMediaType
from app.http.answers import WARNINGS_HEADER_SCHEMA, image_headers, server_timing
from app.http.bodies.base64_images import from_base64
from app.http.bodies.body import EncodedImage, read_content
from app.http.bodies.content import JSON, RAW, BodyLimits, form_of, kind_of, parse_json, raw_image
from app.http.classification import Classification
from app.http.images import AnsweredImage
from app.http.paths import HUGGING_FACE, PAGE
from app.http.problems import PROBLEMS
from app.http.rendering import timings_ms
from app.http.routes.direct import DirectRoute
from app.http.routes.model_names import model_of
from app.http.routes.plain_errors import errors
from app.http.schemas import EXAMPLE_IMAGE
from app.inference.option_layers import (
    merged,
    options_of,
    refuse_misplaced,
    single_values,
)
from app.inference.options import MASK_OPTIONS, OF_SEVERAL_IMAGES, ImageOptions, option_schemas
from app.messages.model import ModelInfo
from app.wrong_values import said_of
from models.bundled import BUNDLED_MODEL

Function = Literal["softmax", "sigmoid", "none"]

# `options` are for Hugging Face's service: whether to wait and to cache.
_MEMBERS = ("inputs", "parameters", "options")

_FUNCTION: dict[str, Any] = {
    "type": "string",
    "enum": list(get_args(Function)),
    "description": "How logits become scores: `softmax` over all classes, `sigmoid` of each class, or "
    "`none` for the logits themselves. Default: that of the model (see /v1/models).",
}


class HuggingFaceRequest(BaseModel):
    """A photograph and its options."""

    inputs: str = Field(
        description="The encoded image (JPEG, PNG, ...) in base64, or a data URL.",
        examples=[EXAMPLE_IMAGE],
    )
    parameters: dict[str, Any] | None = Field(
        None,
        description="Options of /v1/classify except masks, and `function_to_apply`.",
        examples=[{"top_k": 3, "keep_ratio": 0.7}],
        json_schema_extra={
            "properties": {"function_to_apply": _FUNCTION, **option_schemas(MASK_OPTIONS + OF_SEVERAL_IMAGES)}
        },
    )


class HuggingFaceLabel(BaseModel):
    """A class and its score."""

    label: str = Field(description="The class's name.", examples=["church"])
    score: float = Field(
        description="From 0 to 1, or any number if `function_to_apply` is `none`.", examples=[0.93]
    )


def hugging_face_router(classification: Classification) -> APIRouter:
    """The routes, with images answered by ``classification``."""
    router = APIRouter(tags=["hugging face"], route_class=DirectRoute)

    @router.post(
        PAGE.path,
        operation_id="hf_image_classification",
        summary="Classify a photograph, in Hugging Face's format",
        response_model=list[HuggingFaceLabel],
        responses={200: {"headers": WARNINGS_HEADER_SCHEMA}, **errors(*PROBLEMS)},
        openapi_extra=_BODY,
    )
    async def classify(request: Request) -> JSONResponse:
        """The image as the raw body (options in the query), or base64 in JSON."""
        return await answer(request, None)

    @router.post(
        HUGGING_FACE.path + "{model_name:model}",
        operation_id="hf_model_image_classification",
        summary="Classify a photograph with this model, in Hugging Face's format",
        response_model=list[HuggingFaceLabel],
        responses={200: {"headers": WARNINGS_HEADER_SCHEMA}, **errors(*PROBLEMS, 404)},
        openapi_extra=_BODY,
    )
    async def classify_with(
        request: Request,
        model_name: Annotated[
            str,
            Path(
                description="Name of the model, as listed in /v1/models.",
                examples=[BUNDLED_MODEL],
            ),
        ],
    ) -> JSONResponse:
        """The image as the raw body (options in the query), or base64 in JSON."""
        return await answer(request, model_name)

    async def answer(request: Request, model_name: str | None) -> JSONResponse:
        image, function = await _read(request, classification.body_limits)
        if model_name is None:
            model = await classification.model(request, [image.options])
        else:
            model = await model_of(request, classification, [image.options], model_name, HUGGING_FACE.path)
        try:
            wants_logits = function not in (None, model.scores)
            answered = await classification.answers(request, [image], model, logits=wants_logits)
        except Problem as problem:
            problem.image = None  # there is only one image, so the error has no image index
            raise
        labels = _labels(answered[0], model, function)
        timings = timings_ms(answered, model, request.scope)
        headers = {"Server-Timing": server_timing(timings), **image_headers(answered)}
        return JSONResponse(labels, headers=headers)

    return router


async def _read(request: Request, limits: BodyLimits) -> tuple[EncodedImage[ImageOptions], Function | None]:
    """The image with its options. Those of the JSON take precedence over those of the query."""
    kind = kind_of(request.headers.get("content-type", ""))
    query = single_values(request.query_params.multi_items())
    allowed = f"image/*, {RAW} and {JSON}"

    def read(body: bytearray, _: Callable[[int], None]) -> tuple[Data, dict[str, Any]]:
        form = form_of(body, kind, allowed)
        if form == "form":
            raise UnsupportedMediaType(
                f"the Content-Type is {kind!r}; allowed are {allowed} (/v1/classify takes forms)"
            )
        if form != "json":
            return raw_image(body, kind, allowed), query
        document = parse_json(body, "the body", limits)
        if not isinstance(document, dict):
            raise UnreadableRequest("the JSON body must be an object with 'inputs'")
        refuse_misplaced(document, _MEMBERS, (*ImageOptions.model_fields, "function_to_apply"))
        data = from_base64(document.get("inputs"), None, "inputs")
        parameters = document.get("parameters")
        if not isinstance(parameters, dict | None):
            raise InvalidValue("'parameters' must be an object")
        return data, merged(query, parameters or {})

    data, values = await read_content(request, limits, read, lambda content: [content[0]])
    options, function = asked_of(values)
    return EncodedImage(data, options), function


def asked_of(values: Mapping[str, Any]) -> tuple[ImageOptions, Function | None]:
    """The options of an image in this format. null means not given, and without a function the model's own is
    used. Raises InvalidValue."""
    given = {name: value for name, value in values.items() if value is not None}
    function = given.pop("function_to_apply", None)
    if function not in (None, *get_args(Function)):
        raise InvalidValue(said_of("function_to_apply", "function_to_apply", _FUNCTION, function))
    for name in MASK_OPTIONS:
        if name in given:
            raise InvalidValue(f"{name}: this format has no field for a mask; use /v1/classify")
    for name in OF_SEVERAL_IMAGES:
        if name in given:
            raise InvalidValue(f"{name}: in this format a request has only one image; leave it out")
    return options_of(given, None, ("function_to_apply",)), function


def _labels(image: AnsweredImage, model: ModelInfo, function: Function | None) -> list[dict[str, Any]]:
    """The best classes. Softmax and sigmoid both rise with the logit, so their order is the same. There are
    logits if another function than the model's own was requested."""
    prediction = image.answer.prediction
    logits = prediction.all_logits
    if logits is None:
        scores = prediction.scores
    else:
        of_all: list[float] = logits.tolist()
        apply = _FUNCTIONS[function or model.scores](of_all)
        scores = [apply(of_all[index]) for index in prediction.classes]
    return [
        {"label": model.labels[index], "score": score}
        for index, score in zip(prediction.classes, scores, strict=True)
    ]


def _sigmoid(logit: float) -> float:
    """1 / (1 + e^-x), in a form that cannot overflow."""
    return (1 + math.tanh(logit / 2)) / 2


def _softmax(logits: Sequence[float]) -> Callable[[float], float]:
    """The share of one among these."""
    most = max(logits)
    whole = math.fsum(math.exp(logit - most) for logit in logits)
    return lambda logit: math.exp(logit - most) / whole


_FUNCTIONS: Mapping[Function, Callable[[Sequence[float]], Callable[[float], float]]] = {
    "softmax": _softmax,
    "sigmoid": lambda _: _sigmoid,
    "none": lambda _: float,
}


_BODY: dict[str, Any] = {
    "parameters": [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": schema["description"],
            "schema": schema,
        }
        for name, schema in {
            "function_to_apply": _FUNCTION,
            **option_schemas(MASK_OPTIONS + OF_SEVERAL_IMAGES),
        }.items()
    ],
    "requestBody": {
        "required": True,
        "content": {
            RAW: {"schema": {"type": "string", "format": "binary"}},
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            JSON: {"schema": {"$ref": f"#/components/schemas/{HuggingFaceRequest.__name__}"}},
        },
    },
}
