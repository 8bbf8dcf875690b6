"""The OpenAPI document: FastAPI's, plus the schemas of bodies that are not read by FastAPI.

A generated client gets a type for every body and a good method name for every operation, and every member has
a description (a test checks it).
"""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel

from app.http.routes.hugging_face import HuggingFaceRequest
from app.http.routes.kserve_v1 import PredictRequest
from app.http.routes.open_inference.schemas import InferRequest
from app.http.routes.open_inference.shared_memory import RegionRequest
from app.http.routes.plain_errors import ErrorAnswer
from app.http.schemas import ClassifyRequest, EmbedRequest, JsonImage, JsonImageToEmbed, ProblemDocument

_BY_HAND: Sequence[type[BaseModel]] = (
    ClassifyRequest,
    JsonImage,
    EmbedRequest,
    JsonImageToEmbed,
    ProblemDocument,
    ErrorAnswer,
    InferRequest,
    RegionRequest,
    HuggingFaceRequest,
    PredictRequest,
)
_TEMPLATE = "#/components/schemas/{model}"
_NEVER_SENT = ("HTTPValidationError", "ValidationError")  # FastAPI declares these by default; see problems.py


def operation_id(route: APIRoute) -> str:
    """The operation ID of a route that has none of its own: the name of its function."""
    return route.name


def install_openapi(app: FastAPI) -> None:
    """Publish the schemas that routes only refer to, and none that are never sent."""
    of_the_routes = app.openapi

    def document() -> dict[str, Any]:
        known = app.openapi_schema is not None  # generating it takes 0.05 s
        published = of_the_routes()
        if known:
            return published
        schemas = published["components"]["schemas"]
        for model in _BY_HAND:
            schema = model.model_json_schema(ref_template=_TEMPLATE)
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
        for name in _NEVER_SENT:
            schemas.pop(name, None)
        for operations in published["paths"].values():
            for operation in operations.values():
                if _NEVER_SENT[0] in str(operation["responses"].get("422")):
                    del operation["responses"]["422"]
        return published

    app.openapi = document  # type: ignore[method-assign]
