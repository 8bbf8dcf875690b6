"""/v2/models/NAME/infer: images as tensors in, labels as tensors out (Open Inference Protocol)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from app.http.answers import WARNINGS_HEADER_SCHEMA, image_headers, server_timing
from app.http.bodies.body import read_body
from app.http.bodies.content import JSON, RAW
from app.http.bodies.memory import share_of
from app.http.callers import caller_of
from app.http.classification import AnsweredImage, Classification
from app.http.problems import PROBLEMS
from app.http.rendering import timings_ms
from app.http.routes.direct import DirectRoute
from app.http.routes.model_names import (
    MODELS_FOLDER,
    VERSION,
    ModelName,
    ModelVersion,
    check_early,
    check_version,
    model_of,
)
from app.http.routes.open_inference.infer import AskedInference, Inference, asked_inference, read_inference
from app.http.routes.open_inference.outputs import output_tensors
from app.http.routes.open_inference.schemas import InferRequest, InferResponse
from app.http.routes.open_inference.tensors import HEADER_LENGTH, joined, json_bytes, split
from app.http.routes.plain_errors import errors
from app.messages.model import ModelInfo

_BINARY = {"type": "string", "format": "binary"}
_HEADER_LENGTH = {
    "description": "Bytes of JSON at the beginning of the body; binary data follows.",
    "schema": {"type": "integer", "minimum": 0},
}
_INFER_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The outputs; as octet-stream where some come as binary data behind the JSON.",
        "content": {RAW: {"schema": _BINARY}},
        "headers": {HEADER_LENGTH: _HEADER_LENGTH, **WARNINGS_HEADER_SCHEMA},
    },
    **errors(*PROBLEMS, 404),
}
_INFER_BODY: dict[str, Any] = {
    "parameters": [{"name": HEADER_LENGTH, "in": "header", "required": False, **_HEADER_LENGTH}],
    "requestBody": {
        "required": True,
        "content": {
            JSON: {"schema": {"$ref": f"#/components/schemas/{InferRequest.__name__}"}},
            RAW: {"schema": {**_BINARY, "description": "JSON, and binary data behind it."}},
        },
    },
}


def infer_router(classification: Classification) -> APIRouter:
    """The routes, with images answered by ``classification``."""
    router = APIRouter(tags=["open inference protocol"], route_class=DirectRoute)
    limits = classification.body_limits

    @router.post(
        MODELS_FOLDER + "{model_name:model}/versions/{model_version}/infer",
        operation_id="v2_model_version_infer",
        summary="Classify the images of a tensor with this version of the model",
        response_model=InferResponse,
        responses=_INFER_RESPONSES,
        openapi_extra=_INFER_BODY,
    )
    async def version_infer(request: Request, model_name: ModelName, model_version: ModelVersion) -> Response:
        """As without the version."""
        return await answer(request, model_name, model_version)

    @router.post(
        MODELS_FOLDER + "{model_name:model}/infer",
        operation_id="v2_model_infer",
        summary="Classify the images of a tensor",
        response_model=InferResponse,
        responses=_INFER_RESPONSES,
        openapi_extra=_INFER_BODY,
    )
    async def infer(request: Request, model_name: ModelName) -> Response:
        """Images as the tensor `image` (BYTES: encoded files, in JSON base64) or `pixels` (UINT8), in the
        JSON or as binary data behind it. All images of a request share its parameters. The Content-Type is
        not read."""
        return await answer(request, model_name, VERSION)

    async def read(request: Request, model_name: str, model_version: str) -> tuple[Inference, ModelInfo]:
        # Of the body, no more is kept than what the inference refers to.
        body = await read_body(request, limits)
        share = share_of(request.scope)

        header_length = request.headers.get(HEADER_LENGTH)

        def first() -> tuple[AskedInference, memoryview]:
            head, binary = split(body, header_length)
            return asked_inference(head, header_length), binary

        asked, binary = await share.run_if_large(json_bytes(len(body), header_length), first)
        model = await model_of(request, classification, asked.options_of_each(limits), model_name)
        check_version(model, model_version)
        if binary:  # its images are where they came
            return read_inference(asked, binary, limits, model, share), model
        inference = await share.run_if_large(
            len(body),
            partial(read_inference, asked, binary, limits, model, share),
            lambda inference: sum(image.size for image in inference.images),
        )
        return inference, model

    async def answer(request: Request, model_name: str, model_version: str) -> Response:
        if (known := check_early(classification, model_name)) is not None:
            check_version(known, model_version)
        inference, model = await read(request, model_name, model_version)
        answered = await classification.answers(
            request, inference.images, model, logits=inference.logits, features=inference.features
        )
        head = {"model_name": model.name, "model_version": VERSION}
        if inference.id is not None:
            head["id"] = inference.id
        write = partial(_written, head, inference, answered, model)
        # The outputs of many images take long to write.
        content, json_bytes = (
            write()
            if len(answered) == 1
            else await classification.work.render(caller_of(request.scope), write)
        )
        timings = timings_ms(answered, request.scope)
        headers = {"Server-Timing": server_timing(timings), **image_headers(answered)}
        if json_bytes is None:
            return Response(content, media_type=JSON, headers=headers)
        return Response(content, media_type=RAW, headers={**headers, HEADER_LENGTH: str(json_bytes)})

    return router


def _written(
    head: dict[str, Any], inference: Inference, answered: Sequence[AnsweredImage], model: ModelInfo
) -> tuple[bytes, int | None]:
    return joined(head, output_tensors(inference.outputs, inference.top_k, answered, model))
