"""`trimvit head`: fit a linear head on the features of a frozen network (a linear probe).

Features are computed once. A multinomial logistic regression with an L2 penalty is fitted by L-BFGS in
float64. For this, features are standardized to mean 0 and standard deviation 1, and the standardization is
folded into the head. A fifth of each class is held out. The penalty is chosen on a fifth of the remaining
images, and the reported accuracy is that of a head fitted on all remaining images, measured on the held-out
ones. The head that is written is fitted on all images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from models.classifier import Classifier, ImageRequest
from models.device import choose_device, choose_dtype
from models.image_sizes import pixels_of
from models.load import load
from models.load.own_head import save_head
from models.schedule import Pruning
from models.training.config import HeadConfig
from models.training.data import Sample
from models.training.folders import class_folders
from models.training.labelled import label_names, training_order
from models.training.loading import BrokenImages, evaluation_batches
from models.training.outputs import check_output_file

# L2 penalties to try, relative to the mean loss.
PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4)
_HELD_OUT = 0.2
_MOST_STEPS = 300
_FLATTEST = 1e-4  # lower bound of a feature's standard deviation, as a share of the largest one


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear head in float64."""

    weight: Float[Tensor, "classes features"]
    bias: Float[Tensor, " classes"]

    def right(self, features: Tensor, truth: Tensor) -> float:
        """Return the top-1 accuracy, as a share."""
        return float((self._logits(features).argmax(dim=1) == truth).double().mean())

    def loss(self, features: Tensor, truth: Tensor) -> float:
        """Return the mean cross-entropy."""
        return float(F.cross_entropy(self._logits(features), truth))

    def _logits(self, features: Tensor) -> Tensor:
        return F.linear(features, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Fitted:
    """The result of fitting a head. ``top1`` and its standard error, as shares, are measured on ``held_out``
    images. ``images``: the number of all images."""

    top1: float
    top1_error: float
    held_out: int
    images: int
    classes: int
    penalty: float


def fit_head(config: HeadConfig) -> Fitted:
    """Fit a head and write it. Raises ModelError, FolderError, ClassesError, ValueError and
    BrokenImageError."""
    check_output_file(config.output)
    folders = class_folders(config.data)
    labels = {} if config.labels is None else label_names(config.labels, folders)
    names = training_order(folders, labels, None, None)
    samples = [(path, number) for number, name in enumerate(names) for path in folders.images[name]]
    features, truth = _features(config, samples)
    trained, held_out = split(truth.numpy(), _HELD_OUT, seed=0)
    if not len(held_out):
        raise ValueError("no class has five images, so none can be held out to measure the head; add images")
    fitted_on, chosen_on = split(truth[trained].numpy(), _HELD_OUT, seed=1)
    penalty = PENALTIES[1]
    if len(chosen_on):
        inner, outer = trained[fitted_on], trained[chosen_on]
        penalty = best_penalty(features[inner], truth[inner], features[outer], truth[outer], len(names))
    measured = fit(features[trained], truth[trained], len(names), penalty)
    share = measured.right(features[held_out], truth[held_out])
    whole = fit(features, truth, len(names), penalty)
    named = [labels.get(name, name) for name in names]
    about = {"model": config.model, "keep_ratio": f"{config.keep_ratio:g}", "top1": f"{share:.4f}"}
    save_head(config.output, whole.weight.float(), whole.bias.float(), named, about)
    return Fitted(share, error_of(share, len(held_out)), len(held_out), len(truth), len(names), penalty)


def error_of(share: float, images: int) -> float:
    """Return the standard error of a share of ``images``, with one more correct and one more wrong image
    added (the rule of succession). The usual formula would be 0 if all images are correct."""
    likely = (share * images + 1) / (images + 2)
    return math.sqrt(likely * (1 - likely) / images)


def fit(
    features: Float[Tensor, "images features"], truth: Int[Tensor, " images"], classes: int, penalty: float
) -> Linear:
    """Fit a head: minimize the mean cross-entropy plus ``penalty`` / 2 times the squared norm of the weight,
    on features standardized to mean 0 and standard deviation 1."""
    mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0)
    deviation = deviation.clamp(min=max(float(deviation.max()) * _FLATTEST, 1e-12))
    scaled = (features - mean) / deviation
    weight = torch.zeros(classes, features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_MOST_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = F.cross_entropy(F.linear(scaled, weight, bias), truth)
        found = found + penalty / 2 * weight.square().sum()
        found.backward()
        return found

    optimizer.step(loss)
    of_plain = weight.detach() / deviation
    return Linear(of_plain, bias.detach() - of_plain @ mean)


def best_penalty(
    features: Tensor, truth: Tensor, other_features: Tensor, other_truth: Tensor, classes: int
) -> float:
    """Return the penalty whose head, fitted on the first images, has the lowest loss on the others."""
    losses = {
        penalty: fit(features, truth, classes, penalty).loss(other_features, other_truth)
        for penalty in PENALTIES
    }
    return min(losses, key=losses.__getitem__)


def split(
    truth: Int[np.ndarray, " images"], share: float, seed: int
) -> tuple[Int[np.ndarray, " first"], Int[np.ndarray, " second"]]:
    """Split image indices into two parts at random. The second has about this ``share`` of each class,
    rounded down."""
    draw = np.random.default_rng(seed)
    second = np.zeros(len(truth), bool)
    for number in np.unique(truth):
        own = draw.permutation(np.flatnonzero(truth == number))
        second[own[: int(len(own) * share)]] = True
    return np.flatnonzero(~second), np.flatnonzero(second)


def _features(config: HeadConfig, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Compute the features [images, features] in float64 and the classes [images] of all readable images."""
    device = choose_device(config.device)
    loaded = load(
        config.model,
        architecture=config.architecture,
        patch_stride=config.patch_stride,
        input_size=pixels_of(config.input_size),
        headless=True,
    )
    classifier = Classifier(loaded.model, loaded.input, device, choose_dtype(device, config.dtype))
    request = ImageRequest(Pruning(config.keep_ratio), top_k=0, features=True)
    broken = BrokenImages(config.broken_images)
    batches = evaluation_batches(
        samples, loaded.input, broken, batch_size=config.batch_size, workers=config.workers
    )
    features, truth = [], []
    for batch in tqdm(batches, unit="batch", dynamic_ncols=True):
        if len(batch.numbers):
            found = classifier.classify(torch.from_numpy(batch.pixels), [request] * len(batch.numbers))
            features += [each.features for each in found if each.features is not None]
            truth.append(batch.truth)
    broken.tell(of=len(samples))
    vectors = torch.from_numpy(np.stack(features)).double()
    if not torch.isfinite(vectors).all():
        raise ValueError("the network's features are not finite numbers; try --dtype float32")
    return vectors, torch.from_numpy(np.concatenate(truth))
