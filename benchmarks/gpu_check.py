"""Check the project's performance goals on this machine's GPU: one command, at most eight minutes.

    make gpu-check                                    or: python -m benchmarks.gpu_check
    make gpu-check ARGS="--output gpu-check.json --model random:vit_base_patch16_224"

It needs an NVIDIA GPU, PyTorch 2.10 or later and timm. It does not use the network or install anything. The
tests need pytest (no plugins), and the last part needs the packages of the server. Missing packages are
reported.

  tests   all tests that are marked for a GPU; none may be skipped
  dense   images/s of the network alone at one keep ratio per batch, compared with timm and with timm under
          torch.compile in the same dtype
  mixed   batches in which each image has its own ratio, compared with the ideal: the cost of the images in
          batches with a single ratio
  host    time of the worker's thread for a batch: until all kernels are launched, and until results are there
  http    images/s of a running server, JPEG to JSON

Each contestant runs once per round, in random order, and ratios are computed within a round. Figures with
parentheses are medians over the rounds (quartiles; extremes). Weights are random, which does not affect the
speed. At the end, the results are compared with the goals:

  tests   all pass, none is skipped
  dense   at batch sizes of 64 and more, at least 90 % of the MACs ratio over timm; at ratio 1 and every batch
          size, at least 95 % of the images/s of compiled timm
  mixed   at batch sizes of 64 and more, at least 90 % of the ideal

The exit status is 0 if all goals are met, else 1, also if a goal was not measured. The most important
settings come first; those that do not fit into the time are not measured. `--device cpu --smallest` tests the
command itself on any machine; its figures are meaningless.
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
GRACE_S = 50.0  # to finish the current measurement when the time is up
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
    """Run `benchmarks.engine homogeneous`."""
    return speed.homogeneous(options, load_model(options.model))


def mixed(options: argparse.Namespace) -> Iterator[Row]:
    """Run `benchmarks.engine mixed` for batch sizes above 1."""
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
    """Run the parts and return their rows. A part that fails, or does not fit into the time, has a row with
    the reason."""
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
        except Exception as error:  # an error in one part must not lose the results of the others
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
    # The timer also ends a part that hangs, for example in a compilation.
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
