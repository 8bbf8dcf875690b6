"""Engine answers -> the JSON of /v1/classify."""

import base64
import json
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8, UInt16

from app.decoding.images import ModelInput
from app.engine.client import Classified
from app.engine.messages import ModelInfo
from app.errors import InternalFault
from app.http.schemas import MaskFormat
from app.inference.resolved_options import ResolvedOptions
from models.pictures import cells_of, dimmed, png_of

WARNINGS_HEADER = "Image-Warnings"
WARNINGS_HEADER_SCHEMA: dict[str, Any] = {
    WARNINGS_HEADER: {
        "description": "What the sender should know of how an image was read, each warning with the image's "
        "place in the request; only where there is something to say.",
        "schema": {"type": "string"},
        "required": False,
    }
}
# Proxies refuse headers of several kilobytes.
_LONGEST_HEADER = 1000


def image_result(
    classified: Classified,
    model: ModelInfo,
    *,
    asked: ResolvedOptions,
    mask: MaskFormat,
    every_stage: bool,
    seen: ModelInput,
) -> dict[str, Any]:
    """One ImageResult of the schemas, as plain data."""
    answer, pruning = classified.answer, asked.pruning
    total = model.architecture.patches
    result: dict[str, Any] = {
        "labels": [
            {"index": index, "label": model.labels[index], "score": score}
            for index, score in zip(answer.classes, answer.scores, strict=True)
        ],
        "keep_ratio": answer.keep_ratio,
        "requested_keep_ratio": asked.requested,
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
            {"block": block + 1, mask: _render(mask, kept, model, seen.pixels)}
            for block, kept in (stages if every_stage else stages[-1:])
        ]
    if seen.warnings:
        result["warnings"] = list(seen.warnings)
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


def result_json(
    classified: Classified,
    model: ModelInfo,
    *,
    asked: ResolvedOptions,
    mask: MaskFormat,
    every_stage: bool,
    seen: ModelInput,
) -> bytes:
    """The same as JSON. Raises ValueError for a number that JSON does not have."""
    result = image_result(classified, model, asked=asked, mask=mask, every_stage=every_stage, seen=seen)
    return _json(result)


def joined_results(model: str, results: Sequence[bytes], timings_ms: dict[str, float]) -> bytes:
    """A ClassifyResponse of the schemas as JSON, of results that are JSON already."""
    return b"".join(
        (
            b'{"model":',
            _json(model),
            b',"results":[',
            b",".join(results),
            b'],"timings_ms":',
            _json(timings_ms),
            b"}",
        )
    )


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _render(
    mask: MaskFormat,
    kept: UInt16[np.ndarray, " kept"],
    model: ModelInfo,
    pixels: UInt8[np.ndarray, "height width 3"],
) -> list[int] | list[list[int]] | str:
    if mask == "indices":
        return kept.tolist()
    cells = cells_of(kept, model.architecture.grid)
    if mask == "grid":
        rows: list[list[int]] = cells.tolist()
        return rows
    return base64.b64encode(mask_picture(cells, pixels, model.patch_size, model.patch_stride)).decode()


def mask_picture(
    cells: UInt8[np.ndarray, "rows columns"],
    pixels: UInt8[np.ndarray, "height width 3"],
    patch_size: tuple[int, int],
    patch_stride: tuple[int, int],
) -> bytes:
    """A PNG of what the model saw, with every patch whose cell is 0 dimmed."""
    return png_of(dimmed(cells, pixels, patch_size, patch_stride))


class Answered(Protocol):
    """An image that was answered."""

    @property
    def seen(self) -> ModelInput:
        """What the model saw of it."""


def warning_headers(answered: Sequence[Answered]) -> dict[str, str]:
    """The header that says what the results' ``warnings`` say, for answers that have no place for them."""
    told = "; ".join(
        f"image {index}: {warning}" for index, image in enumerate(answered) for warning in image.seen.warnings
    )
    if not told:
        return {}
    plain = told.encode("ascii", "replace").decode()
    cut = plain if len(plain) <= _LONGEST_HEADER else f"{plain[: _LONGEST_HEADER - 3]}..."
    return {WARNINGS_HEADER: cut}


def server_timing(timings_ms: dict[str, float]) -> str:
    """The value of a Server-Timing header (W3C Server Timing, section 4)."""
    return ", ".join(f"{phase};dur={duration:.3f}" for phase, duration in timings_ms.items())


def longest(durations_s: Sequence[float]) -> float:
    """Milliseconds of the longest."""
    return round(max(durations_s) * 1000, 3)
