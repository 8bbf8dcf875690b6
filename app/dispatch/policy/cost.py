"""Predicts the time of a batch from its images and their compute. Plain numpy: no clock, no torch.

seconds = constant + a * images + b * compute

``compute`` is the sum of the images' shares of the unpruned model's MACs (models.schedule), so it includes
the tokens at every stage. No coefficient is negative: predictions are positive and rise with the work. The
coefficients are fitted at warm-up, for each number of threads of a batch, while all streams are busy, as they
are when predictions matter. Then they slowly follow the measurements of serving.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from jaxtyping import Float

from app.messages.capacity import Measured, Work

_TINY_S = 1e-6
_REWEIGHTINGS = 20
_OUTLIER = 0.2  # larger relative residuals are clipped to this
_GAIN = 0.1  # share of a residual that one batch corrects
_FARTHEST = 100.0  # a coefficient stays within this factor of the warm-up's
_CAUTION_SHARE = 0.99
_CAUTION_STEP = 0.05
_MOST_CAUTION = 2.0
_DEVIATIONS = 1.4826  # standard deviation relative to the median absolute error, for normal errors


def _features(work: Work) -> Float[np.ndarray, " 3"]:
    return np.array((1.0, work.images, work.compute))


def fit(measured: Sequence[Measured]) -> Float[np.ndarray, " 3"]:
    """The coefficients (s, s/image, s/unpruned image), none negative, with the least relative errors.

    Least squares of the relative residuals, reweighted for Huber's loss (Huber 1964, "Robust Estimation of a
    Location Parameter"), so a few delayed batches do not count. Raises ValueError without measurements.
    """
    if not measured:
        raise ValueError("no batch was measured")
    features = np.stack([_features(batch.work) / batch.seconds for batch in measured])
    weights = np.ones(len(measured))
    for _ in range(_REWEIGHTINGS):
        coefficients = _least_squares(features * weights[:, None], weights)
        residuals = np.abs(features @ coefficients - 1)
        # Half of the errors are below the median. An error of more than three medians is an outlier.
        bound = max(3 * float(np.median(residuals)), 1e-9)
        weights = np.sqrt(np.minimum(1.0, bound / np.maximum(residuals, bound)))
    return coefficients


def _least_squares(
    features: Float[np.ndarray, "batches 3"], target: Float[np.ndarray, " batches"]
) -> Float[np.ndarray, " 3"]:
    """The best solution without a negative coefficient, among all choices of non-zero coefficients. (With
    three of them, trying all is the simplest exact way.)"""
    count = features.shape[1]
    best, least = np.zeros(count), math.inf
    for size in range(1, count + 1):
        for chosen in combinations(range(count), size):
            some = np.linalg.lstsq(features[:, chosen], target, rcond=None)[0]
            error = float(np.sum((features[:, chosen] @ some - target) ** 2))
            if (some >= 0).all() and error < least * (1 - 1e-9):
                best, least = np.zeros(count), error
                best[list(chosen)] = some
    return best


@dataclass(slots=True)
class _Line:
    """The coefficients for one number of threads, and their relation to those of the warm-up.

    Three numbers each, and one batch at a time: calling numpy would take longer than adding.
    """

    learned: tuple[float, float, float]
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    now: tuple[float, float, float] = field(init=False)
    astray: int = 0  # consecutive batches beyond the bound, all slower (positive) or all faster (negative)

    def __post_init__(self) -> None:
        self._settle()

    def predict(self, work: Work) -> float:
        constant, image, compute = self.now
        return constant + image * work.images + compute * work.compute

    def observe(self, work: Work, seconds: float) -> float:
        """Learn from a batch. Returns the seconds that were predicted for it.

        Normalised least mean squares: half of a residual goes to the device's pace, which all coefficients
        share, and half to the coefficients, by their shares in the prediction.

        Serving one kind of batch for a long time does not wind anything up, as it does in recursive least
        squares with forgetting. One outlier moves a prediction by at most _GAIN * _OUTLIER. The bound only
        widens if batch after batch is off in the same direction, because then the device has changed.
        """
        constant, image, compute = self.now
        image, compute = image * work.images, compute * work.compute
        predicted = constant + image + compute
        residual = seconds / predicted - 1
        side = int(math.copysign(1, residual)) if abs(residual) > _OUTLIER else 0
        self.astray = self.astray + side if side * self.astray > 0 else side
        bound = _OUTLIER * max(1, abs(self.astray) - 1)
        shares = (constant / predicted, image / predicted, compute / predicted)
        length = shares[0] ** 2 + shares[1] ** 2 + shares[2] ** 2
        pace = _GAIN * min(max(residual, -bound), bound) / 2
        # Coefficients are scaled relative to the warm-up, so that zeros stay zero and signs do not change.
        one, two, three = (
            min(_FARTHEST, max(1 / _FARTHEST, scale * (1 + pace * (1 + share / length))))
            for scale, share in zip(self.scale, shares, strict=True)
        )
        self.scale = one, two, three
        self._settle()
        return predicted

    def _settle(self) -> None:
        constant, image, compute = self.learned
        by_constant, by_image, by_compute = self.scale
        self.now = max(_TINY_S, constant * by_constant), max(_TINY_S, image * by_image), compute * by_compute


def _three(coefficients: Float[np.ndarray, " 3"]) -> tuple[float, float, float]:
    constant, image, compute = coefficients.tolist()
    return constant, image, compute


def _first_caution(line: _Line, measured: Sequence[Measured]) -> float:
    """The caution from the warm-up's own prediction errors: three deviations, by the median of the errors."""
    errors = [abs(batch.seconds / line.predict(batch.work) - 1) for batch in measured]
    return min(_MOST_CAUTION, 1 + 3 * _DEVIATIONS * float(np.median(errors)))


@dataclass(slots=True)
class CostModel:
    """Predicts the duration of batches; see the module.

    ``caution`` is a factor of at least 1: 99 of 100 batches take at most their prediction times this factor.
    """

    caution: float = 1.0
    _lines: dict[int, _Line] = field(default_factory=dict)

    @classmethod
    def learned(cls, measured: Iterable[Measured]) -> "CostModel":
        """Fit the model to the batches of a warm-up. Raises ValueError if there are none."""
        by_threads: dict[int, list[Measured]] = {}
        for batch in measured:
            by_threads.setdefault(batch.threads, []).append(batch)
        if not by_threads:
            raise ValueError("no batch was measured")
        lines = {threads: _Line(_three(fit(some))) for threads, some in by_threads.items()}
        return cls(max(_first_caution(lines[threads], some) for threads, some in by_threads.items()), lines)

    def predict(self, work: Work, threads: int) -> float:
        """Seconds, above 0. Without measurements on this number of threads, those on the nearest number are
        used."""
        return self._line(threads).predict(work)

    def overhead_s(self, threads: int) -> float:
        """The seconds that a batch takes in addition to its images."""
        return self._line(threads).now[0]

    def image_s(self, compute: float, threads: int) -> float:
        """The seconds that one more image takes in a batch, above 0."""
        _, image, unpruned = self._line(threads).now
        return image + unpruned * compute

    def observe(self, batch: Measured) -> float:
        """Learn slowly from a batch. Returns the relative error of its prediction: above 0 if it took
        longer."""
        ratio = batch.seconds / self._line(batch.threads).observe(batch.work, batch.seconds)
        # The sizes of steps up and down balance if 1 of 100 batches is above (Robbins and Monro 1951).
        up = _CAUTION_SHARE if ratio > self.caution else _CAUTION_SHARE - 1
        self.caution = min(_MOST_CAUTION, max(1.0, self.caution + _CAUTION_STEP * up))
        return ratio - 1

    def line(self, threads: int) -> tuple[float, float, float]:
        """The seconds of a batch, of an image in it, and of an unpruned image's compute in addition."""
        return self._line(threads).now

    def _line(self, threads: int) -> _Line:
        if (line := self._lines.get(threads)) is not None:
            return line
        return self._lines[min(self._lines, key=lambda known: abs(known - threads))]
