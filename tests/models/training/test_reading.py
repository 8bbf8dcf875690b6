"""Images are trained on as they are served."""

import io
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from app.decoding.images import ImageLimits, decode
from app.errors import Problem
from models.training.reading import Broken, pixels, whole
from models.transforms import InputSpec

SPEC = InputSpec((48, 64), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), crop_share=0.9)
CHINA = Path(__file__).parents[2] / "photographs" / "china.jpg"


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def sources() -> Iterator[tuple[str, bytes]]:
    """Photographs of all kinds, each with its name."""
    with Image.open(CHINA) as image:
        china = image.convert("RGB").resize((300, 200))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    grey = np.asarray(china.convert("L"))
    yield "plain.jpg", CHINA.read_bytes()
    yield "turned.jpg", encoded(china, "JPEG", exif=exif)
    yield "turned.png", encoded(china, "PNG", exif=exif)
    yield "turned.tif", encoded(china, "TIFF", exif=exif)
    yield "profile.jpg", encoded(china, "JPEG", icc_profile=profile)
    yield "cmyk.jpg", encoded(china.convert("CMYK"), "JPEG")
    yield "grey.jpg", encoded(china.convert("L"), "JPEG")
    yield "palette.gif", encoded(china.convert("P"), "GIF")
    yield "alpha.png", encoded(china.convert("RGBA").rotate(20), "PNG")
    yield "grey-alpha.png", encoded(china.convert("LA").rotate(20), "PNG")
    yield "sixteen.png", encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG")
    yield "float.tif", encoded(Image.fromarray(grey.astype(np.float32) / 255), "TIFF")
    yield "float-255.tif", encoded(Image.fromarray(grey.astype(np.float32)), "TIFF")
    yield "one-bit.png", encoded(china.convert("1"), "PNG")
    yield "two.mpo", encoded(china, "MPO", save_all=True, append_images=[china.rotate(90)])
    yield "some.avif", encoded(china, "AVIF")
    yield "some.webp", encoded(china, "WEBP")
    yield "some.bmp", encoded(china, "BMP")
    yield "animated.gif", encoded(china, "GIF", save_all=True, append_images=[china.rotate(90)])
    yield "truncated.jpg", CHINA.read_bytes()[:-5_000]
    yield "no-end.jpg", CHINA.read_bytes()[:-2]
    yield "map.ppm", encoded(china, "PPM")
    yield "some.jp2", encoded(china, "JPEG2000")
    yield "junk.jpg", b"junk"
    yield "empty.jpg", b""


@pytest.mark.parametrize(("name", "data"), [pytest.param(*each, id=each[0]) for each in sources()])
def test_what_is_trained_on_is_what_is_served(name: str, data: bytes, tmp_path: Path) -> None:
    """Pixel by pixel; and what a server refuses is broken here."""
    path = tmp_path / name
    path.write_bytes(data)
    read = pixels(path, SPEC)
    try:
        served = decode(data, SPEC, ImageLimits(10**9))
    except Problem:
        assert isinstance(read, Broken)
        assert "\n" not in str(read)
        return
    assert not isinstance(read, Broken)
    assert np.array_equal(read, getattr(served, "pixels", served))


def test_the_whole_image_is_upright(tmp_path: Path) -> None:
    """What is cropped at random is what a person sees."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    (tmp_path / "a.jpg").write_bytes(encoded(Image.new("RGB", (30, 20)), "JPEG", exif=exif))
    read = whole(tmp_path / "a.jpg", lambda image: image)
    assert not isinstance(read, Broken)
    assert read.shape == (30, 20, 3)


def test_photographs_may_have_any_number_of_pixels(tmp_path: Path) -> None:
    """Pillow's own limit is for strangers' images."""
    Image.new("1", (20_000, 10_000)).save(tmp_path / "large.png")
    assert not isinstance(pixels(tmp_path / "large.png", SPEC), Broken)


def test_an_error_of_the_machine_is_no_broken_image(tmp_path: Path) -> None:
    """Without a free file descriptor, no image could be read."""
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            pixels(tmp_path / "a.png", SPEC)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_long_notes_in_a_png_are_no_reason_to_leave_it_out(tmp_path: Path) -> None:
    """Edited photographs have megabytes of them."""
    notes = PngImagePlugin.PngInfo()
    notes.add_text("XML:com.adobe.xmp", "x" * 3_000_000, zip=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "edited.png", pnginfo=notes)
    assert not isinstance(pixels(tmp_path / "edited.png", SPEC), Broken)


def test_a_raw_file_is_not_trained_on_by_its_preview(tmp_path: Path) -> None:
    """Many are TIFFs, of which Pillow would read a picture of 160 pixels."""
    Image.new("RGB", (160, 120)).save(tmp_path / "a.NEF", "TIFF")
    read = pixels(tmp_path / "a.NEF", SPEC)
    assert isinstance(read, Broken)
    assert read.why == "it is a camera raw file; convert it to JPEG or PNG"
