"""The results of a load, in numbers."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from app.commands.load import ANSWERED, Sample

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9, 100.0)


@dataclass(frozen=True, slots=True)
class OfRatio:
    """The images of one keep ratio. None is the server's default."""

    keep_ratio: float | None
    images: int
    answered: int
    mean_compute: float | None
    latency_ms: dict[str, float]


@dataclass(frozen=True, slots=True)
class Summary:
    """The results of the images that were due after the warm-up.

    ``images_per_s`` counts the answers between warm-up and end. Latencies are in milliseconds by percentile
    (`p50`, ..., `max`), over the answered images: from when an image was due, and from when it was sent.
    ``late_ms``: how long after it was due an image was sent. ``cached``: the number of answers from the
    server's answer cache.
    """

    images: int
    answered: int
    cached: int
    images_per_s: float
    by_status: dict[str, int]
    by_problem: dict[str, int]
    mean_compute: float | None
    latency_ms: dict[str, float]
    latency_from_send_ms: dict[str, float]
    late_ms: dict[str, float]
    by_keep_ratio: tuple[OfRatio, ...]


def percentile(ascending: Sequence[float], percent: float) -> float:
    """The smallest value that at least ``percent`` % of the values do not exceed (nearest rank)."""
    rank = math.ceil(round(percent / 100 * len(ascending), 9))
    return ascending[max(rank, 1) - 1]


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """By name, in milliseconds; empty for no values."""
    if not seconds:
        return {}
    ascending = sorted(seconds)
    return {_name(percent): round(percentile(ascending, percent) * 1000, 3) for percent in PERCENTILES}


def summarise(samples: Sequence[Sample], warmup_s: float, duration_s: float) -> Summary:
    """The summary of the samples that were due from ``warmup_s`` on, for a load of ``duration_s`` after
    that."""
    counted = [sample for sample in samples if sample.due_s >= warmup_s]
    answered = _answered(counted)
    # Responses to warm-up images count if they arrive within the window, because responses to the last images
    # arrive after it. Both effects cancel out.
    in_time = [sample for sample in _answered(samples) if warmup_s <= sample.done_s < warmup_s + duration_s]
    ratios = sorted(
        {sample.keep_ratio for sample in counted}, key=lambda ratio: -1 if ratio is None else ratio
    )
    return Summary(
        images=len(counted),
        answered=len(answered),
        cached=sum(sample.outcome.cached for sample in answered),
        images_per_s=round(len(in_time) / duration_s, 3),
        by_status=dict(sorted(Counter(sample.outcome.status for sample in counted).items())),
        by_problem=dict(sorted(Counter(filter(None, (each.outcome.problem for each in counted))).items())),
        mean_compute=_mean_compute(answered),
        latency_ms=percentiles_ms([sample.latency_s for sample in answered]),
        latency_from_send_ms=percentiles_ms([sample.latency_from_send_s for sample in answered]),
        late_ms=percentiles_ms([sample.sent_s - sample.due_s for sample in counted]),
        by_keep_ratio=tuple(
            _of_ratio(ratio, [sample for sample in counted if sample.keep_ratio == ratio]) for ratio in ratios
        ),
    )


def _of_ratio(keep_ratio: float | None, samples: Sequence[Sample]) -> OfRatio:
    answered = _answered(samples)
    return OfRatio(
        keep_ratio,
        len(samples),
        len(answered),
        _mean_compute(answered),
        percentiles_ms([sample.latency_s for sample in answered]),
    )


def _answered(samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.outcome.status == ANSWERED]


def _mean_compute(samples: Sequence[Sample]) -> float | None:
    computes = [sample.outcome.compute for sample in samples if sample.outcome.compute is not None]
    return round(sum(computes) / len(computes), 6) if computes else None


def _name(percent: float) -> str:
    return "max" if percent == 100 else f"p{percent:g}"
