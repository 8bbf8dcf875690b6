"""`trimvit calibrate`: fit a cascade for a required agreement with the unpruned model, without labels."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from models.cascade import Cascade, Fitted, choose_and_fit, expected_compute, margins
from models.classifier import Classifier
from models.device import choose_device, choose_dtype
from models.load import dtypes_of, load, save
from models.schedule import UNPRUNED, Pruning, method_name
from models.training.answers import methods
from models.training.config import CalibrateConfig
from models.training.data import spread_samples, unlabelled
from models.training.labelled import tell
from models.training.loading import BrokenImages, evaluation_batches
from models.training.markdown import markdown
from models.training.outputs import check_output_file


@dataclass(frozen=True)
class Candidate:
    """A fitted cascade. ``unsure``: the share of the images it was fitted on that need a second run."""

    cascade: Cascade
    unsure: float


@dataclass(frozen=True)
class Calibration:
    """The result of a calibration. ``candidates``: the compared cascades, cheapest first. ``chosen``: the
    cheapest, as it was written. Its margin is fitted on images that were not used for the choice, unless
    there is only one candidate."""

    candidates: list[Candidate]
    chosen: Candidate


def calibrate(config: CalibrateConfig) -> Calibration:
    """Compare the candidates, and write the model with the cheapest one.

    Raises ModelError, BrokenImageError, FileNotFoundError if there are no images, and
    UnreachableAgreementError if there are too few.
    """
    check_output_file(config.output)
    samples, remarks = unlabelled(config.data)
    tell(*remarks)
    samples = spread_samples(samples, config.limit)
    device = choose_device(config.device)
    loaded = load(config.model, architecture=config.architecture)
    loaded.check_criteria(config.criteria or ()).check_reducers(config.reducers or ())
    firsts = [
        Pruning(ratio, criterion, reducer)
        for ratio in config.keep_ratios
        for criterion, reducer in methods(
            config.criteria or (loaded.method.criterion,), config.reducers or (loaded.method.reducer,)
        )
    ]
    dtype = choose_dtype(device, config.dtype)
    classifier = Classifier(loaded.model, loaded.input, device, dtype, scores=loaded.scores)
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

    def cost(candidate: int, unsure: float) -> float:
        return expected_compute(loaded.model.arch, loaded.model.stages, firsts[candidate], unsure)

    compared, cheapest, fitted = choose_and_fit(
        np.stack([np.concatenate(margin[first]) for first in firsts]),
        np.stack([np.concatenate(agrees[first]) for first in firsts]),
        config.agreement,
        cost,
    )
    name = str(dtype).removeprefix("torch.")
    candidates = [
        _candidate(first, one, config.agreement, name) for first, one in zip(firsts, compared, strict=True)
    ]
    candidates.sort(key=lambda candidate: candidate.cascade.compute)
    chosen = _candidate(firsts[cheapest], fitted, config.agreement, name)
    # Load the model again, because the classifier may have converted the weights to another precision.
    again = load(config.model, architecture=config.architecture)
    vit = again.model.vit
    save(config.output, vit, replace(again.card, cascade=chosen.cascade), dtypes_of(vit.state_dict()))
    return Calibration(candidates, chosen)


def _scores(classifier: Classifier, pixels: Tensor, prunings: list[Pruning]) -> dict[Pruning, np.ndarray]:
    """Compute the scores [B, classes] for each pruning."""
    outputs = classifier.compare(pixels, [[pruning] * len(pixels) for pruning in prunings])
    return {
        pruning: classifier.scores_of(output.logits).cpu().numpy()
        for pruning, output in zip(prunings, outputs, strict=True)
    }


def _candidate(first: Pruning, fitted: Fitted, agreement: float, dtype: str) -> Candidate:
    cascade = Cascade(
        keep_ratio=first.keep_ratio,
        criterion=first.criterion,
        reducer=first.reducer,
        margin=fitted.margin,
        agreement=agreement,
        images=fitted.images,
        compute=fitted.compute,
        dtype=dtype,
    )
    return Candidate(cascade, fitted.unsure)


def table(candidates: list[Candidate]) -> str:
    """Format the candidates as a Markdown table."""
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
