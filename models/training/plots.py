"""What a sweep found, as PNGs. Readable without colours: every method has a marker and a line of its own."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from models.training.answers import Row
from models.training.correlation import RankCorrelation

# Okabe and Ito's colours, which colour-blind readers tell apart, without yellow.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = "osv^Dx*P<>"
_LINES = ("-", "--", "-.", ":")
_DPI = 150
_PANEL, _GAP, _CAPTION, _LABEL = 128, 6, 22, 150  # pixels


def accuracy_against_compute(rows: Sequence[Row], path: Path) -> None:
    """Top-1 over the share of multiply-accumulates; bars are one standard error."""
    _curves(rows, path, "compute (share of the unpruned model's multiply-accumulates)", _compute, "top-1")


def agreement_against_compute(rows: Sequence[Row], path: Path) -> None:
    """Agreement with the unpruned model over the share of multiply-accumulates."""
    _curves(rows, path, "compute (share of the unpruned model's multiply-accumulates)", _compute, "agreement")


def accuracy_against_speed(rows: Sequence[Row], path: Path) -> None:
    """Top-1 over measured images/s; horizontal bars from the slowest to the fastest round."""
    timed = [row for row in rows if row.images_per_s is not None]
    _curves(timed, path, "measured speed (images/s)", _speed, "top-1")


def _compute(row: Row) -> tuple[float, float, float]:
    return row.compute, row.compute, row.compute


def _speed(row: Row) -> tuple[float, float, float]:
    assert row.images_per_s is not None
    return (
        row.images_per_s,
        row.images_per_s if row.images_per_s_low is None else row.images_per_s_low,
        row.images_per_s if row.images_per_s_high is None else row.images_per_s_high,
    )


def _curves(
    rows: Sequence[Row],
    path: Path,
    horizontal: str,
    place: Callable[[Row], tuple[float, float, float]],
    vertical: str,
) -> None:
    """A panel for each model, a curve for each method. ``place``: where a row is, with the least and most."""
    models = list(dict.fromkeys(row.model for row in rows))
    series = list(dict.fromkeys(_series(row) for row in rows if row.prunes))
    figure = Figure(figsize=(1.5 + 6 * len(models), 5), layout="constrained")
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for model, axes in zip(models, panels, strict=True):
        own = [row for row in rows if row.model == model]
        for index, name in enumerate(series):
            curve = [row for row in own if row.prunes and _series(row) == name]
            style = {
                "color": _COLOURS[index % len(_COLOURS)],
                "marker": _MARKERS[index % len(_MARKERS)],
                "linestyle": _LINES[index % len(_LINES)],
            }
            _draw(axes, curve, place, vertical, name, style)
        unpruned = [row for row in own if not row.prunes]
        _draw(
            axes,
            unpruned,
            place,
            vertical,
            "unpruned",
            {"color": "black", "marker": "s", "linestyle": "none"},
        )
        for row in unpruned:
            axes.axhline(_height(row, vertical)[0], color="grey", linewidth=0.6, zorder=0)
        axes.set_title(model)
        axes.set_xlabel(horizontal)
        axes.grid(visible=True, alpha=0.3)
    panels[0].set_ylabel("top-1 accuracy (%)" if vertical == "top-1" else "same answer as unpruned (%)")
    panels[-1].legend(fontsize="small")
    _save(figure, path)


def _series(row: Row) -> str:
    return row.method if row.keep_mass is None else f"{row.method}, by mass"


def _height(row: Row, vertical: str) -> tuple[float, float]:
    return (row.top1, row.top1_error) if vertical == "top-1" else (row.agreement, row.agreement_error)


def _draw(
    axes: Axes,
    rows: Sequence[Row],
    place: Callable[[Row], tuple[float, float, float]],
    vertical: str,
    label: str,
    style: dict[str, str],
) -> None:
    if not rows:
        return
    middle, low, high = np.array([place(row) for row in rows]).T
    heights, errors = np.array([_height(row, vertical) for row in rows]).T
    beside = (middle - low, high - middle) if (low < high).any() else None
    axes.errorbar(
        middle,
        heights,
        yerr=errors,
        xerr=beside,
        label=label,
        markersize=5,
        linewidth=1.2,
        elinewidth=0.8,
        capsize=2,
        **style,
    )


def rank_correlations(found: Sequence[tuple[str, RankCorrelation]], path: Path) -> None:
    """A table of shades for each model: Spearman's correlation of every two criteria, with its error."""
    most = max(len(correlation.criteria) for _, correlation in found)
    figure = Figure(figsize=((1.5 + 0.9 * most) * len(found) + 1, 1.5 + 0.8 * most), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for (model, correlation), axes in zip(found, panels, strict=True):
        image = axes.imshow(correlation.mean, cmap="Greys", vmin=-0.2, vmax=1)
        for (row, column), mean in np.ndenumerate(correlation.mean):
            text = f"{mean:.2f}" if row == column else f"{mean:.2f}\n±{correlation.error[row, column]:.2f}"
            ink = "white" if mean > 0.5 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
        places = range(len(correlation.criteria))
        axes.set_xticks(places, correlation.criteria, rotation=45, ha="right")
        axes.set_yticks(places, correlation.criteria)
        axes.set_title(f"{model}, {correlation.images} images")
    figure.colorbar(image, ax=panels[-1], label="Spearman's rank correlation at the first stage")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=_DPI)


def kept_patches(
    images: Sequence[tuple[str, UInt8[np.ndarray, "height width 3"]]],
    panels: Sequence[Sequence[Sequence[UInt8[np.ndarray, "height width 3"]]]],
    methods: Sequence[str],
    ratios: Sequence[float],
    path: Path,
) -> None:
    """A grid for each image, side by side: ``panels[image][method][ratio]``, what is left after the last
    stage, under the image itself with its caption."""
    width = len(ratios) * (_PANEL + _GAP) + 2 * _GAP
    height = (1 + len(methods)) * (_PANEL + _GAP) + _CAPTION + 2 * _GAP
    picture = Image.new("RGB", (_LABEL + len(images) * width, height), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(14)
    for row, method in enumerate(methods, 1):
        top = _GAP + _CAPTION + row * (_PANEL + _GAP)
        draw.text((_GAP, top + _PANEL // 2 - 8), method, fill="black", font=font)
    for image, (caption, pixels) in enumerate(images):
        left = _LABEL + image * width
        picture.paste(_panel(pixels), (left, _GAP))
        draw.text((left + _PANEL + _GAP, _GAP), caption, fill="black", font=font)
        for column, ratio in enumerate(ratios):
            across = left + column * (_PANEL + _GAP)
            draw.text((across, _GAP + _PANEL + 6), f"r = {ratio:g}", fill="black", font=font)
            for row in range(len(methods)):
                top = _GAP + _CAPTION + (row + 1) * (_PANEL + _GAP)
                picture.paste(_panel(panels[image][row][column]), (across, top))
    picture.save(path, optimize=True)


def _panel(pixels: UInt8[np.ndarray, "height width 3"]) -> Image.Image:
    return Image.fromarray(pixels).resize((_PANEL, _PANEL), Image.Resampling.BILINEAR)
