"""Layers of options become the options of one image."""

import pytest

from app.errors import InvalidValue
from app.inference.option_layers import merged, options_of
from app.inference.options import EmbedOptions, ImageOptions


@pytest.mark.parametrize("name", EmbedOptions.model_fields)
def test_null_is_as_if_not_there(name: str) -> None:
    """As programs write optional members that are not set, whatever the option's type and default."""
    options = options_of(merged({}, {name: None}), 0, options_type=EmbedOptions)
    assert options == EmbedOptions()
    assert options.model_fields_set == set()


def test_null_changes_nothing_that_an_earlier_layer_has() -> None:
    """The query's ratio stays, and so does a cascade, which only another way to choose replaces."""
    ratio = merged({"keep_ratio": "0.5", "criterion": "mad"}, {"keep_ratio": None, "top_k": None})
    assert options_of(ratio, 0) == ImageOptions(keep_ratio=0.5, criterion="mad")
    cascade = merged({"cascade": "true"}, {"keep_ratio": None, "cascade": None, "reducer": None})
    assert options_of(cascade, 0) == ImageOptions(cascade=True)
    own = merged({"top_k": 3}, {"top_k": None}, {"top_k": 2})
    assert options_of(own, 0) == ImageOptions(top_k=2)


def test_a_name_that_is_no_option_is_refused_with_null_too() -> None:
    """It may be a misspelt one."""
    with pytest.raises(InvalidValue, match="did you mean keep_ratio"):
        options_of(merged({}, {"keepratio": None}), 0)
