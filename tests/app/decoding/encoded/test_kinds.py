"""What bytes are that are no image of a format that is taken."""

import base64

import numpy as np
import pytest
from PIL import Image

from app.decoding.encoded.kinds import unidentified
from app.decoding.images import FORMATS
from app.errors import Problem, UndecodableImage, UnsupportedMediaType
from tests.app.decoding.encoded.files import encoded, noisy, seen


def refusal(data: bytes) -> Problem:
    with pytest.raises(Problem) as caught:
        seen(data)
    return caught.value


def heif(brand: bytes, *others: bytes) -> bytes:
    brands = brand + bytes(4) + b"".join(others)
    return (len(brands) + 8).to_bytes(4, "big") + b"ftyp" + brands + bytes(200)


# pytest undoes the filter that app.decoding.images sets for its process.
pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.")

IMAGES = {
    "CR3": (heif(b"crx ", b"isom"), "CR3"),
    "CR2": (b"II*\0\x10\0\0\0CR\x02\0" + bytes(60), "CR2"),
    "ORF": (b"IIRO\x08\0\0\0" + bytes(60), "ORF"),
    "RW2": (b"IIU\0\x18\0\0\0" + bytes(60), "RW2"),
    "RAF": (b"FUJIFILMCCD-RAW 0201" + bytes(60), "RAF"),
    "JPEG 2000": (encoded(noisy(), "JPEG2000"), "JPEG2000"),
    "JPEG 2000 codestream": (encoded(noisy(), "JPEG2000", no_jp2=True), "JPEG2000"),
    "JPEG XL": (b"\xff\x0a" + bytes(60), "JPEG XL"),
    "JPEG XL in a box": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(60), "JPEG XL"),
    "JPEG XR": (b"II\xbc\x01" + bytes(60), "JPEG XR"),
    "XCF": (b"gimp xcf v011" + bytes(60), "XCF"),
    "DICOM": (bytes(128) + b"DICM" + bytes(60), "DICOM"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_of_other_formats_are_named(name: str) -> None:
    """With what is taken, and what to do."""
    data, kind = IMAGES[name]
    problem = refusal(data)
    assert isinstance(problem, UnsupportedMediaType)
    assert problem.detail.startswith("the image is ")
    assert kind in problem.detail
    assert "convert it to JPEG or PNG" in problem.detail


def test_avif_is_not_taken_for_heic() -> None:
    """Both are HEIF: a sound AVIF is answered, and one that is broken is no HEIC."""
    assert seen(encoded(noisy(), "AVIF")).pixels.any()
    problem = refusal(heif(b"avif", b"mif1", b"miaf"))
    assert problem.detail.startswith("the bytes begin as AVIF, but are corrupt")


PHOTOGRAPH = encoded(noisy(), "JPEG")
TEXT = base64.b64encode(PHOTOGRAPH)
OTHERS = {
    "mp4": (heif(b"isom", b"mp42"), "a video"),
    "mov": (heif(b"qt  "), "a video"),
    "webm": (b"\x1a\x45\xdf\xa3" + bytes(40), "a video"),
    "avi": (b"RIFF\0\0\0\0AVI LIST", "a video"),
    "pdf": (b"%PDF-1.7\n" + bytes(100), "a PDF"),
    "zip": (b"PK\x03\x04" + bytes(100), "an archive"),
    "gzip": (b"\x1f\x8b\x08\0" + bytes(40), "compressed with gzip"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a Git LFS pointer"),
    "npy": (b"\x93NUMPY\x01\0v\0{'descr'", "a NumPy array"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    "svg with a head": (b'<?xml version="1.0"?>\n<!-- x -->\n<!DOCTYPE svg PUBLIC "-//W3C">\n<svg>', "SVG"),
    "html": (b"\n<!DOCTYPE html><html><body>404", "an HTML page"),
    "error of a store": (b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "XML"),
    "data url": (b"data:image/jpeg;base64," + TEXT, "a data URL"),
    "url": (b"https://example.org/cat.jpg\n", "a URL in text"),
    "json": (b'{"image": "' + TEXT + b'"}', "JSON"),
    "form": (b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + PHOTOGRAPH, "a form"),
    "base64": (TEXT, "JPEG in base64"),
    "base64 in lines": (base64.encodebytes(PHOTOGRAPH), "JPEG in base64"),
    "base64 in quotes": (b'"' + TEXT + b'"', "JPEG in base64"),
    "base64 of a PNG": (base64.b64encode(encoded(noisy(), "PNG")), "PNG in base64"),
    "base64 of a WebP": (base64.urlsafe_b64encode(encoded(noisy(), "WEBP")), "WEBP in base64"),
    "read as text": (PHOTOGRAPH.decode("utf-8", "replace").encode(), "read or sent as text"),
    "read as Latin-1": (PHOTOGRAPH.decode("latin-1").encode(), "read or sent as text"),
    "PNG without its returns": (encoded(noisy(), "PNG").replace(b"\r\n", b"\n"), "read or sent as text"),
    "PNG by curl -d": (encoded(noisy(), "PNG").translate(None, b"\r\n"), "read or sent as text"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_people_send_by_mistake_is_named(name: str) -> None:
    """With what to do about it, which stands behind a semicolon."""
    data, kind = OTHERS[name]
    problem = refusal(data)
    assert isinstance(problem, UndecodableImage)
    assert problem.detail.startswith("the bytes are ")
    assert kind in problem.detail
    assert "; " in problem.detail


@pytest.mark.parametrize("begins", [b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\xff\xff\xff\xffWEBP", b"II*\0"])
def test_a_broken_image_is_named_by_how_it_begins(begins: bytes) -> None:
    """Its sender looks at the file, not at the server's list of formats."""
    assert "the bytes begin as " in refusal(begins + b"garbage").detail


@pytest.mark.parametrize("data", [b"hello", b"\0", b"aGVsbG8gd29ybGQsIHRoaXMgaXMgdGV4dA=="])
def test_all_else_is_no_image(data: bytes) -> None:
    """Nothing is claimed of it; the formats that are taken are listed."""
    problem = refusal(data)
    assert "PNG" in problem.detail


def test_any_bytes_are_named_quickly() -> None:
    """No pattern takes long over megabytes of what it nearly matches."""
    for piece in (b"<", b" ", b"A", b"<!--", b"--", b"<?xml ", b"\xef\xbf\xbd", b'"'):
        unidentified(piece * (10**7 // len(piece)), ", ".join(FORMATS))


def test_a_layout_that_is_not_read_is_no_unknown_format() -> None:
    """A TIFF of several floats a pixel is told to be a TIFF."""
    values = np.zeros((4, 4), np.float32)
    plain = encoded(Image.fromarray(values), "TIFF")
    # SampleFormat is the last tag; what nobody defined stands there.
    place = plain.index((339).to_bytes(2, "little") + b"\3\0")
    problem = refusal(plain[: place + 8] + b"\x77\0\0\0" + plain[place + 12 :])
    assert "begin as TIFF" in problem.detail
