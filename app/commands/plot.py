"""The plot of `trimvit bench`: needs matplotlib, from the extra `train`."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from app.commands.load import ANSWERED, Sample
from app.commands.summary import percentile

# Okabe and Ito's colors, which are safe for color-blind readers, without yellow.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = "os^vD*P"
_DPI = 150
# Percentiles on a logarithmic axis, one nine after another, as in HdrHistogram, because the tail matters
# most.
_PERCENTS = (0, 25, 50, 75, 90, 95, 97.5, 99, 99.5, 99.9, 99.99)


def latency_plot(samples: Sequence[Sample], path: Path) -> None:
    """Latency over the time when an image was due, and its percentiles, one color per keep ratio. Failed
    images are crosses."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    over_time, distribution = figure.subplots(1, 2)
    answered = sum(each.outcome.status == ANSWERED for each in samples)
    ratios = sorted({each.keep_ratio for each in samples}, key=lambda ratio: -1 if ratio is None else ratio)
    for place, ratio in enumerate(ratios):
        colour, marker = _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)]
        label = "server's default ratio" if ratio is None else f"keep ratio {ratio:g}"
        own = [each for each in samples if each.keep_ratio == ratio and each.outcome.status == ANSWERED]
        if not own:
            continue
        over_time.plot(
            [each.due_s for each in own],
            [each.latency_s * 1000 for each in own],
            marker,
            color=colour,
            markersize=3,
            alpha=0.5,
            label=label,
        )
        ascending = sorted(each.latency_s * 1000 for each in own)
        resolved = _resolved(len(own))
        distribution.plot(
            [100 / (100 - percent) for percent in resolved],
            [percentile(ascending, percent) for percent in resolved],
            marker=marker,
            markersize=4,
            color=colour,
            label=label,
        )
    failed = [each for each in samples if each.outcome.status != ANSWERED]
    if failed:
        over_time.plot(
            [each.due_s for each in failed],
            [each.latency_s * 1000 for each in failed],
            "x",
            color="black",
            markersize=4,
            label="not answered",
        )
    over_time.set_xlabel("due at (s)")
    over_time.set_ylabel("latency (ms)")
    over_time.set_ylim(bottom=0)
    over_time.legend(fontsize="small")
    distribution.set_xscale("log")
    ticks = [percent for percent in _resolved(answered) if percent >= 50]
    distribution.set_xticks(
        [100 / (100 - percent) for percent in ticks], [f"{percent:g}" for percent in ticks]
    )
    distribution.minorticks_off()
    distribution.set_xlabel("percentile")
    distribution.set_ylabel("latency (ms)")
    distribution.set_ylim(bottom=0)
    for axes in (over_time, distribution):
        axes.grid(visible=True, alpha=0.3)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=_DPI)


def _resolved(images: int) -> list[float]:
    """The percentiles that at least one of so many images exceeds."""
    return [percent for percent in _PERCENTS if images * (100 - percent) / 100 >= 1]
