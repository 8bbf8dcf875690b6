"""`trimvit bench`: sends load to a running server over HTTP and measures what its users would see.

It needs no torch: any machine with the package can load any server.
"""

import asyncio
import json
import os
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx
from pydantic import BaseModel, ConfigDict, Field, model_validator
from tqdm import tqdm

from app.commands.address import connecting, server_url, why
from app.commands.failures import FAILED, UsageError, complain, reports_expected_errors
from app.commands.load import ANSWERED, Mix, Sample, closed_loop, open_loop, poisson_arrivals
from app.commands.loaded_server import Sender, check_is_accepted, described
from app.commands.photographs import in_folder
from app.commands.summary import Summary, summarise
from app.inference.options import Share
from app.processes import background
from app.settings.variables import plain
from models.image_files import decoded_endings
from models.names import shown

KEY_VARIABLE = "TRIMVIT_API_KEY"
EXAMPLES = Path(__file__).parents[1] / "static" / "examples"

_MOST_PHOTOGRAPHS = 256  # kept in memory; more make no difference to a server without an answer cache


class BenchConfig(BaseModel):
    """Load a running server with photographs and measure latency, throughput and what was answered.

    Without --rate it is a closed loop, with it an open one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    concurrency: int | None = Field(
        None, ge=1, description="Closed loop: number of images in flight. Default: 8."
    )
    rate: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Open loop: average images per second, sent at random (Poisson) times.",
    )
    most_under_way: int = Field(
        512,
        ge=1,
        description="Open loop: maximum number of images in flight. Further images wait to be sent.",
    )
    duration_s: float = Field(
        10.0, gt=0, allow_inf_nan=False, description="Duration of the measurement in seconds."
    )
    warmup_s: float = Field(
        2.0,
        ge=0,
        allow_inf_nan=False,
        description="Duration of the same load before the measurement, in seconds.",
    )
    timeout_s: float = Field(
        30.0, gt=0, allow_inf_nan=False, description="Maximum time to wait for an answer, in seconds."
    )
    keep_ratios: tuple[Share, ...] = Field(
        (), description="Keep ratios to choose from at random for each image. Default: that of the server."
    )
    model: str | None = Field(
        None, description="Which of the server's models answers. Default: its default one."
    )
    query: str = Field(
        "", description="Further options of each image, in the form of a URL query: criterion=mad&mask=grid."
    )
    photographs: Path | None = Field(
        None,
        description="Folder of images to send (at most 256). Default: four photographs that come with "
        "TrimViT.",
    )
    seed: int = Field(0, description="Seed for the times, the ratios and the order of the photographs.")
    as_json: bool = Field(default=False, validation_alias="json", description="Print the result as JSON.")
    plot: Path | None = Field(
        None, description="Save a plot of latency over time and its distribution (.png, .svg or .pdf)."
    )

    @model_validator(mode="after")
    def _one_loop(self) -> "BenchConfig":
        if self.rate is not None and self.concurrency is not None:
            raise ValueError("give --concurrency (a closed loop) or --rate (an open one), not both")
        if "keep_ratio" in self.options and self.keep_ratios:
            raise ValueError("give --keep-ratios or keep_ratio in --query, not both")
        if "model" in self.options and self.model is not None:
            raise ValueError("give --model or model in --query, not both")
        return self

    @property
    def asked_model(self) -> str | None:
        """The model that all images are for, if it is named."""
        return self.model or self.options.get("model")

    @property
    def options(self) -> dict[str, str]:
        """The query, by option. Raises ValueError if it is not a valid query."""
        try:
            return dict(parse_qsl(self.query, strict_parsing=bool(self.query)))
        except ValueError:
            raise ValueError(f"--query must be name=value&name=value, got {self.query!r}") from None


@reports_expected_errors
def bench(config: BenchConfig, operands: Sequence[str]) -> int:
    """Load the server and print the results. The exit code is 1 if an image was not labelled."""
    draw_plot = None if config.plot is None else _plotter(config.plot)
    try:
        url = server_url(operands[0])
    except ValueError as error:
        raise UsageError(str(error)) from error
    images = _images(config.photographs) if config.photographs else _examples()
    samples: list[Sample] = []
    try:
        model = asyncio.run(_load(config, url, images, samples))
    except httpx.RequestError as error:
        return complain("bench", f"{url} cannot be reached: {why(error)}")
    summary = summarise(samples, config.warmup_s, config.duration_s)
    if config.as_json:
        load = config.model_dump(mode="json", exclude={"as_json", "plot"})
        print(json.dumps({"url": url, "model": model, "load": load, **asdict(summary)}, indent=1))
    else:
        print(_report(config, url, model, len(images), summary))
    if draw_plot is not None and summary.answered:
        draw_plot([sample for sample in samples if sample.due_s >= config.warmup_s])
    return 0 if summary.answered == summary.images > 0 else FAILED


def _examples() -> list[bytes]:
    """TrimViT's own photographs. Other files in their folder are passed over without a warning."""
    return [path.read_bytes() for path in sorted(EXAMPLES.glob("*.jpg"))]


def _images(folder: Path) -> list[bytes]:
    """The images of the folder in formats that servers accept. Raises FileNotFoundError."""
    found = in_folder(folder)
    for line in found.remarks:
        complain("bench", line)
    taken = [each for each in found.photographs if each.within.suffix.lower() in decoded_endings()]
    if not taken:
        raise FileNotFoundError("; ".join(found.failures) or f"there are no images in {shown(folder)}")
    if len(taken) < len(found.photographs):
        left_out = len(found.photographs) - len(taken)
        complain(
            "bench",
            f"{left_out} images in {shown(folder)} are not sent, because their names do not end with "
            f"{', '.join(sorted(decoded_endings()))}",
        )
    return [each.read() for each in taken[:_MOST_PHOTOGRAPHS]]


def _plotter(path: Path) -> Callable[[Sequence[Sample]], None]:
    """The function that draws the plot. It is imported before the load, so that a missing package is noticed
    before anything is measured."""
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UsageError(f"--plot {path} must end with .png, .svg or .pdf")
    try:
        from app.commands.plot import latency_plot
    except ImportError as error:
        raise ImportError("--plot needs matplotlib: pip install 'trimvit[train]'") from error
    return lambda samples: latency_plot(samples, path)


async def _load(
    config: BenchConfig, url: str, images: Sequence[bytes], samples: list[Sample]
) -> dict[str, str]:
    """Fill ``samples`` and return the server's description of the model. Raises httpx.RequestError if the
    server cannot be reached, and ValueError if it is not ready, is not a TrimViT server or has no such
    model."""
    key = plain(os.environ.get(KEY_VARIABLE, ""))
    client = httpx.AsyncClient(
        base_url=url,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=config.timeout_s,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        **connecting(url),
    )
    async with client:
        model, path = await described(client, url, config.asked_model)
        draw = random.Random(config.seed)
        options = config.options if config.model is None else {**config.options, "model": config.model}
        send = Sender(client, path, images, options, draw)
        mix = Mix(config.keep_ratios, draw)
        await check_is_accepted(client, send.request(mix()), url)
        total_s = config.warmup_s + config.duration_s
        with tqdm(
            total=round(total_s), unit="s", bar_format="{l_bar}{bar}| {n:.0f} of {total:.0f} s{postfix}",
            disable=None, leave=False,
        ) as progress:  # fmt: skip
            ticking = background.awaited(_tick(progress, samples), "progress")
            if config.rate is None:
                await closed_loop(send, mix, config.concurrency or 8, total_s, samples.append)
            else:
                arrivals = poisson_arrivals(config.rate, draw)
                await open_loop(send, mix, arrivals, config.most_under_way, total_s, samples.append)
            ticking.cancel()
            with suppress(asyncio.CancelledError):
                await ticking
    return model


async def _tick(progress: "tqdm[Any]", samples: Sequence[Sample]) -> None:
    while True:
        await asyncio.sleep(1)
        progress.set_postfix_str(f"{len(samples)} images", refresh=False)
        progress.update(1)


def _report(config: BenchConfig, url: str, model: dict[str, str], photographs: int, summary: Summary) -> str:
    if config.rate is None:
        loop = f"closed loop, {config.concurrency or 8} images in flight"
    else:
        loop = f"open loop, {config.rate:g} images/s"
    lines = [
        f"{url}: {model['name']} on {model['device']} in {model['dtype']}",
        f"{loop}; {photographs} photographs; {config.duration_s:g} s after {config.warmup_s:g} s of warm-up",
        "",
        f"{summary.answered} of {summary.images} images answered; "
        f"{summary.images_per_s:.1f} images/s within the {config.duration_s:g} s"
        + ("" if summary.mean_compute is None else f"; mean compute {summary.mean_compute:.3f}"),
        *([f"  {summary.cached} of them from the server's answer cache"] if summary.cached else []),
        *(f"  {count} x {status}" for status, count in summary.by_status.items() if status != ANSWERED),
        *(f"  {count} x {problem}" for problem, count in summary.by_problem.items()),
    ]
    if not summary.answered:
        return "\n".join(lines)
    rows = [("since it was sent", summary.latency_from_send_ms)]
    if config.rate is not None:
        rows = [("since it was due", summary.latency_ms), *rows, ("sent late by", summary.late_ms)]
    head = "".join(f"{name:>9}" for name in summary.latency_ms)
    lines += ["", f"{'latency, ms':<22}{head}", *(_row(name, values) for name, values in rows)]
    if config.keep_ratios:
        lines += ["", f"{'by keep ratio, ms':<22}{head}   images   compute"]
        lines += [
            f"{_row(f'{each.keep_ratio:g}', each.latency_ms)}{each.images:>9}{each.mean_compute:>10.3f}"
            for each in summary.by_keep_ratio
            if each.mean_compute is not None
        ]
    return "\n".join(lines)


def _row(name: str, values_ms: dict[str, float]) -> str:
    return f"{name:<22}" + "".join(f"{value:>9.1f}" for value in values_ms.values())
