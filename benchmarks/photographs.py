"""Load real photographs as model inputs."""

import random
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from models.transforms import InputSpec, photograph, to_pixels

FEWEST = 8
MOST_FILES = 256


def image_files(folder: Path) -> list[Path]:
    """Return the first 256 images of a folder by name; other files are skipped. Raises ValueError without
    any."""
    found = [path for path in sorted(folder.iterdir()) if path.is_file() and _is_image(path)][:MOST_FILES]
    if not found:
        raise ValueError(f"there are no images in {folder}")
    return found


def load_photographs(folder: Path, spec: InputSpec, at_least: int) -> UInt8[Tensor, "images height width 3"]:
    """Preprocess the images of a folder. If there are fewer than ``at_least`` (or 8), add random crops of
    them."""
    files = image_files(folder)
    seen = [to_pixels(Image.open(path), spec) for path in files]
    draw = random.Random(0)
    while len(seen) < max(at_least, FEWEST):
        whole = photograph(Image.open(files[len(seen) % len(files)]))
        seen.append(to_pixels(_crop(whole, draw), spec))
    return torch.from_numpy(np.stack(seen))


def _is_image(path: Path) -> bool:
    try:
        Image.open(path).close()
    except UnidentifiedImageError:
        return False
    return True


def _crop(image: Image.Image, draw: random.Random) -> Image.Image:
    """Return a random crop with 50 to 100 % of each side."""
    width, height = (round(side * draw.uniform(0.5, 1.0)) for side in image.size)
    left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))
