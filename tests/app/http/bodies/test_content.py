"""Bodies whose Content-Type does not say what they are, and what curl does to files."""

import base64
import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.app.fakes import MODEL, FakeDispatch, encoded, picture
from tests.app.http.conftest import Classify
from tests.app.http.problem import assert_problem

IMAGE = encoded(picture(300, 200))
TEXT = base64.b64encode(IMAGE).decode()
DOCUMENT = json.dumps({"image": TEXT, "top_k": 2})


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (IMAGE, "image/jpg"), (IMAGE, "application/json"), (IMAGE, "multipart/form-data"), (IMAGE, "text/plain"),
        (IMAGE, "video/mp4"), (IMAGE, "nonsense"), (IMAGE, "application/x-www-form-urlencoded"), (IMAGE, ""),
        (TEXT, "text/plain"), (TEXT, "application/octet-stream"), (TEXT + "\n", "image/png"), (TEXT, "text/plain;charset=utf-8"),
        ("data:image/png;base64," + TEXT, "text/plain"),
        (DOCUMENT, "application/json; charset=utf-8"), (DOCUMENT, "application/JSON;charset=UTF8"), (DOCUMENT, "text/json"),
        (DOCUMENT, "application/vnd.example+json"), (DOCUMENT, "application/x-www-form-urlencoded"), (DOCUMENT, "text/plain"),
        (DOCUMENT, ""), ("\n " + DOCUMENT, ""), (b"\xef\xbb\xbf" + DOCUMENT.encode(), "application/json"),
        (b"\xef\xbb\xbf" + DOCUMENT.encode(), ""),
        (DOCUMENT.encode("utf-16"), "application/json; charset=utf-16"), (DOCUMENT.encode("utf-16-le"), "application/json"),
        (DOCUMENT.encode("utf-16-be"), "application/json"), (DOCUMENT.encode("utf-32"), "application/json"),
    ],
    ids=lambda value: repr(value[:24]),
)  # fmt: skip
def test_the_bytes_decide_what_a_body_is(
    classify: Classify, dispatch: FakeDispatch, content: Any, kind: str
) -> None:
    """An image, base64 or JSON is one under any Content-Type under which people send it, and under none."""
    classify(content=IMAGE)
    response = classify(content=content, headers={"Content-Type": kind} if kind else {})
    assert response.status_code == 200, response.text
    one, other = dispatch.questions
    assert (one.pixels == other.pixels).all()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"photo.jpg", "a file name"),
        (b"https://example.org/photo.jpg", "a URL"),
        (b"<html><body>no</body></html>", "an HTML or XML page"),
    ],
)
def test_a_body_of_words_is_called_what_it_is(classify: Classify, content: bytes, words: str) -> None:
    """422 like every body that is no image."""
    assert_problem(classify(content=content), 422, "undecodable-image", words, "--data-binary")


@pytest.mark.parametrize("image", [encoded(picture(300, 200), form) for form in ("JPEG", "PNG", "GIF")])
def test_a_file_without_its_line_ends_is_refused(client: TestClient, image: bytes) -> None:
    """As curl -d sends it; what is left may decode to another picture."""
    assert b"\n" in image
    stripped = image.replace(b"\r", b"").replace(b"\n", b"")
    for path in ("/v1/classify", "/"):
        response = client.post(
            path, content=stripped, headers={"Content-Type": "application/x-www-form-urlencoded"}
        )
        assert response.status_code == 400
        assert "--data-binary" in response.text
        assert client.post(
            path, content=image, headers={"Content-Type": "application/x-www-form-urlencoded"}
        ).is_success


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{'image': 'abc'}", "json.dumps"),
        ("", "the body is empty"),
        ('{"image": "abc", "keep_ratio": NaN}', "invalid character, at 'NaN}'"),
        ('{"image": "abc", "cascade": True}', "invalid character, at 'True}'"),
        ('{"image": "' + "QUJD" * 3000 + '", "keep_ratio": Infinity}', "invalid character, at 'Infinity}'"),
        ('{"images": [{"image": "' + "QUJD" * 3000 + '"},]}', "at ']}'"),
        (
            '{"images": [{"image": "a"} {"image": "' + "QUJD" * 3000 + '"}]}',
            r"""at '{\"image\": \"...\"}]}'""",
        ),
        ('{"image": "abc", "keep_ratio": 0.5, "keep_ratio": 0.6}', "'keep_ratio' is given more than once"),
        ('{"images": [{"image": "abc", "image": "abd"}]}', "'image' is given more than once"),
        ('{"image": "\\ud800"}', ""),
        ('{"\\ud800": 1, "image": ""}', ""),
        ('{"image": "", "criterion": "\\u0000\\n"}', ""),
        ('{"image": "' + '\\"' * 10_000 + '"}', "too many backslashes"),
        ('{"image": "' + "\\" * 10_000 + '"}', "too many backslashes"),
        ('{"image": "", "top_k": ' + "9" * 400 + "}", ""),
        ('{"image": "", "top_k": 1e400}', ""),
        ('{"image": "", "top_k": "' + "9" * 9000 + '"}', "top_k must be"),
        ('{"image": "", "' + "n" * 9000 + '": 1}', "there is no option 'nnn"),
    ],
    ids=lambda text: text[:30],
)
def test_odd_json_is_refused_in_words(client: TestClient, text: str, words: str) -> None:
    """By every route, and never with a 500."""
    for path in ("/v1/classify", "/", f"/v2/models/{MODEL.name}/infer"):
        response = client.post(path, content=text, headers={"Content-Type": "application/json"})
        assert response.status_code in (400, 422), (path, response.text)
        assert len(response.text) < 1500
        if path == "/v1/classify":
            assert words in response.text


@pytest.mark.parametrize(
    "query",
    ["keep_ratio=%ff", "%ff=1", "keep_ratio[]=0.5", "keep_ratio=0.5;top_k=2", "=1", "%00=%00", "top_k=%F0%9F%98%80",
     "keep_ratio=0.5&keep_ratio=0.5", "top_k=%ED%A0%80", "?keep_ratio=0.5", "keep_ratio%3D0.5=1"],
)  # fmt: skip
def test_odd_queries_are_refused_in_words(client: TestClient, query: str) -> None:
    """422, by every route with a query."""
    for path in ("/v1/classify", "/"):
        response = client.post(f"{path}?{query}", content=IMAGE)
        assert response.status_code == 422, (path, response.text)


def test_pixels_without_an_axis_for_the_images_say_so(client: TestClient) -> None:
    """And not that 224 images are too many."""
    for shape, words in (
        ([224, 224, 3], "a single image of this size has the shape [1, 224, 224, 3]"),
        ([3, 224, 224], "[n, height, width, 3]"),
        ([1, 3, 224, 224], "channels first"),
    ):
        tensor = {"name": "pixels", "shape": shape, "datatype": "UINT8", "data": [0]}
        response = client.post(f"/v2/models/{MODEL.name}/infer", json={"inputs": [tensor]})
        assert response.status_code == 422
        assert words in response.json()["error"]


@pytest.mark.parametrize("content", [encoded(picture(300, 200), "PNG"), b"\xff\xd8\xff" + bytes(2**21)])
def test_an_image_where_json_belongs_is_called_one(client: TestClient, content: bytes) -> None:
    """However large it is, with where to send it."""
    for path in (f"/v1/models/{MODEL.name}:predict", f"/v2/models/{MODEL.name}/infer"):
        response = client.post(path, content=content, headers={"Content-Type": "image/png"})
        assert response.status_code == 400
        assert "the body is an image: POST /v1/classify" in response.text
    form = client.post(f"/v2/models/{MODEL.name}/infer", files={"image": content})
    assert form.status_code == 400
