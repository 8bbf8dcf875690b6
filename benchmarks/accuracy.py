"""Measure the loss of accuracy for each dtype, compared with the first dtype on the same images.

    python -m benchmarks.accuracy --data FOLDER --dtypes float32 int8

FOLDER has one sub-folder of images per class, as for `trimvit evaluate`. The change is top-1 in this dtype
minus top-1 in the first one at the same ratio, in percentage points, with the standard error of the paired
difference. `--output FILE.json` writes the result, and updates it after every 10 batches.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks import machine
from benchmarks.contestants import load_model
from benchmarks.engine import DTYPES
from benchmarks.report import Row, table, write
from models.bundled import BUNDLED_MODEL
from models.classifier import Classifier
from models.device import choose_dtype
from models.training.answers import Answers, answers_to
from models.training.data import spread_samples
from models.training.labelled import samples_for
from models.training.loading import BrokenImages, evaluation_batches


def rows_of(ratios: Sequence[float], answers: Mapping[str, Answers]) -> list[Row]:
    """Compute a row for each dtype and ratio. The first dtype is the reference."""
    first = next(iter(answers.values()))
    rows: list[Row] = []
    for dtype, own in answers.items():
        for index, ratio in enumerate(ratios):
            correct = (own.classes[index] == own.truth).astype(float)
            change = correct - (first.classes[index] == first.truth)
            rows.append(
                {
                    "dtype": dtype,
                    "keep_ratio": ratio,
                    "images": len(correct),
                    "top1": _percent(correct),
                    "top1_error": _standard_error(correct),
                    "change": _percent(change),
                    "change_error": _standard_error(change),
                    "agreement": _percent(own.classes[index] == first.classes[index]),
                }
            )
    return rows


def _percent(shares: np.ndarray) -> float:
    return round(100 * float(shares.mean()), 3)


def _standard_error(shares: np.ndarray) -> float:
    return round(100 * float(shares.std(ddof=1)) / math.sqrt(len(shares)), 3)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of a folder for each class")
    parser.add_argument("--model", default=BUNDLED_MODEL, help="as of trimvit serve")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=("float32", "int8"))
    parser.add_argument("--ratios", type=float, nargs="+", default=(1.0, 0.7, 0.5), help="keep ratios")
    parser.add_argument("--limit", type=int, help="so many images, spread over the classes")
    parser.add_argument("--batch-size", type=int, default=32, help="images")
    parser.add_argument("--output", type=Path, help="JSON file")
    options = parser.parse_args(arguments)
    loaded = load_model(options.model)
    samples = spread_samples(samples_for(loaded.card, options.data), options.limit)
    networks = {
        dtype: Classifier(deepcopy(loaded.model), loaded.input, "cpu", choose_dtype("cpu", dtype))
        for dtype in options.dtypes
    }
    parts: dict[str, list[Answers]] = {dtype: [] for dtype in networks}
    prunings = [loaded.method.pruning(ratio) for ratio in options.ratios]
    report = {
        "command": "python -m benchmarks.accuracy",
        "machine": machine.describe(),
        "model": Path(options.model).name,
        "method": loaded.method.name,
    }
    rows: list[Row] = []
    batches = evaluation_batches(
        samples, loaded.input, BrokenImages("stop"), batch_size=options.batch_size, workers=1
    )
    total = -(-len(samples) // options.batch_size)
    for number, batch in enumerate(tqdm(batches, total=total, dynamic_ncols=True), 1):
        for dtype, network in networks.items():
            parts[dtype].append(answers_to(network, batch, prunings))
        if number % 10 == 0 or number == total:
            rows = rows_of(options.ratios, {dtype: Answers.joined(some) for dtype, some in parts.items()})
            if options.output is not None:
                write(options.output, {**report, "results": rows})
    print(table(rows))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
