"""Check that the cost model fitted at a worker's warm-up predicts the times in serving.

    python -m benchmarks.warm_up [--device cuda:0] [--batches 60] [--output FILE.json]

A worker's backend loads and warms up in its compute threads, and the cost model is fitted to its
measurements, as in the dispatcher. Then batches run as in serving: single images on all threads, and batches
of several sizes up to a full one in all streams at once. Each image has its own ratio.
`measured_by_predicted` is the measured time of a batch divided by the predicted time, without further
learning; 1 is a perfect prediction. Figures with parentheses are medians over the batches (quartiles;
extremes). `within_20_percent` is the share of batches whose prediction is within 20 %.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from app.dispatch.policy.cost import CostModel
from app.messages.capacity import Limits, Work
from app.messages.image import Ask
from app.settings.settings import Settings
from app.worker.backend import Job, Loaded
from app.worker.process import limits_of
from app.worker.streams import Streams
from app.worker.torch_backend import TorchBackend
from benchmarks import machine
from benchmarks.report import Row, spread, table, write
from models.device import choose_device, choose_dtype, cores
from models.schedule import compute

LOWEST_RATIO = 0.3


def measure(backend: TorchBackend, batches: int, seed: int) -> Iterator[Row]:
    """Measure batches and yield a row for each number of threads and batch size."""
    streams: Streams[None] = Streams(backend.limits.streams, lambda _: None)
    loaded = backend.load(streams.on_all)
    model = CostModel.learned(loaded.measured)
    draw = random.Random(seed)
    kinds = _kinds(backend.limits, loaded)
    errors: dict[tuple[int, int], list[float]] = {kind: [] for kind in kinds}
    for turn in range(batches):
        order = list(kinds)
        draw.shuffle(order)
        for threads, size in order:
            at_once = 1 if threads == backend.limits.threads and size == 1 else backend.limits.streams
            work = [_jobs(loaded, draw, size) for _ in range(at_once)]
            taken = streams.on_all(partial(_timed, backend, work, threads))
            for jobs, seconds in zip(work, taken, strict=False):
                if seconds is not None:
                    errors[threads, size].append(seconds / model.predict(_work_of(loaded, jobs), threads))
        print(f"{turn + 1} of {batches}", end="\r", file=sys.stderr)
    streams.end()
    for (threads, size), own in errors.items():
        yield {
            "threads": threads,
            "images": size,
            "batches": len(own),
            "measured_by_predicted": spread(own),
            "within_20_percent": round(sum(1 / 1.2 <= error <= 1.2 for error in own) / len(own), 3),
        }


def _timed(backend: TorchBackend, work: Sequence[Sequence[Job]], threads: int, index: int) -> float | None:
    """Run the batch of this thread and return the seconds; None if there is no batch for it."""
    if index >= len(work):
        return None
    began = time.monotonic()
    backend.classify(work[index], threads)
    return time.monotonic() - began


def _kinds(limits: Limits, loaded: Loaded) -> list[tuple[int, int]]:
    """Return pairs (threads, images) to measure: a single image on all threads, then batches in streams."""
    arch = loaded.info.architecture
    full = max(1, limits.batch_tokens // (arch.patches + arch.prefix_tokens))
    sizes = sorted({1, 2, max(1, full // 2), full, full * 3 // 2})
    return list(dict.fromkeys([(limits.threads, 1), *((limits.stream_threads, size) for size in sizes)]))


def _jobs(loaded: Loaded, draw: random.Random, size: int) -> list[Job]:
    """Create jobs with noise images and random ratios."""
    noise = np.random.default_rng(draw.randrange(2**32))
    return [
        Job(
            Ask(loaded.info.method.pruning(round(draw.uniform(LOWEST_RATIO, 1), 3)), top_k=5),
            noise.integers(0, 256, loaded.info.pixel_bytes, np.uint8),
        )
        for _ in range(size)
    ]


def _work_of(loaded: Loaded, jobs: Sequence[Job]) -> Work:
    arch, method = loaded.info.architecture, loaded.info.method
    return Work(
        len(jobs),
        sum(compute(arch, method.stages, job.ask.pruning.keep_ratio, method.reducer) for job in jobs),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.warm_up",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="", help="as of trimvit serve")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--batches", type=int, default=30, help="of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the batches")
    parser.add_argument("--output", type=Path, help="JSON file")
    options = parser.parse_args(arguments)
    device = choose_device(options.device)
    settings = Settings(device=device, **({"model": options.model} if options.model else {}))
    dtype = choose_dtype(device, settings.dtype)
    limits = limits_of(settings, cores(), on_cpu=device == "cpu")
    backend = TorchBackend(settings, settings.models[0], device, device, dtype, limits, cores())
    threads = torch.get_num_threads()
    rows = list(measure(backend, options.batches, options.seed))
    torch.set_num_threads(threads)
    print(table(rows))
    if options.output is not None:
        report = {
            "command": "python -m benchmarks.warm_up",
            "machine": machine.describe(device),
            "model": Path(settings.model).name,
            "dtype": str(dtype).removeprefix("torch."),
            "batches": options.batches,
        }
        write(options.output, {**report, "results": rows})


if __name__ == "__main__":
    main()
