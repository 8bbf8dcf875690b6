"""Base64 as people send it, and what they send in its place."""

import base64
import json
import textwrap
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from app.errors import InvalidValue, Problem, UnreadableRequest
from app.http.bodies.base64_images import from_base64
from app.http.bodies.documents import read_document
from tests.app.fakes import MODEL, FakeDispatch, encoded, picture
from tests.app.http.conftest import Classify

IMAGE = encoded(picture(300, 200))
PLAIN = base64.b64encode(IMAGE).decode()
PERCENT = PLAIN.replace("+", "%2B").replace("/", "%2f").replace("=", "%3D")
assert "+" in PLAIN
assert "/" in PLAIN

TEXTS = {
    "plain": PLAIN,
    "wrapped at 76": base64.encodebytes(IMAGE).decode(),
    "wrapped at 76 with CR LF": base64.encodebytes(IMAGE).decode().replace("\n", "\r\n"),
    "a newline at the end": PLAIN + "\n",
    "indented": "\n    " + "\n    ".join(textwrap.wrap(PLAIN, 64)) + "\n",
    "wrapped with blanks": " ".join(textwrap.wrap(PLAIN, 76)),
    "URL-safe": base64.urlsafe_b64encode(IMAGE).decode(),
    "no padding": PLAIN.rstrip("="),
    "a data URL": "data:image/png;base64," + PLAIN,
    "a data URL in capitals": "DATA:IMAGE/PNG;BASE64," + PLAIN,
    "a data URL with blanks": " data: image/png ; base64 , " + PLAIN,
    "a data URL with parameters": "data:image/png;name=a.png;charset=utf-8;base64," + PLAIN,
    "a data URL without a type": "data:;base64," + PLAIN,
    "a data URL with percent-escapes": "data:image/png;base64," + PERCENT,
    "a data URL, wrapped": "data:image/png;base64,\n" + base64.encodebytes(IMAGE).decode(),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("escape", [str, lambda text: text.replace("/", "\\/")], ids=["plain", "escaped"])
def test_base64_of_every_kind_is_the_same_image(name: str, escape: Callable[[str], str]) -> None:
    """Short or long, with slashes escaped in JSON or not."""
    assert from_base64(TEXTS[name], None) == IMAGE
    document = read_document(escape(json.dumps({"image": TEXTS[name]})).encode(), "it", 10**6, 100, "")
    assert from_base64(document["image"], None) == IMAGE


@pytest.mark.parametrize("name", TEXTS)
def test_every_route_reads_it(client: TestClient, dispatch: FakeDispatch, name: str) -> None:
    """One decoder for JSON, form fields, tensors, Hugging Face's shape, and text."""
    text = TEXTS[name]
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [text]}
    for path, request in (
        ("/v1/classify", {"json": {"image": text}}),
        ("/v1/classify", {"data": {"image": text}}),
        ("/v1/classify", {"files": {"image": (None, text)}}),
        ("/v1/classify", {"content": text, "headers": {"Content-Type": "text/plain"}}),
        (f"/v2/models/{MODEL.name}/infer", {"json": {"inputs": [tensor]}}),
        ("/", {"json": {"inputs": text}}),
    ):
        response = client.post(path, **request)  # type: ignore[arg-type]
        assert response.status_code == 200, (path, request.keys(), response.text)
    assert len(dispatch.questions) == 6
    assert all((question.pixels == dispatch.questions[0].pixels).all() for question in dispatch.questions)


MISTAKES = [
    ("https://example.org/cat.jpg", "a URL: the server does not fetch URLs; send the bytes of the image"),
    ("//cdn.example.org/cat.jpg", "a URL"),
    ("s3://bucket/cat.jpg", "a URL"),
    ("blob:https://example.org/5", "a blob URL"),
    ("/home/me/cat.jpg", "a file name: the server does not read files; send the bytes of the image"),
    ("/home/me/cat", "a file name"),
    ("C:\\Users\\me\\cat.jpg", "a file name"),
    ("file:///cat.jpg", "a file name"),
    ("./cat.png", "a file name"),
    ("holiday (1).JPG", "a file name"),
    ("b'/9j/4AAQSkZJ'", "base64.b64encode(data).decode()"),
    ('b"/9j/4AAQSkZJ"', "base64.b64encode(data).decode()"),
    ("undefined", "an object or a missing value"),
    ("null", "an object or a missing value"),
    ("None", "an object or a missing value"),
    ("[object Object]", "an object or a missing value"),
    ("<PIL.Image.Image image mode=RGB object at 0x7f>", "an object or a missing value"),
    (f'"{PLAIN}"', "in two pairs of quotation marks"),
    ("<svg xmlns=''>", "an SVG drawing"),
    ("[137, 80, 78, 71, 13, 10]", "a list of numbers"),
    (IMAGE.hex(), "hexadecimal"),
    (base64.b64encode(PLAIN.encode()).decode(), "encoded as base64 twice"),
    (PLAIN.replace("+", " "), "encode + as %2B"),
    ("data:image/svg+xml,%3Csvg", "with ;base64 before the comma"),
    (PLAIN[:401], "characters are missing at the end"),
    (PLAIN + "=", "too much padding"),
    ("AAAA=AAAA", "there is data after the padding"),
    ("%%%%", "base64.b64encode(data).decode()"),
    ("Ä" * 8, "base64.b64encode(data).decode()"),
]


@pytest.mark.parametrize(("text", "words"), MISTAKES, ids=[text[:20] for text, _ in MISTAKES])
def test_what_is_no_base64_of_an_image_is_called_what_it_is(
    classify: Classify, text: str, words: str
) -> None:
    """With what to do, and the server neither fetches nor opens anything."""
    response = classify(json={"image": text})
    assert response.status_code == 400, response.text
    assert words in response.json()["detail"]
    assert response.json()["image"] == 0
    assert len(response.json()["detail"]) < 300


@pytest.mark.parametrize("value", [None, 5, True, {}, [], [137, 80, 78], ["a"]])
def test_another_type_is_a_422(value: object) -> None:
    """It says which one is wanted."""
    with pytest.raises(InvalidValue, match=r"must be a base64 string"):
        from_base64(value, 0)


@given(st.binary(max_size=2000), st.integers(1, 90), st.sampled_from(["\n", "\r\n", "\t", "\n "]))
def test_any_bytes_come_back(data: bytes, width: int, line_end: str) -> None:
    """Wrapped at any width."""
    text = line_end.join(textwrap.wrap(base64.b64encode(b"\x89PNG" + data).decode(), width))
    assert from_base64(text, None) == b"\x89PNG" + data


@given(st.text(max_size=300) | st.text("ABCab+/-_= \n%:;,data0", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing else is raised, and JSON's escapes change nothing."""
    outcomes = []
    for given_text in (text, "A" * 8200 + text):
        document = read_document(
            json.dumps({"image": given_text}, ensure_ascii=True).encode(), "it", 10**6, 99, ""
        )
        for value in (given_text, document["image"]):
            try:
                outcomes.append(bytes(from_base64(value, None)))
            except (InvalidValue, UnreadableRequest) as problem:
                outcomes.append(type(problem).__name__.encode())
    assert outcomes[0] == outcomes[1]
    assert outcomes[2] == outcomes[3]


@given(st.integers(0, 20), st.integers(0, 3))
def test_a_large_text_is_read_piece_by_piece(lines: int, rest: int) -> None:
    """Where a piece ends makes no difference."""
    data = b"\xff\xd8\xff" + bytes(range(256)) * 1200 + bytes(rest)
    text = base64.encodebytes(data).decode() + "\n" * lines
    document = read_document(json.dumps({"image": text}).encode(), "it", 10**6, 99, "")
    assert from_base64(document["image"], None) == data


def test_a_text_of_backslashes_is_refused_soon() -> None:
    """A piece must not end within an escape, and looking for an end must not go on for ever."""
    document = read_document(b'{"image": "' + b"\\\\a" * 10**6 + b'"}', "it", 10**6, 99, "")
    with pytest.raises(Problem):
        from_base64(document["image"], None)
    with pytest.raises(UnreadableRequest, match="too many backslashes"):
        read_document(b'{"image": "' + b"\\\\" * 10**6 + b'"}', "it", 10**6, 99, "")
