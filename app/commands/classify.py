"""`trimvit classify`: photographs in, labels out, without a server.

Decoding, limits, options and the form of a result are the server's own, so both say the same in the same
words.
"""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from app.commands.classify_config import ClassifyConfig
from app.commands.classify_report import Lines, Table
from app.commands.failures import FAILED, UsageError, complain, tells_what_was_foreseen
from app.commands.photographs import Photograph, find
from app.commands.pictures import PictureFiles
from app.decoding.images import ImageLimits, ModelInput, decode
from app.errors import InternalFault, InvalidValue, Problem, UnreadableRequest
from app.inference.asks import ask_of
from app.inference.results import check_numbers, image_result
from app.messages.image import Ask, Prediction
from app.messages.model import ModelInfo
from models.names import in_words, shown
from models.pictures import cells_of, dimmed

if TYPE_CHECKING:
    from models.classifier import Classifier

_DECODERS = 2  # threads; decoding is a fraction of the computing


@dataclass(frozen=True, slots=True)
class _Decoded:
    photograph: Photograph
    seen: ModelInput


@dataclass(frozen=True, slots=True)
class _Failed:
    photograph: Photograph
    problem: Problem


@tells_what_was_foreseen
def classify(config: ClassifyConfig, operands: Sequence[str]) -> int:
    """Print the answers as they come. Exit code 0 where every photograph was answered, 1 where some were not
    (standard error says which), 2 for what cannot be meant."""
    found = find(operands)
    photographs = found.photographs
    pictures = None if config.mask is None else PictureFiles(config.mask, photographs)
    for line in (*found.remarks, *found.failures):
        complain("classify", line)
    if not photographs:
        return FAILED

    classifier, model = _load(config)
    try:
        ask = ask_of(config.options, config.settings, model, kept_patches=config.mask is not None)
    except InvalidValue as problem:
        raise UsageError(problem.detail) from problem

    report: Lines | Table = Lines(model) if config.as_json else Table(photographs)
    failed = 0
    # Where the rows appear on a terminal, they show how far it is.
    progress = tqdm(
        total=len(photographs), unit="photograph", dynamic_ncols=True, disable=sys.stdout.isatty() or None
    )
    with progress:
        for batch in _decoded_batches(photographs, model, config):
            computed = _computed(classifier, batch, ask)
            for outcome in _outcomes(batch, computed, model):
                if isinstance(outcome, _Failed):
                    failed += 1
                    complain("classify", f"{shown(str(outcome.photograph))}: {outcome.problem.detail}")
                    report.failed(outcome.photograph, outcome.problem)
                    continue
                image, prediction = outcome
                picture = None
                if pictures is not None:
                    drawn = _picture(prediction, image.seen.pixels, model, config)
                    try:
                        picture = pictures.save(image.photograph, drawn)
                    except OSError as error:
                        failed += 1
                        complain("classify", f"{shown(str(image.photograph))}: no mask: {in_words(error)}")
                result = image_result(
                    prediction,
                    model,
                    options=config.options,
                    ask=ask,
                    picture=image.seen.pixels,
                    warnings=image.seen.warnings,
                )
                for warning in image.seen.warnings:
                    complain("classify", f"{image.photograph}: {warning}")
                report.answered(image.photograph, result, picture)
            progress.update(len(batch))
    if failed and len(photographs) > 1:
        complain("classify", f"{failed} of {len(photographs)} photographs were not answered")
    return FAILED if failed or found.failures else 0


def _load(config: ClassifyConfig) -> "tuple[Classifier, ModelInfo]":
    """Raises ValueError or OSError for a model or a device that cannot be had."""
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


def _decoded_batches(
    photographs: Sequence[Photograph], model: ModelInfo, config: ClassifyConfig
) -> Iterator[list[_Decoded | _Failed]]:
    """The photographs in batches; while one is computed, the next is read and decoded."""
    limits = ImageLimits(config.max_image_pixels, config.truncated_images)

    def decoded(photograph: Photograph) -> _Decoded | _Failed:
        try:
            return _Decoded(photograph, decode(photograph.read(), model.input, limits))
        except Problem as problem:
            return _Failed(photograph, problem)
        except OSError as error:
            return _Failed(photograph, UnreadableRequest(f"it cannot be read: {error.strerror or error}"))

    batches: list[list[Future[_Decoded | _Failed]]] = []
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
    batch: Sequence[_Decoded | _Failed],
    ask: Ask,
) -> list[Prediction]:
    """What the model says of those of the batch that were decoded, in order."""
    import torch

    from app.worker.classifying import classify

    pixels = [image.seen.pixels for image in batch if isinstance(image, _Decoded)]
    if not pixels:
        return []
    return classify(classifier, torch.from_numpy(np.stack(pixels)), [ask] * len(pixels))


def _outcomes(
    batch: Sequence[_Decoded | _Failed], computed: Sequence[Prediction], model: ModelInfo
) -> Iterator[tuple[_Decoded, Prediction] | _Failed]:
    """Each image of the batch with what was computed for those that were decoded, in order."""
    found = iter(computed)
    for image in batch:
        if isinstance(image, _Failed):
            yield image
            continue
        prediction = next(found)
        try:
            check_numbers(prediction, model)
        except InternalFault as problem:
            yield _Failed(image.photograph, problem)
        else:
            yield image, prediction


def _picture(
    prediction: Prediction,
    pixels: UInt8[np.ndarray, "height width 3"],
    model: ModelInfo,
    config: ClassifyConfig,
) -> UInt8[np.ndarray, "height _ 3"]:
    """What the model saw with the pruned patches dimmed: after the last stage, or each, side by side."""
    grid = model.architecture.grid
    stages = [
        dimmed(cells_of(kept, grid), pixels, model.patch_size, model.patch_stride)
        for kept in prediction.kept_patches
    ]
    if not stages:  # of a model that is served without stages, all is kept
        return pixels
    return np.concatenate(stages, axis=1) if config.mask_stages else stages[-1]
