"""Converts between ModelInfer's messages and the body of /v2/models/NAME/infer."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from app.errors import InvalidValue
from app.grpc.asking import Answer
from app.grpc.protocol import message_class
from app.http.routes.open_inference.tensors import HEADER_LENGTH, write_elements
from app.wrong_values import short

_LONGEST_DEADLINE_MS = 600_000
_REGION = "shared_memory_region"
_DEADLINES = ("deadline_ms", "timeout")

_Response = message_class("ModelInferResponse")


def request_of(message: Any, left_s: float | None) -> tuple[list[bytes], int]:
    """The body of the HTTP request for a ModelInferRequest, in parts, and the length of the first, which is
    JSON. ``left_s``: the time until the deadline of the call, which is used if the message has no deadline.

    Raises InvalidValue for what the protocol does not allow, and for tensors in the fields of another type.
    """
    raw = list(message.raw_input_contents)
    with_data = sum(_REGION not in tensor.parameters for tensor in message.inputs)
    if raw and len(raw) != with_data:
        raise InvalidValue(
            f"the request has {with_data} inputs and {len(raw)} raw_input_contents: each input needs one, "
            "unless its data is in contents or in shared memory"
        )
    left = iter(raw)
    inputs, parts = [], []
    for tensor in message.inputs:
        parameters = _parameters(tensor.parameters)
        described = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if _REGION in parameters:
            if tensor.HasField("contents"):
                raise InvalidValue(
                    f"the input {tensor.name} has both contents and shared memory; only one is allowed"
                )
            inputs.append({**described, "parameters": parameters})
            continue
        if raw and tensor.HasField("contents"):
            raise InvalidValue(
                f"the input {tensor.name} has both contents and raw_input_contents; only one is allowed"
            )
        data = next(left) if raw else _packed(tensor)
        parts.append(data)
        inputs.append({**described, "parameters": {**parameters, "binary_data_size": len(data)}})
    parameters = {**_parameters(message.parameters), "binary_data_output": True}
    if left_s is not None and not any(name in parameters for name in _DEADLINES):
        parameters["deadline_ms"] = max(1, min(int(left_s * 1000), _LONGEST_DEADLINE_MS))
    head: dict[str, Any] = {"parameters": parameters, "inputs": inputs}
    if message.id:
        head["id"] = message.id
    if message.outputs:
        head["outputs"] = [
            {"name": output.name, "parameters": _parameters(output.parameters)} for output in message.outputs
        ]
    text = json.dumps(head, separators=(",", ":")).encode()
    return [text, *parts], len(text)


def response_of(answer: Answer) -> Any:
    """The ModelInferResponse for an answer of /v2/models/NAME/infer."""
    size = int(answer.headers.get(HEADER_LENGTH.lower(), len(answer.body)))
    head = json.loads(answer.body[:size])
    response = _Response(
        model_name=head["model_name"], model_version=head["model_version"], id=head.get("id", "")
    )
    for output in head["outputs"]:
        response.outputs.add(name=output["name"], datatype=output["datatype"], shape=output["shape"])
        # The contents of an output in shared memory are empty, as in Triton.
        end = size + output.get("parameters", {}).get("binary_data_size", 0)
        response.raw_output_contents.append(answer.body[size:end])
        size = end
    return response


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters. Raises InvalidValue for one without a value, and for numbers that JSON does not
    have."""
    values = {}
    for name, parameter in given.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            raise InvalidValue(f"the parameter {short.repr(name)} has no value")
        value = getattr(parameter, kind)
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidValue(f"the parameter {short.repr(name)} must be a finite number; got {value}")
        values[name] = value
    return values


def _packed(tensor: Any) -> bytes:
    """The data in the typed field of a tensor, in the form of raw contents. Raises InvalidValue."""
    filled = {field.name: value for field, value in tensor.contents.ListFields()}
    wanted = {"BYTES": "bytes_contents", "UINT8": "uint_contents"}.get(tensor.datatype)
    if wanted is None:  # an unsupported datatype is reported together with other errors
        return b""
    if set(filled) - {wanted}:
        others = ", ".join(sorted(set(filled) - {wanted}))
        raise InvalidValue(
            f"the input {tensor.name} of {tensor.datatype} has {others}; allowed is {wanted}, or "
            "raw_input_contents"
        )
    values: Iterable[Any] = filled.get(wanted, ())
    if tensor.datatype == "BYTES":
        return write_elements(values)
    try:
        return bytes(values)
    except ValueError as error:
        raise InvalidValue(f"uint_contents of the input {tensor.name} must be from 0 to 255") from error
