"""Every route that answers images, and how one photograph is sent to it."""

import base64
from collections.abc import Callable, Mapping
from typing import Any

import httpx
from starlette.testclient import TestClient

from tests.app.fakes import MODEL, encoded

SOUND = encoded()
BASE64 = base64.b64encode(SOUND).decode()

# Asks with one photograph and these options.
Ask = Callable[[TestClient, Mapping[str, Any]], httpx.Response]


def _raw(path: str) -> Ask:
    def ask(client: TestClient, options: Mapping[str, Any]) -> httpx.Response:
        response: httpx.Response = client.post(path, content=SOUND, params=dict(options))  # type: ignore[assignment]
        return response

    return ask


def _json(path: str, document: Mapping[str, Any]) -> Ask:
    def ask(client: TestClient, options: Mapping[str, Any]) -> httpx.Response:
        response: httpx.Response = client.post(path, json={**document, "parameters": options})  # type: ignore[assignment]
        return response

    return ask


_INFER = {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [BASE64]}]}

# By the route's pattern and method.
IMAGE_ROUTES: dict[tuple[str, str], Ask] = {
    ("/v1/classify", "POST"): _raw("/v1/classify"),
    ("/v1/embed", "POST"): _raw("/v1/embed"),
    ("/v2/models/{model_name}/infer", "POST"): _json(f"/v2/models/{MODEL.name}/infer", _INFER),
    ("/v2/models/{model_name}/versions/{model_version}/infer", "POST"): _json(
        f"/v2/models/{MODEL.name}/versions/1/infer", _INFER
    ),
    ("/", "POST"): _raw("/"),
    ("/models/{model_name}", "POST"): _raw(f"/models/{MODEL.name}"),
    ("/invocations", "POST"): _raw("/invocations"),
    ("/v1/models/{model_name}:predict", "POST"): _json(
        f"/v1/models/{MODEL.name}:predict", {"instances": [{"image": {"b64": BASE64}}]}
    ),
}
