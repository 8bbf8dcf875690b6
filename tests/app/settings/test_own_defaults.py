"""Defaults of one model of several, in one setting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.settings.flags import parse
from app.settings.own_defaults import NO_DEFAULTS, OwnDefaults, own_defaults
from app.settings.settings import Settings
from models.schedule import CRITERIA, REDUCERS

NAMES = st.from_regex(r"\A[A-Za-z0-9_.-]{1,12}\Z")
DEFAULTS = st.builds(
    OwnDefaults,
    keep_ratio=st.none() | st.floats(0, 1, exclude_min=True),
    criterion=st.none() | st.sampled_from(CRITERIA),
    reducer=st.none() | st.sampled_from(REDUCERS),
    deadline_ms=st.none() | st.integers(1, 10**6),
)


@given(st.dictionaries(NAMES, DEFAULTS.filter(lambda each: each != NO_DEFAULTS), min_size=1, max_size=4))
def test_what_is_written_is_read_again(of_models: dict[str, OwnDefaults]) -> None:
    """Whatever the models are called: their names may have dots."""
    written = ",".join(
        f"{name}.{option}={value}"
        for name, defaults in of_models.items()
        for option, value in defaults.model_dump(exclude_none=True).items()
    )
    assert own_defaults(written) == of_models


def test_the_flag_is_given_once_for_each_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the environment they stand behind each other, with blanks where people put them."""
    found = {"a": OwnDefaults(keep_ratio=0.5, criterion="mad"), "b-2.0": OwnDefaults(deadline_ms=500)}
    flags = ("--model-default", "a.keep_ratio=0.5", "--model-default=a.criterion=mad")
    settings, _ = parse(
        "trimvit serve", Settings, None, "", [*flags, "--model-default", "b-2.0.deadline_ms=500"]
    )
    assert isinstance(settings, Settings)
    assert {name: settings.own_defaults(name) for name in found} == found
    monkeypatch.setenv("TRIMVIT_MODEL_DEFAULT", "a.keep_ratio = 0.5, a.criterion=mad, b-2.0.deadline_ms=500")
    assert {name: Settings().own_defaults(name) for name in found} == found
    assert Settings().own_defaults("c") == Settings().own_defaults(None) == NO_DEFAULTS


def test_they_are_told_in_words() -> None:
    """For the log."""
    assert str(OwnDefaults(keep_ratio=0.5, criterion="mad")) == "keep_ratio 0.5, criterion mad"
