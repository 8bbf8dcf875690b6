"""/v2: the Open Inference Protocol over REST, as the clients of KServe and Triton speak it.

Its text: specification/protocol/inference_rest.md of https://github.com/kserve/open-inference-protocol
With Triton's extensions for binary tensor data, classification and model configuration. Choices:
docs/design/0018.
"""

from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from app.engine.messages import ModelInfo
from app.http.answers import WARNINGS_HEADER_SCHEMA, server_timing, warning_headers
from app.http.bodies.body import read_body
from app.http.bodies.content import JSON, RAW
from app.http.bodies.memory import share_of
from app.http.callers import caller_of
from app.http.classification import AnsweredImage, Classification
from app.http.health import Health
from app.http.paths import OPEN_INFERENCE, OPEN_INFERENCE_LIVE, OPEN_INFERENCE_READY
from app.http.problems import PROBLEMS
from app.http.rendering import timings_ms
from app.http.routes.model_names import (
    MODELS_FOLDER,
    VERSION,
    ModelName,
    ModelReady,
    ModelVersion,
    check_name,
    check_version,
    known_model,
    ready_model,
)
from app.http.routes.open_inference.description import SERVER, config_of, metadata_of
from app.http.routes.open_inference.infer import AskedInference, Inference, asked_inference, read_inference
from app.http.routes.open_inference.outputs import output_tensors
from app.http.routes.open_inference.schemas import (
    InferRequest,
    InferResponse,
    ModelConfig,
    ModelMetadata,
    ServerLive,
    ServerMetadata,
    ServerReady,
)
from app.http.routes.open_inference.tensors import HEADER_LENGTH, joined, split
from app.http.routes.plain_errors import errors

EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "parameters",
    "schedule_policy",
]


_NO_MODEL = errors(404, 503)
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


def open_inference_router(classification: Classification, health: Health) -> APIRouter:
    """The routes, with images answered by ``classification``."""
    router = APIRouter(tags=["open inference protocol"])
    limits = classification.body_limits

    def described(name: str, model_version: str = VERSION) -> ModelInfo:
        """What is known of the model, without waiting for an engine."""
        model = known_model(classification, name)
        check_version(model, model_version)
        return model

    @router.get(
        OPEN_INFERENCE.path, operation_id="v2_server_metadata", summary="What answers, and its extensions"
    )
    async def server_metadata() -> ServerMetadata:
        return ServerMetadata(name=SERVER, version=version("trimvit"), extensions=EXTENSIONS)

    @router.get(OPEN_INFERENCE_LIVE.path, operation_id="v2_server_live", summary="The HTTP process runs")
    async def live() -> ServerLive:
        return ServerLive(live=True)

    @router.get(
        OPEN_INFERENCE_READY.path,
        operation_id="v2_server_ready",
        summary="An engine has loaded, warmed up and answers, and images can be decoded",
        response_model=ServerReady,
        responses={
            503: {"model": ServerReady, "description": "Not ready.", "headers": PROBLEMS[503]["headers"]}
        },
    )
    async def ready() -> JSONResponse:
        is_ready = health.is_ready()
        return JSONResponse(
            {"ready": is_ready},
            status_code=200 if is_ready else 503,
            headers={} if is_ready else {"Retry-After": "1"},
        )

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

    @router.get(
        MODELS_FOLDER + "{model_name:model}/versions/{model_version}/ready",
        operation_id="v2_model_version_ready",
        summary="Whether this version of the model answers",
        responses=_NO_MODEL,
    )
    async def version_ready(model_name: ModelName, model_version: ModelVersion) -> ModelReady:
        check_version(known_model(classification, model_name), model_version)
        return ready_model(classification, health, model_name)

    @router.get(
        MODELS_FOLDER + "{model_name:model}/ready",
        operation_id="v2_model_ready",
        summary="Whether the model answers",
        responses=_NO_MODEL,
    )
    async def model_ready(model_name: ModelName) -> ModelReady:
        return ready_model(classification, health, model_name)

    @router.get(
        MODELS_FOLDER + "{model_name:model}/versions/{model_version}/config",
        operation_id="v2_model_version_config",
        summary="Configuration of this version of the model, in Triton's words",
        responses=_NO_MODEL,
    )
    async def version_config(model_name: ModelName, model_version: ModelVersion) -> ModelConfig:
        return config_of(described(model_name, model_version), limits)

    @router.get(
        MODELS_FOLDER + "{model_name:model}/config",
        operation_id="v2_model_config",
        summary="The model's configuration, in Triton's words",
        responses=_NO_MODEL,
    )
    async def model_config(model_name: ModelName) -> ModelConfig:
        return config_of(described(model_name), limits)

    @router.get(
        MODELS_FOLDER + "{model_name:model}/versions/{model_version}",
        operation_id="v2_model_version_metadata",
        summary="Inputs and outputs of this version of the model",
        responses=_NO_MODEL,
    )
    async def version_metadata(model_name: ModelName, model_version: ModelVersion) -> ModelMetadata:
        return metadata_of(described(model_name, model_version))

    @router.get(
        MODELS_FOLDER + "{model_name:model}",
        operation_id="v2_model_metadata",
        summary="The model's inputs and outputs",
        responses=_NO_MODEL,
    )
    async def model_metadata(model_name: ModelName) -> ModelMetadata:
        return metadata_of(described(model_name))

    async def read(request: Request, model_name: str, model_version: str) -> tuple[Inference, ModelInfo]:
        # Of the body, no more is kept than what the inference refers to.
        body = await read_body(request, limits)
        share = share_of(request.scope)

        def first() -> tuple[AskedInference, memoryview]:
            document, binary = split(body, request.headers.get(HEADER_LENGTH))
            return asked_inference(document), binary

        asked, binary = await share.run_if_large(len(body), first)
        model = await classification.model(request, asked.options_of_each(limits))
        check_name(model, model_name)
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
        if classification.last_model is not None:
            check_name(classification.last_model, model_name)
            check_version(classification.last_model, model_version)
        inference, model = await read(request, model_name, model_version)
        answered = await classification.answers(request, inference.images, model, logits=inference.logits)
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
        headers = {"Server-Timing": server_timing(timings), **warning_headers(answered)}
        if json_bytes is None:
            return Response(content, media_type=JSON, headers=headers)
        return Response(content, media_type=RAW, headers={**headers, HEADER_LENGTH: str(json_bytes)})

    return router


def _written(
    head: dict[str, Any], inference: Inference, answered: Sequence[AnsweredImage], model: ModelInfo
) -> tuple[bytes, int | None]:
    return joined(head, output_tensors(inference.outputs, inference.top_k, answered, model))
