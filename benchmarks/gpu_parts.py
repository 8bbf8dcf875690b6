"""The parts of `gpu_check` that are not in other benchmarks: the tests, the host time, and a server."""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor

from benchmarks.contestants import finisher, load_model
from benchmarks.photographs import load_photographs
from benchmarks.report import Row, spread
from models.classifier import Classifier, ImageRequest
from models.device import choose_dtype
from models.schedule import Pruning

ROOT = Path(__file__).parents[1]
# Packages that the server imports in addition to PyTorch and timm.
SERVER_PACKAGES = (
    *("fastapi", "fastapi_offline", "httptools", "jaxtyping", "msgspec", "prometheus_client", "psutil"),
    *("pydantic", "pydantic_settings", "python_multipart", "setproctitle", "uvicorn"),
)
HOST_IMAGES = 64
LOWEST_RATIO = 0.3
CLIENTS = 64


def tests(options: argparse.Namespace) -> Iterator[Row]:
    """Run the GPU tests. Yields one row with the number of passed, failed and skipped tests, and the end of
    pytest's output if any failed. Raises RuntimeError if pytest is not installed or does not finish."""
    if find_spec("pytest") is None:
        raise RuntimeError("pytest is not installed")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            *(sys.executable, "-m", "pytest", "-c", "tests/gpu/pytest.ini", "--rootdir", "."),
            *("--confcutdir", "tests/gpu", "-p", "no:cacheprovider", "-m", "gpu", "-q"),
            *("--junitxml", str(report), "tests/gpu"),
        ]
        began = time.monotonic()
        try:
            ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=options.left_s)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError("the tests were not over when the time was up") from error
        if not report.exists():
            raise RuntimeError(f"pytest did not run: {(ran.stdout + ran.stderr)[-400:]}")
        row: dict[str, object] = {**counts_of(report), "seconds": round(time.monotonic() - began, 1)}
    if ran.returncode != 0:
        row["said"] = ran.stdout[-4000:].splitlines()  # lists appear in the file, not in the table
        print(ran.stdout[-4000:], file=sys.stderr)
    yield row


def counts_of(report: Path) -> dict[str, int]:
    """Count the passed, failed and skipped tests in a JUnit report from pytest."""
    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))

    def total(*names: str) -> int:
        return sum(int(suite.get(name, 0)) for suite in suites for name in names)

    failed, skipped = total("failures", "errors"), total("skipped")
    return {"passed": total("tests") - failed - skipped, "failed": failed, "skipped": skipped}


def host(options: argparse.Namespace) -> Iterator[Row]:
    """Measure the milliseconds that the worker's thread takes for a batch, with one ratio for all images
    (`alike`) or new random ratios for each batch (`mixed`).

    `launched`: until all kernels are launched, starting with an idle device. `done`: until the device has
    finished. `answered`: from raw pixels to results. If `launched` is close to `done`, the device waits for
    the host.
    """
    loaded = load_model(options.model)
    dtype = choose_dtype(options.device, options.dtype)
    classifier = Classifier(loaded.model, loaded.input, options.device, dtype)
    images = min(HOST_IMAGES, max(options.batch_sizes))
    pixels = load_photographs(options.photographs, loaded.input, images)[:images]
    if options.device != "cpu":
        pixels = pixels.pin_memory()
    inputs = classifier._inputs(pixels)
    finish = finisher(options.device)
    rounds = 4 * options.rounds
    for kind, ratios in (("alike", _alike), ("mixed", _mixed)):
        launched, done, answered = [], [], []
        for turn in range(options.warm_up + rounds):
            prunings = [Pruning(ratio) for ratio in ratios(images, turn)]
            first, second = _launch(classifier, inputs, prunings, finish)
            began = time.perf_counter()
            classifier.classify(pixels, [ImageRequest(pruning) for pruning in prunings])
            if turn >= options.warm_up:
                launched.append(1000 * first)
                done.append(1000 * second)
                answered.append(1000 * (time.perf_counter() - began))
        yield {
            "images": images,
            "ratios": kind,
            "launched_ms": spread(launched),
            "done_ms": spread(done),
            "answered_ms": spread(answered),
        }


@torch.inference_mode()
def _launch(
    classifier: Classifier, inputs: Tensor, prunings: Sequence[Pruning], finish: Callable[[], object]
) -> tuple[float, float]:
    """Return the seconds until the forward pass is launched, and until it is finished."""
    finish()
    began = time.perf_counter()
    classifier.model(inputs, prunings)
    launched = time.perf_counter()
    finish()
    return launched - began, time.perf_counter() - began


def _alike(images: int, _: int) -> list[float]:
    return [0.7] * images


def _mixed(images: int, turn: int) -> list[float]:
    generator = np.random.default_rng(turn)
    places = (generator.permutation(images) + generator.random(images)) / images
    return (LOWEST_RATIO + (1 - LOWEST_RATIO) * places).tolist()


def http(options: argparse.Namespace) -> Iterator[Row]:
    """Measure images/s of `trimvit serve` with the bundled model. Clients send JPEGs in a closed loop. Raises
    RuntimeError if a package of the server is missing."""
    if missing := [name for name in SERVER_PACKAGES if find_spec(name) is None]:
        raise RuntimeError(f"not installed: {', '.join(missing)}")
    from benchmarks.photographs import image_files
    from benchmarks.sender import Sender, requests
    from benchmarks.server import running

    bodies = [path.read_bytes() for path in image_files(options.photographs)]
    with running("--device", options.device, "--dtype", options.dtype) as server:
        for ratio in options.ratios:
            sender = Sender(server.port, requests(f"/v1/classify?keep_ratio={ratio:g}", bodies))
            sender.closed_loop(CLIENTS, options.seconds / 3)
            ended = sender.closed_loop(CLIENTS, options.seconds)
            times = [1000 * (one.done_s - one.due_s) for one in ended if one.status == 200]
            yield {
                "keep_ratio": ratio,
                "clients": CLIENTS,
                "images_per_s": round(len(times) / options.seconds, 1),
                "p50_ms": round(statistics.median(times), 2) if times else None,
                "p99_ms": round(float(np.quantile(times, 0.99)), 2) if times else None,
                "not_answered": sum(one.status != 200 for one in ended),
            }
