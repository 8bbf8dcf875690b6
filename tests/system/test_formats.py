"""`trimvit serve --model FOLDER` on folders that transformers and timm saved: no other flag."""

from pathlib import Path

import httpx
import pytest
import timm
import torch
from timm.models import save_for_hf

from tests.support import transformers_models
from tests.system.photographs import SHIPPED
from tests.system.server import running_server

pytestmark = pytest.mark.system
CHINA = (SHIPPED / "china.jpg").read_bytes()


def test_a_folder_of_transformers_is_served_with_its_labels(tmp_path: Path) -> None:
    """Several labels an image: sigmoids in every shape, and a mask of what was kept."""
    folder = tmp_path / "model"
    transformers_models.save("dinov2", folder, problem_type="multi_label_classification")
    with running_server(tmp_path, "--model", str(folder)) as server:
        (described,) = httpx.get(f"{server.url}/v1/models").json()["models"]
        assert described["scores"] == "sigmoid"
        assert described["labels"] == list(transformers_models.LABELS)
        asked = {"keep_ratio": 0.5, "mask": "grid", "top_k": 11}
        answer = httpx.post(f"{server.url}/v1/classify", params=asked, content=CHINA)
        (result,) = answer.json()["results"]
        scores = {label["label"]: label["score"] for label in result["labels"]}
        assert scores.keys() == set(transformers_models.LABELS)
        assert abs(sum(scores.values()) - 1) > 0.1
        assert result["patches"]["per_stage"][0] == 13
        by_function = {}
        for function in (None, "sigmoid", "softmax", "none"):
            asked = {"top_k": 11, "keep_ratio": 0.5, **({"function_to_apply": function} if function else {})}
            labels = httpx.post(f"{server.url}/", params=asked, content=CHINA).json()
            by_function[function] = {each["label"]: each["score"] for each in labels}
        assert by_function[None] == pytest.approx(scores, abs=1e-3)
        assert by_function["sigmoid"] == pytest.approx(scores, abs=1e-3)
        assert sum(by_function["softmax"].values()) == pytest.approx(1)
        logits = torch.tensor([by_function["none"][label] for label in transformers_models.LABELS])
        assert [by_function["softmax"][label] for label in transformers_models.LABELS] == pytest.approx(
            logits.softmax(0).tolist(), abs=1e-3
        )


def test_a_folder_of_timm_is_served_with_its_labels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vit = timm.create_model("test_vit", num_classes=3)
    labels = ["heron", "newt", "reed"]
    save_for_hf(vit, tmp_path / "model", model_config={"label_names": labels}, safe_serialization=True)
    with running_server(tmp_path, "--model", str(tmp_path / "model")) as server:
        (described,) = httpx.get(f"{server.url}/v1/models").json()["models"]
        assert (described["labels"], described["scores"]) == (labels, "softmax")
        answer = httpx.post(f"{server.url}/v1/classify", content=CHINA)
        (result,) = answer.json()["results"]
        assert {label["label"] for label in result["labels"]} == set(labels)
