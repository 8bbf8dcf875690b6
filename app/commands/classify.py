"""`trimvit classify`: photographs in, labels out, without a server."""

import sys
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from app.commands.classify_config import ClassifyConfig
from app.commands.classify_report import Lines, Table
from app.commands.failures import FAILED, UsageError, complain, reports_expected_errors
from app.commands.offline import Failed, decoded_batches, load, outcomes, progress_over
from app.commands.photographs import find
from app.commands.pictures import PictureFiles
from app.errors import InvalidValue
from app.inference.asks import ask_of
from app.inference.results import image_result
from app.messages.image import Prediction
from app.messages.model import ModelInfo
from models.names import in_words, shown
from models.pictures import cells_of, dimmed


@reports_expected_errors
def classify(config: ClassifyConfig, operands: Sequence[str]) -> int:
    """Print the answers as they come. The exit code is 0 if every photograph was answered, 1 if some were not
    (standard error says which), and 2 for wrong usage."""
    found = find(operands)
    photographs = found.photographs
    pictures = None if config.mask is None else PictureFiles(config.mask, photographs)
    for line in (*found.remarks, *found.failures):
        complain("classify", line)
    if not photographs:
        return FAILED

    classifier, model = load(config)
    try:
        ask = ask_of(config.options, config.settings, model, kept_patches=config.mask is not None)
    except InvalidValue as problem:
        raise UsageError(problem.detail) from problem

    report: Lines | Table = Lines(model) if config.as_json else Table(photographs)
    failed = 0
    # If the rows are printed to a terminal, they show the progress.
    with progress_over(photographs, shown=not sys.stdout.isatty()) as progress:
        for batch in decoded_batches(photographs, model, config):
            for outcome in outcomes(classifier, batch, model, ask):
                if isinstance(outcome, Failed):
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
        complain("classify", f"{failed} of {len(photographs)} photographs failed")
    return FAILED if failed or found.failures else 0


def _picture(
    prediction: Prediction,
    pixels: UInt8[np.ndarray, "height width 3"],
    model: ModelInfo,
    config: ClassifyConfig,
) -> UInt8[np.ndarray, "height _ 3"]:
    """The input of the model with the pruned patches dimmed: after the last stage, or after each, side by
    side."""
    grid = model.architecture.grid
    stages = [
        dimmed(cells_of(kept, grid), pixels, model.patch_size, model.patch_stride)
        for kept in prediction.kept_patches
    ]
    if not stages:  # a model without stages keeps all patches
        return pixels
    return np.concatenate(stages, axis=1) if config.mask_stages else stages[-1]
