"""Error messages for wrong values: what is allowed, an example, and the given value.

pydantic says "Input should be a valid number, unable to parse string as a number". Here, the message for a
flag, a variable or an option is "keep_ratio must be a number above 0 and at most 1, such as 0.5; got '50%'".
The allowed values are read from the JSON schema of the field, so they cannot differ from the check.
"""

import json
import re
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ValidationError

from app.nearest import did_you_mean, nearest

Schema = Mapping[str, Any]

# Shortens values that errors quote, which may be megabytes long or deeply nested lists.
short = reprlib.Repr()
short.maxstring = short.maxlong = short.maxother = 80
_LONGEST_LIST = 1000  # total characters of the listed names

# Units that people append to a number, by the unit in the field's name.
_UNITS: Mapping[str, Mapping[str, float]] = {
    "bytes": {"b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30,
              "k": 2**10, "m": 2**20, "g": 2**30, "ki": 2**10, "mi": 2**20, "gi": 2**30},
    "pixels": {"px": 1, "mp": 1e6, "mpx": 1e6, "m": 1e6},
    "s": {"ms": 1e-3, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600},
    "ms": {"ms": 1, "s": 1000, "sec": 1000, "m": 60_000, "min": 60_000},
}  # fmt: skip


def wrong_values(
    error: ValidationError, model: type[BaseModel], named: Callable[[str], str] = str
) -> tuple[str, ...]:
    """One sentence for each invalid field of ``model``, and for each rule between fields. ``named`` returns
    the name under which the value of a field was given: a flag, a variable."""
    root = _schema_of(model)
    properties = root["properties"]
    told: dict[str, str] = {}  # by field, because a union reports several errors for one wrong value
    for fault in error.errors(include_url=False):
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] in ("model_type", "model_attributes_type", "dict_type") and not fault["loc"]:
            message = f"an object with {' and '.join(root.get('required', properties))} is required; "
            message += f"got {said_back(fault['input'])}"
        if not fault["loc"]:
            told[message] = message
            continue
        parts, schema = _place(root, fault["loc"])
        name, shown = ".".join(parts), ".".join((named(parts[0]), *parts[1:]))
        if fault["type"] == "extra_forbidden":
            told[name] = f"there is no {shown}{did_you_mean(name, map(named, properties))}"
        elif fault["type"] == "missing":
            told[name] = f"{shown} is missing"
        elif fault["type"] in ("value_error", "assertion_error"):  # the message already says what is allowed
            told[name] = f"{shown}: {message}; got {said_back(fault['input'])}"
        else:
            told.setdefault(name, said_of(shown, parts[-1], schema, fault["input"]))
    return tuple(told.values())


def wrong_value(model: type[BaseModel], field: str, shown: str, given: object) -> str:
    """The error message for a value of one field that could not be read at all."""
    root = _schema_of(model)
    return said_of(shown, field, _resolved(root, root["properties"][field]), given)


def no_such(kind: str, name: str, allowed_names: Collection[str]) -> str:
    """That there is no ``kind`` of this name, with the nearest and all, as far as they are short."""
    meant = did_you_mean(name, allowed_names)
    return f"there is no {kind} {short.repr(name)}{meant or ';'} {kind}s are {_listed(allowed_names)}"


def _listed(names: Collection[str]) -> str:
    shown: list[str] = []
    length = 0
    for name in names:
        length += len(name)
        if shown and length > _LONGEST_LIST:
            return f"{', '.join(shown)} and {len(names) - len(shown)} more"
        shown.append(name)
    return ", ".join(shown)


def said_back(given: object) -> str:
    """The given value, shortened, in JSON's notation."""
    return json.dumps(given) if given is None or isinstance(given, bool) else short.repr(given)


@lru_cache
def _schema_of(model: type[BaseModel]) -> Schema:
    return model.model_json_schema()


def _place(root: Schema, loc: Sequence[str | int]) -> tuple[list[str], Schema]:
    """The field of an error, through nested models and lists of models, and its schema. What follows (an
    index in a list of values, the member of a union that was tried) is not a field."""
    parts, here = [str(loc[0])], root["properties"].get(loc[0], {})
    for part in loc[1:]:
        here = _resolved(root, here)
        if isinstance(part, int) and "$ref" in here.get("items", {}):
            here = here["items"]
        elif part in here.get("properties", {}):
            here = here["properties"][part]
        else:
            break
        parts.append(str(part))
    return parts, _resolved(root, here)


def _resolved(root: Schema, schema: Schema) -> Schema:
    reference: str | None = schema.get("$ref")
    return schema if reference is None else root["$defs"][reference.rpartition("/")[2]]


def said_of(shown: str, name: str, schema: Schema, given: object) -> str:
    """The error message for the value ``given`` of the field ``name``, which is shown as ``shown``."""
    sample = _example(schema)
    such_as = "" if sample is None else f", such as {sample}"
    meant = _meant(name, schema, given)
    end = "" if meant is None else f"; did you mean {meant}?"
    return f"{shown} must be {allowed(schema)}{such_as}; got {said_back(given)}{end}"


def allowed(schema: Schema) -> str:
    """A description of the values that a field's schema allows."""
    return ", or ".join(map(_allowed_of, _choices(schema)))


def _choices(schema: Schema) -> list[Schema]:
    """The schemas of a union, without null, which nobody can type."""
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return [choice for each in schema[union] for choice in _choices(each)]
    return [] if schema.get("type") == "null" else [schema]


def _allowed_of(schema: Schema) -> str:
    if "const" in schema:
        return repr(schema["const"])
    if "enum" in schema:
        *others, last = map(repr, schema["enum"])
        return f"{', '.join(others)} or {last}" if others else last
    match schema.get("type"):
        case "integer":
            return f"a whole number{_range(schema)}"
        case "number":
            return f"a number{_range(schema)}"
        case "boolean":
            return "true or false"
        case "array":
            least = schema.get("minItems", 0)
            return _allowed_list(
                schema.get("items", {}), f"at least {least} " if least > 1 else ""
            ) + _length(schema)
        case "object":
            return "an object"
        case _:
            kind = "a path" if schema.get("format") == "path" else "text"
            return f"{kind} of at most {schema['maxLength']} characters" if "maxLength" in schema else kind


def _allowed_list(items: Schema, number: str) -> str:
    if "enum" in items:
        return f"a list of {_allowed_of(items)}, separated by commas"
    if "$ref" in items:
        return "a list of objects"
    kind = {"integer": "whole numbers", "number": "numbers"}.get(items.get("type", ""), "values")
    return f"a list of {number}{kind}{_range(items)}, separated by commas"


def _length(schema: Schema) -> str:
    least, most = schema.get("minItems", 0), schema.get("maxItems")
    if "prefixItems" in schema or most is None:
        return ""
    return f", exactly {most}" if least == most else f", {least} to {most} of them"


def _range(schema: Schema) -> str:
    least, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    most, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if below is not None and schema["type"] == "integer":
        most, below = below - 1, None
    if least is not None and most is not None:
        return f" from {least} to {most}"
    lower = f"above {above}" if above is not None else f"of at least {least}" if least is not None else None
    upper = f"below {below}" if below is not None else f"at most {most}" if most is not None else None
    limits = " and ".join(limit for limit in (lower, upper) if limit is not None)
    return f" {limits}" if limits else ""


def _example(schema: Schema) -> str | None:
    """An example to copy. None if all allowed values have been named."""
    for choice in _choices(schema):
        given = [each for each in schema.get("examples", ()) if each is not None]
        if "enum" in choice or "const" in choice or choice.get("type") == "boolean":
            continue
        if given:
            return str(given[0])
        if choice.get("type") == "number" and 1 in (choice.get("maximum"), choice.get("exclusiveMaximum")):
            return "0.5"
        default = schema.get("default")
        if choice.get("type") == "array" and not default:
            return _example(choice.get("items", {}))  # example of a list with one element
        if default not in (None, "", 0):
            return ",".join(map(str, default)) if isinstance(default, list | tuple) else _number(default)
        if choice.get("type") in ("integer", "number"):
            return str(choice.get("minimum") or 1)
    return None


def _meant(name: str, schema: Schema, given: object) -> str | None:
    """The value that was probably meant, if it is allowed."""
    if not isinstance(given, str):
        return None
    for choice in _choices(schema):
        names = choice.get("enum") or choice.get("items", {}).get("enum") or [choice.get("const")]
        if (found := nearest(given, filter(None, names))) is not None:
            return repr(found)
        if choice.get("type") in ("integer", "number"):
            number = _number_meant(name.rpartition("_")[2], given)
            if number is not None and _fits(number, choice):
                return _number(number)
    return None


def _number_meant(unit: str, text: str) -> float | None:
    """The number in a text like 50%, 0,5 or 32MB, in the unit of the field."""
    found = re.fullmatch(r"\s*([+-]?\d+(?:[.,]\d+)?)\s*(%|[a-zA-Z]*)\s*", text)
    if found is None:
        return None
    number = float(found[1].replace(",", "."))
    if found[2] == "%":
        return number / 100
    factor = 1 if not found[2] else _UNITS.get(unit, {}).get(found[2].lower())
    return None if factor is None else number * factor


def _fits(number: float, schema: Schema) -> bool:
    return (
        schema.get("minimum", number) <= number <= schema.get("maximum", number)
        and schema.get("exclusiveMinimum", number - 1) < number < schema.get("exclusiveMaximum", number + 1)
        and (schema["type"] == "number" or number.is_integer())
    )


def _number(value: object) -> str:
    """The number as people type it: 30, not 30.0."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
