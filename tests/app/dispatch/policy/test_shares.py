"""What an image will cost, told before it is computed."""

import pytest

from app.dispatch.policy.brown_out import CEILINGS, DEPTHS
from app.dispatch.policy.shares import shares, tokens
from app.messages.image import Ask
from models.schedule import Pruning, compute
from tests.app.fakes import MODEL

ARCH, STAGES = MODEL.architecture, MODEL.method.stages


def weight(pruning: Pruning, margin: float | None = None) -> int:
    return tokens(MODEL, shares(MODEL, Ask(pruning, 1, margin))[0])


def test_an_image_weighs_what_it_will_cost() -> None:
    """Tokens times the share of compute; a fused token is paid for."""
    assert weight(Pruning()) == 17
    for reducer in ("drop", "merge"):
        share = compute(ARCH, STAGES, 0.5, reducer)  # type: ignore[arg-type]
        assert weight(Pruning(0.5, reducer=reducer)) == round(17 * share) == 11  # type: ignore[arg-type]
    assert weight(Pruning(0.2, reducer="fuse")) > weight(Pruning(0.2))
    assert weight(Pruning(0.0001)) >= 1


def test_keep_mass_weighs_the_most_that_it_can_come_to() -> None:
    """How many patches hold the mass is not known before the image is computed."""
    assert weight(Pruning(keep_mass=0.01)) == weight(Pruning())


def test_a_cascade_weighs_what_its_images_cost_when_it_was_calibrated() -> None:
    """Their mean, whichever this one turns out to be."""
    assert weight(Pruning(0.5), margin=0.375) == round(17 * 0.8125)


@pytest.mark.parametrize(
    ("pruning", "margin"),
    [(Pruning(0.7), None), (Pruning(keep_mass=0.7), None), (Pruning(0.5), 0.375)],
    ids=str,
)
def test_what_may_not_be_lowered_costs_the_same_at_every_depth(
    pruning: Pruning, margin: float | None
) -> None:
    """A brown-out is nothing to it."""
    assert len(set(shares(MODEL, Ask(pruning, 1, margin)))) == 1


def test_what_may_be_lowered_costs_less_with_every_depth_down_to_its_floor() -> None:
    """The ceiling of the brown-out holds, unless the asked ratio is below it or the floor above."""
    found = shares(MODEL, Ask(Pruning(0.8), 1, min_keep_ratio=0.35))
    ratios = (0.8, 0.8, 0.8, 0.7, 0.6, 0.5, 0.4, 0.35, 0.35, 0.35)
    assert CEILINGS == (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
    assert found == tuple(compute(ARCH, STAGES, ratio) for ratio in ratios)
    assert len(found) == DEPTHS
