"""Write the output of a sweep: table, figures, plots and pictures of the kept patches."""

import csv
import io
import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from models.device import cores
from models.files import write_whole
from models.training.answers import Row
from models.training.config import SweepConfig
from models.training.correlation import RankCorrelation
from models.training.evaluate import table


@dataclass(frozen=True)
class Picture:
    """An image, and the pictures of its kept patches, ``kept[method][ratio]``."""

    caption: str
    pixels: np.ndarray
    kept: list[list[np.ndarray]]


def write_figures(
    config: SweepConfig,
    computing: str,
    rows: Sequence[Row],
    correlations: Sequence[tuple[str, RankCorrelation]],
) -> None:
    """Write the table and figures as Markdown, CSV and JSON. They contain no paths of this machine."""
    figures = [{**asdict(row), "method": row.method} for row in rows]
    replace_file(config.output / "sweep.md", table(rows) + "\n")
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, list(figures[0]))
    writer.writeheader()
    writer.writerows(figures)
    replace_file(config.output / "sweep.csv", lines.getvalue())
    record = {
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": _processor(),
            "cores": cores(),
            "gpu": _gpu(computing),
            "computing": computing,
        },
        "versions": {name: version(name) for name in ("torch", "timm", "numpy")}
        | {"python": platform.python_version()},
        "settings": config.model_dump(
            mode="json", exclude={"data", "output", "models", "architecture", "labels"}
        )
        | {"data": config.data.name, "models": list(config.labelled_models)},
        "images": rows[0].images,
        "rows": figures,
        "rank_correlation": {
            label: {
                "criteria": correlation.criteria,
                "images": correlation.images,
                "mean": correlation.mean.round(4).tolist(),
                "error": correlation.error.round(4).tolist(),
            }
            for label, correlation in correlations
        },
    }
    replace_file(config.output / "sweep.json", json.dumps(record, indent=1) + "\n")


def plot_figures(
    config: SweepConfig,
    rows: Sequence[Row],
    correlations: Sequence[tuple[str, RankCorrelation]],
    pictures: Mapping[str, Sequence[Picture]],
    names: Sequence[str],
) -> None:
    """Plot the figures, and the pictures of the patches that the methods with these ``names`` keep."""
    from models.training import plots  # needs the extra train

    plots.accuracy_against_compute(rows, config.output / "accuracy_compute.png")
    plots.agreement_against_compute(rows, config.output / "agreement_compute.png")
    if config.speed:
        plots.accuracy_against_speed(rows, config.output / "accuracy_speed.png")
    if correlations:
        plots.rank_correlations(correlations, config.output / "rank_correlation.png")
    ratios = pruning_ratios(config)
    for label, own in pictures.items():
        if own and ratios:
            name = "kept.png" if len(config.models) == 1 else f"kept-{label}.png"
            plots.kept_patches(
                [(picture.caption, picture.pixels) for picture in own],
                [picture.kept for picture in own],
                names,
                ratios,
                config.output / name,
            )


def pruning_ratios(config: SweepConfig) -> list[float]:
    """Return the ratios below 1, in descending order."""
    return sorted(set(config.keep_ratios) - {1.0}, reverse=True)


def replace_file(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_whole(path, lambda file: file.write(text.encode()))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", info.read_text(encoding="utf-8")) if info.exists() else []
    return names[0] if names else platform.processor()


def _gpu(computing: str) -> str | None:
    return torch.cuda.get_device_name() if computing.startswith("cuda") else None
