"""The criteria and reducers that a model supports. No torch: front ends use it."""

from collections.abc import Sequence

from models.schedule import CRITERIA, REDUCERS, Criterion, Reducer

# Criteria that every model supports. `life` needs a life predictor (models.life).
OF_ANY_MODEL: tuple[Criterion, ...] = tuple(name for name in CRITERIA if name != "life")
# Reducers that every model supports. `pool` needs learned queries (models.token_pool).
REDUCERS_OF_ANY_MODEL: tuple[Reducer, ...] = tuple(name for name in REDUCERS if name != "pool")


def offered(*, predicts_life: bool) -> tuple[Criterion, ...]:
    """The criteria of a model. ``predicts_life``: whether it has a life predictor that its stages can use."""
    return CRITERIA if predicts_life else OF_ANY_MODEL


def check_criteria(wanted: Sequence[Criterion], allowed: Sequence[Criterion]) -> None:
    """Raise ValueError, which explains what is missing, for a criterion that is not ``allowed``."""
    for name in wanted:
        if name not in allowed:
            raise ValueError(
                f"the criterion {name} needs a life predictor that reads the tokens before the first stage, "
                "and this model has none (`trimvit train --life` trains one); allowed are "
                f"{', '.join(allowed)}"
            )


def offered_reducers(*, pools: bool) -> tuple[Reducer, ...]:
    """The reducers of a model. ``pools``: whether all blocks that prune have learned queries."""
    return REDUCERS if pools else REDUCERS_OF_ANY_MODEL


def check_reducers(wanted: Sequence[Reducer], allowed: Sequence[Reducer]) -> None:
    """Raise ValueError, which explains what is missing, for a reducer that is not ``allowed``."""
    for name in wanted:
        if name not in allowed:
            raise ValueError(
                f"the reducer {name} needs learned queries in every block that prunes, for as many patches "
                "as the model has, and this model has none (`trimvit train --reducers pool` trains them); "
                f"allowed are {', '.join(allowed)}"
            )
