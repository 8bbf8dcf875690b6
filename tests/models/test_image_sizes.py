"""Image sizes as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from models.image_sizes import InputSize, image_size, pixels_of

sides = st.integers(1, 16_384)


@pytest.mark.parametrize(
    ("text", "size"),
    [("224", (224, 224)), (" 224x448 ", (224, 448)), ("224 X 448", (224, 448)), ("224,448", (224, 448))],
)
def test_one_number_is_both_sides_and_two_are_height_and_width(text: str, size: tuple[int, int]) -> None:
    assert image_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "224x0", "x224", "224x", "-3", "1e3", "20000", "224x224x3", "big"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="such as 224"):
        image_size(text)


@given(sides, sides)
def test_every_form_of_a_setting_comes_to_the_same(height: int, width: int) -> None:
    """Text, a pair, and what it is written as."""
    sizes = TypeAdapter(InputSize)
    for given_ in (f"{height}x{width}", (height, width), [height, width]):
        assert pixels_of(sizes.validate_python(given_)) == (height, width)
    written = sizes.validate_python((height, width))
    assert sizes.validate_python(written) == written


def test_no_size_is_none() -> None:
    assert pixels_of(TypeAdapter(InputSize).validate_python(None)) is None
    with pytest.raises(ValidationError):
        TypeAdapter(InputSize).validate_python(2.5)
