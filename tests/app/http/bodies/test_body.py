"""The body of a request: its three forms, whose options go before whose, and everything that is refused."""

import asyncio
import base64
import json
import socket
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.testclient import TestClient

from app.errors import UnreadableRequest
from app.http.bodies.body import BodyLimits, read_images
from app.http.bodies.memory import Memory, Share, set_share
from app.inference.options import ImageOptions
from app.main import create_app
from app.settings.settings import Settings
from models.schedule import Pruning, keep_ratio_for
from tests.app.fakes import MODEL, FakeDispatch, encoded
from tests.app.http.conftest import Classify
from tests.app.http.problem import assert_problem

IMAGE = encoded()
BASE64 = base64.b64encode(IMAGE).decode()
JSON = {"Content-Type": "application/json"}


def form(*parts: bytes, boundary: bytes = b"b") -> bytes:
    """A multipart body, written by hand to be broken by hand."""
    lines = [b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts]
    return b"".join(lines) + b"--" + boundary + b"--\r\n"


IMAGE_PART = b'Content-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + IMAGE
FILE_PART = IMAGE_PART.removesuffix(IMAGE)
FORM = {"Content-Type": "multipart/form-data; boundary=b"}

# Forms.


@pytest.mark.parametrize(
    "request_",
    [
        {"content": IMAGE, "headers": {"Content-Type": "image/png"}},
        {"content": IMAGE, "headers": {"Content-Type": "IMAGE/JPEG"}},
        {"content": IMAGE, "headers": {"Content-Type": "image/png; charset=binary"}},
        {"content": IMAGE, "headers": {"Content-Type": "application/octet-stream"}},
        {"content": IMAGE, "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
        {"content": IMAGE},
        {"files": {"image": IMAGE}},
        {"files": {"anything": ("photo.jpg", IMAGE, "text/plain")}},
        {"content": form(IMAGE_PART), "headers": FORM},
        {"json": {"image": BASE64}},
        {"json": {"image": "data:image/png;base64," + BASE64}},
        {"json": {"images": [{"image": BASE64}]}},
        {
            "content": json.dumps({"image": BASE64}),
            "headers": {"Content-Type": "application/json; charset=utf-8"},
        },
    ],
    ids=lambda request: str({**request.get("headers", {}), **dict.fromkeys(request, "")})[:60],
)
def test_every_form_of_the_body_is_the_same_image(
    classify: Classify, dispatch: FakeDispatch, request_: dict[str, Any]
) -> None:
    """Raw, form or JSON, under any fitting Content-Type or none: the dispatcher gets the same pixels."""
    classify()
    response = classify(**request_)
    assert response.status_code == 200, response.text
    raw, other = dispatch.questions
    assert (raw.pixels == other.pixels).all()


def test_a_raw_body_may_come_in_pieces(classify: Classify) -> None:
    """A streamed upload without Content-Length is read whole."""

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(IMAGE), 7):
            yield IMAGE[start : start + 7]

    assert classify(content=pieces()).status_code == 200


# Precedence.


@pytest.mark.parametrize(
    ("query", "common", "own", "expected"),
    [
        ({}, {}, {}, 5),
        ({"top_k": 2}, {}, {}, 2),
        ({"top_k": 2}, {"top_k": 3}, {}, 3),
        ({"top_k": 2}, {"top_k": 3}, {"top_k": 4}, 4),
        ({"top_k": 2}, {}, {"top_k": 4}, 4),
    ],
)
@pytest.mark.parametrize("body", ["form", "json"])
def test_an_images_own_option_goes_before_the_common_one_and_that_before_the_query(
    classify: Classify,
    dispatch: FakeDispatch,
    body: str,
    query: dict[str, int],
    common: dict[str, int],
    own: dict[str, int],
    expected: int,
) -> None:
    """query < form field or JSON's top level < the image's own."""
    if body == "form":
        options = {"options": json.dumps([own])} if own else {}
        response = classify(
            params=query, files={"image": IMAGE}, data={**{k: str(v) for k, v in common.items()}, **options}
        )
    else:
        response = classify(params=query, json={**common, "images": [{"image": BASE64, **own}]})
    assert response.status_code == 200, response.text
    assert dispatch.questions[0].ask.top_k == expected


HALF_COMPUTE = keep_ratio_for(MODEL.architecture, MODEL.method.stages, 0.7)
BY_RATIO, BY_MASS = Pruning(0.9, "mean"), Pruning(1.0, "mean", keep_mass=0.6)
CASCADE = Pruning(0.5, "iqr", "fuse")


@pytest.mark.parametrize(
    ("query", "common", "own", "expected"),
    [
        ({"keep_ratio": 0.9}, {"compute": 0.7}, {}, HALF_COMPUTE),
        ({"keep_ratio": 0.9}, {}, {"compute": 0.7}, HALF_COMPUTE),
        ({"compute": 0.7}, {}, {"keep_ratio": 0.9}, 0.9),
        ({"compute": 0.7}, {"keep_ratio": 0.9}, {}, 0.9),
        ({"keep_ratio": 0.9}, {"compute": 0.7}, {"keep_ratio": 0.8}, 0.8),
        ({"keep_ratio": 0.9}, {"compute": None}, {}, 0.9),
        ({"keep_ratio": 0.9}, {}, {"top_k": 3}, 0.9),
    ],
)
def test_a_later_choice_of_ratio_or_compute_replaces_an_earlier_one_of_either(
    classify: Classify,
    dispatch: FakeDispatch,
    query: dict[str, float],
    common: dict[str, float],
    own: dict[str, float],
    expected: float,
) -> None:
    """keep_ratio and compute choose the same thing, so the nearest to the image wins, whichever it is."""
    response = classify(params=query, json={**common, "images": [{"image": BASE64, **own}]})
    assert response.status_code == 200, response.text
    assert dispatch.questions[0].ask.pruning.keep_ratio == expected


@pytest.mark.parametrize(
    ("common", "own", "expected"),
    [
        ({"keep_ratio": 0.9}, {"keep_mass": 0.6}, BY_MASS),
        ({"compute": 0.7}, {"keep_mass": 0.6}, BY_MASS),
        ({"cascade": True}, {"keep_mass": 0.6}, BY_MASS),
        ({"keep_mass": 0.6}, {"keep_ratio": 0.9}, BY_RATIO),
        ({"cascade": True}, {"keep_ratio": 0.9}, BY_RATIO),
        ({"keep_ratio": 0.9}, {"cascade": True}, CASCADE),
        ({"keep_mass": 0.6}, {"cascade": True}, CASCADE),
        ({"criterion": "mad", "reducer": "merge"}, {"cascade": True}, CASCADE),
        ({"cascade": True}, {"top_k": 3}, CASCADE),
        ({"cascade": True}, {"keep_ratio": None}, CASCADE),
        ({"keep_ratio": 0.9}, {"cascade": False}, BY_RATIO),
        ({"keep_ratio": 0.9}, {"cascade": "false"}, BY_RATIO),
        ({"keep_mass": 0.6}, {"cascade": False}, BY_MASS),
        ({"cascade": True}, {"cascade": False}, Pruning(1.0, "mean")),
        ({"cascade": True}, {"cascade": False, "keep_ratio": 0.9}, BY_RATIO),
    ],
    ids=str,
)
@pytest.mark.parametrize("body", ["form", "json"])
def test_a_later_way_to_choose_replaces_an_earlier_one_of_any(
    classify: Classify,
    dispatch: FakeDispatch,
    body: str,
    common: dict[str, Any],
    own: dict[str, Any],
    expected: Pruning,
) -> None:
    """What is common stands in the query as words; a cascade replaces criterion and reducer, too."""
    words = {name: str(value).lower() for name, value in common.items()}
    if body == "form":
        response = classify(params=words, files={"image": IMAGE}, data={"options": json.dumps([own])})
    else:
        response = classify(params=words, json={"images": [{"image": BASE64, **own}]})
    assert response.status_code == 200, response.text
    (question,) = dispatch.questions
    assert question.ask.pruning == expected
    assert question.ask.margin == (0.375 if expected == CASCADE else None)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"keep_mass": 0.6, "reducer": "fuse"}, Pruning(1.0, "mean", "fuse", keep_mass=0.6)),
        ({"keep_ratio": 0.9, "reducer": "merge"}, Pruning(0.9, "mean", "merge")),
        ({"cascade": True}, CASCADE),
    ],
    ids=str,
)
def test_every_form_of_the_body_takes_every_way_to_choose(
    classify: Classify, dispatch: FakeDispatch, options: dict[str, Any], expected: Pruning
) -> None:
    """In the query of a raw body, in a form's fields, in JSON."""
    words = {name: str(value).lower() for name, value in options.items()}
    for request in (
        {"params": words},
        {"files": {"image": IMAGE}, "data": words},
        {"json": {"image": BASE64, **options}},
    ):
        response = classify(**request)
        assert response.status_code == 200, response.text
    assert [question.ask.pruning for question in dispatch.questions] == [expected] * 3


def test_each_image_may_have_its_own_options(classify: Classify, dispatch: FakeDispatch) -> None:
    """In JSON beside the image, in a form as the list 'options'; common ones fill the gaps."""
    own: list[dict[str, object]] = [{"keep_ratio": 0.5}, {"keep_ratio": 0.75, "criterion": "mad"}, {}]
    classify(json={"criterion": "iqr", "images": [{"image": BASE64, **options} for options in own]})
    classify(
        files=[("image", IMAGE)] * 3,
        data={"criterion": "iqr", "options": json.dumps(own)},
    )
    asked = sorted(
        (question.ask.pruning.keep_ratio, question.ask.pruning.criterion) for question in dispatch.questions
    )
    assert asked == sorted([(0.5, "iqr"), (0.75, "mad"), (1.0, "iqr")] * 2)


def test_options_as_one_object_hold_for_all_images_of_a_form(
    classify: Classify, dispatch: FakeDispatch
) -> None:
    """The form's 'options' may be an object instead of a list."""
    classify(files=[("image", IMAGE)] * 2, data={"options": '{"keep_ratio": 0.5}'})
    assert [question.ask.pruning.keep_ratio for question in dispatch.questions] == [0.5, 0.5]


# 422: options.

BAD_OPTIONS: list[tuple[str, list[str]]] = [
    (
        "keep_ratio=0",
        ["keep_ratio must be a number above 0 and at most 1, or 'auto', such as 0.5", "got '0'"],
    ),
    (
        "keep_ratio=-0.5",
        ["keep_ratio must be a number above 0 and at most 1, or 'auto', such as 0.5", "got '-0.5'"],
    ),
    (
        "keep_ratio=1.5",
        ["keep_ratio must be a number above 0 and at most 1, or 'auto', such as 0.5", "got '1.5'"],
    ),
    (
        "keep_ratio=nan",
        ["keep_ratio must be a number above 0 and at most 1, or 'auto', such as 0.5", "got 'nan'"],
    ),
    (
        "keep_ratio=inf",
        ["keep_ratio must be a number above 0 and at most 1, or 'auto', such as 0.5", "got 'inf'"],
    ),
    (
        "keep_ratio=-inf",
        ["keep_ratio must be a number above 0 and at most 1, or 'auto', such as 0.5", "got '-inf'"],
    ),
    (
        "keep_ratio=half",
        ["keep_ratio must be a number above 0 and at most 1, or 'auto', such as 0.5", "got 'half'"],
    ),
    ("keep_ratio=", ["keep_ratio must be a number above 0 and at most 1, or 'auto', such as 0.5", "got ''"]),
    ("compute=0", ["compute must be a number above 0 and at most 1, such as 0.5", "got '0'"]),
    ("compute=1.01", ["compute must be a number above 0 and at most 1, such as 0.5", "got '1.01'"]),
    ("keep_ratio=0.5&compute=0.5", ["only one of", "keep_mass, cascade", "keep_ratio and compute"]),
    ("keep_ratio=0.5&keep_mass=0.5", ["only one of", "got keep_ratio and keep_mass"]),
    ("compute=0.5&keep_mass=0.5", ["only one of", "got compute and keep_mass"]),
    ("cascade=true&keep_ratio=0.5", ["only one of", "got keep_ratio and cascade"]),
    ("cascade=true&compute=0.5", ["only one of", "got compute and cascade"]),
    ("cascade=true&keep_mass=0.5", ["only one of", "got keep_mass and cascade"]),
    ("cascade=true&criterion=mad", ["it was calibrated: leave out", "leave out criterion, or cascade"]),
    ("cascade=true&reducer=drop&criterion=mad", ["leave out criterion and reducer, or cascade"]),
    ("cascade=perhaps", ["cascade must be true or false; got 'perhaps'"]),
    ("keep_mass=0", ["keep_mass must be a number above 0 and at most 1, such as 0.5", "got '0'"]),
    ("keep_mass=1.01", ["keep_mass must be a number above 0 and at most 1, such as 0.5", "got '1.01'"]),
    ("keep_mass=nan", ["keep_mass must be a number above 0 and at most 1, such as 0.5", "got 'nan'"]),
    ("keep_mass=0.5&reducer=merge", ["keep_mass", "merge", "drop, fuse or transform"]),
    ("keep_mass=0.5&reducer=pool", ["keep_mass", "pool", "drop, fuse or transform"]),
    (
        "keep_ratio=0.5&reducer=pool&mask=png",
        ["a mask shows which patches are kept, but the reducer pool keeps none"],
    ),
    ("reducer=blend", ["reducer must be 'drop', 'fuse', 'merge', 'pool' or 'transform'; got 'blend'"]),
    ("criterion=entropy", ["criterion must be 'variance', 'mad',", "or 'random'; got 'entropy'"]),
    ("top_k=0", ["top_k must be a whole number from 1 to 1000, such as 5; got '0'"]),
    ("top_k=1001", ["top_k must be a whole number from 1 to 1000", "got '1001'"]),
    ("top_k=2.5", ["top_k must be a whole number from 1 to 1000", "got '2.5'"]),
    ("mask=jpeg", ["mask must be 'none', 'indices', 'grid' or 'png'; got 'jpeg'"]),
    ("mask_stages=perhaps", ["mask_stages must be true or false; got 'perhaps'"]),
    ("deadline_ms=0", ["deadline_ms must be a whole number from 1 to 600000, such as 1; got '0'"]),
    ("deadline_ms=600001", ["deadline_ms must be a whole number from 1 to 600000"]),
    ("seed=-1", ["seed must be a whole number from 0 to 2147483647, such as 1; got '-1'"]),
    ("seed=2147483648", ["seed must be a whole number from 0 to 2147483647"]),
    ("ratio=0.5", ["there is no option 'ratio'; did you mean keep_ratio?", *ImageOptions.model_fields]),
    ("Keep_Ratio=0.5", ["there is no option 'Keep_Ratio'; did you mean keep_ratio?"]),
    ("keepRatio=0.5", ["there is no option 'keepRatio'; did you mean keep_ratio?"]),
    ("keep-ratio=0.5", ["there is no option 'keep-ratio'; did you mean keep_ratio?"]),
    ("keep_ratio[]=0.5", ["there is no option 'keep_ratio[]'; did you mean keep_ratio?"]),
    ("topk=1", ["there is no option 'topk'; did you mean top_k?"]),
    ("k=1", ["there is no option 'k'; did you mean top_k?"]),
    ("criterion=varience", ["criterion must be 'variance'", "got 'varience'; did you mean 'variance'?"]),
    (
        "keep_ratio=50%25",
        [
            "keep_ratio must be a number above 0 and at most 1, or 'auto', such as 0.5",
            "got '50%'; did you mean 0.5?",
        ],
    ),
    (
        "keep_ratio=0,5",
        [
            "keep_ratio must be a number above 0 and at most 1, or 'auto', such as 0.5",
            "got '0,5'; did you mean 0.5?",
        ],
    ),
    ("keep_ratio=true", ["keep_ratio must be a number above 0 and at most 1", "got 'true'"]),
    ("top_k=1&top_k=2", ["'top_k' is given more than once"]),
]


@pytest.mark.parametrize(("query", "words"), BAD_OPTIONS, ids=[query for query, _ in BAD_OPTIONS])
def test_an_option_that_is_not_allowed_is_named_with_what_is(
    classify: Classify, dispatch: FakeDispatch, query: str, words: list[str]
) -> None:
    """422 says which option, what was given and what may be."""
    response = classify(params=query)
    image = None if "more than once" in words[0] else 0
    assert_problem(response, 422, "invalid-value", *words, image=image)
    assert dispatch.questions == []


@pytest.mark.parametrize(("query", "words"), BAD_OPTIONS[:-1], ids=[query for query, _ in BAD_OPTIONS[:-1]])
def test_a_form_and_json_refuse_the_same_options(classify: Classify, query: str, words: list[str]) -> None:
    """What is wrong in the query is wrong in a form's fields and in JSON, for the image at fault."""
    options = dict(httpx.QueryParams(query))
    response = classify(files=[("image", IMAGE)] * 2, data={"options": json.dumps([{}, options])})
    assert_problem(response, 422, "invalid-value", *words, image=1)
    response = classify(json={"images": [{"image": BASE64}, {"image": BASE64, **options}]})
    assert_problem(response, 422, "invalid-value", *words, image=1)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("keep_ratio", True, "keep_ratio must be a number above 0 and at most 1, or 'auto', such as 0.5"),
        ("compute", True, "compute must be a number above 0 and at most 1, such as 0.5"),
        ("min_keep_ratio", False, "min_keep_ratio must be a number above 0"),
        ("top_k", True, "top_k must be a whole number from 1 to 1000, such as 5"),
        ("seed", True, "seed must be a whole number from 0 to 2147483647"),
        ("deadline_ms", True, "deadline_ms must be a whole number from 1 to 600000"),
    ],
)
def test_true_and_false_are_no_numbers(classify: Classify, option: str, value: bool, words: str) -> None:
    """JSON's true is not read as 1, as Python does."""
    response = classify(json={"image": BASE64, option: value})
    assert_problem(response, 422, "invalid-value", words, f"got {str(value).lower()}", image=0)


@pytest.mark.parametrize("value", ["0.5", ".5", "5e-1", "0.5 ", "+0.5", "0.50000"])
def test_a_number_may_be_written_in_any_usual_way(
    classify: Classify, dispatch: FakeDispatch, value: str
) -> None:
    """In the query, in a form and as a string in JSON; + is a blank in a query."""
    for response in (
        classify(params=f"keep_ratio={value}"),
        classify(files={"image": IMAGE}, data={"keep_ratio": value}),
        classify(json={"image": BASE64, "keep_ratio": value}),
    ):
        assert response.status_code == 200, response.text
    assert {question.ask.pruning.keep_ratio for question in dispatch.questions} == {0.5}


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_does_not_have_are_refused(classify: Classify, number: str) -> None:
    """RFC 8259 has no NaN and no Infinity, whatever Python's own JSON reads."""
    content = f'{{"image": "{BASE64}", "keep_ratio": {number}}}'
    response = classify(content=content, headers=JSON)
    assert_problem(response, 400, "unreadable-request", "the body is not JSON")


def test_what_was_given_is_said_in_short(classify: Classify) -> None:
    """A value or a name of a megabyte does not come back whole, nor do a thousand mistakes."""
    for options in (
        {"keep_ratio": "9" * 10**6},
        {"n" * 10**6: 1},
        {str(number): 1 for number in range(1000)},
        {"keep_ratio": [list(range(10))] * 100},
    ):
        response = classify(json={"image": BASE64, **options})
        assert_problem(response, 422, "invalid-value", image=0)
        assert len(response.content) < 1000


@pytest.mark.parametrize(
    ("fields", "status", "slug", "words"),
    [
        ({"options": "{"}, 400, "unreadable-request", ["the form field 'options' is not JSON"]),
        ({"options": "7"}, 422, "invalid-value", ["'options' must be a JSON object or a list of objects"]),
        ({"options": "[1, 2]"}, 422, "invalid-value", ["'options' must be a JSON object or a list"]),
        ({"options": "[{}]"}, 422, "invalid-value", ["'options' lists 1 objects, but the form has 2 images"]),
        ({"top_k": ["1", "2"]}, 422, "invalid-value", ["'top_k' is given more than once"]),
    ],
)
def test_a_forms_options_must_be_one_set_or_one_per_image(
    classify: Classify, fields: dict[str, Any], status: int, slug: str, words: list[str]
) -> None:
    """Options that cannot be matched to the images are refused."""
    assert_problem(classify(files=[("image", IMAGE)] * 2, data=fields), status, slug, *words)


# 400: what cannot be read.


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["the body is not JSON"]),
        (b"{", ["the body is not JSON"]),
        (b'{"image": "\xff"}', ["the body is not JSON", "utf-8", "position 11"]),
        (b"[" * 100_000, ["the body is nested too deeply"]),
        (b'{"a":' * 100_000, ["the body is nested too deeply"]),
        (b"9" * 5000, ["the body is not JSON", "out of range"]),
        (b"[]", ["must be an object with 'image' or 'images'"]),
        (b'"image"', ["must be an object with 'image' or 'images'"]),
        (b"null", ["must be an object with 'image' or 'images'"]),
        (b'{"images": []}', ["the request has no image"]),
        (b'{"image": "%%%"}', ["'image' is not base64"]),
        (b'{"image": "abcde"}', ["'image' is not base64", "characters are missing at the end"]),
        (b'{"image": "abc", "top_k": 1, "image": "abc"}', ["'image' is given more than once"]),
        (b'{"image": "' + b"A" * 2**19 + b'="}', ["'image' is not base64"]),
        (b'{"image": "' + b"A" * (2**18 - 1) + b'=AAAA"}', ["'image' is not base64", "after the padding"]),
        (b'{"image": "http://127.0.0.1/image.png"}', ["'image' is not base64"]),
        ('{"image": "Ä"}'.encode(), ["'image' is not base64"]),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_json_that_cannot_be_read_is_a_400(classify: Classify, content: bytes, words: list[str]) -> None:
    """Bytes that are no JSON, or no request, are unreadable, however deep."""
    image = 0 if "base64" in words[0] else None
    assert_problem(classify(content=content, headers=JSON), 400, "unreadable-request", *words, image=image)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, ["either 'image' or 'images'"]),
        ({"image": BASE64, "images": []}, ["either 'image' or 'images'"]),
        ({"image": None}, ["'image' must be a base64 string"]),
        ({"image": 5}, ["'image' must be a base64 string"]),
        ({"images": BASE64}, ["'images' must be a list of objects"]),
        ({"images": None}, ["'images' must be a list of objects"]),
        ({"images": [BASE64]}, ["'images' must be a list of objects"]),
        ({"images": {"image": BASE64}}, ["'images' must be a list of objects"]),
        ({"images": [{}]}, ["'image' must be a base64 string"]),
    ],
    ids=str,
)
def test_json_of_another_shape_is_a_422(
    classify: Classify, document: dict[str, object], words: list[str]
) -> None:
    """Readable JSON that is no request says what one looks like."""
    image = 0 if "string" in words[0] else None
    assert_problem(classify(json=document), 422, "invalid-value", *words, image=image)


@pytest.mark.parametrize(
    ("content", "content_type", "words"),
    [
        (form(IMAGE_PART), "multipart/form-data", ["no boundary, which is 'b' in this body", "curl -F"]),
        (form(IMAGE_PART), "multipart/form-data; boundary=", ["boundary", "curl -F"]),
        (form(IMAGE_PART), "multipart/form-data; boundary=other", ["the form cannot be read"]),
        (b"", "multipart/form-data; boundary=b", ["the request has no image"]),
        (b"hello", "multipart/form-data; boundary=b", ["the form cannot be read"]),
        (form(), "multipart/form-data; boundary=b", ["the request has no image"]),
        (
            form(b'Content-Disposition: form-data; name="top_k"\r\n\r\n1'),
            "multipart/form-data; boundary=b",
            ["the request has no image"],
        ),
    ],
    ids=[
        "no boundary",
        "empty boundary",
        "another boundary",
        "empty body",
        "no form",
        "no parts",
        "no image",
    ],
)
def test_a_form_that_cannot_be_read_is_a_400(
    classify: Classify, content: bytes, content_type: str, words: list[str]
) -> None:
    """Broken forms, and forms without an image, say so."""
    response = classify(content=content, headers={"Content-Type": content_type})
    assert_problem(response, 400, "unreadable-request", *words)


def test_an_odd_charset_of_a_form_does_no_harm(classify: Classify) -> None:
    """Python knows text encodings that are none; a form may name any."""
    for charset in ("base64", "rot13", "undefined", "idna", "nonsense", "utf-16", "\0"):
        field = b'Content-Disposition: form-data; name="top_k"\r\n\r\n\xff1'
        response = classify(
            content=form(IMAGE_PART, field),
            headers={"Content-Type": f"multipart/form-data; boundary=b; charset={charset}"},
        )
        assert response.status_code in (200, 400, 422), charset


# 504: too late.


async def slowly(pieces: list[bytes], sent: list[int]) -> AsyncIterator[bytes]:
    for piece in pieces:
        sent.append(len(piece))
        yield piece
    await asyncio.sleep(30)
    raise AssertionError("it was waited for the rest")


def option_part(name: str, value: str) -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


@pytest.mark.anyio
@pytest.mark.parametrize("headers", [{}, JSON, FORM], ids=["raw", "json", "form"])
@pytest.mark.parametrize(("query", "said"), [("", "0.2 s"), ("?deadline_ms=100", "0.1 s")])
async def test_a_deadline_that_passes_while_the_body_comes_is_told_at_once(
    dispatch: FakeDispatch, headers: dict[str, str], query: str, said: str
) -> None:
    """504, and not when all has come."""
    sent: list[int] = []
    async with asgi_client(dispatch, default_deadline_ms=200) as client:
        body = slowly([b"--b\r\n", b"x" * 1000], sent)
        response = await client.post(f"/v1/classify{query}", content=body, headers=headers)
    assert_problem(
        response, 504, "deadline-passed", said, "bytes of the body had arrived", "deadline_ms in the query"
    )
    assert sent == [5, 1000]


@pytest.mark.anyio
async def test_a_longer_deadline_counts_where_it_is_said(dispatch: FakeDispatch) -> None:
    """In the query, or in what has come of a form: the server's default does not end the upload."""

    async def late(before: bytes, after: bytes) -> AsyncIterator[bytes]:
        yield before
        await asyncio.sleep(0.3)
        yield after

    said = form(IMAGE_PART)
    async with asgi_client(dispatch, default_deadline_ms=100) as client:
        for query, first in (("?deadline_ms=20000", b""), ("", option_part("deadline_ms", "20000"))):
            response = await client.post(
                f"/v1/classify{query}", content=late(first + said[:50], said[50:]), headers=FORM
            )
            assert response.status_code == 200, response.text


# 413: too much.


def asgi_client(dispatch: FakeDispatch, **settings: int) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_app(Settings(**settings), dispatch))  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=transport, base_url="http://test")


@pytest.mark.anyio
@pytest.mark.parametrize("headers", [{}, JSON, FORM], ids=["raw", "json", "form"])
async def test_a_body_above_the_limit_is_refused_by_its_content_length(
    dispatch: FakeDispatch, headers: dict[str, str]
) -> None:
    """In every form of the body, with what is allowed, and before a byte of it is read."""

    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    async with asgi_client(dispatch, max_body_bytes=1000) as client:
        response = await client.post(
            "/v1/classify", content=unread(), headers={**headers, "Content-Length": "1001"}
        )
    assert_problem(response, 413, "too-large", "1001 bytes", "at most 1000 are allowed")


@pytest.mark.anyio
@pytest.mark.parametrize("headers", [{}, JSON, FORM], ids=["raw", "json", "form"])
async def test_a_body_above_the_limit_is_refused_while_it_streams(
    dispatch: FakeDispatch, headers: dict[str, str]
) -> None:
    """Without a Content-Length, reading ends where the limit is passed, not where the body ends."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 100
            yield bytes(100)

    async with asgi_client(dispatch, max_body_bytes=1000) as client:
        response = await client.post("/v1/classify", content=endless(), headers=headers)
    assert_problem(response, 413, "too-large", "at most 1000 are allowed")
    assert sent == 1100


def test_a_body_of_exactly_the_limit_is_read(make_client: Callable[..., TestClient]) -> None:
    """The limit itself is allowed; one byte fewer allowed, and the image is too large."""
    for limit, status in ((len(IMAGE), 200), (len(IMAGE) - 1, 413)):
        client = make_client(max_body_bytes=limit)
        assert client.post("/v1/classify", content=IMAGE).status_code == status


@pytest.mark.parametrize("declared", ["-1", "many", "", "1e3", "\u00b2"])
def test_a_content_length_that_is_no_number_does_no_harm(classify: Classify, declared: str) -> None:
    """Servers in front may let it through; the bytes are counted anyway."""
    response = classify(headers={"Content-Length": declared.encode("latin-1")})
    assert response.status_code == 200


@pytest.mark.parametrize("images", [3, 4])
def test_images_are_counted(make_client: Callable[..., TestClient], images: int) -> None:
    """As many as the limit are answered; one more is 413, in a form and in JSON."""
    client = make_client(max_images_per_request=3)
    responses: list[httpx.Response] = [
        client.post("/v1/classify", files=[("image", IMAGE)] * images),  # type: ignore[list-item]
        client.post("/v1/classify", json={"images": [{"image": BASE64}] * images}),  # type: ignore[list-item]
    ]
    for response in responses:
        if images == 3:
            assert response.status_code == 200, response.text
        else:
            assert_problem(response, 413, "too-large", "images", "3")


def test_an_image_of_too_many_pixels_is_refused(make_client: Callable[..., TestClient]) -> None:
    """The limit of the settings holds, and the text says both numbers."""
    client = make_client(max_image_pixels=959)
    response = client.post("/v1/classify", content=IMAGE)
    assert_problem(response, 413, "too-large", "40 x 24 = 960", "at most 959", image=0)  # type: ignore[arg-type]


# 415, and images that are none.


@pytest.mark.parametrize(
    "content_type", ["text/plain", "video/mp4", "application/pdf", "nonsense", "application/jsonx", "image"]
)
def test_another_content_type_is_a_415(classify: Classify, content_type: str) -> None:
    """What is no image, form or JSON is refused by its type, with the types that are taken."""
    response = classify(content=b"hello", headers={"Content-Type": content_type})
    assert_problem(
        response,
        415,
        "unsupported-media-type",
        repr(content_type),
        "image/*",
        "application/octet-stream",
        "multipart/form-data",
        "application/json",
    )


def test_an_image_of_a_format_that_is_not_taken_is_a_415(classify: Classify) -> None:
    """Whatever its Content-Type said."""
    response = classify(content=encoded(file_format="PPM"), headers={"Content-Type": "image/png"})
    assert_problem(response, 415, "unsupported-media-type", "PPM", "JPEG, PNG", image=0)


@pytest.mark.parametrize("content", [b"", b"hello", IMAGE[:-30]], ids=["empty", "text", "cut off"])
def test_an_image_that_cannot_be_decoded_is_a_422(classify: Classify, content: bytes) -> None:
    """In a raw body, in a form and in JSON."""
    for request in (
        {"content": content},
        {"files": {"image": ("a.png", content)}},
        {"json": {"image": base64.b64encode(content).decode()}},
    ):
        assert_problem(classify(**request), 422, "undecodable-image", image=0)


# Anything at all.

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just(BASE64),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["image", "images", *ImageOptions.model_fields]) | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
ANY_REQUEST = settings(suppress_health_check=list(HealthCheck))


@ANY_REQUEST
@given(document=JSON_VALUES)
def test_any_json_is_answered_or_refused(classify: Classify, document: object) -> None:
    """No JSON document makes the server fail."""
    response = classify(content=json.dumps(document), headers=JSON)
    assert response.status_code in (200, 400, 413, 415, 422), response.text


@ANY_REQUEST
@given(edits=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 3), st.binary(max_size=3)), max_size=4))
def test_any_damage_to_a_form_is_answered_or_refused(
    classify: Classify, edits: list[tuple[int, int, bytes]]
) -> None:
    """No broken form makes the server fail."""
    options = b'Content-Disposition: form-data; name="options"\r\n\r\n[{"top_k": 2}]'
    body = bytearray(form(options, IMAGE_PART))
    for place, cut, put in edits:
        body[place % len(body) : place % len(body) + cut] = put
    response = classify(content=bytes(body), headers=FORM)
    assert response.status_code in (200, 400, 413, 415, 422), response.text


@ANY_REQUEST
@given(
    content_type=st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=30)
    | st.from_regex(
        r"(image|multipart|application)/[a-z-]{1,9}(; ?(boundary|charset)=.{0,6})?", fullmatch=True
    )
)
def test_any_content_type_is_answered_or_refused(client: TestClient, content_type: str) -> None:
    """No Content-Type makes the server fail."""
    header = content_type.replace("\r", " ").replace("\n", " ").encode("latin-1", "replace")
    response = client.post("/v1/classify", content=IMAGE, headers={"Content-Type": header})
    assert response.status_code in (200, 400, 415, 422), response.text


# Bodies that would keep everyone else waiting.

MEGABYTES = 31 * 2**20


@pytest.mark.parametrize(
    "content",
    [
        b'{"keep_ratio": [' + b"[]," * (MEGABYTES // 3),
        b'{"images": [' + b'{"image":""},' * (MEGABYTES // 13),
        b'{"images": [' + b"1," * (MEGABYTES // 2),
        b"{" + b'"top_k":1,' * (MEGABYTES // 10),
    ],
    ids=lambda content: repr(content[:30]),
)
@pytest.mark.parametrize("where", ["body", "options"])
def test_a_json_of_very_many_values_is_refused_before_any_is_made(
    classify: Classify, content: bytes, where: str
) -> None:
    """They would take seconds of everyone's time, and gigabytes: the refusal takes none of either."""
    headers = JSON
    if where == "options":
        part = b'Content-Disposition: form-data; name="options"\r\n\r\n' + content[: 2**24]
        content, headers = form(IMAGE_PART, part), FORM
    tracemalloc.start()
    try:
        response = classify(content=content, headers=headers)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert_problem(response, 413, "too-large", "64 values and 16384 bytes per image")
    assert peak < 12 * len(content), "copies of the body are made, and nothing for every value in it"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b'{"image": "' + b"A" * (MEGABYTES - 32) + b'"}', "application/json"),
        (
            b'{"images": [' + b",".join([b'{"image": "' + b"A" * 2**22 + b'"}'] * 7) + b"]}",
            "application/json",
        ),
        (form(b"X-Long: " + b"x" * (MEGABYTES - 100)), FORM["Content-Type"]),
        (form(b"\r\n--" * (MEGABYTES // 5)), FORM["Content-Type"]),
        (form(FILE_PART + b"\r\n--" * (MEGABYTES // 5)), FORM["Content-Type"]),
    ],
    ids=["base64", "base64s", "header", "dashes", "dashes in a file"],
)
async def test_a_large_body_is_read_off_the_event_loop(content: bytes, content_type: str) -> None:
    """32 MB are read in the thread that is there for it, or refused in their first pieces."""

    class Worker(ThreadPoolExecutor):
        calls = 0

        def submit(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return super().submit(*args, **kwargs)

    sent = iter([{"type": "http.request", "body": content, "more_body": False}])

    async def receive() -> dict[str, object]:
        return next(sent)

    scope = {
        "type": "http",
        "method": "POST",
        "query_string": b"",
        "headers": [(b"content-type", content_type.encode())],
    }
    memory = Memory()
    memory.worker = worker = Worker(1)
    set_share(scope, Share(memory))
    refused = False
    try:
        await read_images(Request(scope, receive), BodyLimits(2 * MEGABYTES, 64))
    except UnreadableRequest:
        refused = True
    assert refused or worker.calls


def test_no_url_is_fetched(classify: Classify) -> None:
    """An address in place of an image is told off, and nobody is called."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        port = listener.getsockname()[1]
        for scheme in ("http", "https", "ftp", "file"):
            address = f"{scheme}://127.0.0.1:{port}/image.png"
            svg = f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{address}"/></svg>'.encode()
            for request in (
                {"json": {"image": address}},
                {"json": {"images": [{"image": address}]}},
                {"content": address},
                {"content": svg, "headers": {"Content-Type": "image/svg+xml"}},
                {"params": {"image": address}},
                {"params": {"url": address}},
                {"files": {"image": address.encode()}},
            ):
                assert classify(**request).status_code in (400, 422)
        with pytest.raises(TimeoutError):
            listener.accept()


@pytest.mark.parametrize("name", ["model", "path", "weights", "labels"])
@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "other.safetensors"]
)
def test_no_file_can_be_asked_for(classify: Classify, dispatch: FakeDispatch, name: str, path: str) -> None:
    """Which models are served is the operator's choice: a request can name one of those, and nothing else."""
    for request in ({"params": {name: path}}, {"json": {"image": BASE64, name: path}}):
        response = classify(**request)
        if name == "model":
            assert_problem(response, 404, "not-found", f"there is no model '{path}'", "models are toy")
        else:
            assert_problem(response, 422, "invalid-value", f"there is no option '{name}'", image=0)
    assert dispatch.questions == []
