"""How similarly two criteria rank the patches of an image: Spearman's rank correlation."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from models.classifier import Classifier
from models.schedule import Criterion, Pruning


@dataclass(frozen=True)
class RankCorrelation:
    """Between the criteria's importance at the first stage: the mean over images, and its standard error."""

    criteria: tuple[Criterion, ...]
    images: int
    mean: Float[np.ndarray, "criteria criteria"]
    error: Float[np.ndarray, "criteria criteria"]


def rank_correlation(
    classifier: Classifier, batches: Iterable[Tensor], criteria: Sequence[Criterion]
) -> RankCorrelation:
    """Of the criteria, over the images of batches of uint8 pixels."""
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
    """Spearman's rank correlation of every two rows: Pearson's of their ranks, equal values sharing the mean
    of theirs. 0 where a row has one value only, and so no order."""
    centred = np.array([_ranks(row) for row in values]) - (values.shape[1] - 1) / 2
    lengths = np.sqrt((centred**2).sum(axis=1))
    scaled = centred / np.where(lengths > 0, lengths, 1.0)[:, np.newaxis]
    return scaled @ scaled.T


def _ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """From 0; of equal values, the mean of the ranks that they take together."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[place]
