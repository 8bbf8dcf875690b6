"""Compare images/s over HTTP with the same model on the same cores and photographs without a server.

    python -m benchmarks.http_throughput --photographs FOLDER [--rounds 5] [--output FILE.json]

Three ways take turns, after a warm-up:
  engine   decoded pixels -> predictions, in two streams with one thread each, as in the server
  offline  encoded files -> decode -> predictions, in the same two streams
  http     encoded files -> a running server -> JSON, with 16 keep-alive clients
Reports the medians, and http as a share of each of the others within a round.
"""

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import torch

from app.decoding.images import ImageLimits, decode
from benchmarks import machine
from benchmarks.report import spread
from benchmarks.server import running
from models.bundled import BUNDLED_MODEL
from models.classifier import Classifier, ImageRequest
from models.device import choose_device, choose_dtype, cores, use_gpu
from models.load import load

BATCH = 8
CLIENTS = 16


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--model", default=BUNDLED_MODEL)
    parser.add_argument("--ratios", type=float, nargs="+", default=[1.0, 0.5])
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()

    files = [path.read_bytes() for path in sorted(options.photographs.iterdir())]
    loaded = load(options.model)
    device = choose_device(options.device)
    classifier = Classifier(loaded.model, loaded.input, device, choose_dtype(device))
    limits = ImageLimits(64_000_000)
    pixels = [decode(file, loaded.input, limits).pixels for file in files]

    def streams(work: Callable[[int, int], None]) -> float:
        """Return the seconds for all batches in one thread per core, each with one intra-op thread."""
        starts = iter(range(0, len(files), BATCH))
        lock = threading.Lock()

        def stream() -> None:
            if device == "cpu":
                torch.set_num_threads(1)
                compute()
                return
            use_gpu(device)
            with torch.cuda.stream(torch.cuda.Stream(device)):
                compute()

        def compute() -> None:
            while True:
                with lock:
                    start = next(starts, None)
                if start is None:
                    return
                work(start, min(start + BATCH, len(files)))

        began = time.perf_counter()
        threads = [threading.Thread(target=stream) for _ in range(cores() if device == "cpu" else 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - began

    def engine(ratio: float) -> float:
        return streams(lambda start, end: predict(pixels[start:end], ratio))

    def offline(ratio: float) -> float:
        return streams(
            lambda start, end: predict(
                [decode(file, loaded.input, limits).pixels for file in files[start:end]], ratio
            )
        )

    def predict(batch: list[np.ndarray], ratio: float) -> None:
        classifier.classify(
            torch.from_numpy(np.stack(batch)), [ImageRequest(loaded.method.pruning(ratio))] * len(batch)
        )

    with running("--model", options.model, "--device", device) as server:
        results = {}
        for ratio in options.ratios:
            ways = {"engine": engine, "offline": offline, "http": lambda r: over_http(server.port, files, r)}
            seconds: dict[str, list[float]] = {way: [] for way in ways}
            for round_ in range(options.rounds + 1):  # the first round is a warm-up
                for way, run in ways.items():
                    taken = run(ratio)
                    if round_ > 0:
                        seconds[way].append(taken)
            results[str(ratio)] = _summary(seconds, len(files))
            print(json.dumps({str(ratio): results[str(ratio)]}, indent=1), flush=True)
    report = {
        "command": "python -m benchmarks.http_throughput",
        "machine": machine.describe(device),
        "model": options.model,
        "dtype": str(classifier.dtype),
        "images": len(files),
        "rounds": options.rounds,
        "ratios": results,
    }
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")


def over_http(port: int, files: list[bytes], ratio: float) -> float:
    """Return the seconds until all files are answered, with 16 clients that have a connection each."""
    local = threading.local()

    def post(file: bytes) -> None:
        if not hasattr(local, "connection"):
            local.connection = HTTPConnection("127.0.0.1", port)
        local.connection.request(
            "POST", f"/v1/classify?keep_ratio={ratio}", file, {"Content-Type": "image/jpeg"}
        )
        response = local.connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {body!r}")

    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(post, files))
    return time.perf_counter() - began


def _summary(seconds: dict[str, list[float]], images: int) -> dict[str, object]:
    summary: dict[str, object] = {
        f"{way}_images_per_s": round(images / statistics.median(taken), 2) for way, taken in seconds.items()
    }
    for way in ("engine", "offline"):
        shares = [other / http for other, http in zip(seconds[way], seconds["http"], strict=True)]
        summary[f"http_share_of_{way}"] = asdict(spread(shares))
    return summary


if __name__ == "__main__":
    main()
