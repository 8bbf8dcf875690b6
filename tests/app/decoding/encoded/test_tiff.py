"""TIFFs whose first directory asks for much, or is not the picture's."""

import struct

import pytest
from PIL import Image

from app.decoding.encoded.tiff import MOST_ENTRIES, MOST_PIECES
from app.errors import Problem, TooLarge, UndecodableImage, UnsupportedMediaType
from tests.app.decoding.encoded.files import encoded, noisy, seen

# pytest undoes the filter that app.decoding.images sets for its process.
pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.")

LONG = 4
PICTURE = {
    256: (LONG, 1, 8),
    257: (LONG, 1, 8),
    258: (LONG, 1, 8),
    259: (LONG, 1, 1),
    262: (LONG, 1, 1),
    277: (LONG, 1, 1),
}
PICTURE |= {278: (LONG, 1, 8), 279: (LONG, 1, 64)}


def tiff(
    changes: dict[int, tuple[int, int, int]], behind: bytes = b"", *, order: str = "<", big: bool = False
) -> bytes:
    """8 x 8 grey pixels, with these tags besides (type, count, value)."""
    entries = {**PICTURE, **changes}
    head, count, entry = ("HHHQ", "Q", "HHQQ") if big else ("HI", "H", "HHII")
    start = 16 if big else 8
    pixels = (
        start
        + struct.calcsize(f"={count}")
        + (len(entries) + 1) * struct.calcsize(f"={entry}")
        + (8 if big else 4)
    )
    entries.setdefault(273, (LONG, 1, pixels))
    front = (43, 8, 0, start) if big else (42, start)
    data = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}{head}", *front)
    data += struct.pack(f"{order}{count}", len(entries))
    for number, (kind, length, value) in sorted(entries.items()):
        if order == ">" and not big and kind == 3:
            value <<= 16
        data += struct.pack(f"{order}{entry}", number, kind, length, value)
    return data.ljust(pixels, b"\0") + bytes(range(64)) + behind


def refusal(data: bytes) -> Problem:
    with pytest.raises(Problem) as caught:
        seen(data)
    return caught.value


@pytest.mark.parametrize("order", ["<", ">"])
def test_ordinary_ones_are_answered(order: str) -> None:
    """Small and big-endian, with directories of reduced pictures behind the first."""
    assert seen(tiff({}, order=order)).pixels.any()
    pages = [noisy(), noisy().resize((32, 24))]
    assert seen(encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])).pixels.any()
    assert seen(encoded(noisy(), "TIFF", big_tiff=True)).pixels.any()


RAW = {
    "DNG": ({50706: (1, 4, 0x0401)}, "DNG"),
    "a thumbnail before sensor data": ({254: (LONG, 1, 1), 330: (LONG, 1, 400)}, "a raw file"),
    "sensor data": ({262: (3, 1, 32803)}, "a raw file"),
    "linear sensor data": ({262: (3, 1, 34892)}, "a raw file"),
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("name", RAW)
def test_raw_files_of_cameras_are_refused(name: str, order: str) -> None:
    """Their first picture is a thumbnail, of which no answer is honest."""
    tags, kind = RAW[name]
    problem = refusal(tiff(tags, order=order))
    assert isinstance(problem, UnsupportedMediaType)
    assert kind in problem.detail
    assert "export it as JPEG, PNG or TIFF" in problem.detail


def test_a_reduced_picture_alone_is_a_picture() -> None:
    """Only with others beneath it is it a thumbnail."""
    assert seen(tiff({254: (LONG, 1, 1)})).pixels.any()


def test_millions_of_strips_are_refused_unread() -> None:
    """Their offsets alone take minutes to read."""
    many = 5_000_000
    problem = refusal(tiff({273: (LONG, many, 500), 279: (LONG, many, 500)}, bytes(4 * many)))
    assert isinstance(problem, TooLarge)
    assert problem.detail == f"the TIFF has {many} strips or tiles; at most {MOST_PIECES} are allowed"


def test_a_huge_directory_is_refused_unread() -> None:
    """Tens of thousands of tags, or of tags that all claim the same megabytes."""
    assert (
        "entries; at most"
        in refusal(tiff({30_000 + number: (1, 1, 0) for number in range(MOST_ENTRIES)})).detail
    )
    claims = {40_000 + number: (1, 2_000_000, 8) for number in range(500)}
    problem = refusal(tiff(claims, bytes(2_000_000)))
    assert isinstance(problem, UndecodableImage)
    assert "claims 1000000" in problem.detail


def test_a_directory_that_leads_to_itself_is_read_once() -> None:
    """Only the first picture is looked at, wherever the next one is said to be."""
    data = bytearray(tiff({}))
    data[8 + 2 + 12 * 9 : 8 + 2 + 12 * 9 + 4] = struct.pack("<I", 8)
    assert seen(bytes(data)).pixels.any()


@pytest.mark.parametrize("length", range(4, 180, 7))
@pytest.mark.parametrize("big", [False, True])
def test_a_cut_file_stays_for_the_decoder(length: int, big: bool) -> None:
    """It is refused as what it is."""
    problem = refusal(tiff({}, big=big)[:length])
    assert isinstance(problem, UndecodableImage)


def test_transparency_that_is_multiplied_in_is_taken_out() -> None:
    """Associated alpha (TIFF 6.0, section 18): a half-transparent grey of 100 is stored as 50."""
    grey = Image.new("LA", (8, 8), (50, 128))
    plain = encoded(grey, "TIFF")
    place = plain.index((338).to_bytes(2, "little"))
    associated = plain[: place + 8] + b"\1\0\0\0" + plain[place + 12 :]
    # 100 * 128 / 255 + 255 * 127 / 255
    assert abs(int(seen(associated).pixels[0, 0, 0]) - 177) <= 1
