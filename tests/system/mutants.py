"""Images that were damaged on their way: flipped, cut, spliced, in every format that is taken."""

import io
import random
from collections.abc import Iterator

from PIL import Image

from app.decoding.images import FORMATS
from tests.system.photographs import SHIPPED

_SIDES = ((90, 60), (33, 47))


def sound_images() -> list[bytes]:
    """Small photographs in every format and in several of its variants."""
    images = []
    for name, (width, height) in zip(("chelsea.jpg", "coffee.jpg"), _SIDES, strict=True):
        photo = Image.open(SHIPPED / name).resize((width, height))
        exif = Image.Exif()
        exif[0x0112] = 6
        variants: list[tuple[Image.Image, str, dict[str, object]]] = [
            (photo, "JPEG", {"progressive": True, "exif": exif}),
            (photo.convert("CMYK"), "JPEG", {}),
            (photo.convert("RGBA"), "PNG", {"exif": exif}),
            (photo.quantize(16), "PNG", {}),
            (photo, "WEBP", {"lossless": True}),
            (photo, "WEBP", {"save_all": True, "append_images": [photo.rotate(90)]}),
            (photo, "GIF", {"save_all": True, "append_images": [photo.rotate(90)]}),
            *[
                (photo, "TIFF", {"compression": compression})
                for compression in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")
            ],
            (photo.convert("1"), "TIFF", {"compression": "group4"}),
        ]
        variants += [(photo, file_format, {}) for file_format in FORMATS]
        for image, file_format, options in variants:
            buffer = io.BytesIO()
            image.save(buffer, file_format, **options)
            images.append(buffer.getvalue())
    return images


def mutants(count: int, seed: int) -> Iterator[bytes]:
    """So many damaged images, the same for the same seed."""
    draw = random.Random(seed)
    sound = sound_images()
    for _ in range(count):
        data = bytearray(draw.choice(sound))
        for _ in range(draw.choice((1, 1, 2, 4))):
            draw.choice((_flip, _flip, _overwrite, _cut, _remove, _repeat, _splice))(data, draw, sound)
        yield bytes(data)


def _place(data: bytearray, draw: random.Random) -> int:
    """Anywhere, but every other time near the start, where the headers are."""
    return draw.randrange(min(len(data), draw.choice((80, len(data)))) or 1)


def _flip(data: bytearray, draw: random.Random, sound: list[bytes]) -> None:
    for _ in range(draw.choice((1, 3, 20))):
        if data:
            data[_place(data, draw)] ^= 1 << draw.randrange(8)


def _overwrite(data: bytearray, draw: random.Random, sound: list[bytes]) -> None:
    """With the numbers at which integers overflow."""
    place = _place(data, draw)
    data[place : place + 4] = draw.choice(
        (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x80")
    )


def _cut(data: bytearray, draw: random.Random, sound: list[bytes]) -> None:
    del data[_place(data, draw) :]


def _remove(data: bytearray, draw: random.Random, sound: list[bytes]) -> None:
    place = _place(data, draw)
    del data[place : place + draw.choice((1, 2, 16, 200))]


def _repeat(data: bytearray, draw: random.Random, sound: list[bytes]) -> None:
    place = _place(data, draw)
    data[place:place] = data[place : place + draw.choice((1, 12, 300))] * draw.choice((1, 2, 50))


def _splice(data: bytearray, draw: random.Random, sound: list[bytes]) -> None:
    """The start of this one with the end of another."""
    other = draw.choice(sound)
    place = _place(data, draw)
    data[place:] = other[min(place, len(other) - 1) :]
