"""From image files of every kind to the pixels a model sees."""

import io
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image
from timm.data import create_transform

import models
from models.classifier import normalise
from models.transforms import Crop, InputSpec, Interpolation, as_rgb, crop_box, photograph, to_pixels

REPOSITORY = Path(models.__file__).parents[1]
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)

# Where the upright pixel (row y, column x) of an image lies in the file: TIFF 6.0, page 36. The first word
# is the visual side of the file's row 0, the second of its column 0.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,  # top, left
    2: lambda upright: upright[:, ::-1],  # top, right
    3: lambda upright: upright[::-1, ::-1],  # bottom, right
    4: lambda upright: upright[::-1],  # bottom, left
    5: lambda upright: upright.swapaxes(0, 1),  # left, top
    6: lambda upright: upright.swapaxes(0, 1)[::-1],  # right, top
    7: lambda upright: upright.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
    8: lambda upright: upright.swapaxes(0, 1)[:, ::-1],  # left, bottom
}
ENCODINGS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "TIFF": {},
    "WEBP": {"lossless": True},
    "JPEG": {"quality": 95, "subsampling": 0},
}


def spec(
    rows: int,
    columns: int,
    crop: Crop = "center",
    crop_share: float = 1.0,
    interpolation: Interpolation = "bicubic",
) -> InputSpec:
    return InputSpec((rows, columns), MEAN, STD, interpolation, crop, crop_share)


def scene(width: int, height: int, detail: float = 1.0) -> np.ndarray:
    """A smooth picture without any symmetry, as uint8 [height, width, 3]."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = [
        x + 0.3 * np.sin(9 * detail * y),
        0.2 + 0.7 * y * x,
        0.5 + 0.4 * np.sin(7 * detail * x * (1 - y)),
    ]
    return (np.stack(waves, axis=-1).clip(0, 1) * 255).round().astype(np.uint8)


def encoded(image: Image.Image, kind: str, orientation: int | None = None) -> io.BytesIO:
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    image.save(file, kind, exif=exif, **ENCODINGS[kind])
    return file


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    assert one.shape == other.shape
    return np.abs(one.astype(int) - other.astype(int))


# The crop.


@pytest.mark.parametrize(
    ("width", "height", "wanted", "box"),
    [
        (400, 300, spec(100, 100), (50, 0, 350, 300)),  # landscape: the middle square
        (300, 400, spec(100, 100), (0, 50, 300, 350)),  # portrait
        (400, 300, spec(100, 100, crop_share=0.5), (125, 75, 275, 225)),  # half of that square's side
        (400, 300, spec(100, 200), (0, 50, 400, 250)),  # twice as wide as high
        (400, 300, spec(200, 100), (125, 0, 275, 300)),  # twice as high as wide
        (400, 300, spec(200, 100, crop_share=0.9), (132.5, 15, 267.5, 285)),
        (400, 300, spec(100, 100, "squash"), (0, 0, 400, 300)),
        (400, 300, spec(100, 100, "squash", crop_share=0.9), (20, 15, 380, 285)),
        (50, 40, spec(100, 100), (5, 0, 45, 40)),  # smaller than the input: the same, enlarged
        (1, 1, spec(100, 100), (0, 0, 1, 1)),
    ],
)
def test_crop_box_by_hand(
    width: int, height: int, wanted: InputSpec, box: tuple[float, float, float, float]
) -> None:
    """The middle `crop_share` of the largest box of the input's proportions, or of everything."""
    assert crop_box(width, height, wanted) == pytest.approx(box)


@given(
    width=st.integers(1, 20_000),
    height=st.integers(1, 20_000),
    size=st.tuples(st.integers(1, 600), st.integers(1, 600)),
    crop=st.sampled_from(["center", "squash"]),
    crop_share=st.sampled_from([1.0, 0.95, 0.9, 0.875]) | st.floats(0.01, 1),
)
def test_crop_box_stays_inside(
    width: int, height: int, size: tuple[int, int], crop: Crop, crop_share: float
) -> None:
    """No rounding pushes the box over the image's edge (where Pillow refuses it), nor is it ever empty."""
    left, top, right, bottom = crop_box(width, height, spec(*size, crop, crop_share))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


@pytest.mark.parametrize("side", [29, 58, 116])
def test_sides_whose_box_rounds_outwards_are_read(side: int) -> None:
    """224 * (29 / 224) is above 29 in floats; such an image is classified like any other."""
    assert to_pixels(Image.new("RGB", (side, side)), spec(224, 224)).shape == (224, 224, 3)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 997), (997, 1), (3, 2)])
def test_tiny_and_thin_images_are_read(width: int, height: int) -> None:
    """An image of a single row, column or pixel gives an input of the usual size."""
    pixels = to_pixels(Image.new("RGB", (width, height), (10, 20, 30)), spec(23, 37))
    assert pixels.shape == (23, 37, 3)
    assert (pixels == (10, 20, 30)).all()


def test_center_crop_shows_the_middle() -> None:
    """Of a wide image with red ends, a square input sees none of the red; squashed, it sees all of it."""
    picture = np.full((40, 100, 3), 128, np.uint8)
    picture[:, :25] = picture[:, 75:] = (255, 0, 0)
    image = Image.fromarray(picture)
    cut = to_pixels(image, spec(20, 20, interpolation="bilinear"))
    assert (cut == 128).all()
    squashed = to_pixels(image, spec(20, 20, "squash"))
    assert squashed[10, 1].tolist() == [255, 0, 0]
    assert squashed[10, 10].tolist() == [128, 128, 128]


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_interpolation_is_the_named_one(interpolation: Interpolation) -> None:
    """The input spec's interpolation is Pillow's of that name."""
    picture = np.random.default_rng(0).integers(0, 256, (31, 47, 3), np.uint8)
    image = Image.fromarray(picture)
    want = image.resize((11, 17), Image.Resampling[interpolation.upper()])
    got = to_pixels(image, spec(17, 11, "squash", interpolation=interpolation))
    assert (got == np.asarray(want)).all()


# Orientation.


@pytest.mark.parametrize("kind", ENCODINGS)
@pytest.mark.parametrize("orientation", STORED)
def test_every_orientation_is_turned_upright(kind: str, orientation: int) -> None:
    """A photograph stored any of the eight ways gives the pixels of the upright one, square input or not."""
    upright = scene(97, 61)
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    want = to_pixels(Image.fromarray(upright), spec(23, 31, crop_share=0.9))
    file = encoded(stored, kind, orientation)
    assert Image.open(file).getexif()[ExifTags.Base.Orientation] == orientation
    got = to_pixels(Image.open(file), spec(23, 31, crop_share=0.9))
    assert difference(got, want).max() <= (6 if kind == "JPEG" else 1)


@pytest.mark.parametrize("orientation", STORED)
def test_photograph_is_the_whole_image_upright(orientation: int) -> None:
    """For training, every pixel of the upright image is there, at its place."""
    upright = scene(19, 13)
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    got = photograph(Image.open(encoded(stored, "PNG", orientation)))
    assert got.mode == "RGB"
    assert (np.asarray(got) == upright).all()


@pytest.mark.parametrize("orientation", [0, 9, 6000])
def test_unknown_orientations_are_ignored(orientation: int) -> None:
    """An orientation that TIFF does not define leaves the image as stored."""
    upright = Image.fromarray(scene(41, 29))
    got = to_pixels(Image.open(encoded(upright, "PNG", orientation)), spec(11, 17))
    assert (got == to_pixels(upright, spec(11, 17))).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_does_not_cost_the_image(kind: str) -> None:
    """Whatever bytes stand in the EXIF block, the pixels are read: 200 blocks, cut and overwritten."""
    image = Image.fromarray(scene(41, 29))
    intact = Image.Exif()
    intact[ExifTags.Base.Orientation] = 6
    intact[ExifTags.Base.Make] = "camera"
    draw = random.Random(0)
    for _ in range(200):
        block = bytearray(intact.tobytes())
        for _ in range(draw.randint(1, 6)):
            block[draw.randrange(6, len(block))] = draw.choice([0, 255, draw.randrange(256)])
        if draw.random() < 0.3:
            block = block[: draw.randrange(6, len(block))]
        file = io.BytesIO()
        image.save(file, kind, exif=bytes(block), **ENCODINGS[kind])
        assert to_pixels(Image.open(file), spec(11, 17)).shape == (11, 17, 3)


def test_unreadable_pixels_are_an_error() -> None:
    """A PNG that breaks off raises Pillow's OSError; half an image is not an image."""
    whole = encoded(Image.fromarray(scene(97, 61)), "PNG").getvalue()
    image = Image.open(io.BytesIO(whole[: len(whole) // 2]))
    with pytest.raises(OSError, match="truncated"):
        to_pixels(image, spec(11, 17))


# Colour.


def through(image: Image.Image, kind: str, **options: object) -> Image.Image:
    """The image as it comes out of a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(file)


def palette_image() -> Image.Image:
    image = Image.new("P", (5, 3), 1)
    image.putpalette([255, 0, 0, 10, 20, 30])
    image.putpixel((0, 0), 0)
    return image


def sixteen_bits() -> Image.Image:
    return Image.fromarray(np.full((3, 5), 65_000, np.uint16))


COLOURS = {
    "RGB": (Image.new("RGB", (5, 3), (10, 20, 30)), (10, 20, 30)),
    "greyscale JPEG": (through(Image.new("L", (5, 3), 77), "JPEG", quality=100), (77, 77, 77)),
    "greyscale with a transparent grey": (
        through(Image.new("L", (5, 3), 77), "PNG", transparency=77),
        (255, 255, 255),
    ),
    "greyscale with another grey transparent": (
        through(Image.new("L", (5, 3), 77), "PNG", transparency=78),
        (77, 77, 77),
    ),
    # 255 * (1 - 0.2) * (1 - 0.4), and so on
    "CMYK": (
        through(Image.new("CMYK", (5, 3), (51, 102, 153, 0)), "TIFF"),
        (204, 153, 102),
    ),
    "CMYK JPEG": (
        through(Image.new("CMYK", (16, 16), (51, 102, 153, 0)), "JPEG", quality=100),
        (204, 153, 102),
    ),
    "palette": (through(palette_image(), "PNG"), (10, 20, 30)),
    "palette with its colour transparent": (
        through(palette_image(), "PNG", transparency=1),
        (255, 255, 255),
    ),
    "palette with half-transparent colour": (
        through(palette_image(), "PNG", transparency=bytes([255, 51])),
        (206, 208, 210),  # a fifth of the colour, four fifths of white
    ),
    "palette GIF": (through(palette_image(), "GIF"), (10, 20, 30)),
    "RGBA opaque": (through(Image.new("RGBA", (5, 3), (10, 20, 30, 255)), "PNG"), (10, 20, 30)),
    "RGBA transparent": (through(Image.new("RGBA", (5, 3), (10, 20, 30, 0)), "PNG"), (255, 255, 255)),
    "RGBA a fifth": (through(Image.new("RGBA", (5, 3), (10, 20, 30, 51)), "PNG"), (206, 208, 210)),
    "RGB with a transparent colour": (
        through(Image.new("RGB", (5, 3), (10, 20, 30)), "PNG", transparency=(10, 20, 30)),
        (255, 255, 255),
    ),
    "LA": (through(Image.new("LA", (5, 3), (55, 51)), "PNG"), (215, 215, 215)),
    "PA": (Image.new("RGBA", (5, 3), (10, 20, 30, 0)).convert("PA"), (255, 255, 255)),
    "1 bit white": (through(Image.new("1", (5, 3), 1), "PNG"), (255, 255, 255)),
    "1 bit black": (through(Image.new("1", (5, 3), 0), "PNG"), (0, 0, 0)),
    # 65000 / 65535 * 255 = 252.9
    "16-bit greyscale PNG": (through(sixteen_bits(), "PNG"), (253, 253, 253)),
    "16-bit big-endian": (Image.frombytes("I;16B", (5, 3), b"\xfd\xe8" * 15), (253, 253, 253)),
    "16-bit greyscale TIFF": (through(sixteen_bits(), "TIFF"), (253, 253, 253)),
    "32-bit integers": (Image.new("I", (5, 3), 65_000), (253, 253, 253)),
    "32-bit integers beyond 16 bits": (Image.new("I", (5, 3), 2**30), (128, 128, 128)),
    # 0.6 * 255 = 153
    "floats": (through(Image.new("F", (5, 3), 0.6), "TIFF"), (153, 153, 153)),
    "floats beyond 1": (Image.new("F", (5, 3), 3.0), (3, 3, 3)),
    "not a number": (Image.new("F", (5, 3), float("nan")), (0, 0, 0)),
    "YCbCr": (Image.new("YCbCr", (5, 3), (100, 128, 128)), (100, 100, 100)),
}


@pytest.mark.parametrize("name", COLOURS)
def test_every_colour_mode_is_seen_as_a_person_sees_it(name: str) -> None:
    """Transparency lies on white, 16 bits become 8, and the rest is the colour meant."""
    image, want = COLOURS[name]
    seen = as_rgb(image)
    assert seen.mode == "RGB"
    assert seen.size == image.size
    # A JPEG rounds its own way.
    assert difference(np.asarray(seen)[2, 4], np.array(want)).max() <= (1 if "JPEG" in name else 0)
    pixels = to_pixels(image, spec(7, 11))
    assert pixels.dtype == np.uint8
    assert tuple(pixels[-1, -1]) == seen.getpixel((4, 2))


def test_resized_after_the_colours_not_before() -> None:
    """A palette is a table, not a scale: between two of its colours lies their mix, not a third entry."""
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 0, 255, 0, 200, 200, 200])
    image.putpixel((1, 0), 2)
    pixels = to_pixels(image, spec(1, 8, "squash", interpolation="bilinear"))
    assert (pixels[..., 0] == pixels[..., 1]).all()  # black to grey, never through the green of entry 1


# The cheaper decode of large JPEGs.


def large_jpeg(width: int = 1700, height: int = 1100, orientation: int | None = None) -> io.BytesIO:
    noise = np.random.default_rng(0).normal(0, 12, (height, width, 1))
    picture = (scene(width, height, detail=6.0) + noise).clip(0, 255).astype(np.uint8)
    return encoded(Image.fromarray(picture), "JPEG", orientation)


@pytest.mark.parametrize(
    ("wanted", "decoded"),
    [
        (spec(112, 112), (425, 275)),  # 1100 / (2 * 112) is 4.9: a quarter
        (spec(60, 60), (213, 138)),  # 9.2: an eighth
        (spec(256, 256), (850, 550)),  # 2.1: a half
        (spec(300, 300), (1700, 1100)),  # 1.8: whole
        (spec(256, 256, crop_share=0.9), (1700, 1100)),  # 1.9: whole
        (spec(100, 200, "squash"), (425, 275)),  # 4.25 across, 5.5 down
        (spec(60, 400, "squash"), (850, 550)),  # 2.1 across, 9.2 down
    ],
)
def test_large_jpegs_are_decoded_smaller(wanted: InputSpec, decoded: tuple[int, int]) -> None:
    """A JPEG is decoded at the least of 1/2, 1/4 and 1/8 that is at least twice the size to be resized to."""
    image = Image.open(large_jpeg())
    to_pixels(image, wanted)
    assert image.size == decoded


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(
    "wanted", [spec(112, 96), spec(60, 60, crop_share=0.9), spec(100, 130, "squash"), spec(64, 64)]
)
def test_a_smaller_decode_shows_the_same(wanted: InputSpec, orientation: int) -> None:
    """The pixels of the reduced decode are those of the full one but for a level or so."""
    file = large_jpeg(orientation=orientation)
    reduced, whole = Image.open(file), Image.open(file)
    whole.load()
    got, want = to_pixels(reduced, wanted), to_pixels(whole, wanted)
    assert reduced.size < whole.size == (1700, 1100)
    assert difference(got, want).mean() < 1
    assert difference(got, want).max() <= 5


# Against timm's own preprocessing.


@pytest.mark.parametrize(("width", "height"), [(331, 257), (257, 331), (223, 223), (90, 61)])
@pytest.mark.parametrize("crop", ["center", "squash"])
@pytest.mark.parametrize("crop_share", [1.0, 0.9])
@pytest.mark.parametrize("size", [(224, 224), (160, 224)])
def test_agrees_with_timms_evaluation_transform(
    width: int, height: int, crop: Crop, crop_share: float, size: tuple[int, int]
) -> None:
    """A model trained with timm sees what it was trained to see, but for a level on average: timm rounds its
    resize and its crop to whole pixels."""
    image = Image.fromarray(scene(width, height))
    ours = spec(*size, crop, crop_share)
    theirs = create_transform(
        (3, *size),
        is_training=False,
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
        crop_pct=crop_share,
        crop_mode=crop,
    )(image)
    got = normalise(torch.from_numpy(to_pixels(image, ours)[None].copy()), ours, torch.float32)[0]
    levels = (got - theirs) * torch.tensor(STD).view(3, 1, 1) * 255
    assert levels.abs().mean() < 1


def test_imports_no_torch() -> None:
    """Front ends decode with this module, and never load torch."""
    code = "import sys, models.transforms; sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_an_image_of_the_models_size_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pixels are seen as they are, without the copy that Pillow's resize makes."""
    pixels = scene(29, 23)
    monkeypatch.delattr(Image.Image, "resize")
    assert np.array_equal(to_pixels(Image.fromarray(pixels), spec(23, 29)), pixels)
