"""Whether this machine's GPU keeps what the project promises: one command, at most eight minutes.

    make gpu-check                                    or: python -m benchmarks.gpu_check
    make gpu-check ARGS="--output gpu-check.json --model random:vit_base_patch16_224"

It needs an NVIDIA GPU, PyTorch 2.10 or later and timm. It needs no network, and installs nothing. The tests
need pytest (none of its plugins), and the last part the packages of the server; what is missing is named.

  tests   all tests that are marked for a GPU, of which none may skip
  dense   images/s of the network alone at one keep ratio a batch, beside timm and timm under torch.compile in
          the same dtype
  mixed   batches in which each image has a ratio of its own, against the ideal: what its images cost in
          batches of their like
  host    what the worker's thread does for a batch: until all is launched, and until it is answered
  http    images/s of a running server, JPEG to JSON

Contestants take turns, once a round, in an order drawn anew; ratios are taken within a round. A figure with
brackets is the median over the rounds (quartiles; extremes). Weights are random: they cost as much as trained
ones. It ends with a verdict against the goals:

  tests   all pass, none skips
  dense   at batch 64 and more, at least 90 % of the MACs ratio over timm; at ratio 1, at every batch size, at
          least 95 % of the images/s of timm compiled
  mixed   at batch 64 and more, at least 90 % of the ideal

The exit status is 0 if all goals are met, else 1: also where one was not measured. When the time is up, what
is left is not measured; the most telling settings come first. `--device cpu --smallest` tries the command on
any machine; its figures mean nothing.
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path

from benchmarks import gpu_parts, machine, speed
from benchmarks.contestants import load_model
from benchmarks.report import Row, table, write
from benchmarks.verdict import verdict
from models.device import choose_device, choose_dtype, use_gpu

Part = Callable[[argparse.Namespace], Iterator[Row]]

ROOT = Path(__file__).parents[1]
GRACE_S = 50.0  # for what has begun when the time is up
SMALLEST: Mapping[str, object] = {
    "model": "random:test_vit",
    "batch_sizes": (2, 1),
    "ratios": (1.0, 0.5),
    "rounds": 1,
    "warm_up": 1,
    "sample_s": 0.0,
    "orders": 1,
    "most_ratios": 2,
    "compiled": False,
    "seconds": 0.5,
}


def dense(options: argparse.Namespace) -> Iterator[Row]:
    """As `benchmarks.engine homogeneous`."""
    return speed.homogeneous(options, load_model(options.model))


def mixed(options: argparse.Namespace) -> Iterator[Row]:
    """As `benchmarks.engine mixed`, of batches with more than one image."""
    several = copy(options)
    several.batch_sizes = [size for size in options.batch_sizes if size > 1]
    return speed.mixed(several, load_model(options.model))


PARTS: Mapping[str, Part] = {
    "tests": gpu_parts.tests,
    "dense": dense,
    "mixed": mixed,
    "host": gpu_parts.host,
    "http": gpu_parts.http,
}


def run(options: argparse.Namespace, clock: Callable[[], float] = time.monotonic) -> dict[str, list[Row]]:
    """The rows of each part that there was time for; a part that fails has one row that says why."""
    ends = clock() + 60 * options.minutes
    results: dict[str, list[Row]] = {}
    for name in options.parts:
        rows = results.setdefault(name, [])
        options.left_s = ends - clock()
        if options.left_s <= 0:
            rows.append({"not_measured": "the time was up"})
            continue
        print(f"{name} ({options.left_s:.0f} s left)", file=sys.stderr, flush=True)
        try:
            for row in PARTS[name](options):
                rows.append(row)
                if clock() > ends:
                    rows.append({"not_measured": "the time was up"})
                    break
        except Exception as error:  # one part's fault shall not cost the others' figures
            rows.append({"not_measured": f"{type(error).__name__}: {error}"[:500]})
    return results


def _time_is_up(*_: object) -> None:
    raise TimeoutError("the time was up")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.smallest:
        vars(options).update(SMALLEST)
    try:
        options.device = choose_device(options.device)
    except OSError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 1
    if options.device != "cpu":
        use_gpu(options.device)
    if options.dtype == "auto":
        options.dtype = str(choose_dtype(options.device)).removeprefix("torch.")
    options.dtypes = (options.dtype,)
    began = time.monotonic()
    # Whatever hangs, such as a compilation, ends as well.
    before = signal.signal(signal.SIGALRM, _time_is_up)
    signal.setitimer(signal.ITIMER_REAL, 60 * options.minutes + GRACE_S)
    try:
        results = run(options)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    goals = verdict(results, options.batch_sizes, options.ratios)
    report = {
        "command": "make gpu-check",
        "machine": machine.describe(options.device),
        "model": options.model,
        "dtype": options.dtype,
        "seconds": round(time.monotonic() - began),
        "results": results,
        "verdict": goals,
    }
    if options.output is not None:
        write(options.output, report)
    for name, rows in results.items():
        print(f"\n## {name}\n\n{table(rows)}")
    met = all(goal["met"] for goal in goals)
    print(f"\n## verdict: {'all goals are met' if met else 'NOT all goals are met'}\n\n{table(goals)}")
    return 0 if met else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "make gpu-check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(name: str, told: str, **how: object) -> None:
        default = "" if how.get("default") is None or "action" in how else " (default: %(default)s)"
        parser.add_argument(name, help=told + default, **how)  # type: ignore[arg-type]

    add("--device", "cuda:N, or cpu", default="cuda")
    add("--dtype", "auto, bfloat16, float16 or float32", default="auto")
    add("--model", "random:NAME is timm's NAME with random weights", default="random:deit_small_patch16_224")
    add("--batch-sizes", "images, in this order", type=int, nargs="+", default=(64, 256, 8, 1))
    add("--ratios", "keep ratios", type=float, nargs="+", default=(1.0, 0.7, 0.5))
    add("--rounds", "rounds that count", type=int, default=5)
    add("--warm-up", "rounds that do not", type=int, default=2)
    add("--sample-s", "least seconds of a sample", type=float, default=0.2)
    add("--orders", "mixed samples a round", type=int, default=2)
    add("--most-ratios", "ratios that mixed batches are compared with", type=int, default=8)
    add("--seconds", "of each load over HTTP", type=float, default=6.0)
    add("--minutes", "after which nothing more is begun", type=float, default=7.0)
    add("--parts", "which", nargs="+", choices=tuple(PARTS), default=tuple(PARTS))
    add("--no-compiled", "leave out timm under torch.compile", dest="compiled", action="store_false")
    add("--photographs", "folder of images", type=Path, default=ROOT / "tests" / "photographs")
    add("--smallest", "everything as small as it can be, to try the command", action="store_true")
    add("--output", "JSON file", type=Path)
    parser.set_defaults(seed=0, cpu_time=False)
    return parser


if __name__ == "__main__":
    sys.exit(main())
