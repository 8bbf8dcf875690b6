"""/v2/repository: models are listed, loaded and unloaded while others are served (Triton's model repository).

Its text: docs/protocol/extension_model_repository.md of https://github.com/triton-inference-server/server The
operator decides what a name stands for (--model, --loadable): a request names no path and no file.
"""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from app.errors import AdminOnly, InvalidValue, NotFound
from app.http.bodies.body import read_body
from app.http.bodies.content import JSON, BodyLimits
from app.http.bodies.documents import read_document
from app.http.callers import is_admin
from app.http.client_gone import unless_gone
from app.http.dispatch import Dispatch
from app.http.model_choice import no_model_yet
from app.http.paths import REPOSITORY_INDEX, REPOSITORY_MODELS
from app.http.routes.model_names import VERSION, ModelName
from app.http.routes.plain_errors import errors
from app.messages.repository import ModelEntry
from app.wrong_values import no_such, said_back, short

_STATES = {"ready": "READY", "loading": "LOADING", "unloading": "UNLOADING", "unloaded": "UNAVAILABLE"}
_MOST_BYTES, _MOST_VALUES = 64 * 1024, 1000
_ERRORS: dict[int | str, dict[str, Any]] = {
    **errors(400, 404, 408, 413, 422, 500, 503),
    **{
        status: {**errors(400)[400], "description": meaning}
        for status, meaning in {
            403: "The API key is not marked admin.",
            409: "Another model is being loaded or unloaded, or the model is the default one.",
            504: "Loading took longer than the server allows.",
            507: "Not enough memory for the model.",
        }.items()
    },
}


class RepositoryModel(BaseModel):
    """A model that is served or may be loaded."""

    name: str = Field(description="The model's name.", examples=["small"])
    version: str = Field(description="Always 1.", examples=[VERSION])
    state: str = Field(
        description="READY, LOADING, UNLOADING or UNAVAILABLE (not loaded).", examples=["READY"]
    )
    reason: str = Field(description="Why the model could not be loaded; otherwise empty.", examples=[""])


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": False, "content": {JSON: {"schema": schema}}}}


_INDEX_BODY = _body(
    {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "ready": {"type": "boolean", "default": False, "description": "Only models that are served."}
        },
    }
)
_PARAMETERS = {"type": "object", "description": "Not supported: models are defined in the settings."}
_LOAD_BODY = _body(
    {"type": "object", "additionalProperties": False, "properties": {"parameters": _PARAMETERS}}
)
_UNLOAD_BODY = _body(
    {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "parameters": {
                "type": "object",
                "properties": {
                    "unload_dependents": {"type": "boolean", "description": "No model depends on another."}
                },
                "additionalProperties": False,
            }
        },
    }
)


def repository_router(dispatch: Dispatch, limits: BodyLimits) -> APIRouter:
    """The routes, on the models of these workers."""
    router = APIRouter(tags=["open inference protocol"])

    def entries() -> dict[str, ModelEntry]:
        found = {entry.name: entry for entry in dispatch.repository}
        if not found:
            raise no_model_yet()
        return found

    async def document(request: Request, known: tuple[str, ...]) -> dict[str, Any]:
        """The request's JSON. The body may be empty. Raises InvalidValue for members other than the ``known``
        ones."""
        body = await read_body(request, limits)
        if not body.strip():
            return {}
        hint = "the model is named in the path, and files are not accepted"
        value = read_document(bytes(body), "the body", _MOST_BYTES, _MOST_VALUES, hint)
        if not isinstance(value, dict):
            raise InvalidValue(f"the body must be an object, such as {{}}, not {said_back(value)}")
        _refuse_others(value, known, "the body")
        return value

    async def changed(request: Request, name: str, known: tuple[str, ...], *, load: bool) -> RepositoryModel:
        if not is_admin(request.scope):
            raise AdminOnly(
                "this API key is not allowed to load and unload models; the operator allows it by adding "
                "admin to its line, as in name:key admin"
            )
        parameters = (await document(request, ("parameters",))).get("parameters", {})
        if not isinstance(parameters, dict):
            raise InvalidValue(f"parameters must be an object, not {said_back(parameters)}")
        _refuse_others(parameters, known, "parameters")
        for each, value in parameters.items():
            if not isinstance(value, bool):
                raise InvalidValue(f"{each} must be true or false, not {said_back(value)}")
        listed = entries()
        if name not in listed:
            raise NotFound(
                f"{no_such('model', name, listed)}; only models that --model and --loadable name can be "
                "loaded"
            )
        await unless_gone(request, dispatch.change_model(name, load=load))
        return _described(ModelEntry(name, "ready" if load else "unloaded"))

    @router.post(
        REPOSITORY_INDEX.path,
        operation_id="v2_repository_index",
        summary="Models that are served or can be loaded",
        responses=errors(400, 408, 413, 422, 503),
        openapi_extra=_INDEX_BODY,
    )
    async def index(request: Request) -> list[RepositoryModel]:
        only_ready = (await document(request, ("ready",))).get("ready", False)
        if not isinstance(only_ready, bool):
            raise InvalidValue(f"ready must be true or false, not {said_back(only_ready)}")
        return [_described(each) for each in entries().values() if each.state == "ready" or not only_ready]

    @router.post(
        REPOSITORY_MODELS.path + "{model_name:model}/load",
        operation_id="v2_repository_model_load",
        summary="Load the model; returns when it is ready",
        responses=_ERRORS,
        openapi_extra=_LOAD_BODY,
    )
    async def load(request: Request, model_name: ModelName) -> RepositoryModel:
        """Loading goes on where the client goes away first; the index says what comes of it. A model that is
        served already stays as it is: to read a changed file, unload it first."""
        return await changed(request, model_name, (), load=True)

    @router.post(
        REPOSITORY_MODELS.path + "{model_name:model}/unload",
        operation_id="v2_repository_model_unload",
        summary="Unload the model; returns when its memory is free",
        responses=_ERRORS,
        openapi_extra=_UNLOAD_BODY,
    )
    async def unload(request: Request, model_name: ModelName) -> RepositoryModel:
        """New requests for it are refused at once, with 404; those that were accepted are answered. The
        default model cannot be unloaded."""
        return await changed(request, model_name, ("unload_dependents",), load=False)

    return router


def _refuse_others(given: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    other = next((name for name in given if name not in known), None)
    if other is not None:
        allowed = f"allowed: {', '.join(known)}" if known else "none is taken"
        raise InvalidValue(f"{where} must not have {short.repr(other)}; {allowed}")


def _described(entry: ModelEntry) -> RepositoryModel:
    return RepositoryModel(name=entry.name, version=VERSION, state=_STATES[entry.state], reason=entry.reason)
