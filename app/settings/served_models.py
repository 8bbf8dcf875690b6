"""The models that a server serves or may load: parses the values of --model and --loadable."""

import re
from dataclasses import dataclass

# A comma only separates models if a name follows, because paths may contain commas.
_BETWEEN = re.compile(r",(?=[\w.-]+=)")
_NAMED = re.compile(r"(?P<name>[\w.-]+)=(?P<reference>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model by its reference, and the name under which it is served. Without a name, it is its own."""

    reference: str
    name: str | None = None


def served_models(value: str) -> tuple[ServedModel, ...]:
    """One model by its reference only, or any number as NAME=REFERENCE, the default one first. Raises
    ValueError."""
    models = tuple(map(_served, _BETWEEN.split(value)))
    names = [model.name for model in models]
    if len(models) > 1 and None in names:
        nameless = next(model.reference for model in models if model.name is None)
        raise ValueError(f"must name each model if there are several, as in small={nameless}")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"must give every model its own name; {twice} is used twice")
    return models


def loadable_models(value: str) -> tuple[ServedModel, ...]:
    """Models that may be loaded while serving, each as NAME=REFERENCE. Raises ValueError."""
    models = served_models(value)
    if models[0].name is None:
        raise ValueError(f"must name the models that can be loaded, as in small={models[0].reference}")
    return models


def _served(text: str) -> ServedModel:
    if not text.strip():
        raise ValueError("it is empty; give a name or a path, such as trimvit-small-109")
    named = _NAMED.fullmatch(text)
    if named is None:
        return ServedModel(text)
    if not named["reference"]:
        raise ValueError(
            f"must have a reference after {named['name']}=, such as {named['name']}=deit_tiny_patch16_224"
        )
    return ServedModel(named["reference"], named["name"])
