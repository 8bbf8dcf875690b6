"""`trimvit calibrate`: fit a cascade for a wanted agreement with the unpruned model, without labels."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from models.cascade import Cascade, expected_compute, fit_margin, margins
from models.classifier import Classifier
from models.device import choose_device, choose_dtype
from models.load import load, save
from models.pruned_vit import PrunedViT
from models.schedule import UNPRUNED, Pruning, method_name
from models.training.answers import methods
from models.training.config import CalibrateConfig
from models.training.data import spread_samples, unlabelled
from models.training.evaluate import markdown
from models.training.labelled import tell
from models.training.loading import BrokenImages, evaluation_batches
from models.training.outputs import check_output_file


@dataclass(frozen=True)
class Candidate:
    """A fitted cascade, and what share of the calibration images its first run was unsure of."""

    cascade: Cascade
    unsure: float


def calibrate(config: CalibrateConfig) -> list[Candidate]:
    """Fit every candidate, write the model with the cheapest one, and give back all, the cheapest first.

    Raises ModelError, FileNotFoundError without images, BrokenImageError, and UnreachableAgreementError with
    too few.
    """
    check_output_file(config.output)
    samples, remarks = unlabelled(config.data)
    tell(*remarks)
    samples = spread_samples(samples, config.limit)
    device = choose_device(config.device)
    loaded = load(config.model, architecture=config.architecture)
    firsts = [
        Pruning(ratio, criterion, reducer)
        for ratio in config.keep_ratios
        for criterion, reducer in methods(
            config.criteria or (loaded.method.criterion,), config.reducers or (loaded.method.reducer,)
        )
    ]
    dtype = choose_dtype(device, config.dtype)
    classifier = Classifier(loaded.model, loaded.input, device, dtype)
    margin: dict[Pruning, list[np.ndarray]] = {first: [] for first in firsts}
    agrees: dict[Pruning, list[np.ndarray]] = {first: [] for first in firsts}
    broken = BrokenImages(config.broken_images)
    batches = evaluation_batches(
        samples, loaded.input, broken, batch_size=config.batch_size, workers=config.workers
    )
    for batch in tqdm(batches, unit="batch", dynamic_ncols=True):
        if len(batch.numbers) == 0:
            continue
        scores = _scores(classifier, torch.from_numpy(batch.pixels), [UNPRUNED, *firsts])
        for first in firsts:
            margin[first].append(margins(scores[first]))
            agrees[first].append(scores[first].argmax(axis=1) == scores[UNPRUNED].argmax(axis=1))
    broken.tell(of=len(samples))
    candidates = [
        _fit(loaded.model, first, np.concatenate(margin[first]), np.concatenate(agrees[first]), config)
        for first in firsts
    ]
    candidates.sort(key=lambda candidate: candidate.cascade.compute)
    # Loaded anew: the classifier has its weights in its own precision.
    loaded = load(config.model, architecture=config.architecture)
    fitted = replace(candidates[0].cascade, dtype=str(dtype).removeprefix("torch."))
    card = replace(loaded.card, cascade=fitted)
    save(config.output, loaded.model.vit, card)
    return candidates


def _scores(classifier: Classifier, pixels: Tensor, prunings: list[Pruning]) -> dict[Pruning, np.ndarray]:
    """Probabilities [B, classes] under each pruning."""
    outputs = classifier.compare(pixels, [[pruning] * len(pixels) for pruning in prunings])
    return {
        pruning: output.logits.float().softmax(1).cpu().numpy()
        for pruning, output in zip(prunings, outputs, strict=True)
    }


def _fit(
    model: PrunedViT, first: Pruning, margin: np.ndarray, agrees: np.ndarray, config: CalibrateConfig
) -> Candidate:
    threshold = fit_margin(margin, agrees, config.agreement)
    unsure = float((margin <= threshold).mean())
    cascade = Cascade(
        keep_ratio=first.keep_ratio,
        criterion=first.criterion,
        reducer=first.reducer,
        margin=threshold,
        agreement=config.agreement,
        images=len(margin),
        compute=expected_compute(model.arch, model.stages, first, unsure),
    )
    return Candidate(cascade, unsure)


def table(candidates: list[Candidate]) -> str:
    """The candidates as a Markdown table."""
    titles = ["keep_ratio", "method", "margin", "run again %", "compute"]
    rows = [
        [
            f"{cascade.keep_ratio:g}",
            method_name(cascade.criterion, cascade.reducer),
            f"{cascade.margin:.4f}",
            f"{100 * candidate.unsure:.1f}",
            f"{cascade.compute:.3f}",
        ]
        for candidate in candidates
        for cascade in [candidate.cascade]
    ]
    return markdown([titles, *rows])
