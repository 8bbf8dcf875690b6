"""Networks without classes: loaded for their features, where these are wanted."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from models.classifier import Classifier, ImageRequest
from models.load import LoadedModel, ModelError, load
from models.pruned_vit import check_against_timm
from models.schedule import UNPRUNED, Pruning

TOWER = "vit_xsmall_patch16_clip_224"


def saved(path: Path, architecture: str, **arguments: object) -> torch.nn.Module:
    """A network with random weights, which are written there."""
    torch.manual_seed(0)
    vit: torch.nn.Module = timm.create_model(architecture, **arguments).eval()
    save_file(vit.state_dict(), path)
    return vit


def features(loaded: LoadedModel, pixels: torch.Tensor) -> torch.Tensor:
    loaded.model.exact = True
    with torch.inference_mode():
        return loaded.model.family.features(loaded.model(pixels, [UNPRUNED] * len(pixels)).pooled)


def test_a_network_without_a_head_is_loaded_for_its_features(tmp_path: Path) -> None:
    """With no labels, and the features that timm gives; else it is refused by words that say what to do."""
    path = tmp_path / "headless.safetensors"
    vit = saved(path, "vit_tiny_patch16_224", num_classes=0)
    with pytest.raises(ModelError, match=r"features but no classes: it has no head; .*/v1/embed"):
        load(str(path), architecture="vit_tiny_patch16_224")
    loaded = load(str(path), architecture="vit_tiny_patch16_224", headless=True)
    assert loaded.labels == ()
    assert loaded.model.feature_width == 192
    pixels = torch.randn(2, 3, 224, 224)
    check_against_timm(loaded.model, pixels)
    with torch.inference_mode():
        assert torch.equal(features(loaded, pixels), vit(pixels))
    classifier = Classifier(loaded.model, loaded.input, "cpu", torch.float32)
    photograph = torch.randint(0, 256, (1, 224, 224, 3), dtype=torch.uint8)
    (found,) = classifier.classify(photograph, [ImageRequest(Pruning(0.5), features=True)])
    assert found.classes.size == 0
    assert found.features is not None


def test_the_projection_of_a_clip_tower_is_part_of_its_features(tmp_path: Path) -> None:
    """They lie in the space that image and text share, as timm's own answer does."""
    path = tmp_path / "tower.safetensors"
    vit = saved(path, TOWER, num_classes=512)
    with pytest.raises(ModelError, match="its head with 512 outputs is a projection of CLIP"):
        load(str(path), architecture=TOWER)
    loaded = load(str(path), architecture=TOWER, headless=True)
    assert loaded.labels == ()
    assert loaded.model.feature_width == 512
    pixels = torch.randn(1, 3, 224, 224)
    check_against_timm(loaded.model, pixels)
    with torch.inference_mode():
        assert torch.equal(features(loaded, pixels), vit(pixels))
    named = load(
        str(path), architecture=TOWER, labels=tuple(f"class {index}" for index in range(512)), headless=True
    )
    assert (len(named.labels), named.model.feature_width) == (512, 768 // 3)


def test_labels_need_classes(tmp_path: Path) -> None:
    """A network without a head has none to name."""
    path = tmp_path / "headless.safetensors"
    saved(path, "vit_tiny_patch16_224", num_classes=0)
    with pytest.raises(ModelError, match="2 labels, but headless has no classes"):
        load(str(path), architecture="vit_tiny_patch16_224", labels=("cat", "dog"), headless=True)
