"""What was made of options is remembered for those that ask for the very same."""

import pytest

from app.errors import InvalidValue, PriorityNotAllowed
from app.inference import asked_lately
from app.inference.asked_lately import AskedLately, options_of_query, values_of_query
from app.inference.options import ImageOptions
from app.settings.settings import Settings
from tests.app.fakes import MODEL


def test_the_same_is_made_once() -> None:
    """And of other options, another model or another caller's rights something else."""
    lately = AskedLately(Settings())
    one = lately.known(ImageOptions(keep_ratio=0.5), MODEL, "high")
    assert lately.known(ImageOptions(keep_ratio=0.5), MODEL, "high")[0] is one[0]
    assert lately.known(ImageOptions(keep_ratio=0.25), MODEL, "high")[0].pruning.keep_ratio == 0.25
    assert lately.known(ImageOptions(keep_ratio=0.5), MODEL, "high", logits=True)[0].logits
    assert lately.known(ImageOptions(keep_ratio=0.5), MODEL, "batch")[1].priority == "batch"


def test_a_priority_that_is_asked_for_is_not_the_default() -> None:
    """Though the options are equal: who may ask for no more than batch is refused normal, if asked for."""
    lately = AskedLately(Settings())
    assert lately.known(ImageOptions(), MODEL, "batch")[1].priority == "batch"
    with pytest.raises(PriorityNotAllowed):
        lately.known(ImageOptions(priority="normal"), MODEL, "batch")


def test_no_more_than_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever clients ask for."""
    monkeypatch.setattr(asked_lately, "_MOST", 3)
    lately = AskedLately(Settings())
    for seed in range(10):
        assert lately.known(ImageOptions(seed=seed), MODEL, "high")[0].pruning.seed == seed
    (of_the_model,) = lately._of_models.values()
    assert len(of_the_model._known) <= 3
    assert len(of_the_model._same) <= 3


def test_a_query_is_read_once() -> None:
    """Unless it is long."""
    assert options_of_query(b"keep_ratio=0.5&top_k=3") is options_of_query(b"keep_ratio=0.5&top_k=3")
    assert options_of_query(b"keep_ratio=0.5&top_k=3") == ImageOptions(keep_ratio=0.5, top_k=3)
    long = b"keep_ratio=0.5" + b"0" * 600
    assert options_of_query(long) is not options_of_query(long)
    assert values_of_query(b"mask=&top_k=%33") == {"mask": "", "top_k": "3"}


def test_what_is_wrong_is_told_again_and_again() -> None:
    """With the place of the image."""
    for _ in range(2):
        with pytest.raises(InvalidValue, match="keep_ratio") as caught:
            options_of_query(b"keep_ratio=2")
        assert caught.value.image == 0
        with pytest.raises(InvalidValue, match="more than once"):
            values_of_query(b"top_k=1&top_k=2")
