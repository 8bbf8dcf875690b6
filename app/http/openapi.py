"""The OpenAPI document: what FastAPI makes of the routes, and the schemas of bodies that are read by hand."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from app.http.hugging_face import HuggingFaceRequest
from app.http.open_inference_schemas import InferRequest
from app.http.schemas import ClassifyRequest, JsonImage, ProblemDocument

_BY_HAND: Sequence[type[BaseModel]] = (
    ClassifyRequest,
    JsonImage,
    ProblemDocument,
    InferRequest,
    HuggingFaceRequest,
)
_TEMPLATE = "#/components/schemas/{model}"


def install_openapi(app: FastAPI) -> None:
    """Publish the schemas that routes only refer to, so that a generated client has a type for each."""
    of_the_routes = app.openapi

    def document() -> dict[str, Any]:
        published = of_the_routes()
        schemas = published["components"]["schemas"]
        for model in _BY_HAND:
            schema = model.model_json_schema(ref_template=_TEMPLATE)
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
        return published

    app.openapi = document  # type: ignore[method-assign]
