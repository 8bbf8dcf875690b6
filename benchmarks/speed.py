"""The speed measurements of benchmarks.engine. Each function yields the rows of a subcommand. Images are
pruned with the default method of the model."""

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.contestants import (
    Ratios,
    batches_of,
    finisher,
    in_dtype,
    in_streams,
    on_threads,
    on_timms_kernels,
    plain_vit,
    pruned,
    pruned_mixed,
    repeated,
    stream_pool,
    unpruned,
)
from benchmarks.outside import references, require_packages
from benchmarks.photographs import load_photographs
from benchmarks.report import Row, spread
from benchmarks.rounds import Contestant, Plan, measure
from models.classifier import normalise
from models.device import choose_dtype, cores, input_dtype
from models.load import LoadedModel
from models.schedule import compute

# The project's goals: minimum share of the MACs ratio, or of the ideal for mixed batches.
ASKED_OF_HOMOGENEOUS = {
    ("bfloat16", 1, 0.5): 0.90,
    **{("bfloat16", batch, 1.0): 1.0 for batch in (8, 32)},
    **{("bfloat16", batch, ratio): 0.95 for batch in (8, 32) for ratio in (0.7, 0.5)},
}
ASKED_OF_MIXED = 0.95

COMPILED = "timm compiled"

# The lowest keep ratio in mixed batches; the highest is 1.
LOWEST_RATIO = 0.3
# The token budget of a batch in a CPU worker, as in app/worker/process.py.
BATCH_TOKENS = 4096


def compute_of(loaded: LoadedModel, ratio: float) -> float:
    """Return the compute of an image at a keep ratio with the model's default method."""
    return compute(loaded.model.arch, loaded.model.stages, ratio, loaded.method.reducer)


def keep_ratio_name(ratio: float) -> str:
    """Return the name of the contestant with this keep ratio."""
    return f"keep_ratio {ratio:g}"


class Photographs:
    """Provides photographs as batches of any size and dtype."""

    def __init__(self, folder: Path, loaded: LoadedModel, at_least: int) -> None:
        self._pixels = load_photographs(folder, loaded.input, at_least)
        self._spec = loaded.input

    def __len__(self) -> int:
        return len(self._pixels)

    def batches(self, size: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
        """Return normalized batches [size, 3, height, width] on the device."""
        return batches_of(normalise(self._pixels, self._spec, dtype).to(device), size)


def homogeneous(options: argparse.Namespace, loaded: LoadedModel) -> Iterator[Row]:
    """Measure batches with a single ratio: the speed-up over timm, and its share of the MACs ratio.
    --compiled also measures timm under torch.compile."""
    photographs = Photographs(options.photographs, loaded, max(options.batch_sizes))
    device = options.device
    for dtype in options.dtypes:
        vit, model = plain_vit(loaded, dtype, device), in_dtype(loaded, dtype, device)
        timms: dict[str, Callable[[Tensor], Tensor]] = {"timm": vit}
        if options.compiled:
            timms[COMPILED] = torch.compile(vit, dynamic=False)
        for size in options.batch_sizes:
            batches = photographs.batches(size, input_dtype(device, choose_dtype(device, dtype)), device)
            contestants = {name: on_timms_kernels(unpruned(one, batches)) for name, one in timms.items()}
            contestants |= {
                f"{ratio:g}": pruned(model, loaded.method, batches, ratio) for ratio in options.ratios
            }
            seconds = _measured(contestants, options, f"homogeneous {dtype} {size}")
            setting = {"dtype": dtype, "batch": size}
            for name in timms:
                yield {**setting, "contestant": name, "images_per_s": _rate(seconds[name])}
            for ratio in options.ratios:
                own = seconds[f"{ratio:g}"]
                macs_ratio = 1 / compute_of(loaded, ratio)
                speed_up = _ratios(seconds["timm"], own)
                share = spread([value / macs_ratio for value in speed_up])
                asked = ASKED_OF_HOMOGENEOUS.get((dtype, size, ratio))
                row: dict[str, object] = {
                    **setting,
                    "contestant": keep_ratio_name(ratio),
                    "images_per_s": _rate(own),
                    "speed_up": spread(speed_up),
                    "macs_ratio": round(macs_ratio, 4),
                    "share_of_macs_ratio": share,
                }
                if COMPILED in seconds:
                    row["times_compiled"] = spread(_ratios(seconds[COMPILED], own))
                yield {**row, "asked": asked, "met": None if asked is None else share.median >= asked}


def mixed(options: argparse.Namespace, loaded: LoadedModel) -> Iterator[Row]:
    """Measure batches in which each image has its own ratio, from 0.3 to 1, compared with the ideal.

    The ideal is the sum of what each image costs in a batch of the same size with a single ratio. This cost
    is measured in the same rounds, at as many evenly spaced ratios as the batch has images, but at most
    --most-ratios. Between them it is interpolated linearly over `compute`.

    There are two ways to mix: `same` uses the evenly spaced ratios in every batch, in random order. `new`
    draws the ratios of every batch by stratified sampling, so that sequence lengths are new to the machine,
    as in real traffic. The result of a round is the mean of --orders samples of each.
    """
    photographs = Photographs(options.photographs, loaded, max(options.batch_sizes))
    device = options.device
    for dtype in options.dtypes:
        model = in_dtype(loaded, dtype, device)
        for size in options.batch_sizes:
            batches = photographs.batches(size, input_dtype(device, choose_dtype(device, dtype)), device)
            spaced = np.linspace(LOWEST_RATIO, 1, size)
            known = np.linspace(LOWEST_RATIO, 1, min(size, options.most_ratios))
            contestants = {
                f"{ratio:.4f}": pruned(model, loaded.method, batches, ratio) for ratio in known.tolist()
            }
            unmixed = list(contestants)
            for order in range(options.orders):
                contestants[f"same {order}"] = pruned_mixed(
                    model, loaded.method, batches, _dealt_out(spaced, order)
                )
                contestants[f"new {order}"] = pruned_mixed(
                    model, loaded.method, batches, _drawn_anew(size, order)
                )
            seconds = _measured(contestants, options, f"mixed {dtype} {size}")
            costs = np.array([seconds[name] for name in unmixed])
            # The expected cost of `new`: its ratios are uniform over the range.
            drawn = LOWEST_RATIO + (1 - LOWEST_RATIO) * (np.arange(1000) + 0.5) / 1000
            for way, ratios in (("same", spaced), ("new", drawn)):
                ideal = _ideal(loaded, ratios, known, costs)
                samples = np.array([seconds[f"{way} {order}"] for order in range(options.orders)])
                measured = samples.mean(axis=0).tolist()
                share = spread(_ratios(ideal, measured))
                yield {
                    "dtype": dtype,
                    "batch": size,
                    "ratios": way,
                    "ratios_measured": len(known),
                    "images_per_s": _rate(measured),
                    "ideal_images_per_s": _rate(ideal),
                    "share_of_ideal": share,
                    "asked": ASKED_OF_MIXED,
                    "met": share.median >= ASKED_OF_MIXED,
                }


def _dealt_out(ratios: np.ndarray, seed: int) -> Callable[[int], Ratios]:
    dealt = np.random.default_rng(seed).permutation(ratios).tolist()
    return lambda _: dealt


def _drawn_anew(size: int, seed: int) -> Callable[[int], Ratios]:
    def draw(turn: int) -> list[float]:
        generator = np.random.default_rng((seed, turn))
        places = (generator.permutation(size) + generator.random(size)) / size
        return (LOWEST_RATIO + (1 - LOWEST_RATIO) * places).tolist()

    return draw


def _ideal(loaded: LoadedModel, ratios: np.ndarray, known: np.ndarray, costs: np.ndarray) -> list[float]:
    """Return the ideal seconds per image in each round: the mean over ``ratios`` of the cost, interpolated
    from ``costs`` [known ratios, rounds]."""
    at, known_at = ([compute_of(loaded, ratio) for ratio in some.tolist()] for some in (ratios, known))
    return [float(np.interp(at, known_at, of_round).mean()) for of_round in costs.T]


def user(options: argparse.Namespace, loaded: LoadedModel) -> Iterator[Row]:
    """Measure the throughput on all cores: timm in float32 with default settings (one batch at a time,
    PyTorch's default number of threads) compared with our model as in a worker (streams, batches within the
    token budget)."""
    photographs = Photographs(options.photographs, loaded, max(options.images, *options.batch_sizes))
    vit = plain_vit(loaded, "float32")
    contestants: dict[str, Contestant] = {}
    rows: dict[str, Row] = {}
    for size in options.batch_sizes:
        name = f"timm float32 {size}"
        one = unpruned(vit, photographs.batches(size, torch.float32))
        calls = max(1, round(options.images / size))
        contestants[name] = on_threads(repeated(one, calls), options.default_threads)
        rows[name] = {"contestant": "timm", "dtype": "float32", "batch": size}
    with stream_pool(options.streams, cores()) as streams:
        for dtype in options.dtypes:
            model = in_dtype(loaded, dtype)
            for ratio in options.ratios:
                name = f"{dtype} {ratio:g}"
                size = _engine_batch(loaded, ratio, len(photographs))
                batches = photographs.batches(size, next(model.parameters()).dtype)
                calls = options.streams * max(1, round(options.images / (size * options.streams)))
                one = pruned(model, loaded.method, batches, ratio)
                contestants[name] = in_streams(one, streams, calls)
                rows[name] = {"contestant": f"keep_ratio {ratio:g}", "dtype": dtype, "batch": size}
        seconds = measure(contestants, _plan(options), "user")
    timms = {size: seconds[f"timm float32 {size}"] for size in options.batch_sizes}
    usual = max(timms)
    best = min(timms, key=lambda size: statistics.median(timms[size]))
    for name, row in rows.items():
        yield {
            **row,
            "images_per_s": _rate(seconds[name]),
            f"times_timm_batch_{usual}": spread(_ratios(timms[usual], seconds[name])),
            f"times_best_timm_batch_{best}": spread(_ratios(timms[best], seconds[name])),
        }


def _engine_batch(loaded: LoadedModel, ratio: float, most: int) -> int:
    """Return the number of images in a batch that fills a worker's token budget, counted as in
    app/dispatch/policy/scheduler.py."""
    arch = loaded.model.arch
    tokens = round((arch.patches + arch.prefix_tokens) * compute_of(loaded, ratio))
    return min(most, max(1, BATCH_TOKENS // max(1, tokens)))


def outside(options: argparse.Namespace, loaded: LoadedModel) -> Iterator[Row]:
    """Measure the unpruned network in other runtimes and in timm, and our model at several ratios, one batch
    at a time on all cores."""
    require_packages()
    photographs = Photographs(options.photographs, loaded, max(options.batch_sizes))
    vit = plain_vit(loaded, "float32")
    for size in options.batch_sizes:
        batches = photographs.batches(size, torch.float32)
        contestants = {"timm float32": unpruned(vit, batches), **references(vit, batches)}
        for dtype in options.dtypes:
            batches = photographs.batches(size, input_dtype("cpu", choose_dtype("cpu", dtype)))
            if dtype not in ("float32", "int8"):  # timm has no int8
                contestants[f"timm {dtype}"] = unpruned(plain_vit(loaded, dtype), batches)
            model = in_dtype(loaded, dtype)
            for ratio in options.ratios:
                contestants[f"keep_ratio {ratio:g} {dtype}"] = pruned(model, loaded.method, batches, ratio)
        seconds = measure(contestants, _plan(options), f"outside {size}")
        for name, own in seconds.items():
            yield {
                "batch": size,
                "contestant": name,
                "images_per_s": _rate(own),
                "times_timm_float32": spread(_ratios(seconds["timm float32"], own)),
            }


def _measured(
    contestants: Mapping[str, Contestant], options: argparse.Namespace, title: str
) -> dict[str, list[float]]:
    return measure(contestants, _plan(options), title, finish=finisher(options.device))


def _plan(options: argparse.Namespace) -> Plan:
    return Plan(options.rounds, options.warm_up, options.sample_s, options.seed, options.cpu_time)


def _rate(seconds_per_image: Sequence[float]) -> float:
    return round(1 / statistics.median(seconds_per_image), 2)


def _ratios(reference: Sequence[float], own: Sequence[float]) -> list[float]:
    """Return the speed-up over the reference in each round."""
    return [theirs / ours for theirs, ours in zip(reference, own, strict=True)]
