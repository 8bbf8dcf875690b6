"""The messages of the Open Inference Protocol over gRPC, and Triton's additions to it.

Their definition: specification/protocol/open_inference_grpc.proto of
https://github.com/kserve/open-inference-protocol, and protobuf/grpc_service.proto and model_config.proto of
https://github.com/triton-inference-server/common. Of the model configuration, only the fields that this
server uses are included. The messages are described here as data, without generated code, and in a descriptor
pool of their own, so a client's generated code (tritonclient) can be used in the same process.

Above 300 lines: a line for each field.
"""

from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    ServiceDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
_FILE = "trimvit/inference.proto"

# A field: its number and type. The suffix `[]` means repeated, `{}` means a map with string keys, and the
# prefix `|` means one of the alternatives of the message.
_Fields = Mapping[str, tuple[int, str]]

_MODEL: _Fields = {"name": (1, "string"), "version": (2, "string")}
_TENSOR: _Fields = {"name": (1, "string"), "datatype": (2, "string"), "shape": (3, "int64[]")}
_CHANGE: _Fields = {
    "repository_name": (1, "string"),
    "model_name": (2, "string"),
    "parameters": (3, "ModelRepositoryParameter{}"),
}


def _regions(kind: str, described: _Fields, registered: _Fields | None = None) -> dict[str, _Fields]:
    """The messages about one kind of shared memory. ``described``: the fields of a region besides its name.
    ``registered``: the fields of a registration, if they differ."""
    name: _Fields = {"name": (1, "string")}
    status = f"{kind}SharedMemoryStatus"
    return {
        f"{status}Request": name,
        f"{status}Response": {"regions": (1, f"{status}Response.RegionStatus{{}}")},
        f"{status}Response.RegionStatus": {**name, **described},
        f"{kind}SharedMemoryRegisterRequest": {**name, **(registered or described)},
        f"{kind}SharedMemoryRegisterResponse": {},
        f"{kind}SharedMemoryUnregisterRequest": name,
        f"{kind}SharedMemoryUnregisterResponse": {},
    }


_MESSAGES: Mapping[str, _Fields] = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"live": (1, "bool")},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"ready": (1, "bool")},
    "ModelReadyRequest": _MODEL,
    "ModelReadyResponse": {"ready": (1, "bool")},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {
        "name": (1, "string"),
        "version": (2, "string"),
        "extensions": (3, "string[]"),
    },
    "ModelMetadataRequest": _MODEL,
    "ModelMetadataResponse": {
        "name": (1, "string"),
        "versions": (2, "string[]"),
        "platform": (3, "string"),
        "inputs": (4, "ModelMetadataResponse.TensorMetadata[]"),
        "outputs": (5, "ModelMetadataResponse.TensorMetadata[]"),
    },
    "ModelMetadataResponse.TensorMetadata": _TENSOR,
    "InferParameter": {
        "bool_param": (1, "|bool"),
        "int64_param": (2, "|int64"),
        "string_param": (3, "|string"),
        "double_param": (4, "|double"),
        "uint64_param": (5, "|uint64"),
    },
    "InferTensorContents": {
        "bool_contents": (1, "bool[]"),
        "int_contents": (2, "int32[]"),
        "int64_contents": (3, "int64[]"),
        "uint_contents": (4, "uint32[]"),
        "uint64_contents": (5, "uint64[]"),
        "fp32_contents": (6, "float[]"),
        "fp64_contents": (7, "double[]"),
        "bytes_contents": (8, "bytes[]"),
    },
    "ModelInferRequest": {
        "model_name": (1, "string"),
        "model_version": (2, "string"),
        "id": (3, "string"),
        "parameters": (4, "InferParameter{}"),
        "inputs": (5, "ModelInferRequest.InferInputTensor[]"),
        "outputs": (6, "ModelInferRequest.InferRequestedOutputTensor[]"),
        "raw_input_contents": (7, "bytes[]"),
    },
    "ModelInferRequest.InferInputTensor": {
        **_TENSOR,
        "parameters": (4, "InferParameter{}"),
        "contents": (5, "InferTensorContents"),
    },
    "ModelInferRequest.InferRequestedOutputTensor": {
        "name": (1, "string"),
        "parameters": (2, "InferParameter{}"),
    },
    "ModelInferResponse": {
        "model_name": (1, "string"),
        "model_version": (2, "string"),
        "id": (3, "string"),
        "parameters": (4, "InferParameter{}"),
        "outputs": (5, "ModelInferResponse.InferOutputTensor[]"),
        "raw_output_contents": (6, "bytes[]"),
    },
    "ModelInferResponse.InferOutputTensor": {
        **_TENSOR,
        "parameters": (4, "InferParameter{}"),
        "contents": (5, "InferTensorContents"),
    },
    "ModelStatisticsRequest": _MODEL,
    "ModelStatisticsResponse": {"model_stats": (1, "ModelStatistics[]")},
    "ModelStatistics": {
        "name": (1, "string"),
        "version": (2, "string"),
        "last_inference": (3, "uint64"),
        "inference_count": (4, "uint64"),
        "execution_count": (5, "uint64"),
        "inference_stats": (6, "InferStatistics"),
        "batch_stats": (7, "InferBatchStatistics[]"),
        "memory_usage": (8, "MemoryUsage[]"),
        "response_stats": (9, "InferResponseStatistics{}"),
    },
    "StatisticDuration": {"count": (1, "uint64"), "ns": (2, "uint64")},
    "InferStatistics": {
        "success": (1, "StatisticDuration"),
        "fail": (2, "StatisticDuration"),
        "queue": (3, "StatisticDuration"),
        "compute_input": (4, "StatisticDuration"),
        "compute_infer": (5, "StatisticDuration"),
        "compute_output": (6, "StatisticDuration"),
        "cache_hit": (7, "StatisticDuration"),
        "cache_miss": (8, "StatisticDuration"),
    },
    "InferBatchStatistics": {
        "batch_size": (1, "uint64"),
        "compute_input": (2, "StatisticDuration"),
        "compute_infer": (3, "StatisticDuration"),
        "compute_output": (4, "StatisticDuration"),
    },
    "InferResponseStatistics": {
        "compute_infer": (1, "StatisticDuration"),
        "compute_output": (2, "StatisticDuration"),
        "success": (3, "StatisticDuration"),
        "fail": (4, "StatisticDuration"),
        "empty_response": (5, "StatisticDuration"),
        "cancel": (6, "StatisticDuration"),
    },
    "MemoryUsage": {"type": (1, "string"), "id": (2, "int64"), "byte_size": (3, "uint64")},
    **_regions("System", {"key": (2, "string"), "offset": (3, "uint64"), "byte_size": (4, "uint64")}),
    **_regions(
        "Cuda",
        {"device_id": (2, "uint64"), "byte_size": (3, "uint64")},
        {"raw_handle": (2, "bytes"), "device_id": (3, "int64"), "byte_size": (4, "uint64")},
    ),
    "ModelConfigRequest": _MODEL,
    "RepositoryIndexRequest": {"repository_name": (1, "string"), "ready": (2, "bool")},
    "RepositoryIndexResponse": {"models": (1, "RepositoryIndexResponse.ModelIndex[]")},
    "RepositoryIndexResponse.ModelIndex": {
        "name": (1, "string"),
        "version": (2, "string"),
        "state": (3, "string"),
        "reason": (4, "string"),
    },
    "ModelRepositoryParameter": {
        "bool_param": (1, "|bool"),
        "int64_param": (2, "|int64"),
        "string_param": (3, "|string"),
        "bytes_param": (4, "|bytes"),
    },
    "RepositoryModelLoadRequest": _CHANGE,
    "RepositoryModelLoadResponse": {},
    "RepositoryModelUnloadRequest": _CHANGE,
    "RepositoryModelUnloadResponse": {},
    "ModelConfigResponse": {"config": (1, "ModelConfig")},
    "ModelConfig": {
        "name": (1, "string"),
        "platform": (2, "string"),
        "backend": (17, "string"),
        "max_batch_size": (4, "int32"),
        "input": (5, "ModelInput[]"),
        "output": (6, "ModelOutput[]"),
        "parameters": (14, "ModelParameter{}"),
    },
    "ModelParameter": {"string_value": (1, "string")},
    "ModelInput": {
        "name": (1, "string"),
        "data_type": (2, "DataType"),
        "dims": (4, "int64[]"),
        "optional": (8, "bool"),
    },
    "ModelOutput": {"name": (1, "string"), "data_type": (2, "DataType"), "dims": (3, "int64[]")},
}

_DATA_TYPES = (
    *("INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP32", "FP64", "STRING", "BF16"),
)

# Unary methods. The names of their messages start with the name of the method.
METHODS = (
    "ServerLive",
    "ServerReady",
    "ModelReady",
    "ServerMetadata",
    "ModelMetadata",
    "ModelInfer",
    "ModelConfig",
    "RepositoryIndex",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
    "ModelStatistics",
    *(
        f"{kind}SharedMemory{verb}"
        for kind in ("System", "Cuda")
        for verb in ("Status", "Register", "Unregister")
    ),
)

_FIELD = FieldDescriptorProto
_SCALARS = {
    "bool": _FIELD.TYPE_BOOL,
    "bytes": _FIELD.TYPE_BYTES,
    "double": _FIELD.TYPE_DOUBLE,
    "float": _FIELD.TYPE_FLOAT,
    "int32": _FIELD.TYPE_INT32,
    "int64": _FIELD.TYPE_INT64,
    "string": _FIELD.TYPE_STRING,
    "uint32": _FIELD.TYPE_UINT32,
    "uint64": _FIELD.TYPE_UINT64,
}


def _described() -> FileDescriptorProto:
    file = FileDescriptorProto(name=_FILE, package=PACKAGE, syntax="proto3")
    made: dict[str, DescriptorProto] = {}
    for name, fields in _MESSAGES.items():
        outer, _, own = name.rpartition(".")
        message = made[name] = made[outer].nested_type.add() if outer else file.message_type.add()
        message.name = own
        for field_name, (number, kind) in fields.items():
            _add_field(message, f".{PACKAGE}.{name}", field_name, number, kind)
    types = EnumDescriptorProto(name="DataType")
    for number, data_type in enumerate(_DATA_TYPES):
        types.value.add(name=f"TYPE_{data_type}", number=number)
    file.enum_type.append(types)
    service = ServiceDescriptorProto(name=SERVICE.removeprefix(f"{PACKAGE}."))
    for method in METHODS:
        service.method.add(
            name=method,
            input_type=f".{PACKAGE}.{method}Request",
            output_type=f".{PACKAGE}.{method}Response",
        )
    file.service.append(service)
    return file


def _add_field(message: DescriptorProto, full_name: str, name: str, number: int, kind: str) -> None:
    field = message.field.add(name=name, number=number, label=_FIELD.LABEL_OPTIONAL)
    if kind.startswith("|"):
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
        kind = kind.removeprefix("|")
    if kind.endswith("[]"):
        field.label = _FIELD.LABEL_REPEATED
        kind = kind.removesuffix("[]")
    elif kind.endswith("{}"):
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add_field(entry, full_name, "key", 1, "string")
        _add_field(entry, full_name, "value", 2, kind.removesuffix("{}"))
        field.label = _FIELD.LABEL_REPEATED
        field.type, field.type_name = _FIELD.TYPE_MESSAGE, f"{full_name}.{entry.name}"
        return
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type = _FIELD.TYPE_ENUM if kind == "DataType" else _FIELD.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{kind}"


POOL = DescriptorPool()
POOL.AddSerializedFile(_described().SerializeToString())
FILE = POOL.FindFileByName(_FILE)


def message_class(name: str) -> Any:
    """The class of a message of the protocol, such as ``ModelInferRequest``. (It is made from a description,
    so a type checker knows nothing of its fields.)"""
    found: type[Message] = GetMessageClass(POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))
    return found
