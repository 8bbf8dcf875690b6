"""Measure the speed and the memory of the model, without HTTP.

    python -m benchmarks.engine homogeneous --photographs FOLDER   one ratio per batch, relative to timm
    python -m benchmarks.engine mixed --photographs FOLDER         one ratio per image, relative to the ideal
    python -m benchmarks.engine user --photographs FOLDER          as in the server, relative to timm float32
    python -m benchmarks.engine outside --photographs FOLDER       other runtimes (needs the bench extra)
    python -m benchmarks.engine memory                             resident memory over 10,000 batches

Timings are paired: each contestant runs once per round, in random order, and ratios are computed within a
round. Figures with parentheses are medians over the rounds (quartiles; extremes). Only the network is timed,
on photographs that are already decoded and normalized. `--output FILE.json` writes the result, and updates it
after each setting. `--model random:NAME` is a timm architecture with random weights.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import get_args

import torch

from app.worker.process import MOST_STREAMS
from benchmarks import machine, memory, speed
from benchmarks.contestants import load_model, stream_pool
from benchmarks.outside import MissingPackageError
from benchmarks.photographs import image_files
from benchmarks.report import Row, table, write
from models.bundled import BUNDLED_MODEL
from models.classifier import Classifier
from models.device import choose_device, choose_dtype, cores, use_gpu
from models.dtypes import DtypeName
from models.families import UnsupportedModelError
from models.load import LoadedModel, ModelError

Measure = Callable[[argparse.Namespace, LoadedModel], Iterator[Row]]

DTYPES: tuple[DtypeName, ...] = tuple(name for name in get_args(DtypeName) if name != "auto")


def through_memory(options: argparse.Namespace, loaded: LoadedModel) -> Iterator[Row]:
    """Measure resident memory over batches of random size, ratios, criteria and reducers, in several
    streams."""
    dtype = choose_dtype(options.device, options.dtype)
    classifier = Classifier(loaded.model, loaded.input, options.device, dtype)
    with stream_pool(options.streams, cores()) as streams:
        yield memory.measure(
            classifier,
            streams,
            batches=options.batches,
            warm_up=options.warm_up,
            every=options.every,
            most_images=options.most_images,
            ratio_decimals=options.ratio_decimals,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    options.default_threads = torch.get_num_threads()
    torch.set_num_threads(1 if getattr(options, "cpu_time", False) else cores())
    try:
        if "device" in options:
            options.device = choose_device(options.device)
            if options.device != "cpu":
                use_gpu(options.device)
        loaded = load_model(options.model)
        report = {
            "command": f"python -m benchmarks.engine {options.name}",
            "machine": machine.describe(getattr(options, "device", "cpu")),
            "model": Path(options.model).name,
            "method": loaded.method.name,
            "options": _plain_options(options),
        }
        rows: list[Row] = []
        for row in options.measure(options, loaded):
            rows.append(row)
            if options.output is not None:
                write(options.output, {**report, "results": rows})
    except (ModelError, UnsupportedModelError, MissingPackageError, OSError, ValueError) as error:
        sys.exit(f"benchmarks.engine: {error}")
    print(table(rows))


def _plain_options(options: argparse.Namespace) -> dict[str, object]:
    """Return the options without paths, because results are published."""
    left_out = ("measure", "name", "model", "output", "photographs")
    shown: dict[str, object] = {key: value for key, value in vars(options).items() if key not in left_out}
    if "photographs" in options:
        shown["photographs"] = len(image_files(options.photographs))
    return shown


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = parser.add_subparsers(dest="name", required=True)

    def add(name: str, run: Measure) -> argparse.ArgumentParser:
        command = names.add_parser(
            name, description=run.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        command.set_defaults(measure=run)
        command.add_argument("--model", default=BUNDLED_MODEL, help="as of trimvit serve, or random:NAME")
        command.add_argument("--output", type=Path, help="JSON file")
        return command

    def add_timed(
        name: str,
        run: Measure,
        *,
        batch_sizes: Sequence[int],
        rounds: int,
        ratios: Sequence[float] = (),
    ) -> argparse.ArgumentParser:
        command = add(name, run)
        command.add_argument("--photographs", type=Path, required=True, help="folder of images")
        command.add_argument("--rounds", type=int, default=rounds, help="rounds that count")
        command.add_argument("--warm-up", type=int, default=3, help="rounds that do not count")
        command.add_argument("--sample-s", type=float, default=0.2, help="least seconds a sample")
        command.add_argument("--seed", type=int, default=0, help="of the contestants' order")
        command.add_argument(
            "--cpu-time",
            action="store_true",
            help="count CPU time, on one thread: for a machine with other work",
        )
        command.add_argument("--batch-sizes", type=int, nargs="+", default=batch_sizes, help="images")
        command.add_argument(
            "--dtypes", nargs="+", choices=DTYPES, default=("bfloat16", "float32"), help="of the weights"
        )
        if run in (speed.homogeneous, speed.mixed):
            command.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
        if ratios:
            command.add_argument("--ratios", type=float, nargs="+", default=ratios, help="keep ratios")
        return command

    all_ratios = (1.0, 0.9, 0.7, 0.5, 0.3)
    streams = min(MOST_STREAMS, cores())
    command = add_timed(
        "homogeneous", speed.homogeneous, batch_sizes=(1, 8, 32), rounds=30, ratios=all_ratios
    )
    command.add_argument("--compiled", action="store_true", help="timm under torch.compile, too")
    command = add_timed("mixed", speed.mixed, batch_sizes=(8, 32, 128), rounds=15)
    command.add_argument("--most-ratios", type=int, default=32, help="more than these are interpolated")
    command.add_argument("--orders", type=int, default=4, help="mixed samples a round")
    command = add_timed("user", speed.user, batch_sizes=(1, 8, 32), rounds=15, ratios=all_ratios)
    command.add_argument("--images", type=int, default=64, help="about so many a sample")
    command.add_argument("--streams", type=int, default=streams, help="batches at once")
    add_timed("outside", speed.outside, batch_sizes=(8, 1), rounds=30, ratios=(1.0, 0.7, 0.5))

    command = add("memory", through_memory)
    command.set_defaults(model="random:test_vit")
    command.add_argument("--dtype", choices=get_args(DtypeName), default="auto", help="of the weights")
    command.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    command.add_argument("--batches", type=int, default=10_000, help="in all")
    command.add_argument("--warm-up", type=int, default=1_000, help="batches before the trend begins")
    command.add_argument("--every", type=int, default=50, help="batches between two samples")
    command.add_argument("--most-images", type=int, default=16, help="in a batch")
    command.add_argument("--streams", type=int, default=streams, help="batches at once")
    command.add_argument(
        "--ratio-decimals", type=int, default=2, help="of the random ratios; more fill the caches of counts"
    )
    return parser


if __name__ == "__main__":
    main()
