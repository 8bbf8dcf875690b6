"""A head of one's own, put on a network without one and on others."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.classifier import Classifier, ImageRequest
from models.load import LoadedModel, ModelError, load
from models.load.own_head import CosineHead, read_head, save_head
from models.pruned_vit import check_against_timm
from models.schedule import UNPRUNED, Pruning

ARCHITECTURE = "vit_tiny_patch16_224"
TOWER = "vit_xsmall_patch16_clip_224"
LABELS = ["cat", "dog", "horse"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks with random weights."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    for name, architecture, arguments in (
        ("headless", ARCHITECTURE, {"num_classes": 0}),
        ("thousand", ARCHITECTURE, {}),
        ("two tokens", "deit_tiny_distilled_patch16_224", {"num_classes": 0}),
        ("tower", TOWER, {"num_classes": 512}),
    ):
        save_file(timm.create_model(architecture, **arguments).state_dict(), folder / f"{name}.safetensors")
    return folder


def head_file(path: Path, tensors: dict[str, Tensor], **header: str) -> Path:
    save_file(tensors, path, metadata={"labels": json.dumps(LABELS), **header})
    return path


def some(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loaded(folder: Path, name: str, head: Path | None, architecture: str = ARCHITECTURE) -> LoadedModel:
    return load(str(folder / f"{name}.safetensors"), architecture=architecture, headless=True, head=head)


def logits_and_features(model: LoadedModel, pixels: Tensor) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        output = model.model(pixels, [UNPRUNED] * len(pixels))
        return output.logits, model.model.family.features(output.pooled)


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("headless", ARCHITECTURE),
        ("thousand", ARCHITECTURE),
        ("two tokens", "deit_tiny_distilled_patch16_224"),
    ],
)
def test_a_linear_head_reads_the_features(folder: Path, tmp_path: Path, name: str, architecture: str) -> None:
    """On a network without a head, with another one, and with two class tokens; the features stay."""
    weight, bias = some(3, 192), some(3, seed=2)
    head = head_file(tmp_path / "head.safetensors", {"weight": weight, "bias": bias})
    model = loaded(folder, name, head, architecture)
    assert model.labels == tuple(LABELS)
    pixels = some(2, 3, 224, 224, seed=3)
    check_against_timm(model.model, pixels)
    logits, features = logits_and_features(model, pixels)
    torch.testing.assert_close(logits, features @ weight.T + bias, rtol=1e-4, atol=1e-4)
    _, before = logits_and_features(loaded(folder, name, None, architecture), pixels)
    assert torch.equal(features, before)


@pytest.mark.parametrize(("name", "architecture"), [("headless", ARCHITECTURE), ("tower", TOWER)])
@pytest.mark.parametrize("scale", [None, torch.tensor(20.0), torch.tensor([5.0, 10.0, 20.0])])
def test_class_embeddings_are_compared_by_their_cosine(
    folder: Path, tmp_path: Path, name: str, architecture: str, scale: Tensor | None
) -> None:
    """With features, and of a CLIP tower with its embeddings, behind the projection."""
    width = 512 if name == "tower" else 192
    embeddings = 3 * some(3, width)
    tensors = {"class_embeddings": embeddings} | ({} if scale is None else {"scale": scale})
    model = loaded(folder, name, head_file(tmp_path / "zero.safetensors", tensors), architecture)
    pixels = some(2, 3, 224, 224, seed=3)
    check_against_timm(model.model, pixels)
    logits, features = logits_and_features(model, pixels)
    cosines = torch.nn.functional.cosine_similarity(features[:, None], embeddings[None], dim=2)
    torch.testing.assert_close(logits, cosines * (100.0 if scale is None else scale), rtol=1e-4, atol=1e-3)
    assert model.model.feature_width == width


def test_sigmoids_with_a_bias_as_of_siglip(folder: Path, tmp_path: Path) -> None:
    """Scores of each class by itself."""
    tensors = {"class_embeddings": some(3, 192), "scale": torch.tensor(10.0), "bias": torch.tensor([-2.0])}
    head = head_file(tmp_path / "siglip.safetensors", tensors, scores="sigmoid")
    model = loaded(folder, "headless", head)
    assert model.scores == "sigmoid"
    classifier = Classifier(model.model, model.input, "cpu", torch.float32, scores=model.scores)
    pixels = torch.randint(0, 256, (1, 224, 224, 3), dtype=torch.uint8)
    (found,) = classifier.classify(pixels, [ImageRequest(Pruning(0.5), top_k=3, logits=True)])
    assert found.logits is not None
    np.testing.assert_allclose(
        np.sort(found.scores), np.sort(1 / (1 + np.exp(-found.logits.astype(np.float64)))), rtol=1e-5
    )


def test_in_bfloat16_a_cosine_keeps_its_scale() -> None:
    """A long feature's squares would lose their sum there."""
    head = CosineHead(torch.eye(192)[:3], torch.tensor([100.0]), torch.zeros(1)).bfloat16()
    features = torch.full((1, 192), 1.0)
    features[0, 0] = 50
    want = 100 * 50 / float(features.norm())
    assert head(features.bfloat16())[0, 0].item() == pytest.approx(want, rel=0.01)


def test_a_head_without_labels_takes_them_from_elsewhere(folder: Path, tmp_path: Path) -> None:
    """From --labels, else numbers; of a tower, too."""
    path = tmp_path / "bare.safetensors"
    save_file({"class_embeddings": some(2, 512)}, path)
    tower = str(folder / "tower.safetensors")
    named = load(tower, architecture=TOWER, labels=("yes", "no"), headless=True, head=path)
    assert named.labels == ("yes", "no")
    assert load(tower, architecture=TOWER, headless=True, head=path).labels == ("class 0", "class 1")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """In the form that people may write, too."""
    save_head(tmp_path / "head.safetensors", some(3, 7), some(3, seed=2), LABELS, {"model": "toy"})
    head = read_head(tmp_path / "head.safetensors")
    assert torch.equal(head.layer.weight, some(3, 7))
    assert torch.equal(head.layer.bias, some(3, seed=2))
    assert (head.labels, head.scores) == (tuple(LABELS), "softmax")


@pytest.mark.parametrize(
    ("tensors", "header", "words"),
    [
        ({"kernel": some(3, 192)}, {}, "has the tensors kernel; expected are `weight`"),
        ({"weight": some(3, 192), "class_embeddings": some(3, 192)}, {}, "expected are `weight`"),
        ({"weight": some(192)}, {}, r"`weight` has the shape \[192\]"),
        ({"weight": some(3, 192), "bias": some(4)}, {}, r"`bias` has the shape \[4\]; expected \[3\]"),
        ({"weight": torch.full((3, 192), torch.nan)}, {}, "`weight` has values that are not finite"),
        ({"weight": torch.ones(3, 192, dtype=torch.int8)}, {}, "not finite floating-point numbers"),
        ({"class_embeddings": some(3, 192), "scale": some(2)}, {}, r"expected \[1\] or \[3\]"),
        ({"weight": some(3, 192)}, {"labels": '["cat"]'}, "has 1 labels but 3 classes"),
        ({"weight": some(3, 192)}, {"labels": "cat, dog"}, "`labels` in its header is not valid JSON"),
        ({"weight": some(3, 192)}, {"labels": "7"}, "neither a list of labels nor a map"),
        ({"weight": some(3, 192)}, {"scores": "relu"}, "allowed are softmax and sigmoid"),
        ({"weight": some(3, 384)}, {}, "a head for 384 features, but this network has 192"),
    ],
    ids=str,
)
def test_what_is_no_head_for_the_network_is_refused_in_words(
    folder: Path, tmp_path: Path, tensors: dict[str, Tensor], header: dict[str, Any], words: str
) -> None:
    """With what is wanted."""
    with pytest.raises(ModelError, match=words):
        loaded(folder, "headless", head_file(tmp_path / "wrong.safetensors", tensors, **header))


def test_two_class_tokens_take_no_class_embeddings(folder: Path, tmp_path: Path) -> None:
    """The cosine of a mean is no mean of cosines."""
    head = head_file(tmp_path / "zero.safetensors", {"class_embeddings": some(3, 192)})
    with pytest.raises(ModelError, match="it is distilled"):
        loaded(folder, "two tokens", head, "deit_tiny_distilled_patch16_224")


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    """Missing, or of another format."""
    with pytest.raises(ModelError, match=r"the head file .* does not exist"):
        read_head(tmp_path / "missing.safetensors")
    torch.save({"weight": some(3, 192)}, tmp_path / "head.pt")
    with pytest.raises(ModelError, match="not a safetensors file; expected are"):
        read_head(tmp_path / "head.pt")
