"""Measure how similarly criteria rank the patches of an image, by Spearman's rank correlation."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from models.classifier import Classifier
from models.schedule import Criterion, Pruning


@dataclass(frozen=True)
class RankCorrelation:
    """The rank correlation between criteria at the first stage: mean over images, and its standard error."""

    criteria: tuple[Criterion, ...]
    images: int
    mean: Float[np.ndarray, "criteria criteria"]
    error: Float[np.ndarray, "criteria criteria"]


def rank_correlation(
    classifier: Classifier, batches: Iterable[Tensor], criteria: Sequence[Criterion]
) -> RankCorrelation:
    """Compute the rank correlation of the criteria over batches of uint8 pixels."""
    values = []
    images = 0
    for pixels in batches:
        tokens = classifier.begin(pixels)
        seeds = range(images, images + len(pixels))
        images += len(pixels)
        of_each = [
            classifier.model.first_importance(
                tokens, [Pruning(criterion=criterion, seed=seed) for seed in seeds]
            )
            for criterion in criteria
        ]
        values.append(np.stack([importance.cpu().numpy() for importance in of_each], axis=1))
    correlations = np.array([spearman(of_image) for of_image in np.concatenate(values)])
    error = np.zeros(correlations.shape[1:])
    if images > 1:
        error = correlations.std(axis=0, ddof=1) / np.sqrt(images)
    return RankCorrelation(tuple(criteria), images, correlations.mean(axis=0), error)


def spearman(values: Float[np.ndarray, "rows n"]) -> Float[np.ndarray, "rows rows"]:
    """Compute Spearman's rank correlation of each pair of rows: Pearson's correlation of their ranks, with
    the mean rank for ties. 0 if all values of a row are equal."""
    centred = np.array([_ranks(row) for row in values]) - (values.shape[1] - 1) / 2
    lengths = np.sqrt((centred**2).sum(axis=1))
    scaled = centred / np.where(lengths > 0, lengths, 1.0)[:, np.newaxis]
    return scaled @ scaled.T


def _ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return the ranks from 0; ties get the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[place]
