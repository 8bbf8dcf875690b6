"""Measure the effect of pruning on feature vectors.

    python -m benchmarks.features --data FOLDER

FOLDER has one sub-folder of images per class, as for `trimvit evaluate`. For each keep ratio, this reports
the cosine similarity of an image's pruned and unpruned features, and how often both have the same nearest
neighbour (by cosine) among all other images. "index unpruned" searches unpruned features, as in an index that
was built without pruning; "index pruned" searches features at the same ratio. "same class" is how often the
neighbour (index unpruned) has the class of the image. Standard errors are over images, in percentage points
for shares.

Images are in random order (with a fixed seed). The benchmark stops after ``--cpu-s`` seconds of CPU time.
`--output FILE.json` writes the result.
"""

import argparse
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from benchmarks import machine
from benchmarks.contestants import load_model
from benchmarks.report import Row, table, write
from models.bundled import BUNDLED_MODEL
from models.classifier import Classifier
from models.device import choose_dtype
from models.schedule import Method, compute
from models.training.labelled import samples_for
from models.training.loading import BrokenImages, evaluation_batches


def rows_of(
    ratios: Sequence[float],
    shares: Sequence[float],
    features: Float[np.ndarray, "ratios images features"],
    truth: Int[np.ndarray, " images"],
) -> list[Row]:
    """Compute a row for each ratio. ``shares``: the compute at each ratio. The first ratio is the
    reference."""
    features = features / np.linalg.norm(features, axis=2, keepdims=True)
    unpruned = features[0]
    wanted = nearest(unpruned, unpruned)
    rows: list[Row] = []
    for ratio, share, own in zip(ratios, shares, features, strict=True):
        found = nearest(own, unpruned)
        cosines = (own * unpruned).sum(axis=1)
        rows.append(
            {
                "keep_ratio": ratio,
                "compute": round(share, 3),
                "images": len(own),
                "cosine": round(float(cosines.mean()), 4),
                "cosine_error": round(_error(cosines), 4),
                "cosine_5th_percentile": round(float(np.quantile(cosines, 0.05)), 4),
                **_in_points("neighbour, index unpruned", found == wanted),
                **_in_points("neighbour, index pruned", nearest(own, own) == wanted),
                **_in_points("same class", truth[found] == truth),
            }
        )
    return rows


def nearest(
    queries: Float[np.ndarray, "images features"], index: Float[np.ndarray, "images features"]
) -> Int[np.ndarray, " images"]:
    """Return the index of the row with the largest dot product for each query, excluding the query itself."""
    products = queries @ index.T
    np.fill_diagonal(products, -np.inf)
    return products.argmax(axis=1)


def _in_points(name: str, hits: np.ndarray) -> Row:
    shares = hits.astype(float)
    return {name: round(100 * float(shares.mean()), 2), f"{name}, error": round(100 * _error(shares), 2)}


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def _vectors(classifier: Classifier, method: Method, pixels: Tensor, ratios: Sequence[float]) -> np.ndarray:
    """Compute features [ratios, images, features]."""
    outputs = classifier.compare(pixels, [[method.pruning(ratio)] * len(pixels) for ratio in ratios])
    with torch.inference_mode():
        found = [classifier.model.family.features(output.pooled).float() for output in outputs]
        return torch.stack(found).cpu().numpy()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.features", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of a folder for each class")
    parser.add_argument("--model", default=BUNDLED_MODEL, help="as of trimvit serve")
    parser.add_argument("--dtype", default="auto", help="as of trimvit serve")
    parser.add_argument("--ratios", type=float, nargs="+", default=(0.9, 0.7, 0.5, 0.3), help="keep ratios")
    parser.add_argument("--cpu-s", type=float, default=math.inf, help="seconds of CPU time")
    parser.add_argument("--batch-size", type=int, default=16, help="images")
    parser.add_argument("--output", type=Path, help="JSON file")
    options = parser.parse_args(arguments)
    loaded = load_model(options.model)
    samples = samples_for(loaded.card, options.data)
    random.Random(0).shuffle(samples)
    classifier = Classifier(loaded.model, loaded.input, "cpu", choose_dtype("cpu", options.dtype))
    ratios = (1.0, *options.ratios)
    batches = evaluation_batches(
        samples, loaded.input, BrokenImages("skip"), batch_size=options.batch_size, workers=0
    )
    parts, truth = [], []
    for batch in tqdm(batches, dynamic_ncols=True):
        if len(batch.numbers):
            parts.append(_vectors(classifier, loaded.method, torch.from_numpy(batch.pixels), ratios))
            truth.append(batch.truth)
        if time.process_time() > options.cpu_s:
            break
    model = loaded.model
    shares = [compute(model.arch, model.stages, ratio, loaded.method.reducer) for ratio in ratios]
    rows = rows_of(ratios, shares, np.concatenate(parts, axis=1), np.concatenate(truth))
    if options.output is not None:
        report = {
            "command": "python -m benchmarks.features",
            "machine": machine.describe(),
            "model": Path(options.model).name,
            "method": loaded.method.name,
            "dtype": str(classifier.dtype).removeprefix("torch."),
            "cpu_s": round(time.process_time()),
            "results": rows,
        }
        write(options.output, report)
    print(table(rows))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
