"""Measure resident memory over many mixed batches, computed as in the server. Linux only.

Not all growth is a leak: oneDNN caches data for each shape (docs/design/0023), and new shapes become rarer
over time. Growth that continues after that is a leak.
"""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from models.classifier import Classifier, ImageRequest
from models.offered import OF_ANY_MODEL, REDUCERS_OF_ANY_MODEL
from models.pruned_vit import Pruning


@dataclass(frozen=True, slots=True)
class Trend:
    """Slope of a line through the samples after the warm-up, and its standard error, in KiB per 1,000
    batches."""

    kib_per_1000_batches: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.kib_per_1000_batches:+.1f} ± {self.standard_error:.1f}"


def measure(
    classifier: Classifier,
    streams: ThreadPoolExecutor,
    *,
    batches: int,
    warm_up: int,
    every: int,
    most_images: int,
    ratio_decimals: int,
    seed: int = 0,
) -> dict[str, object]:
    """Run the batches and return one row: samples ([batches, MiB], one per ``every`` batches), trend and
    peak.

    Raises ValueError if there would be fewer than three samples after the warm-up.
    """
    if (batches - warm_up) // every < 3:
        raise ValueError(f"{batches} batches after {warm_up} to warm up, one sample in {every}: too few")
    draw = Random(seed)
    height, width = classifier.spec.size
    pixels = torch.from_numpy(
        np.random.default_rng(seed).integers(0, 256, (most_images, height, width, 3), np.uint8)
    )
    samples: list[tuple[int, float]] = []
    peak_after_warm_up = 0.0
    with tqdm(total=batches, desc="memory", unit="batch", dynamic_ncols=True) as progress:
        for done in range(every, batches + 1, every):
            work = [_random_requests(draw, most_images, ratio_decimals) for _ in range(every)]
            list(streams.map(lambda requests: _classify(classifier, pixels, requests), work))
            samples.append((done, _resident_mib()))
            if done <= warm_up:
                peak_after_warm_up = _peak_mib()
            progress.update(every)
    settled = [sample for sample in samples if sample[0] >= warm_up]
    return {
        "batches": batches,
        "dtype": str(classifier.dtype).removeprefix("torch."),
        "after_warm_up_mib": round(settled[0][1], 2),
        "at_end_mib": round(settled[-1][1], 2),
        "trend": trend(settled),
        "peak_after_warm_up_mib": round(peak_after_warm_up, 2),
        "peak_mib": round(_peak_mib(), 2),
        "samples": [[done, round(mib, 3)] for done, mib in samples],
    }


def trend(samples: list[tuple[int, float]]) -> Trend:
    """Fit a line to (batches, MiB) by least squares. Needs at least three samples."""
    batches, mib = np.array(samples).T
    centred = batches - batches.mean()
    slope = float(centred @ mib / (centred @ centred))
    residuals = mib - mib.mean() - slope * centred
    error = float(np.sqrt(residuals @ residuals / (len(mib) - 2) / (centred @ centred)))
    return Trend(round(slope * 1024 * 1000, 2), round(error * 1024 * 1000, 2))


def _resident_mib() -> float:
    return _status_mib("VmRSS")


def _peak_mib() -> float:
    """Return the peak resident memory of the process, including peaks between samples."""
    return _status_mib("VmHWM")


def _status_mib(key: str) -> float:
    found = re.search(rf"^{key}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def _random_requests(draw: Random, most_images: int, ratio_decimals: int) -> list[ImageRequest]:
    return [
        ImageRequest(
            Pruning(
                round(draw.uniform(0.3, 1.0), ratio_decimals),
                draw.choice(OF_ANY_MODEL),
                draw.choice(REDUCERS_OF_ANY_MODEL),
                seed=draw.randrange(1000),
            ),
            kept_patches=draw.random() < 0.5,
        )
        for _ in range(draw.randint(1, most_images))
    ]


def _classify(classifier: Classifier, pixels: Tensor, requests: list[ImageRequest]) -> None:
    classifier.classify(pixels[: len(requests)], requests)
