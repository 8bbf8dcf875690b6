"""`trimvit evaluate`: what each criterion costs and keeps at each ratio, paired image by image."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from models import zoo
from models.classifier import Classifier, ImageRequest
from models.device import choose_device, choose_dtype
from models.schedule import Criterion, Pruning, Reducer, compute, method_name
from models.training.config import EvaluateConfig
from models.training.data import class_folders, evaluation_batches


@dataclass(frozen=True)
class Row:
    """One setting over all images; shares in percent, each with its standard error in points.

    ``top1_change`` is top-1 minus the unpruned model's, with the standard error of the paired difference.
    ``images_per_s`` counts the model's time, not the reading of images.
    """

    keep_ratio: float
    criterion: Criterion
    reducer: Reducer
    images: int
    top1: float
    top1_error: float
    top1_change: float
    top1_change_error: float
    agreement: float
    agreement_error: float
    compute: float
    images_per_s: float


def evaluate(config: EvaluateConfig) -> list[Row]:
    """One row per ratio and criterion; ratio 1 comes once. Raises ModelError, or ValueError where the
    folder's classes are not as many as the model's."""
    device = choose_device(config.device)
    loaded = zoo.load(config.model, architecture=config.architecture, patch_stride=config.patch_stride)
    folders = class_folders(config.data)
    if len(folders) != len(loaded.labels):
        raise ValueError(
            f"{config.data} has {len(folders)} class folders, the model has {len(loaded.labels)} classes"
        )
    classifier = Classifier(loaded.model, loaded.input, device, choose_dtype(device, config.dtype))
    settings = [
        Pruning(ratio, criterion, reducer)
        for ratio in sorted(set(config.keep_ratios) | {1.0}, reverse=True)
        for criterion, reducer in methods(config.criteria, config.reducers)[: None if ratio < 1 else 1]
    ]
    answers: dict[Pruning, list[int]] = {setting: [] for setting in settings}
    seconds = dict.fromkeys(settings, 0.0)
    truth: list[int] = []
    batches = evaluation_batches(config.data, loaded.input, config.batch_size, config.workers, config.limit)
    for pixels, labels in tqdm(batches, unit="batch", dynamic_ncols=True):
        # All settings on one batch after another: a machine that slows down slows them all alike.
        for setting in settings:
            # The random criterion prunes every image at random, not all in one pattern.
            requests = [
                ImageRequest(replace(setting, seed=len(truth) + image), top_k=1)
                for image in range(len(pixels))
            ]
            started = time.perf_counter()
            predictions = classifier.classify(pixels, requests)
            seconds[setting] += time.perf_counter() - started
            answers[setting] += [int(prediction.classes[0]) for prediction in predictions]
        truth += labels.tolist()
    unpruned = np.array(answers[settings[0]])
    right = np.array(truth)
    shape = (loaded.model.arch, loaded.model.stages)
    return [
        _row(
            setting,
            np.array(answers[setting]),
            unpruned,
            right,
            compute(*shape, setting.keep_ratio, setting.reducer),
            len(truth) / seconds[setting],
        )
        for setting in settings
        if setting.keep_ratio in config.keep_ratios
    ]


def methods(criteria: Sequence[Criterion], reducers: Sequence[Reducer]) -> list[tuple[Criterion, Reducer]]:
    """Each criterion with each reducer, but `merge` once: it reads no criterion."""
    pairs = {
        method_name(criterion, reducer): (criterion, reducer)
        for reducer in reducers
        for criterion in criteria
    }
    return list(pairs.values())


def _row(
    setting: Pruning,
    answers: np.ndarray,
    unpruned: np.ndarray,
    right: np.ndarray,
    compute_share: float,
    images_per_s: float,
) -> Row:
    correct = (answers == right).astype(float)
    change = correct - (unpruned == right)
    agrees = (answers == unpruned).astype(float)
    return Row(
        keep_ratio=setting.keep_ratio,
        criterion=setting.criterion,
        reducer=setting.reducer,
        images=len(right),
        top1=_percent(correct),
        top1_error=_standard_error(correct),
        top1_change=_percent(change),
        top1_change_error=_standard_error(change),
        agreement=_percent(agrees),
        agreement_error=_standard_error(agrees),
        compute=round(compute_share, 4),
        images_per_s=round(images_per_s, 2),
    )


def _percent(shares: np.ndarray) -> float:
    return round(100 * float(shares.mean()), 2)


def _standard_error(shares: np.ndarray) -> float:
    """Of the mean, in points."""
    return round(100 * float(shares.std(ddof=1)) / math.sqrt(len(shares)), 2) if len(shares) > 1 else 0.0


_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("keep_ratio", lambda row: f"{row.keep_ratio:g}"),
    ("method", lambda row: method_name(row.criterion, row.reducer) if row.keep_ratio < 1 else "(unpruned)"),
    ("top-1 %", lambda row: f"{row.top1:.2f} ± {row.top1_error:.2f}"),
    ("change", lambda row: f"{row.top1_change:+.2f} ± {row.top1_change_error:.2f}"),
    ("agreement %", lambda row: f"{row.agreement:.2f} ± {row.agreement_error:.2f}"),
    ("compute", lambda row: f"{row.compute:.3f}"),
    ("images/s", lambda row: f"{row.images_per_s:.1f}"),
)


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, for a terminal and a model card alike."""
    return markdown(
        [[title for title, _ in _COLUMNS], *([text(row) for _, text in _COLUMNS] for row in rows)]
    )


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table of these cells, the first row its header, with columns lined up."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
