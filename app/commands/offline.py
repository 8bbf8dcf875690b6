"""A model in this process that computes photographs in batches, for the commands without a server.

Decoding, limits, options and the form of a result are those of the server, so both give the same answers and
the same error messages.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Never

import numpy as np
from tqdm import tqdm

from app.commands.offline_config import OfflineConfig
from app.commands.photographs import Photograph
from app.decoding.images import ImageLimits, ModelInput, decode
from app.errors import InternalFault, Problem, UnreadableRequest
from app.inference.results import check_numbers
from app.messages.image import Ask, Prediction
from app.messages.model import ModelInfo

if TYPE_CHECKING:
    from models.classifier import Classifier

_DECODERS = 2  # threads; decoding takes a fraction of the computing time


@dataclass(frozen=True, slots=True)
class Decoded:
    """A photograph and the input of the model for it."""

    photograph: Photograph
    seen: ModelInput


@dataclass(frozen=True, slots=True)
class Failed:
    """A photograph without an answer, and the reason."""

    photograph: Photograph
    problem: Problem


def progress_over(photographs: Sequence[Photograph], *, shown: bool) -> "tqdm[Never]":
    """A progress bar over the photographs, on a terminal."""
    return tqdm(
        total=len(photographs), unit="photograph", dynamic_ncols=True, disable=None if shown else True
    )


def load(config: OfflineConfig) -> "tuple[Classifier, ModelInfo]":
    """Load the model. Raises ValueError or OSError if the model or the device is not available."""
    import models.timm_import  # noqa: F401  # before what imports timm, which is quicker then
    from app.worker.loading import describe, load_model
    from models.classifier import Classifier
    from models.device import choose_device, choose_dtype

    device = choose_device(config.device)
    dtype = choose_dtype(device, config.dtype)
    loaded = load_model(config.settings)
    return Classifier(loaded.model, loaded.input, device, dtype, scores=loaded.scores), describe(
        loaded, device, dtype
    )


def decoded_batches(
    photographs: Sequence[Photograph], model: ModelInfo, config: OfflineConfig
) -> Iterator[list[Decoded | Failed]]:
    """The photographs in batches. While one batch is computed, the next one is read and decoded."""
    limits = ImageLimits(config.max_image_pixels, config.truncated_images)

    def decoded(photograph: Photograph) -> Decoded | Failed:
        try:
            return Decoded(photograph, decode(photograph.read(), model.input, limits))
        except Problem as problem:
            return Failed(photograph, problem)
        except OSError as error:
            return Failed(photograph, UnreadableRequest(f"it cannot be read: {error.strerror or error}"))

    batches: list[list[Future[Decoded | Failed]]] = []
    with ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode") as pool:
        for start in range(0, len(photographs), config.batch_size):
            batch = photographs[start : start + config.batch_size]
            batches.append([pool.submit(decoded, photograph) for photograph in batch])
            if len(batches) > 1:
                yield [future.result() for future in batches.pop(0)]
        for rest in batches:
            yield [future.result() for future in rest]


def _computed(
    classifier: "Classifier",
    batch: Sequence[Decoded | Failed],
    ask: Ask,
) -> list[Prediction]:
    """The predictions for the decoded images of the batch, in order."""
    import torch

    from app.worker.classifying import classify

    pixels = [image.seen.pixels for image in batch if isinstance(image, Decoded)]
    if not pixels:
        return []
    return classify(classifier, torch.from_numpy(np.stack(pixels)), [ask] * len(pixels))


def outcomes(
    classifier: "Classifier", batch: Sequence[Decoded | Failed], model: ModelInfo, ask: Ask
) -> Iterator[tuple[Decoded, Prediction] | Failed]:
    """Each image of the batch with its result, in order."""
    found = iter(_computed(classifier, batch, ask))
    for image in batch:
        if isinstance(image, Failed):
            yield image
            continue
        prediction = next(found)
        try:
            check_numbers(prediction, model)
        except InternalFault as problem:
            yield Failed(image.photograph, problem)
        else:
            yield image, prediction
