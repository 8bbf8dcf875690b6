"""Untrusted bytes: sound images give pixels, everything else a Problem, and never another exception."""

import io
import struct
import subprocess
import sys
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from app.decoding.images import FORMATS, ImageLimits, as_it_is, decode, resized
from app.errors import Problem, TooLarge, UndecodableImage, UnsupportedMediaType
from models.transforms import Crop, InputSpec, to_pixels
from tests.app.fakes import MODEL, encoded, picture
from tests.support.examples import examples

# pytest undoes the filter that app.decoding.images sets for its process.
pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.")

SPEC = MODEL.input
HEIGHT, WIDTH = SPEC.size
ROOMY = ImageLimits(1_000_000)
COLOUR = (200, 100, 50)
FLAT = Image.new("RGB", (44, 33), COLOUR)
LOSSY = 12  # how far a lossy format may be off in one value


def pixels_of(data: bytes) -> np.ndarray:
    return decode(data, SPEC, ROOMY).pixels


def problem_with(data: bytes, limits: ImageLimits = ROOMY) -> Problem:
    with pytest.raises(Problem) as caught:
        decode(data, SPEC, limits)
    return caught.value


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims this size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


# Sound images.


@pytest.mark.parametrize("file_format", FORMATS)
def test_every_format_on_the_list_is_decoded(file_format: str) -> None:
    """What the allow-list names is decoded to the model's size in its own colour."""
    pixels = pixels_of(encoded(FLAT, file_format))
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - COLOUR).max() <= LOSSY


def test_the_list_is_the_documented_one() -> None:
    """AVIF is there where Pillow has it; the others always are."""
    assert set(FORMATS) - {"AVIF"} == {"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "HEIF"}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "I;16", "CMYK", "YCbCr"])
def test_every_colour_mode_is_decoded(mode: str) -> None:
    """Grey, palettes, transparency, 16 bits and print colours all come out as RGB."""
    file_format = "TIFF" if mode in ("CMYK", "YCbCr", "PA") else "PNG"
    image = FLAT.convert("L").convert("I;16") if mode == "I;16" else FLAT.convert(mode)
    if mode == "PA":
        image, file_format = FLAT.convert("PA").convert("RGBA"), "TIFF"
    assert pixels_of(encoded(image, file_format)).shape == (HEIGHT, WIDTH, 3)


def test_the_first_frame_of_an_animation_is_seen() -> None:
    """Of an animated GIF, WebP or PNG, and of a camera's double JPEG, only the first frame counts."""
    frames = [Image.new("RGB", (40, 24), colour) for colour in (COLOUR, (0, 0, 255), (0, 255, 0))]
    for file_format in ("GIF", "WEBP", "PNG", "TIFF", "MPO"):
        data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:])
        assert Image.open(io.BytesIO(data)).n_frames == 3  # type: ignore[attr-defined]
        assert np.abs(pixels_of(data).astype(int) - COLOUR).max() <= LOSSY, file_format


def test_a_turned_photograph_is_seen_upright() -> None:
    """The EXIF orientation is honoured."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    image.paste("black", (0, 0, WIDTH, HEIGHT // 2))  # dark above
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    pixels = pixels_of(encoded(image, "PNG", exif=exif))
    assert pixels[0].mean() > 200, "light above"
    assert pixels[-1].mean() < 50, "dark below"


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(range(60)),
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",  # orientation 99
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0",  # orientation "abc"
    ],
    ids=["none", "garbage", "wild offset", "wild entries", "orientation 99", "orientation abc"],
)
def test_broken_exif_does_not_spoil_the_pixels(exif: bytes) -> None:
    """An orientation that cannot be read is no reason to refuse a sound picture."""
    for file_format in ("JPEG", "WEBP", "PNG"):
        pixels = pixels_of(encoded(FLAT, file_format, exif=exif))
        assert np.abs(pixels.astype(int) - COLOUR).max() <= LOSSY, file_format


# What is refused.


@pytest.mark.parametrize("file_format", ["PPM", "ICO", "PCX", "SGI", "DDS", "ICNS", "JPEG2000", "EPS"])
def test_formats_off_the_list_are_not_taken(file_format: str) -> None:
    """A sound image of another format is refused by its name, with the formats that are taken."""
    side = {"ICO": 32, "ICNS": 32}.get(file_format, 24)
    problem = problem_with(encoded(Image.new("RGB", (side, side), COLOUR), file_format))
    assert isinstance(problem, UnsupportedMediaType)
    assert f"the image is {file_format}" in problem.detail
    assert "JPEG, PNG, WEBP" in problem.detail


def test_no_other_decoder_sees_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is off the list is told by its first bytes: Pillow's other plugins have bugs of their own."""
    opened = []

    def open_(file: object, **options: object) -> Image.Image:
        opened.append(options)
        raise UnidentifiedImageError

    monkeypatch.setattr(Image, "open", open_)
    for data in (b"8BPS" + bytes(40), b"P6 1 1 255 abc", b"anything", b"....ftypheic" + bytes(20)):
        assert isinstance(problem_with(data), UnsupportedMediaType | UndecodableImage)
    assert opened == [{"formats": FORMATS}] * 4


@pytest.mark.parametrize(
    "data",
    [
        b"",
        encoded(FLAT, "TGA"),  # it has no signature
        b"\0",
        b"hello",
        b"<!doctype html><html><body>not an image</body></html>",
        b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>',
        b"%PDF-1.7\n",
        b"PK\x03\x04" + bytes(30),
        np.random.default_rng(5).bytes(4000),
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\xff\xff\xff\xffWEBPVP8 ",
        b"GIF89a",
        b"BM",
        b"II*\0",
    ],
    ids=lambda data: repr(data[:12]),
)
def test_what_is_no_image_is_undecodable(data: bytes) -> None:
    """Nothing, noise, pages and bare signatures are 422, whatever they call themselves."""
    problem = problem_with(data)
    assert isinstance(problem, UndecodableImage)
    assert problem.detail


def test_an_empty_image_is_called_empty() -> None:
    """The likeliest mistake has words of its own."""
    assert problem_with(b"").detail == "the image is empty (0 bytes)"


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_image_is_undecodable(file_format: str, share: float) -> None:
    """Half an image is no image: nothing is guessed about the rest."""
    noisy = Image.fromarray(np.random.default_rng(7).integers(0, 256, (60, 80, 3), np.uint8))
    data = encoded(noisy, file_format)
    assert isinstance(problem_with(data[: int(len(data) * share)]), UndecodableImage)


@pytest.mark.parametrize("size", [(1001, 1000), (1, 1_000_001), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_before_they_are_decoded(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header alone is enough to refuse a pixel bomb, just above the limit or far."""

    def decoded(*_: object) -> None:
        raise AssertionError("the image was decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", decoded)
    problem = problem_with(png_header(*size))
    assert isinstance(problem, TooLarge)
    assert "at most 1000000 are allowed" in problem.detail


def test_pixels_are_allowed_up_to_the_limit() -> None:
    """An image of exactly so many pixels passes; with one fewer allowed it does not."""
    data = encoded(picture(40, 25))
    assert decode(data, SPEC, ImageLimits(1000)).pixels.shape == (HEIGHT, WIDTH, 3)
    problem = problem_with(data, ImageLimits(999))
    assert isinstance(problem, TooLarge)
    assert problem.detail == "the image is 40 x 25 = 1000 pixels; at most 999 are allowed"


@pytest.mark.parametrize("size", [(65_536, 1), (1, 65_536)])
def test_a_side_that_is_too_long_is_refused(size: tuple[int, int]) -> None:
    """Few pixels in a very long line would still cost gigabytes to resize."""
    problem = problem_with(encoded(Image.new("L", size)))
    assert isinstance(problem, TooLarge)
    assert "a side may have at most 65535" in problem.detail
    assert pixels_of(encoded(Image.new("L", (size[0] - (size[0] > 1), size[1] - (size[1] > 1))))).any() == 0


def test_a_broken_image_writes_nothing_to_the_log() -> None:
    """What Pillow warns of is in the answer; a client cannot fill the log with it."""
    tag_beyond_the_end = b"II*\0\x08\0\0\0\x01\0\x00\x01\x02\0\xff\xff\0\0\xff\xff\0\0\0\0\0\0"
    program = (
        "import sys\n"
        "from app.decoding.images import ImageLimits, decode\n"
        "from app.errors import UndecodableImage\n"
        "from tests.app.fakes import MODEL\n"
        "try:\n"
        "    decode(bytes.fromhex(sys.argv[1]), MODEL.input, ImageLimits(1000))\n"
        "except UndecodableImage:\n"
        "    print('refused')\n"
    )
    for ignored in ((), ("-W", "default")):
        ended = subprocess.run(
            [sys.executable, *ignored, "-c", program, tag_beyond_the_end.hex()],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert ended.stdout == "refused\n"
        assert ended.stderr == ""


def test_a_limit_above_pillows_own_is_meant() -> None:
    """An operator who allows more pixels than Pillow's guard does gets what the setting says."""
    problem = problem_with(png_header(20_000, 10_000), ImageLimits(10**9))
    assert isinstance(problem, UndecodableImage), (
        "the claimed pixels are not there, but they are not too many"
    )


def _tiff(**tags: tuple[int, int, int]) -> bytes:
    """A TIFF of 8 x 8 grey pixels in LZW, with these tags (number, count, value), as 32-bit numbers."""
    entries = {256: (1, 8), 257: (1, 8), 258: (1, 8), 259: (1, 5), 262: (1, 1), 277: (1, 1)}
    entries |= {number: (count, value) for number, count, value in tags.values()}
    packed = b"".join(struct.pack("<HHII", number, 4, *entry) for number, entry in sorted(entries.items()))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + bytes(4) + bytes(64)


def test_a_tile_larger_than_an_image_may_be_is_refused() -> None:
    """A tile is decoded whole: two hundred bytes would take gigabytes and many seconds."""
    offsets = {"offsets": (324, 1, 8), "sizes": (325, 1, 64)}
    problem = problem_with(_tiff(width=(322, 1, 40_000), height=(323, 1, 40_000), **offsets))
    assert isinstance(problem, TooLarge)
    assert problem.detail == "the image has tiles of 40000 x 40000 pixels; at most 1000000 are allowed"
    for wild in (0, 2**32 - 1):
        problem = problem_with(_tiff(width=(322, 1, wild), height=(323, 1, wild), **offsets))
        assert isinstance(problem, TooLarge | UndecodableImage)


@pytest.mark.parametrize("size", [(0, 7), (7, 0), (0, 0)])
def test_an_image_without_pixels_is_undecodable(size: tuple[int, int]) -> None:
    """Width or height 0 is 422."""
    assert isinstance(problem_with(png_header(*size)), UndecodableImage)


# Anything at all.


def _mutations(data: bytes) -> st.SearchStrategy[bytes]:
    """The data with bytes changed, cut out or put in: mostly near the start, where the headers are."""
    places = st.integers(0, len(data) - 1) | st.integers(0, min(60, len(data) - 1))
    changes = st.lists(st.tuples(places, st.integers(0, 4), st.binary(max_size=4)), min_size=1, max_size=5)

    def mutated(edits: list[tuple[int, int, bytes]]) -> bytes:
        out = bytearray(data)
        for place, cut, put in edits:
            out[place : place + cut] = put
        return bytes(out)

    return changes.map(mutated)


_GOOD = {
    file_format: encoded(picture(30, 22), file_format)
    for file_format in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")
}


@pytest.mark.parametrize("file_format", _GOOD)
def test_a_damaged_image_gives_pixels_or_a_problem(file_format: str) -> None:
    """Whatever happens to a good image on its way, no other exception comes of it."""

    @settings(max_examples=examples(75), suppress_health_check=list(HealthCheck))
    @given(_mutations(_GOOD[file_format]))
    @example(_GOOD[file_format][:-1])
    def check(data: bytes) -> None:
        _pixels_or_problem(data)

    check()


@given(st.binary(max_size=300))
def test_any_bytes_give_pixels_or_a_problem(data: bytes) -> None:
    """Noise raises no other exception either."""
    _pixels_or_problem(data)


@given(
    signature=st.sampled_from(
        [
            b"\xff\xd8\xff\xe0",
            b"\x89PNG\r\n\x1a\n",
            b"GIF89a",
            b"BM",
            b"II*\0",
            b"MM\0*",
            b"RIFF\x40\0\0\0WEBP",
        ]
    ),
    rest=st.binary(max_size=200),
)
def test_any_bytes_behind_a_signature_give_pixels_or_a_problem(signature: bytes, rest: bytes) -> None:
    """Noise that begins like an image does not either."""
    _pixels_or_problem(signature + rest)


def _pixels_or_problem(data: bytes) -> None:
    try:
        pixels = decode(data, SPEC, ROOMY).pixels
    except (TooLarge, UndecodableImage, UnsupportedMediaType):
        return
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (701, 400), (7, 65_535), (1, 1)])
def test_pixels_that_come_decoded_are_seen_as_they_are(rows: int, columns: int) -> None:
    """Laid out at once or a few rows at a time, they are the same picture."""
    drawn = np.random.default_rng(rows).integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    spec = InputSpec((7, 11), (0.5,) * 3, (0.5,) * 3, crop="squash")
    limits = ImageLimits(10_000_000)
    expected = np.asarray(to_pixels(Image.fromarray(drawn), spec))
    np.testing.assert_array_equal(resized(drawn, spec, limits).pixels, expected)


@pytest.mark.parametrize("crop", ["center", "squash"])
def test_pixels_of_the_models_size_are_taken_as_they_are(crop: Crop) -> None:
    """What is made of them otherwise is the same, so nothing needs to be made of them."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    spec = InputSpec((24, 40), (0.5,) * 3, (0.5,) * 3, crop=crop)
    limits = ImageLimits(24 * 40)
    taken = as_it_is(pixels, spec, limits)
    assert taken is not None
    assert taken.pixels is pixels
    np.testing.assert_array_equal(resized(pixels, spec, limits).pixels, pixels)
    with pytest.raises(TooLarge):
        as_it_is(pixels, spec, ImageLimits(24 * 40 - 1))


def test_other_pixels_have_to_be_made_ready() -> None:
    """Of another size, where the model sees a part of the image, and where it sees grey."""
    pixels = np.zeros((24, 40, 3), np.uint8)
    spec = InputSpec((24, 40), (0.5,) * 3, (0.5,) * 3)
    for other in (replace(spec, size=(40, 24)), replace(spec, crop_share=0.9), replace(spec, channels=1)):
        assert as_it_is(pixels, other, ImageLimits(10_000)) is None
