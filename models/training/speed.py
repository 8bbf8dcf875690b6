"""Images per second of whole forward passes, setting by setting in turns."""

import time
from collections.abc import Sequence

from torch import Tensor

from models.classifier import Classifier, ImageRequest
from models.schedule import Pruning


def speed_round(
    classifier: Classifier, batches: Sequence[Tensor], settings: Sequence[Pruning]
) -> list[float]:
    """Images/s of each setting over the same batches of uint8 pixels, once: normalising and forward pass, to
    the answers on the host. Call it once unmeasured first: kernels are chosen and memory is taken then."""
    seconds = [0.0] * len(settings)
    for pixels in batches:
        # All settings on one batch after another: a machine that slows down slows them all alike.
        for index, setting in enumerate(settings):
            requests = [ImageRequest(setting, top_k=1)] * len(pixels)
            started = time.perf_counter()
            classifier.classify(pixels, requests)
            seconds[index] += time.perf_counter() - started
    images = sum(map(len, batches))
    return [images / spent for spent in seconds]
