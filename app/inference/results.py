"""The result of one image, as the JSON of /v1/classify has it."""

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt16

from app.dispatch.answers import Classified
from app.errors import InternalFault
from app.inference.options import MaskFormat
from app.inference.resolved_options import ResolvedOptions
from app.messages.model import ModelInfo
from models.pictures import cells_of, dimmed, png_of


def image_result(
    classified: Classified,
    model: ModelInfo,
    *,
    resolved: ResolvedOptions,
    mask: MaskFormat,
    every_stage: bool,
    picture: UInt8[np.ndarray, "height width 3"] | None,
    warnings: Sequence[str],
) -> dict[str, Any]:
    """One ImageResult of the schemas, as plain data. ``picture``: what the model saw, for a mask as PNG."""
    answer, pruning = classified.answer, resolved.pruning
    total = model.architecture.patches
    result: dict[str, Any] = {
        "labels": [
            {"index": index, "label": model.labels[index], "score": score}
            for index, score in zip(answer.classes, answer.scores, strict=True)
        ],
        "keep_ratio": answer.keep_ratio,
        "requested_keep_ratio": resolved.requested,
        "lowered": answer.lowered,
        "criterion": None if pruning.reducer == "merge" else pruning.criterion,
        "reducer": pruning.reducer,
        "patches": {
            "total": total,
            "kept": answer.kept_counts[-1] if answer.kept_counts else total,
            "per_stage": list(answer.kept_counts),
            "grid": list(model.architecture.grid),
        },
        "compute": round(answer.compute, 6),
        "runs": answer.runs,
    }
    if mask != "none":
        stages = list(zip(model.method.stages.blocks, classified.kept, strict=True))
        result["mask"] = [
            {"block": block + 1, mask: _render(mask, kept, model, picture)}
            for block, kept in (stages if every_stage else stages[-1:])
        ]
    if warnings:
        result["warnings"] = list(warnings)
    return result


def check_numbers(classified: Classified, model: ModelInfo) -> None:
    """Raises InternalFault for NaN and infinity: JSON has neither, and binary tensors would hide them."""
    logits = classified.logits
    if all(map(math.isfinite, classified.answer.scores)) and (logits is None or np.isfinite(logits).all()):
        return
    raise InternalFault(
        f"the network's scores for this image are not numbers: {model.name} overflows in {model.dtype}; "
        "--dtype float32 may help"
    )


def _render(
    mask: MaskFormat,
    kept: UInt16[np.ndarray, " kept"],
    model: ModelInfo,
    picture: UInt8[np.ndarray, "height width 3"] | None,
) -> list[int] | list[list[int]] | str:
    if mask == "indices":
        return kept.tolist()
    cells = cells_of(kept, model.architecture.grid)
    if mask == "grid":
        rows: list[list[int]] = cells.tolist()
        return rows
    assert picture is not None, "it is kept where it is asked for"
    return base64.b64encode(mask_picture(cells, picture, model.patch_size, model.patch_stride)).decode()


def mask_picture(
    cells: UInt8[np.ndarray, "rows columns"],
    pixels: UInt8[np.ndarray, "height width 3"],
    patch_size: tuple[int, int],
    patch_stride: tuple[int, int],
) -> bytes:
    """A PNG of what the model saw, with every patch whose cell is 0 dimmed."""
    return png_of(dimmed(cells, pixels, patch_size, patch_stride))
