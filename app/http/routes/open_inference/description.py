"""The model as the Open Inference Protocol describes it, and as Triton configures it."""

from app.http.routes.model_names import VERSION
from app.http.routes.open_inference.infer import INPUTS
from app.http.routes.open_inference.outputs import outputs_of
from app.http.routes.open_inference.schemas import (
    ConfigParameter,
    ModelConfig,
    ModelMetadata,
    ModelTensor,
    TensorMetadata,
)
from app.http.routes.open_inference.tensors import Datatype
from app.inference.asks import default_keep_ratio
from app.inference.expected import default_deadline_ms
from app.messages.model import ModelInfo
from app.settings.settings import Settings
from app.settings.types import InputName

SERVER = "trimvit"

_TRITON_TYPES: dict[Datatype, str] = {
    "BOOL": "TYPE_BOOL",
    "UINT8": "TYPE_UINT8",
    "INT32": "TYPE_INT32",
    "FP32": "TYPE_FP32",
    "BYTES": "TYPE_STRING",
}


def metadata_of(model: ModelInfo, only: InputName | None) -> ModelMetadata:
    """Its inputs, or the ``only`` one that the server offers, and its outputs."""
    return ModelMetadata(
        name=model.name,
        versions=[VERSION],
        platform=SERVER,
        inputs=_inputs(only),
        outputs=outputs_of(model),
    )


def config_of(settings: Settings, model: ModelInfo) -> ModelConfig:
    """Its configuration, in Triton's words."""
    only = settings.open_inference_input
    method = settings.method_of(model.name, model.method)
    defaults = {
        "keep_ratio": f"{default_keep_ratio(settings, model):g}",
        "criterion": method.criterion,
        "reducer": method.reducer,
        "deadline_ms": str(default_deadline_ms(settings, model.name)),
    }
    return ModelConfig(
        name=model.name,
        platform=SERVER,
        backend=SERVER,
        max_batch_size=settings.max_images_per_request,
        input=[_configured(tensor, optional=only is None) for tensor in _inputs(only)],
        output=[_configured(tensor) for tensor in outputs_of(model)],
        parameters={name: ConfigParameter(string_value=value) for name, value in defaults.items()},
    )


def _inputs(only: InputName | None) -> list[TensorMetadata]:
    return [tensor for tensor in INPUTS if only in (None, tensor.name)]


def _configured(tensor: TensorMetadata, *, optional: bool = False) -> ModelTensor:
    return ModelTensor(
        name=tensor.name,
        data_type=_TRITON_TYPES[tensor.datatype],
        dims=tensor.shape[1:],
        optional=optional,
    )
