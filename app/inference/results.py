"""The result of one image, in the form of the JSON of /v1/classify."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt16

from app.errors import InternalFault
from app.inference.asks import requested_keep_ratio
from app.inference.options import ImageOptions, MaskFormat
from app.messages.image import Ask, Lowered, Prediction
from app.messages.model import ModelInfo
from models.pictures import cells_of, dimmed, png_of
from models.schedule import WITHOUT_CRITERION


def image_result(
    prediction: Prediction,
    model: ModelInfo,
    *,
    options: ImageOptions,
    ask: Ask,
    lowered: Lowered | None = None,
    picture: UInt8[np.ndarray, "height width 3"] | None,
    warnings: Sequence[str],
    cached: bool = False,
) -> dict[str, Any]:
    """One ImageResult of the schemas, as plain data. ``ask``: the request that was made from the ``options``.
    ``picture``: the input of the model, for a mask as PNG. ``cached``: it comes from the answer cache."""
    pruning, mask = ask.pruning, options.mask
    total = model.architecture.patches
    result: dict[str, Any] = {
        "labels": [
            {"index": index, "label": model.labels[index], "score": score}
            for index, score in zip(prediction.classes, prediction.scores, strict=True)
        ],
        "keep_ratio": prediction.keep_ratio,
        "requested_keep_ratio": requested_keep_ratio(options, ask),
        "lowered": lowered,
        "criterion": None if pruning.reducer in WITHOUT_CRITERION else pruning.criterion,
        "reducer": pruning.reducer,
        "patches": {
            "total": total,
            "kept": prediction.kept_counts[-1] if prediction.kept_counts else total,
            "per_stage": list(prediction.kept_counts),
            "grid": list(model.architecture.grid),
        },
        "compute": round(prediction.compute, 6),
        "runs": prediction.runs,
    }
    if mask != "none":
        stages = list(zip(model.method.stages.blocks, prediction.kept_patches, strict=True))
        result["mask"] = [
            {"block": block + 1, mask: _render(mask, kept, model, picture)}
            for block, kept in (stages if options.mask_stages else stages[-1:])
        ]
    if warnings:
        result["warnings"] = list(warnings)
    if cached:
        result["cached"] = True
    return result


def check_numbers(prediction: Prediction, model: ModelInfo) -> None:
    """Raises InternalFault for NaN and infinity: JSON has neither, and binary tensors would hide them."""
    if prediction.is_finite:
        return
    raise InternalFault(
        f"the scores for this image are not finite numbers: {model.name} overflows in {model.dtype}; try "
        "--dtype float32"
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
    """A PNG of the input of the model, with every patch dimmed whose cell is 0."""
    return png_of(dimmed(cells, pixels, patch_size, patch_stride))
