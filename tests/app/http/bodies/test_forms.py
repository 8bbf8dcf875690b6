"""Forms as clients write them, well formed or not."""

import base64
import binascii
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from python_multipart.multipart import MultipartParser

from app.errors import Problem, TooLarge, UnreadableRequest
from app.http.bodies.forms import Part, read_form
from tests.app.fakes import FakeDispatch, encoded
from tests.app.http.conftest import Classify
from tests.app.http.problem import assert_problem

IMAGE = encoded()
BASE64 = base64.b64encode(IMAGE)
KIND = "multipart/form-data; boundary=b"
DISPOSITION = b'Content-Disposition: form-data; name="image"'


def read(body: bytes, kind: str = KIND, most: int = 20) -> list[Part]:
    return read_form(body, kind, most, lambda size: None)


def form(*parts: bytes, line: bytes = b"\r\n", last: bytes = b"--b--\r\n") -> bytes:
    return b"".join(b"--b" + line + part + line for part in parts) + last


FORMS: dict[str, tuple[bytes, str]] = {
    "no filename, by its type": (form(DISPOSITION + b"\r\nContent-Type: image/png\r\n\r\n" + IMAGE), KIND),
    "no filename, by its bytes": (form(DISPOSITION + b"\r\n\r\n" + IMAGE), KIND),
    "no name": (form(b'Content-Disposition: form-data; filename="a.png"\r\n\r\n' + IMAGE), KIND),
    "no headers": (form(b"\r\n" + IMAGE), KIND),
    "filename* only": (form(DISPOSITION + b"; filename*=UTF-8''%e2%82%ac.png\r\n\r\n" + IMAGE), KIND),
    "filename* in an unknown charset": (form(DISPOSITION + b"; filename*=x'y'%e2.png\r\n\r\n" + IMAGE), KIND),
    "filename in UTF-8": (form(DISPOSITION + '; filename="фото.png"\r\n\r\n'.encode() + IMAGE), KIND),
    "filename in Latin-1": (form(DISPOSITION + b'; filename="\xe4.png"\r\n\r\n' + IMAGE), KIND),
    "filename with a semicolon": (form(DISPOSITION + b'; filename="a;b=c.png"\r\n\r\n' + IMAGE), KIND),
    "another case": (form(b"content-disposition: FORM-DATA; NAME=image\r\n\r\n" + IMAGE), KIND),
    "folded headers": (form(b'Content-Disposition: form-data;\r\n name="image"\r\n\r\n' + IMAGE), KIND),
    "bare LF": (form(DISPOSITION + b"\n\n" + IMAGE, line=b"\n"), KIND),
    "preamble and epilogue": (b"a preamble\r\n" + form(DISPOSITION + b"\r\n\r\n" + IMAGE) + b"the end", KIND),
    "no last boundary": (form(DISPOSITION + b"\r\n\r\n" + IMAGE, last=b""), KIND),
    "last boundary without dashes": (form(DISPOSITION + b"\r\n\r\n" + IMAGE, last=b"--b\r\n"), KIND),
    "no line end at the end": (form(DISPOSITION + b"\r\n\r\n" + IMAGE, last=b"--b--"), KIND),
    "blanks behind boundaries": (form(DISPOSITION + b"\r\n\r\n" + IMAGE, line=b"\r\n").replace(b"--b\r", b"--b \t\r"), KIND),
    "quoted boundary": (form(DISPOSITION + b"\r\n\r\n" + IMAGE), 'multipart/form-data; boundary="b"'),
    "boundary with a blank behind it": (form(DISPOSITION + b"\r\n\r\n" + IMAGE), 'multipart/form-data; boundary="b "'),
    "upper case": (form(DISPOSITION + b"\r\n\r\n" + IMAGE), "Multipart/Form-Data; Boundary=b"),
    "multipart/mixed": (form(DISPOSITION + b"\r\n\r\n" + IMAGE), "multipart/mixed; boundary=b"),
    "base64": (form(DISPOSITION + b"\r\nContent-Transfer-Encoding: base64\r\n\r\n" + base64.encodebytes(IMAGE)), KIND),
    "BASE64": (form(DISPOSITION + b"\r\ncontent-transfer-encoding: BASE64 \r\n\r\n" + BASE64), KIND),
    "quoted-printable": (form(DISPOSITION + b"\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n" + binascii.b2a_qp(IMAGE, istext=False)), KIND),
    "binary": (form(DISPOSITION + b"\r\nContent-Transfer-Encoding: binary\r\n\r\n" + IMAGE), KIND),
    "nested": (form(DISPOSITION + b"\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\nContent-Disposition: file; filename=a\r\n\r\n" + IMAGE + b"\r\n--c--"), KIND),
    "a field of base64": (form(DISPOSITION + b"\r\n\r\n" + BASE64), KIND),
    "a field with a data URL": (form(b'Content-Disposition: form-data; name="src"\r\n\r\ndata:image/png;base64,' + BASE64), KIND),
    "a file field left empty": (form(b'Content-Disposition: form-data; name="more"; filename=""\r\nContent-Type: application/octet-stream\r\n\r\n', DISPOSITION + b"\r\n\r\n" + IMAGE), KIND),
    "urlencoded": (b"top_k=5&image=" + BASE64.replace(b"+", b"%2B").replace(b"/", b"%2F").replace(b"=", b"%3D"), "application/x-www-form-urlencoded"),
    "urlencoded with + as it is": (b"image=" + BASE64, "application/x-www-form-urlencoded"),
    "raw under a form's type": (IMAGE, KIND),
    "raw under a form's type without boundary": (IMAGE, "multipart/form-data"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_every_form_that_people_send_is_the_same_image(
    classify: Classify, dispatch: FakeDispatch, name: str
) -> None:
    """However it is written, the dispatcher gets the same pixels once."""
    content, kind = FORMS[name]
    classify(content=IMAGE)
    response = classify(content=content, headers={"Content-Type": kind})
    assert response.status_code == 200, response.text
    one, other = dispatch.questions
    assert (one.pixels == other.pixels).all()


@pytest.mark.parametrize(
    ("parts", "status", "slug", "words"),
    [
        ([b"\r\nhello", DISPOSITION + b"\r\n\r\n" + IMAGE], 422, "invalid-value", ["there is no option ''"]),
        ([DISPOSITION + b"\r\n\r\nphoto.jpg"], 400, "unreadable-request", ["a file name"]),
        ([DISPOSITION + b"\r\n\r\nhttps://example.org/a.jpg"], 400, "unreadable-request", ["a URL"]),
        ([DISPOSITION + b"\r\n\r\n[object File]"], 400, "unreadable-request", ["a missing value"]),
        ([DISPOSITION + b"\r\nContent-Transfer-Encoding: uuencode\r\n\r\nx"], 400, "unreadable-request", ["base64 and quoted-printable"]),
        ([DISPOSITION + b"\r\nContent-Transfer-Encoding: base64\r\n\r\n%%"], 400, "unreadable-request", ["not base64"]),
        ([DISPOSITION + b"\r\nContent-Type: multipart/mixed\r\n\r\nx"], 400, "unreadable-request", ["has no boundary"]),
        ([b"X: " + b"x" * 20_000 + b"\r\n\r\nx"], 400, "unreadable-request", ["4096 bytes of headers"]),
        ([b'Content-Disposition: form-data; name="top_k"\r\n\r\n1'] * 300, 413, "too-large", ["more parts"]),
        ([b'Content-Disposition: form-data; name="top_k"\r\n\r\n\xff', DISPOSITION + b"\r\n\r\n" + IMAGE], 400, "unreadable-request", ["'top_k' is not UTF-8"]),
    ],
)  # fmt: skip
def test_what_cannot_be_read_says_why(
    classify: Classify, parts: list[bytes], status: int, slug: str, words: list[str]
) -> None:
    """With what to send in its place."""
    response = classify(content=form(*parts), headers={"Content-Type": KIND})
    image = response.json().get("image")
    assert_problem(response, status, slug, *words, image=image)


def test_a_part_of_json_holds_options(classify: Classify, dispatch: FakeDispatch) -> None:
    """As API clients send them beside a file, under any name."""
    options = (
        b'Content-Disposition: form-data; name="meta"\r\nContent-Type: application/json\r\n\r\n{"top_k": 2}'
    )
    response = classify(
        content=form(options, DISPOSITION + b"\r\n\r\n" + IMAGE), headers={"Content-Type": KIND}
    )
    assert response.status_code == 200, response.text
    assert dispatch.questions[0].ask.top_k == 2


def test_data_that_looks_like_line_ends_and_boundaries_stays_data() -> None:
    """A boundary begins a line, with the line ends that the form has, and ends it."""
    data = b"\n--b\r\nx--b\r\n--bb\r\n--b-\r\n\n"
    (part,) = read(form(DISPOSITION + b"\r\n\r\n" + data))
    assert bytes(part.data) == data


def test_a_boundary_after_a_bare_lf_begins_a_part_where_headers_follow() -> None:
    """Some clients forget one CR, and the next image must not be lost in the one before."""
    body = form(DISPOSITION + b"\r\n\r\none", DISPOSITION + b"\r\n\r\ntwo").replace(b"one\r\n", b"one\n")
    assert [bytes(part.data) for part in read(body)] == [b"one", b"two"]


def test_boundaries_within_data_are_counted() -> None:
    """Each costs time, and a form has few."""
    with pytest.raises(UnreadableRequest, match="too often"):
        read(form(DISPOSITION + b"\r\n\r\n" + b"--b" * 20_000))
    with pytest.raises(TooLarge):
        read(form(*[DISPOSITION + b"\r\n\r\nx"] * 21))


def by_library(body: bytes, boundary: bytes) -> list[bytes]:
    """The parts' data as python-multipart finds it."""
    found: list[bytearray] = []
    callbacks: dict[str, Any] = {
        "on_part_begin": lambda: found.append(bytearray()),
        "on_part_data": lambda data, start, end: found[-1].extend(data[start:end]),
    }
    parser = MultipartParser(boundary, callbacks)
    parser.write(body)
    parser.finalize()
    return [bytes(data) for data in found]


@given(
    st.lists(st.binary(max_size=60) | st.sampled_from([b"\r\n", b"\r\n--", b"--b", b"\n--b--"]), min_size=1, max_size=5),
    st.sampled_from([b"bound", b"----WebKitFormBoundaryq1", b"a b"]),
)  # fmt: skip
def test_well_formed_forms_are_read_as_python_multipart_reads_them(
    parts: list[bytes], boundary: bytes
) -> None:
    """Whatever their data is."""
    body = b"".join(
        b"--" + boundary + b"\r\n" + DISPOSITION + b"\r\nContent-Type: image/png\r\n\r\n" + data + b"\r\n"
        for data in parts
    )
    body += b"--" + boundary + b"--\r\n"
    found = read(body, f'multipart/form-data; boundary="{boundary.decode()}"')
    assert [bytes(part.data) for part in found] == by_library(body, boundary) == parts
    assert all((part.name, part.filename, part.kind) == ("image", None, "image/png") for part in found)


@given(st.binary(max_size=300) | st.lists(st.sampled_from([b"--b", b"\r\n", b"\n", b"--", b": ", b"content-type", b"multipart/mixed; boundary=b", b"x", b"content-disposition", b'; name="', b"=?utf-8?q?=ff?="]), max_size=30).map(b"".join))  # fmt: skip
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    """Nothing else is raised."""
    try:
        for part in read(body):
            assert isinstance(part.name, str)
    except Problem:
        pass
