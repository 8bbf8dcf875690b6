"""JSON whose lists lie in each other, on every route that takes JSON: refused, and no fault of the server."""

import msgspec
import pytest
from starlette.testclient import TestClient

from tests.app.http.conftest import Classify

JSON = {"Content-Type": "application/json"}


DOCUMENTS = {
    "classify: option": ("/v1/classify", '{"image": "AAAA", "keep_ratio": @}'),
    "classify: image": ("/v1/classify", '{"image": @}'),
    "classify: images": ("/v1/classify", '{"images": [{"image": "AAAA", "top_k": @}, @]}'),
    "classify: unknown": ("/v1/classify", '{"image": "AAAA", "unknown": @}'),
    "embed": ("/v1/embed", '{"image": "AAAA", "normalize": @}'),
    "Hugging Face: inputs": ("/", '{"inputs": @}'),
    "Hugging Face: parameters": ("/", '{"inputs": "AAAA", "parameters": {"top_k": @}}'),
    "KServe v1: instances": ("/v1/models/toy:predict", '{"instances": @}'),
    "KServe v1: instance": ("/v1/models/toy:predict", '{"instances": [{"image": @}]}'),
    "KServe v1: parameters": ("/v1/models/toy:predict", '{"instances": ["AAAA"], "parameters": @}'),
    "v2: id": ("/v2/models/toy/infer", '{"id": @, "inputs": []}'),
    "v2: parameters": ("/v2/models/toy/infer", '{"parameters": {"keep_ratio": @}, "inputs": []}'),
    "v2: shape": (
        "/v2/models/toy/infer",
        '{"inputs": [{"name": "image", "shape": @, "datatype": "BYTES", "data": ["AAAA"]}]}',
    ),
    "v2: data": (
        "/v2/models/toy/infer",
        '{"inputs": [{"name": "pixels", "shape": [1, 1, 1, 3], "datatype": "UINT8", "data": @}]}',
    ),
    "v2: outputs": ("/v2/models/toy/infer", '{"inputs": [], "outputs": @}'),
    "index": ("/v2/repository/index", "@"),
    "index: ready": ("/v2/repository/index", '{"ready": @}'),
}


def deepest() -> int:
    """How many lists in each other the parser reads: about 1,000 in Python 3.11, more in later ones, which
    limit the recursion of C apart from Python's."""
    read, too_deep = 1, 2**20
    while too_deep - read > 1:
        depth = (read + too_deep) // 2
        try:
            msgspec.json.decode(b"[" * depth + b"]" * depth)
        except RecursionError:
            too_deep = depth
        else:
            read = depth
    return read


@pytest.mark.parametrize("long", [False, True], ids=["short", "with a long text"])
@pytest.mark.parametrize(("path", "document"), DOCUMENTS.values(), ids=DOCUMENTS)
def test_lists_in_lists_are_refused_on_every_route(
    client: TestClient, path: str, document: str, long: bool
) -> None:
    """From what our own code can still go through to what the parser no longer reads."""
    limit = deepest()
    for depth in (400, 900, limit - 400, limit - 100, limit - 20, limit + 20):
        content = document.replace("@", "[" * depth + "]" * depth)
        if long:
            content = content.replace("AAAA", "A" * 10_000)
        response = client.post(path, content=content, headers=JSON)
        assert 400 <= response.status_code < 500, (depth, response.status_code, response.text[:300])


def test_how_deep_the_options_of_a_long_image_lie_decides_the_problem(client: TestClient) -> None:
    """Lists that can be read are a wrong value; others cannot be read, whatever the parser makes of them."""
    for depth, slug in ((10, "invalid-value"), (deepest() - 10, "unreadable-request")):
        content = f'{{"image": "{"A" * 10_000}", "keep_ratio": {"[" * depth}{"]" * depth}}}'
        response = client.post("/v1/classify", content=content, headers=JSON)
        assert response.json()["type"] == f"urn:trimvit:problem:{slug}"


@pytest.mark.parametrize("image", ["", "A" * 10_000], ids=["short", "long"])
def test_json_of_every_depth_is_read_or_refused(classify: Classify, image: str) -> None:
    """Between what is shallow enough to be read and too deep to be parsed there is no depth that breaks
    the refusal itself."""
    statuses = set()
    limit = deepest()
    depths = {1, 10, 100, 500, *range(880, 1020, 4), *range(limit - 120, limit + 20, 8)}
    for depth in sorted(depths):
        content = f'{{"image": "{image}", "keep_ratio": {"[" * depth + "]" * depth}}}'
        response = classify(content=content.encode(), headers=JSON)
        statuses.add(response.status_code)
    assert statuses == {400, 422}
