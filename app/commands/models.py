"""`trimvit models`: the models that can be served here, and the cost of an image with each."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field
from tqdm import tqdm

from app.commands.failures import complain, reports_expected_errors
from app.inference.options import Share
from models.schedule import macs

if TYPE_CHECKING:
    from models.catalogue import Entry


class ModelsConfig(BaseModel):
    """List the models that can be served here, with their patches and the multiply-accumulates (in billions,
    GMACs) that an image costs at each keep ratio."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep_ratios: tuple[Share, ...] = Field((1.0, 0.7, 0.5, 0.3), min_length=1)
    architecture: str | None = Field(
        None, description="timm architecture of a file or folder that does not contain its name."
    )
    as_json: bool = Field(
        default=False, validation_alias="json", description="Print a line of JSON for each model."
    )


@reports_expected_errors
def models(config: ModelsConfig, patterns: Sequence[str]) -> int:
    """Print a row for each model. The exit code is 1 if there is none."""
    from models.catalogue import candidates

    possible = candidates(patterns, config.architecture)
    entries = []
    for candidate in tqdm(possible, unit="model", dynamic_ncols=True, disable=None, leave=False):
        entry = candidate.entry()
        if entry is not None:
            entries.append(entry)
    if not entries:
        why = " (networks without classes and other kinds of networks are not listed)" if possible else ""
        return complain("models", f"no model that can be pruned matches {' or '.join(patterns)}{why}")
    if config.as_json:
        for entry in entries:
            print(json.dumps(_as_dict(entry, config)))
    else:
        print(_table(entries, config))
    return 0


def _gmacs(entry: "Entry", keep_ratio: float) -> float:
    counts = entry.stages.keep_counts(entry.arch.patches, keep_ratio)
    return macs(entry.arch, entry.stages, counts) / 1e9


def _as_dict(entry: "Entry", config: ModelsConfig) -> dict[str, Any]:
    return {
        "model": entry.reference,
        "weights": entry.source,
        "image_size": list(entry.image_size),
        "classes": entry.classes,
        "patches": entry.arch.patches,
        "grid": list(entry.arch.grid),
        "stages": [block + 1 for block in entry.stages.blocks],
        "static_blocks": entry.arch.static_numbers,
        "cluster_blocks": entry.arch.cluster_numbers,
        "gmacs": {f"{ratio:g}": round(_gmacs(entry, ratio), 4) for ratio in config.keep_ratios},
    }


def _table(entries: Sequence["Entry"], config: ModelsConfig) -> str:
    head = ["model", "weights", "input", "classes", "patches"]
    head += [f"GMACs at {ratio:g}" for ratio in config.keep_ratios]
    rows = [
        [
            entry.reference,
            entry.source,
            "{} x {}".format(*entry.image_size),
            str(entry.classes),
            str(entry.arch.patches),
            *(f"{_gmacs(entry, ratio):.2f}" for ratio in config.keep_ratios),
        ]
        for entry in entries
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    texts = 3  # text columns are left-aligned, numbers right-aligned
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [head, *rows]
    )
