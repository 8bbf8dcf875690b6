"""Several models in one setting."""

import pytest

from app.settings.flags import WrongUsage, parse
from app.settings.served_models import ServedModel, served_models
from app.settings.settings import Settings


@pytest.mark.parametrize(
    ("value", "models"),
    [
        ("deit_tiny_patch16_224", [(None, "deit_tiny_patch16_224")]),
        ("run, the third/model.safetensors", [(None, "run, the third/model.safetensors")]),
        ("/data/lr=0.1/model.safetensors", [(None, "/data/lr=0.1/model.safetensors")]),
        ("small=owner/name@main", [("small", "owner/name@main")]),
        ("small=a,b/c,large-2.0=d=e", [("small", "a,b/c"), ("large-2.0", "d=e")]),
    ],
)
def test_a_name_stands_before_its_reference(value: str, models: list[tuple[str | None, str]]) -> None:
    """References may have commas and equals signs: a comma parts models where a name follows."""
    assert served_models(value) == tuple(ServedModel(reference, name) for name, reference in models)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("deit_tiny_patch16_224,large=b", "must name each model if there are several, as in small=deit_tiny"),
        ("a=x,a=y", "a is used twice"),
        ("a=", "must have a reference after a="),
        ("", "it is empty; give a name or a path"),
        (" ", "it is empty; give a name or a path"),
    ],
)
def test_what_names_no_models_is_told(value: str, words: str) -> None:
    """In a sentence."""
    with pytest.raises(ValueError, match=words):
        served_models(value)


def parsed(*arguments: str) -> Settings:
    settings, _ = parse("trimvit serve", Settings, None, "", list(arguments))
    assert isinstance(settings, Settings)
    return settings


def test_the_flag_is_given_once_for_each_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the environment they stand behind each other, and flags go before them."""
    models = (ServedModel("x", "a"), ServedModel("y", "b"))
    assert parsed("--model", "a=x", "--model=b=y").models == models
    monkeypatch.setenv("TRIMVIT_MODEL", "a=x,b=y")
    assert parsed().models == models
    assert parsed("--model", "z").models == (ServedModel("z"),)


def test_a_flag_that_names_no_models_is_wrong_usage() -> None:
    """Before anything is started."""
    with pytest.raises(WrongUsage, match="twice"):
        parsed("--model", "a=x", "--model", "a=y")


def test_what_may_be_loaded_is_all_that_is_named_but_the_default_model() -> None:
    """The flag is given once for each, as --model is."""
    repeated = ("--model", "a=x", "--model", "b=y", "--loadable", "c=z", "--loadable=d=w")
    settings = parsed(*repeated, "--model-repository")
    listed = {name: model.reference for name, model in settings.listed_models.items()}
    assert listed == {"b": "y", "c": "z", "d": "w"}
    assert parsed("--model", "x").listed_models == {}
