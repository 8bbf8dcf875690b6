"""Compare the cascade with the unpruned network: agreement and speed.

    python -m benchmarks.cascade --images FOLDER

FOLDER has images that the cascade was not fitted on (classes are not used). For each batch, the contestants
run in random order: timm's forward pass (in float32 and in the dtype), and ours, unpruned and as a cascade.
Each computes the top-1 class from uint8 pixels on all cores. Figures with parentheses are medians over the
batches (quartiles; extremes). `--output FILE.json` writes the result.
"""

import argparse
import math
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import machine
from benchmarks.contestants import plain_vit
from benchmarks.report import Row, spread, table, write
from models.bundled import BUNDLED_MODEL
from models.classifier import Classifier, ImageRequest, normalise
from models.device import choose_device, choose_dtype, cores, input_dtype, use_gpu
from models.load import LoadedModel, load
from models.schedule import UNPRUNED
from models.training.data import unlabelled
from models.training.loading import BrokenImages, evaluation_batches

UNPRUNED_NAME = "unpruned"
CASCADE_NAME = "cascade"

Answer = Callable[[Tensor], list[int]]


def contestants(loaded: LoadedModel, classifier: Classifier, dtype: str, device: str) -> dict[str, Answer]:
    """Build the contestants. Each maps uint8 pixels to top-1 classes."""
    cascade = loaded.cascade
    if cascade is None:
        sys.exit(f"benchmarks.cascade: {loaded.name} has no cascade; fit one with trimvit calibrate")

    def timms(dtype_name: str) -> Answer:
        vit = plain_vit(loaded, dtype_name, device)  # type: ignore[arg-type]
        own = input_dtype(device, choose_dtype(device, dtype_name))  # type: ignore[arg-type]

        @torch.inference_mode()
        def run(pixels: Tensor) -> list[int]:
            return vit(normalise(pixels.to(device), loaded.input, own)).argmax(dim=1).tolist()

        return run

    def ours(request: ImageRequest) -> Answer:
        def run(pixels: Tensor) -> list[int]:
            return [int(found.classes[0]) for found in classifier.classify(pixels, [request] * len(pixels))]

        return run

    return {
        "timm float32": timms("float32"),
        f"timm {dtype}": timms(dtype),
        UNPRUNED_NAME: ours(ImageRequest(UNPRUNED, top_k=1)),
        "first run only": ours(ImageRequest(cascade.first, top_k=1)),
        CASCADE_NAME: ours(ImageRequest(cascade.first, top_k=1, margin=cascade.margin)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.cascade",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--model", default=BUNDLED_MODEL)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0, help="of the contestants' order")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(cores())
    timm_loaded, loaded = load(options.model), load(options.model)
    device = choose_device(options.device)
    if device != "cpu":
        use_gpu(device)
    classifier = Classifier(loaded.model, loaded.input, device, choose_dtype(device, options.dtype))
    runs = contestants(timm_loaded, classifier, options.dtype, device)
    samples, _ = unlabelled(options.images)
    batches = [
        torch.from_numpy(batch.pixels)
        for batch in evaluation_batches(
            samples, loaded.input, BrokenImages("skip"), batch_size=options.batch_size, workers=0
        )
        if len(batch.pixels) == options.batch_size
    ]
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    answers: dict[str, list[int]] = {name: [] for name in runs}
    draw, order = random.Random(options.seed), list(runs)
    for name in order:
        runs[name](batches[0])  # warm-up
    for pixels in tqdm(batches, unit="batch", dynamic_ncols=True):
        draw.shuffle(order)
        for name in order:
            started = time.perf_counter()
            found = runs[name](pixels)
            seconds[name].append((time.perf_counter() - started) / len(pixels))
            answers[name] += found
    images = len(answers[UNPRUNED_NAME])
    rows: list[Row] = []
    for name in runs:
        agreeing = sum(map(int.__eq__, answers[name], answers[UNPRUNED_NAME]))
        share = agreeing / images
        rows.append(
            {
                "contestant": name,
                "images": images,
                "images_per_s": 1 / statistics.median(seconds[name]),
                "agreement_percent": 100 * share,
                "standard_error": 100 * math.sqrt(share * (1 - share) / (images - 1)),
                **{
                    f"against {other}": spread(
                        [theirs / own for theirs, own in zip(seconds[other], seconds[name], strict=True)]
                    )
                    for other in (f"timm {options.dtype}", "timm float32", UNPRUNED_NAME)
                },
            }
        )
    print(table(rows))
    if options.output is not None:
        report = {"command": "python -m benchmarks.cascade", "machine": machine.describe(device)}
        settings = {
            "model": Path(options.model).name,
            "dtype": options.dtype,
            "batch_size": options.batch_size,
        }
        write(options.output, {**report, "options": settings, "results": rows})


if __name__ == "__main__":
    main()
