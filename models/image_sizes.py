"""Image sizes as users write them: 224, or height x width as in 224x448. No torch: settings use it."""

import re
from typing import Annotated

from pydantic import BeforeValidator

_MOST = 16_384


def image_size(text: str) -> tuple[int, int]:
    """Parse an image size. Returns height and width in pixels. Raises ValueError for invalid text."""
    found = re.fullmatch(r"\s*(\d{1,6})(?:\s*[x×,]\s*(\d{1,6}))?\s*", text, re.IGNORECASE)  # noqa: RUF001
    if found is None:
        raise ValueError("give pixels, such as 224, or height x width, such as 224x448")
    height = int(found[1])
    width = height if found[2] is None else int(found[2])
    if not (0 < height <= _MOST and 0 < width <= _MOST):
        raise ValueError(f"give a size from 1 to {_MOST} pixels, such as 224")
    return height, width


def _written(value: object) -> object:
    """Validate a size and return its canonical text. Settings files and callers may also pass numbers."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    elif isinstance(value, list | tuple) and len(value) == 2:
        value = f"{value[0]}x{value[1]}"
    if isinstance(value, str):
        height, width = image_size(value)
        return str(height) if height == width else f"{height}x{width}"
    return value


InputSize = Annotated[str | None, BeforeValidator(_written)]


def pixels_of(size: str | None) -> tuple[int, int] | None:
    """Height and width of an `InputSize`."""
    return None if size is None else image_size(size)
