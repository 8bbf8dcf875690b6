"""Logs and counts images without a result."""

import logging

from app.messages.image import Prediction
from app.messages.to_worker import Batch
from app.telemetry import metrics
from app.worker.parts import Computed

log = logging.getLogger(__name__)

_FAULTS = {
    "worker-fault": "computing it by itself failed, although a blank image can be computed",
    "no-number": "its scores are not finite numbers",
}


def show_faults() -> None:
    """Create the metric for each fault at the start, so that the first fault shows as a rise."""
    for fault in _FAULTS:
        metrics.IMAGES_FAILED.labels(fault)


def report_faults(batch: Batch, computed: Computed[Prediction]) -> None:
    """Log the exceptions, and which images of the batch are refused and why."""
    images = len(batch.images)
    for error in computed.errors:
        log.error("computing a batch of %d images failed:\n%s", images, error.rstrip())
    for order, result in zip(batch.images, computed.results, strict=True):
        if not isinstance(result, Prediction) and result in _FAULTS:
            metrics.IMAGES_FAILED.labels(result).inc()
            log.error(
                "refused one image of a batch of %d, because %s; the others are answered; its pruning: %s",
                *(images, _FAULTS[result], order.ask.pruning),
            )
