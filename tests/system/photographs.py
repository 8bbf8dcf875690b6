"""Real photographs for system tests: the shipped ones, or a whole folder where one is given."""

import io
import os
import random
from pathlib import Path

from PIL import Image

SHIPPED = Path(__file__).parents[1] / "photographs"
FOLDER_VARIABLE = "TRIMVIT_TEST_PHOTOGRAPHS"


def photographs(count: int) -> list[bytes]:
    """Encoded photographs: those of the folder in the environment, else crops of the shipped ones."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder is not None:
        files = sorted(Path(folder).glob("*.JPEG"))
        return [files[index % len(files)].read_bytes() for index in range(count)]
    draw = random.Random(5)
    sources = [Image.open(path) for path in sorted(SHIPPED.glob("*.jpg"))]
    return [_crop(sources[index % len(sources)], draw) for index in range(count)]


def _crop(image: Image.Image, draw: random.Random) -> bytes:
    width, height = (round(side * draw.uniform(0.5, 1.0)) for side in image.size)
    left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
    buffer = io.BytesIO()
    image.crop((left, top, left + width, top + height)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
