"""What the JSON of an infer request asks for, and what of it is remembered."""

import json

import msgspec

from app.http.routes.open_inference import infer
from app.http.routes.open_inference.infer import asked_inference
from tests.app.fakes import MODEL


def head(**parameters: object) -> bytes:
    pixels = {"name": "pixels", "datatype": "UINT8", "shape": [1, 21, 35, 3]}
    return json.dumps({"inputs": [pixels], "parameters": parameters}).encode()


def test_what_short_json_asks_for_is_remembered() -> None:
    """Of other JSON something else, and of long JSON nothing."""
    one = asked_inference(head(keep_ratio=0.5), None)
    assert asked_inference(bytearray(head(keep_ratio=0.5)), None) is one
    assert asked_inference(head(keep_ratio=0.25), None).options.keep_ratio == 0.25
    assert one.options.keep_ratio == 0.5
    long = head(keep_ratio=0.5) + b" " * infer._LONGEST_REMEMBERED
    assert asked_inference(long, None).options == one.options
    assert asked_inference(long, None) is not asked_inference(long, None)


def test_another_model_is_asked_for_its_own() -> None:
    """No more classes than it has, even where the request has been seen before."""
    asked = asked_inference(head(top_k=10), None)
    smaller = msgspec.structs.replace(MODEL, labels=MODEL.labels[:3])
    assert [asked.of(model).top_k for model in (MODEL, smaller, MODEL)] == [10, 3, 10]
    assert asked.of(MODEL) is asked.of(MODEL)
