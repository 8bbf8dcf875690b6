"""Answers as records, made of what the real front end says; masks as arrays and pictures; images as given."""

import io
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
import trimvit_client
from PIL import Image as Pictures
from starlette.testclient import TestClient
from trimvit_client import StageMask, UnreadableImage
from trimvit_client.images import encoded as as_file
from trimvit_client.results import Classification, classification_of, embedding_of, models_of

from app.main import create_app
from app.settings.settings import Settings
from tests.app.fakes import FEATURES, MODEL, FakeDispatch, encoded, kept_patches


@pytest.fixture(scope="module")
def server() -> TestClient:
    return TestClient(create_app(Settings.model_construct(), FakeDispatch()))


def classified(server: TestClient, query: str) -> Classification:
    answer = server.post(f"/v1/classify?{query}", content=encoded(), headers={"Content-Type": "image/png"})
    return classification_of(answer.json(), answer.headers["X-Request-ID"])


def test_an_answer_is_a_record(server: TestClient) -> None:
    """Every member of the server's has its place, under its name."""
    answer = classified(server, "keep_ratio=0.5&top_k=2&criterion=mad")
    assert answer.model == "toy"
    assert [(label.index, label.label, label.score) for label in answer.labels] == [
        (0, "label 0", 0.5), (1, "label 1", 0.25),
    ]  # fmt: skip
    assert answer.best is answer.labels[0]
    assert (answer.requested_keep_ratio, answer.lowered) == (0.5, None)
    assert (answer.keep_ratio, answer.criterion, answer.reducer, answer.runs) == (0.5, "mad", "drop", 1)
    assert answer.patches == trimvit_client.Patches(15, 4, (8, 4), (3, 5))
    assert 0 < answer.compute < 1
    assert answer.mask == ()
    assert answer.timings_ms.queue == 3.0
    assert answer.timings_ms.compute == 7.0
    assert answer.request_id
    assert answer.cached is False
    with pytest.raises(FrozenInstanceError):
        answer.model = "another"  # type: ignore[misc]


@pytest.mark.parametrize("query", ["", "&top_k=2"])
def test_an_embedding_is_a_record(server: TestClient, query: str) -> None:
    """With the numbers of the vector, and labels where they are asked for."""
    content = encoded()
    answer = server.post(f"/v1/embed?keep_ratio=0.5&encoding=base64{query}", content=content)
    found = embedding_of(answer.json(), "mine")
    assert found.values == FEATURES
    assert found.array().dtype == np.float32
    assert found.array().tolist() == list(FEATURES)
    assert [label.index for label in found.labels] == ([0, 1] if query else [])
    assert (found.model, found.keep_ratio, found.reducer, found.request_id) == ("toy", 0.5, "drop", "mine")
    assert found.patches == trimvit_client.Patches(15, 4, (8, 4), (3, 5))
    assert found.timings_ms.compute == 7.0


@pytest.mark.parametrize("text", ["AAAAAAA=", "no base64", ""])
def test_what_is_no_embedding_is_told(server: TestClient, text: str) -> None:
    """Bytes that are no float32 numbers are not read as some."""
    document = server.post("/v1/embed?encoding=base64", content=encoded()).json()
    document["results"][0]["embedding"] = text
    if text:
        with pytest.raises(ValueError, match=r"float32|base64"):
            embedding_of(document, None)
    else:
        assert embedding_of(document, None).values == ()


def test_merge_reads_no_criterion(server: TestClient) -> None:
    """So there is none in the answer."""
    assert classified(server, "keep_ratio=0.5&reducer=merge").criterion is None


@pytest.mark.parametrize("form", ["grid", "indices"])
def test_a_mask_is_an_array(server: TestClient, form: str) -> None:
    """[rows, columns], True where a patch was kept, from either format, for each stage."""
    masks = classified(server, f"keep_ratio=0.5&mask={form}&mask_stages=true").mask
    assert [mask.block for mask in masks] == [2, 4]
    for mask, kept in zip(masks, kept_patches(0.5), strict=True):
        cells = mask.array()
        assert cells.dtype == bool
        assert cells.shape == (3, 5)
        assert np.flatnonzero(cells).tolist() == kept
        with pytest.raises(ValueError, match="ask with mask='png'"):
            mask.picture()


def test_a_mask_is_a_picture(server: TestClient) -> None:
    """Of what the model saw."""
    (mask,) = classified(server, "keep_ratio=0.5&mask=png").mask
    assert mask.picture().size == (35, 21)
    with pytest.raises(ValueError, match="ask with mask='grid' or mask='indices'"):
        mask.array()


def test_models_are_records(server: TestClient) -> None:
    """What is served, with its cascade."""
    (model,) = models_of(server.get("/v1/models").json())
    assert (model.name, model.labels, model.device, model.dtype) == ("toy", MODEL.labels, "cpu:0", "float32")
    assert (model.input.height, model.input.width, model.patches, model.grid) == (21, 35, 15, (3, 5))
    assert (model.stages, model.default_criterion, model.default_reducer) == ((2, 4), "mean", "drop")
    assert (model.default_keep_ratio, model.default_deadline_ms, model.evenly) == (1, 30_000, False)
    assert model.cascade == trimvit_client.Cascade(0.5, "iqr", "fuse", 0.99, 0.8125)


def test_what_a_request_can_choose_and_how_the_blocks_attend(server: TestClient) -> None:
    """As the server says it; nothing of an older server."""
    answer = server.get("/v1/models").json()
    answer["models"][0] |= {"static_blocks": [1, 2], "cluster_blocks": [3]}
    (model,) = models_of(answer)
    assert (model.criteria, model.reducers) == (MODEL.criteria, MODEL.reducers)
    assert (model.static_blocks, model.cluster_blocks) == ((1, 2), (3,))
    for name in ("criteria", "reducers", "static_blocks", "cluster_blocks"):
        del answer["models"][0][name]
    (model,) = models_of(answer)
    assert (model.criteria, model.reducers, model.static_blocks, model.cluster_blocks) == ((), (), (), ())


def test_what_a_newer_server_adds_is_passed_over(server: TestClient) -> None:
    """A client need not be as new as its server."""
    answer = server.post("/v1/classify", content=encoded(), headers={"Content-Type": "image/png"}).json()
    answer["results"][0]["from_tomorrow"] = answer["from_tomorrow"] = {"a": 1}
    assert classification_of(answer, None).best.label == "label 0"


def test_an_image_may_be_given_in_many_ways(tmp_path: Path) -> None:
    """A path, bytes, an open file; pixels of numpy and Pillow, which come back as they were."""
    data = encoded()
    path = tmp_path / "image.png"
    path.write_bytes(data)
    for source in (path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data)):
        assert as_file(source) == data
    with path.open("rb") as file:
        assert as_file(file) == data
    pixels = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)
    for source in (pixels, Pictures.fromarray(pixels)):
        assert (np.asarray(Pictures.open(io.BytesIO(as_file(source)))) == pixels).all()
    assert Pictures.open(io.BytesIO(as_file(pixels[:, :, 0]))).mode == "L"


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    """Before anything is sent."""
    with pytest.raises(UnreadableImage, match=r"gone.png cannot be read: No such file or directory"):
        as_file(tmp_path / "gone.png")
    for wrong in (7, None, io.StringIO("text"), [1, 2]):
        with pytest.raises(TypeError, match="an image is a path, bytes"):
            as_file(wrong)  # type: ignore[arg-type]
    for wrong in (np.zeros((2, 2, 4), np.uint8), np.zeros((2, 2, 3)), np.zeros(3, np.uint8)):
        with pytest.raises(TypeError, match=r"pixels are uint8, \[height, width, 3\]"):
            as_file(wrong)


def test_numpy_and_pillow_are_not_needed() -> None:
    """Where they are missing, only what is made of them fails, and says what to install; and nothing of the
    server's is imported."""
    code = """
import sys
sys.path[:0] = [sys.argv[1]]
sys.modules["numpy"] = sys.modules["PIL"] = sys.modules["PIL.Image"] = None
import trimvit_client as t
assert not {"app", "models", "torch", "pydantic"} & sys.modules.keys()
from trimvit_client.images import encoded
assert encoded(b"bytes") == b"bytes"
for make in (t.StageMask(10, (2, 2), indices=(1,)).array, t.StageMask(10, (2, 2), png=b"").picture):
    try:
        make()
    except ImportError as error:
        assert "pip install 'trimvit-client[pictures]'" in str(error)
    else:
        raise AssertionError
"""
    source = Path(trimvit_client.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code, source], check=True, timeout=60, cwd="/")


def test_indices_are_numbered_row_by_row() -> None:
    """Of 2 x 3 patches the third and the fourth are at the end of a row and at the beginning of the next."""
    assert StageMask(4, (2, 3), indices=(2, 3)).array().tolist() == [
        [False, False, True],
        [True, False, False],
    ]
