"""What is wrong with a value, in a sentence for people."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.wrong_values import wrong_values


def _not_odd(number: int) -> int:
    if number % 2:
        raise ValueError("it is odd, and must be even, as in 4")
    return number


class Options(BaseModel):
    """One field of every kind."""

    model_config = ConfigDict(extra="forbid")

    share: float | None = Field(None, gt=0, le=1)
    ratio: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] | None = None
    wait_s: float = Field(30.0, ge=0, allow_inf_nan=False)
    limit_ms: int = Field(1500, ge=1, le=600_000)
    most_bytes: int = Field(2**25, ge=1)
    port: int | None = Field(None, ge=0, le=65535)
    seed: int = Field(0, ge=0, lt=2**31)
    colour: Literal["red", "green", "blue"] = "red"
    loud: bool = False
    blocks: tuple[Annotated[int, Field(ge=1)], ...] = (4, 7, 10)
    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()
    colours: tuple[Literal["red", "green"], ...] = ("red",)
    even: Annotated[int, AfterValidator(_not_odd)] = 2
    file: Path | None = None

    @model_validator(mode="after")
    def _red_is_loud(self) -> "Options":
        if self.loud and self.colour != "red":
            raise ValueError("only red is loud")
        return self


def told(**values: object) -> tuple[str, ...]:
    with pytest.raises(ValidationError) as caught:
        Options.model_validate(values)
    return wrong_values(caught.value, Options)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("share", "50%", "share must be a number above 0 and at most 1, such as 0.5; got '50%'; did you mean 0.5?"),
        ("share", "0,5", "share must be a number above 0 and at most 1, such as 0.5; got '0,5'; did you mean 0.5?"),
        ("share", "", "share must be a number above 0 and at most 1, such as 0.5; got ''"),
        ("share", 2, "share must be a number above 0 and at most 1, such as 0.5; got 2"),
        ("share", "200%", "share must be a number above 0 and at most 1, such as 0.5; got '200%'"),
        ("ratio", "auot", "ratio must be a number above 0 and at most 1, or 'auto', such as 0.5; got 'auot'; did you mean 'auto'?"),
        ("wait_s", "inf", "wait_s must be a number of at least 0, such as 30; got 'inf'"),
        ("wait_s", "500ms", "wait_s must be a number of at least 0, such as 30; got '500ms'; did you mean 0.5?"),
        ("limit_ms", "2s", "limit_ms must be a whole number from 1 to 600000, such as 1500; got '2s'; did you mean 2000?"),
        ("limit_ms", "1h", "limit_ms must be a whole number from 1 to 600000, such as 1500; got '1h'"),
        ("most_bytes", "32MiB", "most_bytes must be a whole number of at least 1, such as 33554432; got '32MiB'; did you mean 33554432?"),
        ("most_bytes", "32MB", "most_bytes must be a whole number of at least 1, such as 33554432; got '32MB'; did you mean 32000000?"),
        ("port", "http", "port must be a whole number from 0 to 65535, such as 1; got 'http'"),
        ("seed", -1, "seed must be a whole number from 0 to 2147483647, such as 1; got -1"),
        ("colour", "Gren", "colour must be 'red', 'green' or 'blue'; got 'Gren'; did you mean 'green'?"),
        ("loud", "perhaps", "loud must be true or false; got 'perhaps'"),
        ("blocks", ["four"], "blocks must be a list of whole numbers of at least 1, separated by commas, such as 4,7,10; got 'four'"),
        ("shares", [2], "shares must be a list of numbers above 0 and at most 1, separated by commas, such as 0.5; got 2"),
        ("colours", ["rde"], "colours must be a list of 'red' or 'green', separated by commas, such as red; got 'rde'; did you mean 'red'?"),
        ("even", 3, "even: it is odd, and must be even, as in 4; got 3"),
        ("file", 3, "file must be a path; got 3"),
        ("zebra", 3, "there is no zebra"),
        ("shrae", 3, "there is no shrae; did you mean share?"),
    ],
)  # fmt: skip
def test_each_kind_of_value_has_its_sentence(name: str, value: object, sentence: str) -> None:
    """The name, what is allowed, an example, what was given, and what was probably meant."""
    assert told(**{name: value}) == (sentence,)


def test_each_field_has_one_sentence() -> None:
    """Although a list may have several faults, and a union has one for each of its types."""
    assert len(told(blocks=["a", "b"], ratio="x", port="y")) == 3


def test_a_rule_between_fields_speaks_for_itself() -> None:
    """It has no field to name."""
    assert told(loud=True, colour="blue") == ("only red is loud",)


def test_a_missing_value_is_named() -> None:
    """As it is typed."""

    class Needs(BaseModel):
        some_data: str

    with pytest.raises(ValidationError) as caught:
        Needs.model_validate({})
    assert wrong_values(caught.value, Needs, lambda name: f"--{name.replace('_', '-')}") == (
        "--some-data is missing",
    )


@given(st.text(max_size=2000), st.sampled_from(sorted(set(Options.model_fields) - {"file"})))
def test_every_refusal_is_short_and_names_its_field(text: str, name: str) -> None:
    """Whatever was typed; one line, and no word of Python's or pydantic's."""
    try:
        Options.model_validate({name: text})
    except ValidationError as error:
        (sentence,) = wrong_values(error, Options)
        assert sentence.startswith(name)
        assert len(sentence) < 400
        assert "\n" not in sentence
        assert "Input should" not in sentence
