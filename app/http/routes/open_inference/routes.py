"""/v2: the Open Inference Protocol over REST, for clients of KServe and Triton.

Its text: specification/protocol/inference_rest.md of https://github.com/kserve/open-inference-protocol With
Triton's extensions for binary tensor data, classification and model configuration. Choices: docs/design/0018.
"""

from importlib.metadata import version

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from app.http.classification import Classification
from app.http.health import Health
from app.http.paths import OPEN_INFERENCE, OPEN_INFERENCE_LIVE, OPEN_INFERENCE_READY
from app.http.problems import PROBLEMS
from app.http.routes.model_names import (
    MODELS_FOLDER,
    VERSION,
    ModelName,
    ModelReady,
    ModelVersion,
    check_version,
    known_model,
    ready_model,
)
from app.http.routes.open_inference.description import SERVER, config_of, metadata_of
from app.http.routes.open_inference.schemas import (
    ModelConfig,
    ModelMetadata,
    ServerLive,
    ServerMetadata,
    ServerReady,
)
from app.http.routes.plain_errors import errors
from app.messages.model import ModelInfo
from app.settings.settings import Settings

EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "parameters",
    "schedule_policy",
    "statistics",
]


_NO_MODEL = errors(404, 503)


def open_inference_router(
    classification: Classification,
    health: Health,
    settings: Settings,
    *,
    with_shared_memory: bool = False,
) -> APIRouter:
    """The routes, with images answered by ``classification``. ``with_shared_memory``: whether the routes of
    shared_memory.py are enabled."""
    router = APIRouter(tags=["open inference protocol"])
    only = settings.open_inference_input
    optional = {"model_repository": settings.model_repository, "system_shared_memory": with_shared_memory}
    extensions = sorted([*EXTENSIONS, *(name for name, offered in optional.items() if offered)])

    def described(name: str, model_version: str = VERSION) -> ModelInfo:
        """The description of the model, without waiting for a worker."""
        model = known_model(classification, name)
        check_version(name, model_version)
        return model

    @router.get(
        OPEN_INFERENCE.path, operation_id="v2_server_metadata", summary="Server name, version and extensions"
    )
    async def server_metadata() -> ServerMetadata:
        return ServerMetadata(name=SERVER, version=version("trimvit"), extensions=extensions)

    @router.get(OPEN_INFERENCE_LIVE.path, operation_id="v2_server_live", summary="The HTTP process runs")
    async def live() -> ServerLive:
        return ServerLive(live=True)

    @router.get(
        OPEN_INFERENCE_READY.path,
        operation_id="v2_server_ready",
        summary="A worker has loaded, warmed up and answers, and images can be decoded",
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

    @router.get(
        MODELS_FOLDER + "{model_name:model}/versions/{model_version}/ready",
        operation_id="v2_model_version_ready",
        summary="Whether this version of the model answers",
        responses=_NO_MODEL,
    )
    async def version_ready(model_name: ModelName, model_version: ModelVersion) -> ModelReady:
        return ready_model(classification, health, model_name, version=model_version)

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
        return config_of(settings, described(model_name, model_version))

    @router.get(
        MODELS_FOLDER + "{model_name:model}/config",
        operation_id="v2_model_config",
        summary="The model's configuration, in Triton's words",
        responses=_NO_MODEL,
    )
    async def model_config(model_name: ModelName) -> ModelConfig:
        return config_of(settings, described(model_name))

    @router.get(
        MODELS_FOLDER + "{model_name:model}/versions/{model_version}",
        operation_id="v2_model_version_metadata",
        summary="Inputs and outputs of this version of the model",
        responses=_NO_MODEL,
    )
    async def version_metadata(model_name: ModelName, model_version: ModelVersion) -> ModelMetadata:
        return metadata_of(described(model_name, model_version), only)

    @router.get(
        MODELS_FOLDER + "{model_name:model}",
        operation_id="v2_model_metadata",
        summary="The model's inputs and outputs",
        responses=_NO_MODEL,
    )
    async def model_metadata(model_name: ModelName) -> ModelMetadata:
        return metadata_of(described(model_name), only)

    return router
