"""Images/s of the network in each dtype on a CPU, on the same photographs.

    python benchmarks/dtypes.py --photographs FOLDER [--rounds 7] [--output FILE.json]

One thread, batches of one ratio and one of eight ratios, the dtypes interleaved in one run, each warm.
Reported are the medians, and each dtype's speed as a multiple of bfloat16's, round by round.
"""

import argparse
import json
import platform
import re
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from app.images import ImageLimits, decode
from app.settings import BUNDLED_MODEL
from models.classifier import Classifier, ImageRequest
from models.device import choose_dtype
from models.dtypes import DtypeName
from models.schedule import Pruning
from models.zoo import load

DTYPES: tuple[DtypeName, ...] = ("bfloat16", "float32", "int8")
BATCHES: dict[str, tuple[float, ...]] = {
    "1 image of 1.0": (1.0,),
    "1 image of 0.5": (0.5,),
    "8 images of 1.0": (1.0,) * 8,
    "8 images of 0.7": (0.7,) * 8,
    "8 images of 0.5": (0.5,) * 8,
    "8 images of 1.0 to 0.3": (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3),
    "32 images of 0.5": (0.5,) * 32,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--model", default=BUNDLED_MODEL)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()

    torch.set_num_threads(1)
    loaded = {dtype: load(options.model) for dtype in DTYPES}
    classifiers = {
        dtype: Classifier(model.model, model.input, "cpu", choose_dtype("cpu", dtype))
        for dtype, model in loaded.items()
    }
    spec = loaded[DTYPES[0]].input
    files = sorted(path for path in options.photographs.rglob("*") if path.is_file())
    pixels = torch.from_numpy(
        np.stack([decode(file.read_bytes(), spec, ImageLimits(64_000_000)) for file in files[:32]])
    )
    results = {}
    for name, ratios in BATCHES.items():
        requests = [ImageRequest(Pruning(ratio)) for ratio in ratios]
        batch = pixels[torch.arange(len(ratios)) % len(pixels)]
        seconds: dict[str, list[float]] = {dtype: [] for dtype in DTYPES}
        for round_ in range(options.rounds + 1):  # the first warms up
            for dtype, classifier in classifiers.items():
                began = time.perf_counter()
                classifier.classify(batch, requests)
                if round_ > 0:
                    seconds[dtype].append(time.perf_counter() - began)
        results[name] = {
            dtype: _summary(taken, seconds["bfloat16"], len(ratios)) for dtype, taken in seconds.items()
        }
        print(json.dumps({name: results[name]}, indent=1), flush=True)
    report = {
        "command": "python benchmarks/dtypes.py",
        "machine": f"{_processor()}, 1 thread",
        "torch": torch.__version__,
        "model": options.model,
        "rounds": options.rounds,
        "batches": results,
    }
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")


def _summary(taken: list[float], reference: list[float], images: int) -> dict[str, float]:
    speedups = [other / own for own, other in zip(taken, reference, strict=True)]
    return {
        "images_per_s": round(images / statistics.median(taken), 2),
        "of_bfloat16": round(statistics.median(speedups), 3),
        "of_bfloat16_lowest": round(min(speedups), 3),
        "of_bfloat16_highest": round(max(speedups), 3),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else []
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
