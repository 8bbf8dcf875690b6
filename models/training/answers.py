"""Run a model on images under several pruning settings, and compute paired statistics of its predictions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int

from models.classifier import Classifier
from models.pruned_vit import Output, PrunedViT
from models.schedule import (
    WITHOUT_CRITERION,
    Criterion,
    Pruning,
    Reducer,
    compute,
    compute_of_counts,
    method_name,
)
from models.training.data import Batch

Method = tuple[Criterion, Reducer]


@dataclass(frozen=True)
class Answers:
    """The predictions for some images under each setting.

    ``truth``: the true class of each image. ``classes``: the top-1 class. ``keep_ratio``: the ratio that was
    applied. ``compute``: the cost as a share of the unpruned model's MACs.
    """

    truth: Int[np.ndarray, " images"]
    classes: Int[np.ndarray, "settings images"]
    keep_ratio: Float[np.ndarray, "settings images"]
    compute: Float[np.ndarray, "settings images"]

    @staticmethod
    def joined(parts: Sequence["Answers"]) -> "Answers":
        """Concatenate the images of several parts, in order."""
        return Answers(
            np.concatenate([part.truth for part in parts]),
            np.concatenate([part.classes for part in parts], axis=1),
            np.concatenate([part.keep_ratio for part in parts], axis=1),
            np.concatenate([part.compute for part in parts], axis=1),
        )


@dataclass(frozen=True)
class Row:
    """The results of one setting over all images. Shares are in percent, standard errors in percentage
    points.

    ``top1_change``: top-1 minus that of the unpruned model. ``difference``: top-1 minus that of the
    ``reference`` method at the same ratio. Both have the standard error of the paired difference. With a
    ``keep_mass``, ``keep_ratio`` and ``compute`` are means over the images. ``images_per_s``: throughput of
    complete forward passes on a few batches, without reading images; the median over rounds, with the minimum
    (``low``) and maximum (``high``).
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
    images_per_s: float | None = None
    images_per_s_low: float | None = None
    images_per_s_high: float | None = None
    keep_mass: float | None = None
    reference: str | None = None
    difference: float | None = None
    difference_error: float | None = None
    model: str = ""

    @property
    def prunes(self) -> bool:
        """Whether the setting can remove patches."""
        return self.keep_ratio < 1 or self.keep_mass is not None

    @property
    def method(self) -> str:
        """The name of the method, as in `method_name`; "(unpruned)" if nothing is pruned."""
        return method_name(self.criterion, self.reducer) if self.prunes else "(unpruned)"


def methods(criteria: Sequence[Criterion], reducers: Sequence[Reducer]) -> list[Method]:
    """Combine each criterion with each reducer. `merge` and `pool` appear once, because they use no
    criterion."""
    pairs = {
        method_name(criterion, reducer): (criterion, reducer)
        for reducer in reducers
        for criterion in criteria
    }
    return list(pairs.values())


def settings_of(
    ratios: Sequence[float], pairs: Sequence[Method], masses: Sequence[float] = ()
) -> list[Pruning]:
    """List the settings to measure: the unpruned model, then every ratio below 1 with every method, then
    every mass with the methods that use a criterion. Ratios and masses are in descending order."""
    criterion, reducer = pairs[0]
    by_ratio = [
        Pruning(ratio, criterion, reducer)
        for ratio in sorted(set(ratios) - {1.0}, reverse=True)
        for criterion, reducer in pairs
    ]
    by_mass = [
        Pruning(1.0, criterion, reducer, keep_mass=mass)
        for mass in sorted(set(masses), reverse=True)
        for criterion, reducer in pairs
        if reducer not in WITHOUT_CRITERION
    ]
    return [Pruning(1.0, criterion, reducer), *by_ratio, *by_mass]


def answers_to(classifier: Classifier, batch: Batch, settings: Sequence[Pruning]) -> Answers:
    """Run one batch of images under each setting.

    The image numbers are the seeds of the random criterion, so each image gets its own pattern.
    """
    if len(batch.numbers) == 0:
        nothing = np.empty((len(settings), 0))
        return Answers(batch.truth, nothing.astype(np.int64), nothing, nothing)
    seeds = batch.numbers.tolist()
    outputs = classifier.compare(
        torch.from_numpy(batch.pixels),
        [[replace(setting, seed=seed) for seed in seeds] for setting in settings],
    )
    costs = [
        _costs(classifier.model, setting, output) for setting, output in zip(settings, outputs, strict=True)
    ]
    return Answers(
        batch.truth,
        torch.stack([output.logits.argmax(dim=1) for output in outputs]).cpu().numpy(),
        np.array([ratios for ratios, _ in costs]),
        np.array([shares for _, shares in costs]),
    )


def _costs(model: PrunedViT, setting: Pruning, output: Output) -> tuple[list[float], list[float]]:
    """Return the keep ratio and the compute of each image."""
    images = len(output.logits)
    if setting.keep_mass is None or not len(output.kept):
        share = compute(model.arch, model.stages, setting.keep_ratio, setting.reducer)
        return [setting.keep_ratio] * images, [share] * images
    counts = [tuple(of_image) for of_image in output.kept.counts.T.tolist()]
    return (
        [count[0] / model.arch.patches for count in counts],
        [compute_of_counts(model.arch, model.stages, count, setting.reducer) for count in counts],
    )


def rows_of(
    settings: Sequence[Pruning],
    answers: Answers,
    *,
    reference: Method | None = None,
    speeds: Float[np.ndarray, "rounds settings"] | None = None,
    model: str = "",
) -> list[Row]:
    """Compute a row for each setting. The first setting must be the unpruned model.

    With a ``reference``, the rows of other methods have the difference to it at the same ratio. ``speeds``
    [rounds, settings]: images/s; NaN for a setting that was not timed.
    """
    correct = (answers.classes == answers.truth).astype(float)
    agrees = (answers.classes == answers.classes[0]).astype(float)
    place = {
        (setting.keep_ratio, setting.keep_mass, setting.criterion, setting.reducer): index
        for index, setting in enumerate(settings)
    }
    rows = []
    for index, setting in enumerate(settings):
        row = Row(
            keep_ratio=(
                setting.keep_ratio
                if setting.keep_mass is None
                else round(float(answers.keep_ratio[index].mean()), 4)
            ),
            criterion=setting.criterion,
            reducer=setting.reducer,
            images=len(answers.truth),
            top1=_percent(correct[index]),
            top1_error=_standard_error(correct[index]),
            top1_change=_percent(correct[index] - correct[0]),
            top1_change_error=_standard_error(correct[index] - correct[0]),
            agreement=_percent(agrees[index]),
            agreement_error=_standard_error(agrees[index]),
            compute=round(float(answers.compute[index].mean()), 4),
            keep_mass=setting.keep_mass,
            model=model,
        )
        # At the same mass, criteria differ in cost, so a difference would not be a fair comparison.
        if reference is not None and setting.prunes and setting.keep_mass is None:
            name = method_name(*reference)
            if row.method != name:
                difference = correct[index] - correct[place[setting.keep_ratio, None, *reference]]
                row = replace(
                    row,
                    reference=name,
                    difference=_percent(difference),
                    difference_error=_standard_error(difference),
                )
        if speeds is not None and not np.isnan(speeds[:, index]).any():
            own = speeds[:, index]
            row = replace(
                row,
                images_per_s=round(float(np.median(own)), 2),
                images_per_s_low=round(float(own.min()), 2),
                images_per_s_high=round(float(own.max()), 2),
            )
        rows.append(row)
    return rows


def _percent(shares: np.ndarray) -> float:
    return round(100 * float(shares.mean()), 2)


def _standard_error(shares: np.ndarray) -> float:
    """Return the standard error of the mean, in percentage points."""
    return round(100 * float(shares.std(ddof=1)) / math.sqrt(len(shares)), 2) if len(shares) > 1 else 0.0
