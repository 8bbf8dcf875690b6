"""The name that a misspelt one was meant to be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.nearest import did_you_mean, nearest

NAMES = ("keep_ratio", "compute", "top_k", "criterion")


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("keepRatio", "keep_ratio"),
        ("keep-ratio", "keep_ratio"),
        ("KEEP_RATIO", "keep_ratio"),
        ("kep_ratio", "keep_ratio"),
        ("criterium", "criterion"),
        ("keep_ratio[]", "keep_ratio"),
        ("ratio", "keep_ratio"),
        ("k", "top_k"),
        ("zebra", None),
        ("", None),
    ],
)
def test_a_misspelt_name_is_found(word: str, name: str | None) -> None:
    """Other capitals, hyphens, brackets and single letters are seen through, and a part stands for the
    whole; what is like nothing finds nothing."""
    assert nearest(word, NAMES) == name


def test_a_refusal_ends_with_the_name() -> None:
    """Or ends where it would without."""
    assert did_you_mean("compue", NAMES) == "; did you mean compute?"
    assert did_you_mean("zebra", NAMES) == ""


@given(st.sampled_from(NAMES))
def test_a_right_name_is_nearest_to_itself(name: str) -> None:
    """Whatever else there is."""
    assert nearest(name, NAMES) == name
