"""Layers of options (query, form, JSON) -> the checked options of one image."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar, overload

from pydantic import BaseModel, TypeAdapter, ValidationError

from app.errors import InvalidValue
from app.inference.options import CHOSEN_BY_A_CASCADE, WAYS_TO_CHOOSE, ImageOptions
from app.nearest import did_you_mean, same
from app.wrong_values import no_such, short, wrong_values

_FLAGS = TypeAdapter(bool)
_MOST_FAULTS = 3

Options = TypeVar("Options", bound=ImageOptions)


def single_values(items: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Names and values of a query or a form. Raises InvalidValue for a name that occurs twice."""
    values: dict[str, Any] = {}
    for name, value in items:
        if name in values:
            raise InvalidValue(f"{short.repr(name)} is given more than once")
        values[name] = value
    return values


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later layers take precedence over earlier ones. A way to choose the ratio replaces any other, and a
    cascade also replaces criterion and reducer, which it sets itself. null in JSON does not change what an
    earlier layer sets."""
    values: dict[str, Any] = {}
    for layer in layers:
        cascade = _is_true(layer.get("cascade"))
        if cascade or any(layer.get(name) is not None for name in WAYS_TO_CHOOSE if name != "cascade"):
            for name in WAYS_TO_CHOOSE + (CHOSEN_BY_A_CASCADE if cascade else ()):
                values.pop(name, None)
        for name, value in layer.items():
            if value is not None or name not in values:
                values[name] = value
    return values


def refuse_misplaced(
    given: Iterable[str], members: Collection[str], parameters: Iterable[str], of: str = "the request"
) -> None:
    """Raises InvalidValue for names other than the known ``members`` that would change the answer if they
    were read: members of ``parameters`` in the wrong place, and misspelled members. Others are ignored,
    because clients of other servers send more."""
    for name in given:
        if name in members:
            continue
        if (meant := same(name, parameters)) is not None:
            raise InvalidValue(
                f"{of} has the member {short.repr(name)}, which is only read in parameters: "
                f'"parameters": {{"{meant}": ...}}'
            )
        if hint := did_you_mean(name, members):
            raise InvalidValue(f"{of} has no member {short.repr(name)}{hint}")


def asks_for_each(values: Mapping[str, Any]) -> bool:
    """Whether these options, which may be invalid, ask for an answer for each image."""
    return values.get("errors") == "each"


def _is_true(flag: object) -> bool:
    """Whether a flag is set, in JSON or as a word. What is not a flag is refused later."""
    try:
        return _FLAGS.validate_python(flag)
    except ValidationError:
        return False


@overload
def options_of(
    values: Mapping[str, Any], index: int | None, besides: Sequence[str] = ..., kind: str = ...
) -> ImageOptions: ...
@overload
def options_of(
    values: Mapping[str, Any],
    index: int | None,
    besides: Sequence[str] = ...,
    kind: str = ...,
    *,
    options_type: type[Options],
) -> Options: ...
def options_of(
    values: Mapping[str, Any],
    index: int | None,
    besides: Sequence[str] = (),
    kind: str = "option",
    *,
    options_type: type[ImageOptions] = ImageOptions,
) -> ImageOptions:
    """The options of the image at this index (None: of all). null counts as not given. Raises InvalidValue.

    ``besides``: names that the route also accepts and has read already. ``kind``: what it calls an option.
    """
    unknown = next((name for name in values if name not in options_type.model_fields), None)
    if unknown is not None:
        allowed = [*options_type.model_fields, *besides]
        raise InvalidValue(no_such(kind, unknown, allowed), image=index)
    try:
        return options_type.model_validate(
            {name: value for name, value in values.items() if value is not None}
        )
    except ValidationError as error:
        raise InvalidValue(said(error, options_type), image=index) from error


def said(error: ValidationError, model: type[BaseModel]) -> str:
    """The error message; of many errors, the first few."""
    return ". ".join(wrong_values(error, model)[:_MOST_FAULTS])
