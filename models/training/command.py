"""The training commands as functions of their settings. Each returns an exit code."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from typing import TypeVar

import torch

from models.families import UnsupportedModelError
from models.files import write_whole
from models.load import ModelError
from models.load.errors import first_line
from models.names import in_words
from models.training.average import average as run_average
from models.training.calibrate import calibrate as run_calibration
from models.training.calibrate import table as calibration_table
from models.training.config import (
    AverageConfig,
    CalibrateConfig,
    EvaluateConfig,
    HeadConfig,
    SweepConfig,
    TrainConfig,
)
from models.training.evaluate import evaluate as run_evaluation
from models.training.evaluate import table
from models.training.fine_tune import fine_tune
from models.training.loading import is_reader_death
from models.training.packages import MissingPackageError
from models.training.probe import fit_head
from models.training.sweep import sweep as run_sweep

_FORESEEN = (ModelError, UnsupportedModelError, MissingPackageError, OSError, ValueError)

Config = TypeVar("Config")


def _reports_expected_errors(command: Callable[[Config], int]) -> Callable[[Config], int]:
    """Print expected errors as one line, with exit code 1. Everything else is a bug and keeps its
    traceback."""

    @wraps(command)
    def run(config: Config) -> int:
        try:
            return command(config)
        except _FORESEEN as error:
            reason = in_words(error)
        except RuntimeError as error:
            if is_reader_death(error):
                reason = (
                    "a process that reads images was killed, possibly because memory ran out; run the "
                    "command again, or use --workers 0 to read without such processes"
                )
            elif isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
                parts = " or a larger --accumulate" if command.__name__ == "train" else ""
                reason = f"not enough memory: {first_line(error)} Use a smaller --batch-size{parts}."
            else:
                raise
        print(f"trimvit {command.__name__}: {reason}", file=sys.stderr)
        return 1

    return run


@_reports_expected_errors
def train(config: TrainConfig) -> int:
    """Fine-tune a model, or resume the run in the output folder."""
    try:
        report = fine_tune(config)
    except KeyboardInterrupt:
        print(f"\ninterrupted; run the same command again to resume from {config.output}", file=sys.stderr)
        return 130
    if report.leads:
        best = "" if report.best is None else f", the best of the validations (step {report.best})"
        print(f"{report.steps} steps in {report.seconds:.0f} s; the model is {report.checkpoint}{best}")
    return 0


@_reports_expected_errors
def average(config: AverageConfig) -> int:
    """Average checkpoints and write the result."""
    run_average(config)
    count = len(config.models) + len(config.backbones)
    print(f"the mean of {count} checkpoints is {config.output}")
    return 0


@_reports_expected_errors
def evaluate(config: EvaluateConfig) -> int:
    """Evaluate a model and print the table."""
    rows = run_evaluation(config)
    print(f"{config.model} on {rows[0].images} images of {config.data}\n\n{table(rows)}")
    if config.output is not None:
        text = json.dumps([asdict(row) for row in rows], indent=1) + "\n"
        write_whole(config.output, lambda file: file.write(text.encode()))
    return 0


@_reports_expected_errors
def head(config: HeadConfig) -> int:
    """Fit a linear head, write it, and print its accuracy."""
    fitted = fit_head(config)
    print(
        f"top-1 {100 * fitted.top1:.2f} ± {100 * fitted.top1_error:.2f} % on {fitted.held_out} held-out "
        f"images; {config.output} is fitted on all {fitted.images} images of {fitted.classes} classes "
        f"(penalty {fitted.penalty:g})\n"
        f"serve it: trimvit serve --model {config.model} --head {config.output}"
    )
    return 0


@_reports_expected_errors
def sweep(config: SweepConfig) -> int:
    """Run a sweep, or resume the one in the output folder, and print the table."""
    try:
        rows = run_sweep(config)
    except KeyboardInterrupt:
        print(f"\ninterrupted; run the same command again to resume from {config.output}", file=sys.stderr)
        return 130
    print(f"{rows[0].images} images of {config.data}\n\n{table(rows)}\n\nplots and figures: {config.output}")
    return 0


@_reports_expected_errors
def calibrate(config: CalibrateConfig) -> int:
    """Fit a cascade, print the candidates, and write the model with the cheapest one."""
    calibration = run_calibration(config)
    chosen = calibration.chosen.cascade
    print(
        f"{calibration_table(calibration.candidates)}\n\nfitted on {chosen.images} images for an "
        f"agreement of {chosen.agreement:g}; {config.output} runs each image at keep ratio "
        f"{chosen.keep_ratio:g}, and again without pruning if the margin is at most {chosen.margin:.4f}: "
        f"{100 * calibration.chosen.unsure:.1f} % of these images, at a compute of {chosen.compute:.3f}"
    )
    return 0
