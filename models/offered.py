"""Which criteria a model can be judged by. No torch: front ends read it."""

from collections.abc import Sequence

from models.schedule import CRITERIA, Criterion

# Those that need nothing but the network. `life` also needs a life predictor (models.life).
OF_ANY_MODEL: tuple[Criterion, ...] = tuple(name for name in CRITERIA if name != "life")


def offered(*, predicts_life: bool) -> tuple[Criterion, ...]:
    """The criteria of a model with or without a life predictor that its stages can use."""
    return CRITERIA if predicts_life else OF_ANY_MODEL


def check_criteria(wanted: Sequence[Criterion], allowed: Sequence[Criterion]) -> None:
    """Raises ValueError, which says what is missing, for one that is not ``allowed``."""
    for name in wanted:
        if name not in allowed:
            raise ValueError(
                f"the criterion {name} needs a life predictor that reads the tokens before the first stage, "
                "and this model has none (`trimvit train --life` trains one); allowed are "
                f"{', '.join(allowed)}"
            )
