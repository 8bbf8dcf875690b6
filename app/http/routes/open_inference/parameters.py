"""The parameters of an infer request -> the options of its images."""

from collections.abc import Sequence
from typing import Any

from app.errors import InvalidValue
from app.http.routes.open_inference.schemas import (
    TRITONS,
    InferInput,
    InferRequest,
    InputParameters,
    OutputParameters,
    RequestedOutput,
)
from app.inference.option_layers import options_of, refuse_misplaced
from app.inference.options import MASK_OPTIONS, ImageOptions
from app.nearest import same
from app.priority import Priority
from app.wrong_values import said_of, short

# Parameters that Triton's clients set and that have no other meaning.
_OF_SEQUENCES = ("sequence_id", "sequence_start", "sequence_end")
_MICROSECONDS_PER_MS = 1000
_LONGEST_TIMEOUT = 600_000_000
_PRIORITIES: tuple[Priority, ...] = ("normal", "high", "normal", "batch")


def options_in(parameters: dict[str, Any]) -> ImageOptions:
    """The parameters of the request as options of /v1/classify. Triton's own parameters are converted. Raises
    InvalidValue."""
    values = {
        name: value
        for name, value in parameters.items()
        if name != "binary_data_output" and (value is not None or name not in TRITONS)
    }
    for name in _OF_SEQUENCES:
        if values.pop(name, None):
            raise InvalidValue(
                f"sequences are not supported, each image is computed independently: leave out {name}"
            )
    content_type = values.pop("content_type", None)
    if not isinstance(content_type, str | None):
        raise wrong_parameter("content_type", content_type)
    final = values.pop("triton_enable_empty_final_response", False)
    if type(final) is not bool:
        raise wrong_parameter("triton_enable_empty_final_response", final)
    for name in MASK_OPTIONS:
        if name in values:
            raise InvalidValue(
                f"the parameter {name!r} is not supported here; request the output 'kept_patches'"
            )
    timeout = values.pop("timeout", 0)
    if type(timeout) is not int or not 0 <= timeout <= _LONGEST_TIMEOUT:
        raise wrong_parameter("timeout", timeout)
    if timeout:
        if "deadline_ms" in values:
            raise InvalidValue("give either timeout or deadline_ms, not both")
        values["deadline_ms"] = -(-timeout // _MICROSECONDS_PER_MS)
    # Triton's default, which means no explicit priority.
    if values.get("priority") == 0 and type(values["priority"]) is int:
        del values["priority"]
    if "priority" in values:
        values["priority"] = _priority(values["priority"])
    return options_of(values, None, ("timeout", "binary_data_output"), "parameter")


def check_members(document: dict[str, Any]) -> None:
    """Raises InvalidValue for members of a valid request that are in a place where they are not read."""
    options = (*ImageOptions.model_fields, *TRITONS)
    refuse_misplaced(document, InferRequest.model_fields, options)
    for number, given in enumerate(document["inputs"]):
        parameters = (*InputParameters.model_fields, *options)
        refuse_misplaced(given, InferInput.model_fields, parameters, f"inputs.{number}")
    for number, wanted in enumerate(document.get("outputs") or ()):
        parameters = tuple(OutputParameters.model_fields)
        refuse_misplaced(wanted, RequestedOutput.model_fields, parameters, f"outputs.{number}")


def check_query(query: Sequence[str]) -> None:
    """Raises InvalidValue for options in the query, which is not read."""
    for name in query:
        if (meant := same(name, ImageOptions.model_fields)) is not None:
            raise InvalidValue(
                f"{short.repr(name)} is in the query, which is not read here: send it in the JSON, as "
                f'"parameters": {{"{meant}": ...}}'
            )


def wrong_parameter(name: str, given: object) -> InvalidValue:
    """What is wrong with a parameter that is Triton's own."""
    return InvalidValue(said_of(name, name, TRITONS[name], given))


def _priority(given: Any) -> Any:
    """Triton's number as a word: 1 is the highest, larger numbers are lower, and 0 is the default. Words,
    which Triton's clients cannot send, are unchanged."""
    if type(given) is not int:
        return given
    if given < 0:
        raise wrong_parameter("priority", given)
    return _PRIORITIES[min(given, len(_PRIORITIES) - 1)]
