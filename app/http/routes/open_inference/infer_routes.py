"""/v2/models/NAME/infer: images as tensors in, labels as tensors out (Open Inference Protocol)."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from app.errors import Problem, TooLarge
from app.http.answers import WARNINGS_HEADER_SCHEMA, image_headers, server_timing, status_and_headers
from app.http.bodies.body import read_body
from app.http.bodies.content import JSON, RAW
from app.http.bodies.memory import Share, share_of
from app.http.callers import caller_of
from app.http.classification import Classification
from app.http.images import AnsweredImage
from app.http.model_counts import failed
from app.http.problems import PROBLEMS
from app.http.regions.access import Access, access_of
from app.http.regions.table import Regions
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
from app.http.routes.open_inference.infer import (
    AskedInference,
    Inference,
    asked_inference,
    check_input,
    read_inference,
)
from app.http.routes.open_inference.outputs import output_tensors
from app.http.routes.open_inference.parameters import check_query
from app.http.routes.open_inference.schemas import InferRequest, InferResponse
from app.http.routes.open_inference.tensors import HEADER_LENGTH, joined, json_bytes, split
from app.http.routes.plain_errors import errors
from app.messages.model import ModelInfo
from app.settings.types import InputName

_COPIED_AT_ONCE = 2**20  # bytes of a region; copying more would block the event loop for too long
_BINARY = {"type": "string", "format": "binary"}
_HEADER_LENGTH = {
    "description": "Number of bytes of JSON at the start of the body. Binary data follows.",
    "schema": {"type": "integer", "minimum": 0},
}
_INFER_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The outputs, as octet-stream if some are binary data after the JSON.",
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
            RAW: {"schema": {**_BINARY, "description": "JSON, followed by binary data."}},
        },
    },
}


def infer_router(
    classification: Classification, regions: Regions | None = None, only: InputName | None = None
) -> APIRouter:
    """The routes, with images answered by ``classification``, and tensors in these ``regions`` of clients.
    ``only``: the one input that is offered."""
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
        """The same as the path without the version."""
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

    async def from_region(asked: AskedInference, access: Access, share: Share) -> bytearray | None:
        """A copy of the input's data, if it is in shared memory."""
        if (place := asked.input_place) is None:
            return None
        if place.size > limits.bytes:
            raise TooLarge(
                f"the input has {place.size} bytes in shared memory; at most {limits.bytes} are allowed"
            )
        share.take(place.size)
        if place.size <= _COPIED_AT_ONCE:
            return access.read(place)
        return await asyncio.to_thread(access.read, place)

    async def read(
        request: Request, model_name: str, model_version: str
    ) -> tuple[Inference, ModelInfo, Access | None]:
        # The inference only keeps references to the parts of the body that it needs.
        body = await read_body(request, limits)
        if request.scope["query_string"]:
            check_query(list(request.query_params))
        share = share_of(request.scope)

        header_length = request.headers.get(HEADER_LENGTH)

        def first() -> tuple[AskedInference, memoryview]:
            head, binary = split(body, header_length)
            return asked_inference(head, header_length), binary

        asked, binary = await share.run_if_large(json_bytes(len(body), header_length), first)
        check_input(asked.request, only)
        model = await model_of(request, classification, asked.options_of_each(limits), model_name)
        check_version(model.name, model_version)
        access = elsewhere = None
        if places := asked.places:
            access = access_of(regions, request.scope)
            access.check(places)
            elsewhere = await from_region(asked, access, share)
        if binary or elsewhere is not None:  # images are used in place, without decoding JSON
            return read_inference(asked, binary, limits, model, share, elsewhere), model, access
        inference = await share.run_if_large(
            len(body),
            partial(read_inference, asked, binary, limits, model, share),
            lambda inference: sum(image.size for image in inference.images),
        )
        return inference, model, access

    async def answer(request: Request, model_name: str, model_version: str) -> Response:
        if (known := check_early(classification, model_name)) is not None:
            check_version(known.name, model_version)
        inference, model, access = await read(request, model_name, model_version)
        ended = await classification.answers_or_problems(
            request, inference.images, model, logits=inference.logits, features=inference.features
        )
        head = {"model_name": model.name, "model_version": VERSION}
        if inference.id is not None:
            head["id"] = inference.id
        write = partial(_written, head, inference, ended, model, access)
        # Writing the outputs of many images takes long, so it runs in a thread.
        try:
            content, json_bytes = (
                write()
                if len(ended) == 1
                else await classification.work.render(caller_of(request.scope), write)
            )
        except Problem:  # an output does not fit into its region
            failed(model.name, request.scope)
            raise
        timings = timings_ms(ended, model, request.scope)
        # Clients of this protocol only accept status 200.
        _, retry_after = status_and_headers(ended)
        headers = {"Server-Timing": server_timing(timings), **retry_after, **image_headers(ended)}
        if json_bytes is None:
            return Response(content, media_type=JSON, headers=headers)
        return Response(content, media_type=RAW, headers={**headers, HEADER_LENGTH: str(json_bytes)})

    return router


def _written(
    head: dict[str, Any],
    inference: Inference,
    ended: Sequence[AnsweredImage | Problem],
    model: ModelInfo,
    access: Access | None,
) -> tuple[bytes, int | None]:
    return joined(head, output_tensors(inference.outputs, inference.top_k, ended, model, access))
