"""Plot a sweep as PNGs. They are readable without colors, because every method has its own marker and line
style."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation
from PIL import Image, ImageDraw, ImageFont

from models.training.answers import Row
from models.training.correlation import RankCorrelation

# Okabe and Ito's colors, which are safe for color-blind readers, without yellow.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = "osv^D*P<>"
_LINES = ("-", "--", "-.", ":")
_DPI = 150
_PANEL, _GAP, _CAPTION, _LABEL = 128, 6, 22, 150  # pixels


@dataclass(frozen=True)
class _Figure:
    """The content of an axis. ``of`` returns a row's value and the lengths of its error bar below and
    above."""

    title: str
    of: Callable[[Row], tuple[float, float, float]]


def _speed_of(row: Row) -> tuple[float, float, float]:
    middle, low, high = row.images_per_s, row.images_per_s_low, row.images_per_s_high
    assert middle is not None
    assert low is not None
    assert high is not None
    return middle, middle - low, high - middle


_COMPUTE = _Figure(
    "compute (share of the unpruned model's multiply-accumulates)", lambda row: (row.compute, 0.0, 0.0)
)
_SPEED = _Figure("measured speed (images/s)", _speed_of)
_TOP1 = _Figure("top-1 accuracy (%)", lambda row: (row.top1, row.top1_error, row.top1_error))
_AGREEMENT = _Figure(
    "same answer as the unpruned model (%)",
    lambda row: (row.agreement, row.agreement_error, row.agreement_error),
)


def accuracy_against_compute(rows: Sequence[Row], path: Path) -> None:
    """Plot top-1 over the share of multiply-accumulates. Bars are one standard error."""
    _curves(rows, _COMPUTE, _TOP1, path)


def agreement_against_compute(rows: Sequence[Row], path: Path) -> None:
    """Plot the agreement with the unpruned model over the share of multiply-accumulates. Bars are one
    standard error."""
    _curves(rows, _COMPUTE, _AGREEMENT, path)


def accuracy_against_speed(rows: Sequence[Row], path: Path) -> None:
    """Plot top-1 over images/s, for rows that have both. Vertical bars are one standard error; horizontal
    bars extend from the slowest to the fastest round."""
    _curves([row for row in rows if row.images_per_s is not None], _SPEED, _TOP1, path)


def _curves(rows: Sequence[Row], across: _Figure, up: _Figure, path: Path) -> None:
    """Plot a panel per model with a curve per method."""
    models = list(dict.fromkeys(row.model for row in rows))
    names = list(dict.fromkeys(_name(row) for row in rows if row.prunes))
    figure = Figure(figsize=(1.5 + 6 * len(models), 5), layout="constrained")
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for model, axes in zip(models, panels, strict=True):
        own = [row for row in rows if row.model == model]
        for index, name in enumerate(names):
            # Methods cost the same at a ratio, so points are shifted sideways to keep each error bar visible.
            beside = ScaledTranslation((index - (len(names) - 1) / 2) * 2.5 / 72, 0, figure.dpi_scale_trans)
            _curve(
                axes,
                [row for row in own if row.prunes and _name(row) == name],
                across,
                up,
                label=name,
                color=_COLOURS[index % len(_COLOURS)],
                marker=_MARKERS[index % len(_MARKERS)],
                linestyle=_LINES[index % len(_LINES)],
                transform=axes.transData + beside if across is _COMPUTE else axes.transData,
            )
        unpruned = [row for row in own if not row.prunes]
        _curve(axes, unpruned, across, up, label="unpruned", color="black", marker="X", linestyle="none")
        for row in unpruned:
            axes.axhline(up.of(row)[0], color="grey", linewidth=0.6, zorder=0)
        axes.set_title(model)
        axes.set_xlabel(across.title)
        axes.grid(visible=True, alpha=0.3)
    panels[0].set_ylabel(up.title)
    panels[-1].legend(fontsize="small")
    _save(figure, path)


def _name(row: Row) -> str:
    return row.method if row.keep_mass is None else f"{row.method}, by mass"


def _curve(axes: Axes, rows: Sequence[Row], across: _Figure, up: _Figure, **style: Any) -> None:
    if rows:
        x, *x_bars = np.array([across.of(row) for row in rows]).T
        y, *y_bars = np.array([up.of(row) for row in rows]).T
        axes.errorbar(
            x,
            y,
            xerr=x_bars if np.any(x_bars) else None,
            yerr=y_bars,
            markersize=5,
            linewidth=1.2,
            elinewidth=0.8,
            capsize=2,
            **style,
        )
        # matplotlib does not include shifted points in its axis limits.
        axes.update_datalim(np.column_stack((x, y - y_bars[0])))
        axes.update_datalim(np.column_stack((x, y + y_bars[1])))
        axes.autoscale_view()


def rank_correlations(found: Sequence[tuple[str, RankCorrelation]], path: Path) -> None:
    """Plot a heat map per model: Spearman's correlation of each pair of criteria, with its standard error."""
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
    figure.colorbar(image, ax=panels[-1], label="Spearman's rank correlation")
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
    """Draw a grid per image, side by side. Below the image with its caption, ``panels[image][method][ratio]``
    shows the patches that are kept after the last stage."""
    width = len(ratios) * (_PANEL + _GAP) + 2 * _GAP
    height = (1 + len(methods)) * (_PANEL + _GAP) + _CAPTION + 2 * _GAP
    picture = Image.new("RGB", (_LABEL + len(images) * width, height), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(14)
    draw.text((_GAP, _GAP), "left after the\nlast stage", fill="black", font=font)
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
