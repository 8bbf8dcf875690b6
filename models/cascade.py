"""Cascades: a cheap run for every image, and a run without pruning for uncertain results.

An image is uncertain if the margin (the probability of the first label minus that of the second) of its cheap
run is at most a threshold. The threshold is fitted on images without labels, for a required agreement with
the unpruned model on future images.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from models.schedule import (
    UNPRUNED,
    Architecture,
    Criterion,
    Pruning,
    Reducer,
    Stages,
    compute,
    compute_of_counts,
)


class UnreachableAgreementError(ValueError):
    """There are too few calibration images for the required agreement."""


@dataclass(frozen=True, slots=True)
class Cascade:
    """A fitted cascade: the first run's keep ratio, criterion and reducer, and the margin up to which an
    image is computed again without pruning.

    ``agreement`` is the agreement that was required, and ``images`` the number of images of the fit.
    ``compute`` is the mean cost of an image during the fit, as a share of the unpruned model's MACs.
    ``dtype`` is the dtype of the fit, whose rounding affects the margin; None if unknown.
    """

    keep_ratio: float
    criterion: Criterion
    reducer: Reducer
    margin: float
    agreement: float
    images: int
    compute: float
    dtype: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.margin <= 1:
            raise ValueError(f"margin must be between 0 and 1, got {self.margin}")
        if not 0 < self.agreement <= 1:
            raise ValueError(f"agreement must be above 0 and at most 1, got {self.agreement}")
        if not 0 < self.compute <= 2:
            raise ValueError(f"compute must be above 0 and at most 2 (two runs), got {self.compute}")
        _ = self.first

    @property
    def first(self) -> Pruning:
        """The pruning of the first run."""
        return Pruning(self.keep_ratio, self.criterion, self.reducer)


def margins(scores: Float[np.ndarray, "B classes"]) -> Float[np.ndarray, " B"]:
    """Largest probability minus the second largest, per image; 1 with a single class."""
    if scores.shape[1] == 1:
        return np.ones(len(scores), scores.dtype)
    second, first = np.partition(scores, -2, axis=1)[:, -2:].T
    return first - second


def second_run_compute(arch: Architecture, stages: Stages) -> float:
    """The cost of the unpruned second run, as a share of the unpruned model's MACs. The second run reuses the
    tokens of the first run before the first stage."""
    if not stages.blocks:
        return 0.0
    unpruned = (arch.patches,) * len(stages.blocks)
    return compute_of_counts(arch, stages, unpruned, UNPRUNED.reducer, first_block=stages.blocks[0])


def fit_margin(margin: Float[np.ndarray, " n"], agrees: Bool[np.ndarray, " n"], agreement: float) -> float:
    """The smallest threshold that keeps the expected agreement on a new image at ``agreement`` or above.

    Conformal risk control (arXiv 2208.02814, equation 4, for a loss of 0 or 1): with d disagreements left
    among n images, the expected share on the next one is at most (d + 1) / (n + 1). Raises
    UnreachableAgreementError if even d = 0 is too much.
    """
    images = len(margin)
    allowed = int(np.floor((1 - agreement) * (images + 1) + 1e-9)) - 1
    if allowed < 0:
        need = "no number of images is enough"
        if agreement < 1:
            need = f"at least {np.ceil(1 / (1 - agreement) - 1 - 1e-9):.0f} are needed"
        raise UnreachableAgreementError(
            f"{images} images are too few to promise an agreement of {agreement:g}: {need}"
        )
    return _least_threshold(margin, agrees, allowed)


def _least_threshold(margin: Float[np.ndarray, " n"], agrees: Bool[np.ndarray, " n"], allowed: int) -> float:
    """The smallest threshold that leaves at most ``allowed`` disagreements."""
    wrong = np.sort(margin[~agrees])[::-1]
    # The disagreements with the largest margins are accepted; the next one must be run again.
    return float(wrong[allowed]) if len(wrong) > allowed else 0.0


@dataclass(frozen=True, slots=True)
class Fitted:
    """A margin fitted on ``images`` images, the share of uncertain ones (``unsure``), and the mean cost of an
    image, as a share of the unpruned model's MACs."""

    margin: float
    images: int
    unsure: float
    compute: float


def choose_and_fit(
    margin: Float[np.ndarray, "candidates n"],
    agrees: Bool[np.ndarray, "candidates n"],
    agreement: float,
    cost: Callable[[int, float], float],
) -> tuple[list[Fitted], int, Fitted]:
    """The results of each candidate, the index of the cheapest, and its final fit.

    ``cost(candidate, unsure)``: the mean cost of an image. Candidates are compared on every other image, and
    the margin of the chosen one is fitted on the rest. If it were fitted on the images that chose it, it
    would agree on new images less often than promised, and more so with more candidates. A single candidate
    is fitted on all images. Raises UnreachableAgreementError (see `fit_margin`).
    """

    def with_margin(candidate: int, images: slice, fitted: float) -> Fitted:
        own = margin[candidate, images]
        unsure = float((own <= fitted).mean())
        return Fitted(fitted, len(own), unsure, cost(candidate, unsure))

    candidates, images = margin.shape
    if candidates == 1:
        only = with_margin(0, slice(None), fit_margin(margin[0], agrees[0], agreement))
        return [only], 0, only
    comparing, fitting = slice(0, None, 2), slice(1, None, 2)
    allowed = int((1 - agreement) * ((images + 1) // 2))
    compared = [
        with_margin(one, comparing, _least_threshold(margin[one, comparing], agrees[one, comparing], allowed))
        for one in range(candidates)
    ]
    cheapest = min(range(candidates), key=lambda one: compared[one].compute)
    try:
        fitted = fit_margin(margin[cheapest, fitting], agrees[cheapest, fitting], agreement)
    except UnreachableAgreementError as error:
        raise UnreachableAgreementError(
            f"{error}; of {images} images, half are used to choose among {candidates} first runs"
        ) from None
    return compared, cheapest, with_margin(cheapest, fitting, fitted)


def expected_compute(arch: Architecture, stages: Stages, first: Pruning, unsure_share: float) -> float:
    """Mean MACs of an image, as a share of the unpruned model's. ``unsure_share``: the share of images that
    are computed again."""
    first_run = compute(arch, stages, first.keep_ratio, first.reducer)
    return first_run + unsure_share * second_run_compute(arch, stages)
