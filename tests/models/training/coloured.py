"""Pictures of three colours, which tell the class."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"amber": (230, 170, 20), "blue": (30, 60, 220), "coral": (240, 90, 80)}


def save_pictures(
    folder: Path, images: Mapping[str, int], size_of: Callable[[int], tuple[int, int]], seed: int = 0
) -> Path:
    """Noisy pictures in a folder for each class, ``images`` of it, of the size (height, width in pixels) that
    each one's number has."""
    generator = np.random.default_rng(seed)
    for name, count in images.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            picture = np.array(COLOURS[name]) + generator.normal(0, 25, (*size_of(index), 3))
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / name / f"{index}.png")
    return folder
