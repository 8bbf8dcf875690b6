"""Fields of a command's settings that are those of a request or of the server: described in one place."""

from copy import copy
from typing import Any

from pydantic import BaseModel


def same_as(model: type[BaseModel], name: str, *, default_is: str | None = None) -> Any:
    """The field of that name with its limits and its description.

    ``default_is`` replaces the description of the default, if the default is different here.
    """
    field = copy(model.model_fields[name])
    if default_is is not None:
        before = (field.description or "").partition(" Default: ")[0]
        field.description = f"{before} Default: {default_is}."
    return field
