"""Measure images per second of complete forward passes, alternating between settings."""

import time
from collections.abc import Sequence

from torch import Tensor

from models.classifier import Classifier, ImageRequest
from models.schedule import Pruning


def speed_round(
    classifier: Classifier, batches: Sequence[Tensor], settings: Sequence[Pruning]
) -> list[float]:
    """Measure images/s of each setting once, over the same batches of uint8 pixels: normalization and forward
    pass, until the results are on the host. Call it once before measuring, to warm up kernels and memory."""
    seconds = [0.0] * len(settings)
    for pixels in batches:
        # Alternate settings per batch, so that a slowdown of the machine affects them all equally.
        for index, setting in enumerate(settings):
            requests = [ImageRequest(setting, top_k=1)] * len(pixels)
            started = time.perf_counter()
            classifier.classify(pixels, requests)
            seconds[index] += time.perf_counter() - started
    images = sum(map(len, batches))
    return [images / spent for spent in seconds]
