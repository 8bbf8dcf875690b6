"""The calls of the Open Inference Protocol over gRPC, each of which becomes a request to /v2."""

import json
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, TypeAlias

import grpc
from google.protobuf.json_format import ParseDict
from grpc_health.v1 import health_pb2, health_pb2_grpc
from starlette.types import ASGIApp

from app.errors import Problem
from app.grpc.asking import Answer, Caller, ask, caller
from app.grpc.inference import request_of, response_of
from app.grpc.protocol import METHODS, POOL, SERVICE, message_class
from app.http.paths import (
    CUDA_REGIONS,
    MODEL_STATISTICS,
    OPEN_INFERENCE,
    OPEN_INFERENCE_LIVE,
    OPEN_INFERENCE_READY,
    REPOSITORY_INDEX,
    REPOSITORY_MODELS,
    SYSTEM_REGIONS,
)
from app.http.routes.model_names import MODELS_FOLDER, VERSION, check_model_name, no_version
from app.http.routes.open_inference.shared_memory import check_region_name
from app.http.routes.open_inference.tensors import HEADER_LENGTH

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

# gRPC status codes for HTTP statuses. All other client errors are INVALID_ARGUMENT.
_CODES = {
    HTTPStatus.UNAUTHORIZED: grpc.StatusCode.UNAUTHENTICATED,
    HTTPStatus.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    HTTPStatus.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    HTTPStatus.CONFLICT: grpc.StatusCode.FAILED_PRECONDITION,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    HTTPStatus.TOO_MANY_REQUESTS: grpc.StatusCode.RESOURCE_EXHAUSTED,
    HTTPStatus.SERVICE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    HTTPStatus.INSUFFICIENT_STORAGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
# Maximum length of an error message in bytes. It is sent as metadata, where most bytes that are not ASCII
# take three. Clients fail with their own error if there are more than 8 kB of metadata.
_LONGEST_WORDS = 2000
# Response headers that are passed on as trailing metadata.
_SENT_ON = ("x-request-id", "retry-after", "server-timing")


class InferenceService:
    """The calls of `GRPCInferenceService`, answered by the application. ``secure``: whether over TLS."""

    def __init__(self, app: ASGIApp, *, secure: bool) -> None:
        self._app = app
        self._secure = secure

    def handlers(self) -> grpc.GenericRpcHandler:
        """For `grpc.aio.Server.add_generic_rpc_handlers`."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                name: grpc.unary_unary_rpc_method_handler(
                    self._handler(name),
                    request_deserializer=message_class(f"{name}Request").FromString,
                    response_serializer=message_class(f"{name}Response").SerializeToString,
                )
                for name in METHODS
            },
        )

    def _handler(self, name: str) -> Callable[[Any, _Context], Awaitable[Any]]:
        answer = _ANSWERS[name]

        async def handle(message: Any, context: _Context) -> Any:
            call = _Call(self._app, context, secure=self._secure)
            try:
                return await answer(message, call)
            except Problem as problem:  # the message is not a valid request of /v2
                await call.end(problem.status, problem.detail)

        return handle


class Health(health_pb2_grpc.HealthServicer):
    """grpc.health.v1: whether images are answered. (Watch is not implemented: each would hold one of the
    calls that are allowed at a time.)"""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The health of the server ("") or of the service by its name."""
        if request.service not in ("", SERVICE):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"allowed are {SERVICE!r} and the empty name")
        answer = await ask(self._app, Caller(None, ()), "GET", OPEN_INFERENCE_READY.path)
        answered = health_pb2.HealthCheckResponse
        status = answered.SERVING if answer.status == HTTPStatus.OK else answered.NOT_SERVING
        return answered(status=status)


class _Call:
    """One call, with the means to send requests to the application."""

    def __init__(self, app: ASGIApp, context: _Context, *, secure: bool) -> None:
        self._app = app
        self.context = context
        self._caller = caller(context.peer(), list(context.invocation_metadata() or ()), secure=secure)

    async def get(self, path: str) -> Answer:
        """Send a GET request."""
        return await ask(self._app, self._caller, "GET", path)

    async def post(self, path: str, body: list[bytes], *headers: tuple[bytes, bytes]) -> Answer:
        """Send a POST request with the body."""
        told = Caller(self._caller.address, (*self._caller.headers, *headers), self._caller.secure)
        return await ask(self._app, told, "POST", path, body)

    async def found(self, answer: Answer) -> Answer:
        """The answer. If it is an error, the call ends in it."""
        self.context.set_trailing_metadata(_metadata(answer))
        if answer.status != HTTPStatus.OK:
            await self.end(answer.status, answer.error)
        return answer

    async def end(self, status: int, why: str) -> None:
        """End the call in an error."""
        if len(why.encode()) > _LONGEST_WORDS:
            why = why.encode()[: _LONGEST_WORDS - 3].decode(errors="ignore") + "..."
        own = grpc.StatusCode.INTERNAL if status >= 500 else grpc.StatusCode.INVALID_ARGUMENT
        await self.context.abort(_CODES.get(HTTPStatus(status), own), why)


def _metadata(answer: Answer) -> tuple[tuple[str, str], ...]:
    return tuple((name, answer.headers[name]) for name in _SENT_ON if name in answer.headers)


def _of_model(name: str, version: str, part: str = "") -> str:
    """The path of a part of the model. Raises NotFound where it would be another path."""
    if "/" in version:
        raise no_version(name, version)
    return f"{MODELS_FOLDER}{check_model_name(name)}" + (f"/versions/{version}" if version else "") + part


async def _infer(message: Any, call: _Call) -> Any:
    path = _of_model(message.model_name, message.model_version, "/infer")
    body, json_bytes = request_of(message, call.context.time_remaining())
    length = (HEADER_LENGTH.lower().encode(), str(json_bytes).encode())
    return response_of(await call.found(await call.post(path, body, length)))


async def _server_live(_: Any, call: _Call) -> Any:
    live = (await call.get(OPEN_INFERENCE_LIVE.path)).status == HTTPStatus.OK
    return _response("ServerLive", {"live": live})


async def _server_ready(_: Any, call: _Call) -> Any:
    ready = (await call.get(OPEN_INFERENCE_READY.path)).status == HTTPStatus.OK
    return _response("ServerReady", {"ready": ready})


async def _model_ready(message: Any, call: _Call) -> Any:
    answer = await call.get(_of_model(message.name, message.version, "/ready"))
    ready = answer.status != HTTPStatus.SERVICE_UNAVAILABLE
    if ready:
        await call.found(answer)
    return _response("ModelReady", {"ready": ready})


async def _server_metadata(_: Any, call: _Call) -> Any:
    answer = await call.found(await call.get(OPEN_INFERENCE.path))
    return _response("ServerMetadata", answer.document)


async def _model_metadata(message: Any, call: _Call) -> Any:
    # Without a version, the path of a model named "stats" would be the path of all statistics.
    path = _of_model(message.name, message.version or VERSION)
    answer = await call.found(await call.get(path))
    return _response("ModelMetadata", answer.document)


async def _model_config(message: Any, call: _Call) -> Any:
    answer = await call.found(await call.get(_of_model(message.name, message.version, "/config")))
    return _response("ModelConfig", {"config": answer.document})


async def _repository_index(message: Any, call: _Call) -> Any:
    asked = _repository_body(message, {"ready": message.ready})
    answer = await call.found(await call.post(REPOSITORY_INDEX.path, asked))
    return _response("RepositoryIndex", {"models": answer.document})


def _repository_model(verb: str) -> Callable[[Any, _Call], Awaitable[Any]]:
    async def change(message: Any, call: _Call) -> Any:
        parameters = {
            name: _readable(getattr(parameter, parameter.WhichOneof("parameter_choice") or "", None))
            for name, parameter in message.parameters.items()
        }
        asked = _repository_body(message, {"parameters": parameters})
        name = check_model_name(message.model_name)
        await call.found(await call.post(f"{REPOSITORY_MODELS.path}{name}/{verb}", asked))
        return _response(f"RepositoryModel{verb.title()}", {})

    return change


def _repository_body(message: Any, members: dict[str, Any]) -> list[bytes]:
    """The body as JSON. There is one repository, without a name: a named one is refused by the
    application."""
    named = {"repository_name": message.repository_name} if message.repository_name else {}
    return [json.dumps({**named, **members}).encode()]


def _readable(value: Any) -> Any:
    """The parameters as JSON. The bytes of a file are not passed on: the application refuses it by the name
    of the parameter."""
    return None if isinstance(value, bytes) else value


async def _model_statistics(message: Any, call: _Call) -> Any:
    path = _of_model(message.name, message.version, "/stats") if message.name else MODEL_STATISTICS.path
    answer = await call.found(await call.get(path))
    return _response("ModelStatistics", answer.document)


async def _regions(message: Any, call: _Call) -> Any:
    answer = await call.found(await call.get(_of_region(SYSTEM_REGIONS, message.name, "/status")))
    return _response(
        "SystemSharedMemoryStatus", {"regions": {each["name"]: each for each in answer.document}}
    )


async def _register(message: Any, call: _Call) -> Any:
    asked = {"key": message.key, "offset": message.offset, "byte_size": message.byte_size}
    path = f"{SYSTEM_REGIONS}/region/{check_region_name(message.name)}/register"
    await call.found(await call.post(path, [json.dumps(asked).encode()]))
    return _response("SystemSharedMemoryRegister", {})


async def _unregister(message: Any, call: _Call) -> Any:
    await call.found(await call.post(_of_region(SYSTEM_REGIONS, message.name, "/unregister"), []))
    return _response("SystemSharedMemoryUnregister", {})


async def _cuda_regions(message: Any, call: _Call) -> Any:
    await call.found(await call.get(_of_region(CUDA_REGIONS, message.name, "/status")))
    return _response("CudaSharedMemoryStatus", {})


async def _cuda_register(message: Any, call: _Call) -> Any:
    path = f"{CUDA_REGIONS}/region/{check_region_name(message.name)}/register"
    await call.found(await call.post(path, []))
    return _response("CudaSharedMemoryRegister", {})


async def _cuda_unregister(message: Any, call: _Call) -> Any:
    await call.found(await call.post(_of_region(CUDA_REGIONS, message.name, "/unregister"), []))
    return _response("CudaSharedMemoryUnregister", {})


def _of_region(folder: str, name: str, part: str) -> str:
    return folder + (f"/region/{check_region_name(name)}" if name else "") + part


def _response(name: str, content: dict[str, Any]) -> Any:
    """The message for that answer. Members of /v2 that the protocol does not have are left out."""
    return ParseDict(
        content, message_class(f"{name}Response")(), ignore_unknown_fields=True, descriptor_pool=POOL
    )


_ANSWERS: dict[str, Callable[[Any, _Call], Awaitable[Any]]] = {
    "ServerLive": _server_live,
    "ServerReady": _server_ready,
    "ModelReady": _model_ready,
    "ServerMetadata": _server_metadata,
    "ModelMetadata": _model_metadata,
    "ModelInfer": _infer,
    "ModelConfig": _model_config,
    "RepositoryIndex": _repository_index,
    "RepositoryModelLoad": _repository_model("load"),
    "RepositoryModelUnload": _repository_model("unload"),
    "ModelStatistics": _model_statistics,
    "SystemSharedMemoryStatus": _regions,
    "SystemSharedMemoryRegister": _register,
    "SystemSharedMemoryUnregister": _unregister,
    "CudaSharedMemoryStatus": _cuda_regions,
    "CudaSharedMemoryRegister": _cuda_register,
    "CudaSharedMemoryUnregister": _cuda_unregister,
}
