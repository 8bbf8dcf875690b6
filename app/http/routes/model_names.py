"""Routes with a model's name in their path: how the name is read, and which model it is."""

import re
from collections.abc import Sequence
from typing import Annotated

from fastapi import Path, Request
from pydantic import BaseModel, Field
from starlette.convertors import Convertor, register_url_convertor

from app.errors import InvalidValue, NotFound, NotReady
from app.http.classification import Classification
from app.http.health import Health
from app.http.model_choice import model_named, no_model_yet
from app.http.paths import OPEN_INFERENCE_REST, REPOSITORY_MODELS
from app.http.unknown_paths import of_another_server
from app.inference.options import ImageOptions
from app.messages.model import ModelInfo
from app.messages.repository import ModelEntry
from app.nearest import did_you_mean
from app.wrong_values import no_such, short
from models.bundled import BUNDLED_MODEL

MODELS_FOLDER = OPEN_INFERENCE_REST.path + "models/"
_PARTS = (
    "infer",
    "ready",
    "config",
    "stats",
    "versions/1",
)  # parts of a path after the model name
VERSION = "1"  # a model has one version


class ModelNameConvertor(Convertor[str]):
    """A model's name in a path. It may contain slashes (hf-hub:owner/name), but not followed by one of the
    words with which the protocol's paths continue."""

    regex = "[^/]+(?:/(?!(?:versions|ready|config|infer|stats)(?:/|$))[^/]+)*"

    def convert(self, value: str) -> str:
        """As it stands."""
        return value

    def to_string(self, value: str) -> str:
        """As it stands."""
        return value


register_url_convertor("model", ModelNameConvertor())

ModelName = Annotated[
    str,
    Path(description="Name of the model, as listed in /v1/models.", examples=[BUNDLED_MODEL]),
]
ModelVersion = Annotated[str, Path(description=f"Always {VERSION}.", examples=[VERSION])]


class ModelReady(BaseModel):
    """Whether images are answered with this model."""

    name: str = Field(description="The model's name.", examples=[BUNDLED_MODEL])
    ready: bool = Field(
        description="Always true. If the model is not ready or not loaded, the response is 503."
    )


def known_model(classification: Classification, name: str, folder: str = MODELS_FOLDER) -> ModelInfo:
    """The model of this name, without waiting for a worker. Raises NotFound or NotReady."""
    if not classification.models:
        raise no_model_yet()
    return model_at(classification, name, folder)


def ready_model(
    classification: Classification,
    health: Health,
    name: str,
    folder: str = MODELS_FOLDER,
    version: str = VERSION,
) -> ModelReady:
    """Check that the model of this name is ready. Raises NotFound or NotReady; the latter also for a model
    that may be loaded and is not."""
    entry = classification.unloaded(name)
    if entry is not None:
        check_version(name, version)
        raise _unloaded(entry)
    model = known_model(classification, name, folder)
    check_version(name, version)
    if not health.is_ready():
        raise NotReady("the server is not ready; see /readyz", retry_after_s=1.0)
    return ModelReady(name=model.name, ready=True)


def _unloaded(entry: ModelEntry) -> NotReady:
    name, doing = entry.name, entry.state
    if doing in ("loading", "unloading"):
        return NotReady(f"the model {name!r} is {doing}", retry_after_s=1.0 if doing == "loading" else None)
    reason = f" (the last load failed: {entry.reason})" if entry.reason else ""
    return NotReady(
        f"the model {name!r} is not loaded; load it with POST {REPOSITORY_MODELS.path}{name}/load{reason}"
    )


def check_model_name(name: str) -> str:
    """The name, where a path can have it. Raises NotFound."""
    if not name:
        raise NotFound("the model's name is empty; GET /v1/models lists the models")
    if re.fullmatch(ModelNameConvertor.regex, name) is None:
        raise NotFound(f"there is no model {short.repr(name)}; GET /v1/models lists the models")
    return name


def check_version(name: str, model_version: str) -> None:
    """Raises NotFound for another version than models have."""
    if model_version != VERSION:
        raise no_version(name, model_version)


def no_version(name: str, model_version: str) -> NotFound:
    """That the model has no such version."""
    return NotFound(
        f"there is no version {short.repr(model_version)} of the model {name!r}; allowed is {VERSION!r}"
    )


def check_early(classification: Classification, name: str, folder: str = MODELS_FOLDER) -> ModelInfo | None:
    """The model of this name before the body is read; None while no model is known. Raises NotFound."""
    return model_at(classification, name, folder) if classification.models else None


async def model_of(
    request: Request,
    classification: Classification,
    options: Sequence[ImageOptions],
    name: str,
    folder: str = MODELS_FOLDER,
) -> ModelInfo:
    """The model of the path. Waits as `Classification.model` does and raises what that raises, and
    InvalidValue if the options name another model."""
    asked = model_named(options)
    if asked not in (None, name):
        raise InvalidValue(
            f"the path names the model {short.repr(name)}, but the options name {short.repr(asked)}: "
            "leave one out"
        )
    unnamed = [each.model_copy(update={"model": None}) for each in options]
    await classification.model(request, unnamed, name)
    return model_at(classification, name, folder)


def model_at(classification: Classification, name: str, folder: str = MODELS_FOLDER) -> ModelInfo:
    """The model of this name. Raises NotFound. ``folder`` is the path before the name."""
    models = classification.models
    if (model := models.get(name)) is not None:
        return model
    classification.refuse_unloaded(name)
    path = f"{folder}{name}"
    if (words := of_another_server(path)) is not None:
        raise NotFound(f"there is no {path}; {words}")
    for known in models:
        if name.startswith(f"{known}/"):
            tail = name.removeprefix(f"{known}/")
            raise NotFound(f"the model {known!r} has no {short.repr(tail)}{did_you_mean(tail, _PARTS)}")
    if len(models) > 1:
        raise NotFound(no_such("model", name, models))
    raise NotFound(f"there is no model {short.repr(name)}; allowed is {next(iter(models))!r}")
