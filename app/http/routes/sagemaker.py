"""POST /invocations: the interface that Amazon SageMaker requires of a container together with GET /ping, on
port 8080.

Its text: https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html MLflow's clients
use the same path.
"""

from fastapi import APIRouter, Request, Response
from starlette.datastructures import Headers
from starlette.types import Scope

from app.http.answers import WARNINGS_HEADER_SCHEMA
from app.http.classification import Classification
from app.http.paths import SAGEMAKER
from app.http.problems import PROBLEMS, each
from app.http.routes.classify import BODY, classified
from app.http.routes.direct import DirectRoute
from app.http.schemas import ClassifyEachResponse, ClassifyResponse
from app.inference.options import ImageOptions
from app.nearest import same

ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
_AROUND = " \t{}\"'"

_BODY = {
    **BODY,
    "parameters": [
        *BODY["parameters"],
        {
            "name": ATTRIBUTES,
            "in": "header",
            "required": False,
            "description": "Options, for clients that cannot send a query: keep_ratio=0.5,top_k=2, or a "
            "JSON object. Other parts without =, such as an ID, are ignored.",
            "schema": {"type": "string"},
        },
    ],
}


def sagemaker_router(classification: Classification) -> APIRouter:
    """The route, on this way of images to their answers."""
    router = APIRouter(tags=["classify"], route_class=DirectRoute)

    @router.post(
        SAGEMAKER.path,
        operation_id="sagemaker_invocations",
        response_model=ClassifyResponse,
        responses={200: {"headers": WARNINGS_HEADER_SCHEMA}, **each(ClassifyEachResponse), **PROBLEMS},
        openapi_extra=_BODY,
        summary="Classify photographs, for Amazon SageMaker",
    )
    async def invocations(request: Request) -> Response:
        """The same as /v1/classify, with the same bodies and answers."""
        scope = {**request.scope, "query_string": query_of(request.scope)}
        return await classified(Request(scope, request.receive), classification)

    return router


def query_of(scope: Scope) -> bytes:
    """The query of a request, followed by the options that SageMaker passes on in a header, because its
    clients cannot send a query."""
    query: bytes = scope["query_string"]
    if scope["path"] != SAGEMAKER.path:
        return query
    given = ",".join(Headers(scope=scope).getlist(ATTRIBUTES)).replace(";", ",").replace("&", ",")
    attributes = [text for part in given.split(",") if (text := _option_in(part))]
    return b"&".join(part for part in (query, *(text.encode("latin-1") for text in attributes)) if part)


def _option_in(part: str) -> str | None:
    """This part of the header as a query: parts with =, and options in other forms, as in {"keep_ratio":
    0.5}. None for an ID."""
    plain = part.strip(_AROUND)
    name, mark, value = plain.partition(":" if ":" in plain.partition("=")[0] else "=")
    name, value = name.strip(_AROUND), value.strip(_AROUND)
    if mark and same(name, ImageOptions.model_fields):
        return f"{name}={value}"
    return part.strip() if "=" in part else None
