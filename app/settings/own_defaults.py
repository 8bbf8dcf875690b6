"""The defaults of each of several models: --model-default."""

import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.wrong_values import no_such, short, wrong_values
from models.schedule import Criterion, Reducer

# Names of models may contain dots, names of options may not.
_DEFAULT = re.compile(r"(?P<model>[\w.-]+)\.(?P<option>[\w-]+)\s*=(?P<value>.*)", re.DOTALL)


class OwnDefaults(BaseModel):
    """The defaults of one model, which replace the server's --default-... settings. None: the server's is
    used."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep_ratio: float | None = Field(None, gt=0, le=1)
    criterion: Criterion | None = None
    reducer: Reducer | None = None
    deadline_ms: int | None = Field(None, ge=1, examples=[30_000])

    def __str__(self) -> str:
        given = self.model_dump(exclude_none=True)
        return ", ".join(f"{name} {value}" for name, value in given.items())


NO_DEFAULTS = OwnDefaults()


@lru_cache(maxsize=4)
def own_defaults(value: str) -> Mapping[str, OwnDefaults]:
    """The defaults by the model's name, from NAME.OPTION=VALUE separated by commas. Raises ValueError."""
    given: dict[str, dict[str, str]] = {}
    for each in value.split(","):
        found = _DEFAULT.fullmatch(each.strip())
        if found is None:
            raise ValueError(
                f"must be NAME.OPTION=VALUE, as in small.keep_ratio=0.5, and not {short.repr(each)}"
            )
        option, of_model = found["option"], given.setdefault(found["model"], {})
        if option not in OwnDefaults.model_fields:
            raise ValueError(no_such("option", option, OwnDefaults.model_fields))
        if option in of_model:
            raise ValueError(f"gives {found['model']}.{option} twice; keep one")
        of_model[option] = found["value"].strip()
    return MappingProxyType({name: _checked(name, values) for name, values in given.items()})


def _checked(name: str, values: Mapping[str, str]) -> OwnDefaults:
    try:
        return OwnDefaults.model_validate(values)
    except ValidationError as error:
        wrong = wrong_values(error, OwnDefaults, lambda option: f"{name}.{option}")
        raise ValueError(". ".join(wrong)) from None
