"""The schemas of /v2: requests and answers in the terms of the Open Inference Protocol."""

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.http.routes.open_inference.tensors import Datatype
from app.http.schemas import EXAMPLE_IMAGE
from app.inference.options import MASK_OPTIONS, option_schemas
from app.priority import Priority
from app.settings.types import InputName
from models.bundled import BUNDLED_MODEL

OutputName = Literal[
    "label", "score", "index", "logits", "kept_patches", "keep_ratio", "compute", "embedding", "error"
]

# Parameters that Triton's clients set, with the same meaning as in Triton.
TRITONS: dict[str, Any] = {
    "priority": {
        "anyOf": [{"type": "integer", "minimum": 0}, {"enum": list(get_args(Priority))}],
        "default": 0,
        "description": "1 is `high`, 2 and 0 are `normal`, 3 and above are `batch`. While images of all "
        "three wait, they get 16, 4 and 1 of 21 parts of the worker. A priority that the caller is not "
        "allowed to use is refused with 403.",
    },
    "timeout": {
        "type": "integer",
        "minimum": 0,
        "maximum": 600_000_000,
        "description": "Deadline in microseconds, after which the request gets 504. 0: the server's "
        "default. Replaces `deadline_ms`.",
    },
    "triton_enable_empty_final_response": {
        "type": "boolean",
        "default": False,
        "description": "Has no effect: it is for streaming responses, and there is always one response.",
    },
    "content_type": {
        "type": "string",
        "description": "Has no effect: MLServer's clients name the codec of a request in it.",
    },
    "binary_data_output": {
        "type": "boolean",
        "default": False,
        "description": "Whether outputs are returned as binary data after the JSON unless they specify "
        "it themselves.",
    },
}

_SHAPE = "Length of each axis; -1: variable."


class ServerMetadata(BaseModel):
    """The server."""

    name: str = Field(description="Always trimvit.", examples=["trimvit"])
    version: str = Field(description="Version of the server.", examples=["0.1.0"])
    extensions: list[str] = Field(
        description="Extensions of the protocol, by Triton's names.",
        examples=[["binary_tensor_data", "classification"]],
    )


class ServerLive(BaseModel):
    """Whether the HTTP process runs."""

    live: bool = Field(description="Always true.", examples=[True])


class ServerReady(BaseModel):
    """Whether the server is ready to answer images."""

    ready: bool = Field(description="Whether a worker has loaded the model and is ready.", examples=[True])


class TensorMetadata(BaseModel):
    """An input or an output."""

    name: str = Field(description="The tensor's name.", examples=["image"])
    datatype: Datatype = Field(description="Type of its elements.", examples=["BYTES"])
    shape: list[int] = Field(description=_SHAPE, examples=[[-1, 1]])


class ModelMetadata(BaseModel):
    """A model's inputs, of which a request has one, and its outputs."""

    name: str = Field(description="The model's name.", examples=[BUNDLED_MODEL])
    versions: list[str] = Field(description="Always one.", examples=[["1"]])
    platform: str = Field(description="Always trimvit.", examples=["trimvit"])
    inputs: list[TensorMetadata] = Field(
        description="`image`: encoded photographs (JPEG, PNG, ...), n or n x 1. `pixels`: decoded "
        "photographs, n x height x width x RGB, all of the same size; the server crops and resizes them "
        "in the same way."
    )
    outputs: list[TensorMetadata] = Field(description="Available outputs.")


class ModelTensor(BaseModel):
    """An input or an output, in Triton's words."""

    name: str = Field(description="The tensor's name.", examples=["image"])
    data_type: str = Field(description="Type of its elements.", examples=["TYPE_STRING"])
    dims: list[int] = Field(description=_SHAPE + " Without the first axis (images).", examples=[[1]])
    optional: bool = Field(default=False, description="Whether a request can leave it out.")


class ConfigParameter(BaseModel):
    """A value in Triton's form."""

    string_value: str = Field(description="Always text.", examples=["0.5"])


class ModelConfig(BaseModel):
    """A model's configuration, as far as Triton's has a word for it."""

    name: str = Field(description="The model's name.", examples=[BUNDLED_MODEL])
    platform: str = Field(description="Always trimvit.", examples=["trimvit"])
    backend: str = Field(description="Always trimvit.", examples=["trimvit"])
    max_batch_size: int = Field(ge=1, description="Maximum number of images in a request.", examples=[64])
    input: list[ModelTensor] = Field(description="A request has exactly one of them.")
    output: list[ModelTensor] = Field(description="Available outputs.")
    parameters: dict[str, ConfigParameter] = Field(
        description="Defaults of the options `keep_ratio`, `criterion`, `reducer` and `deadline_ms`."
    )


class _Requested(BaseModel):
    """Part of a request. A member that is null counts as not given, because programs write null for what is
    not set."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if isinstance(value, dict) and None in value.values():
            return {name: member for name, member in value.items() if member is not None}
        return value


class RegionParameters(_Requested):
    """Where a tensor's data lies in shared memory, for clients on the server's machine."""

    shared_memory_region: str | None = Field(
        None,
        description="Name of a registered region that is used instead of data in the request or response.",
    )
    shared_memory_byte_size: int | None = Field(None, ge=0, description="Bytes of the data there.")
    shared_memory_offset: int = Field(0, ge=0, description="Where the data begins in the region, in bytes.")


class InputParameters(RegionParameters):
    """How an input's data comes."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"additionalProperties": False})

    binary_data_size: int | None = Field(
        None, ge=0, description="Size in bytes of its binary data after the JSON. Replaces `data`."
    )
    content_type: Literal["base64", "str", "np"] | None = Field(
        None, description="Has no effect: MLServer's codecs name themselves in it."
    )


class InferInput(_Requested):
    """The images of a request, as one tensor."""

    name: InputName = Field(
        description="`image` for encoded photographs, `pixels` for decoded ones.", examples=["image"]
    )
    shape: list[int] = Field(
        min_length=1,
        max_length=4,
        description="Of `image` [n] or [n, 1], of `pixels` [n, height, width, 3]; n from 1.",
        examples=[[1]],
    )
    datatype: Literal["BYTES", "UINT8"] = Field(
        description="BYTES of `image`, UINT8 of `pixels`.", examples=["BYTES"]
    )
    parameters: InputParameters = Field(
        default_factory=InputParameters, description="For binary data after the JSON."
    )
    data: Any = Field(
        None,
        description="The elements, flattened or nested according to the shape: base64 strings for "
        "`image`, integers from 0 to 255 (red, green, blue) for `pixels`.",
        examples=[[EXAMPLE_IMAGE]],
        json_schema_extra={"type": "array", "items": {}},
    )


class OutputParameters(RegionParameters):
    """How an output is wanted. In shared memory, `shared_memory_byte_size` is the room for it."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"additionalProperties": False})

    binary_data: bool | None = Field(
        None,
        description="Whether it is returned as binary data after the JSON. Default: the request's "
        "`binary_data_output`.",
    )
    classification: int = Field(
        0,
        ge=0,
        description="For `score` and `logits`: number of best classes to return, each as BYTES "
        "`value:index:label`. 0: return the numbers themselves.",
        examples=[3],
    )
    content_type: str | None = Field(
        None, description="Has no effect: MLServer's clients name a codec in it."
    )


class RequestedOutput(_Requested):
    """An output that is wanted."""

    name: OutputName = Field(description="The output's name.", examples=["label"])
    parameters: OutputParameters = Field(
        default_factory=OutputParameters, description="Options of the output."
    )


class InferRequest(_Requested):
    """Images, how to prune them, and what to answer with."""

    id: str | None = Field(
        None, max_length=1024, description="Returned with the response.", examples=["photograph-7"]
    )
    parameters: dict[str, Any] = Field(
        default_factory=dict,
        description="Options for all images: those of /v1/classify except masks, and Triton's own.",
        examples=[{"keep_ratio": 0.7, "top_k": 2, "timeout": 2_000_000}],
        json_schema_extra={"properties": {**option_schemas(MASK_OPTIONS), **TRITONS}},
    )
    inputs: list[InferInput] = Field(min_length=1, max_length=1, description="One: `image` or `pixels`.")
    outputs: list[RequestedOutput] = Field(
        default_factory=list,
        max_length=9,
        description="Requested outputs, each at most once. Default: all except `embedding` and "
        "`error`; for a model without a head, also `embedding`; with `errors=each`, also `error`.",
        examples=[[{"name": "label"}, {"name": "score"}]],
    )


class OutputDataParameters(BaseModel):
    """How an output's data comes."""

    binary_data_size: int = Field(
        ge=0, description="Size in bytes of its binary data after the JSON. Replaces `data`."
    )


class InferOutput(BaseModel):
    """An output of all images, in the order of the request.

    `label` [n, top_k] BYTES, `score` [n, top_k] FP32 (its probability) and `index` [n, top_k] INT32 of
    the best classes; `logits` [n, classes] FP32; `kept_patches` [n, stages, rows, columns] BOOL: the patches
    left after each stage; `keep_ratio` [n, 1] FP32 as it was applied; `compute` [n, 1] FP32: what it cost,
    as a share of the unpruned model's multiply-accumulates; `embedding` [n, features] FP32: the feature
    vector; `error` [n, 1] BYTES: empty, or with `errors=each` the problem document of an image that cannot
    be answered, whose other outputs are then 0, false, empty, and -1 in `index`. A model without a head has
    none about classes.
    """

    name: OutputName = Field(description="The output's name.", examples=["label"])
    datatype: Datatype = Field(description="Type of its elements.", examples=["BYTES"])
    shape: list[int] = Field(description="Length of each axis.", examples=[[1, 2]])
    parameters: OutputDataParameters | None = Field(None, description="Only for binary data after the JSON.")
    data: list[Any] | None = Field(
        None,
        description="The elements in row-major order, unless they are after the JSON or in a region.",
        examples=[["church", "parachute"]],
    )


class InferResponse(BaseModel):
    """The requested outputs, in the order of the request."""

    model_name: str = Field(description="The model's name.", examples=[BUNDLED_MODEL])
    model_version: str = Field(description="The model's version.", examples=["1"])
    id: str | None = Field(None, description="That of the request, if it had one.", examples=["photograph-7"])
    outputs: list[InferOutput] = Field(description="One per requested output.")
