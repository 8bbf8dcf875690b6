"""Which model a request is for."""

from collections.abc import Mapping, Sequence

from app.errors import InvalidValue, NotFound, NotReady
from app.inference.options import ImageOptions
from app.messages.model import ModelInfo
from app.wrong_values import no_such, short


def model_named(options: Sequence[ImageOptions]) -> str | None:
    """The model that images with these options name. None if they name none. Raises InvalidValue if they name
    several."""
    first = options[0].model
    for index, each in enumerate(options):
        if each.model != first:
            raise InvalidValue(
                f"all images of a request must name the same model: this one names {_shown(each.model)}, "
                f"the first names {_shown(first)}",
                image=index,
            )
    return first


def _shown(name: str | None) -> str:
    return "the default one" if name is None else short.repr(name)


def found_model(models: Mapping[str, ModelInfo], name: str) -> ModelInfo:
    """The model of that name. Raises NotFound."""
    model = models.get(name)
    if model is None:
        raise NotFound(no_such("model", name, models))
    return model


def no_model_yet() -> NotReady:
    """The problem of a route that needs the model while there is none."""
    return NotReady("no worker has loaded the model yet; see /readyz", retry_after_s=1.0)
