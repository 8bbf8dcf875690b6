"""`trimvit head`: a linear head on the features of a network."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from models.classifier import Classifier, ImageRequest
from models.load import ModelError, load
from models.schedule import Pruning
from models.training.config import HeadConfig
from models.training.probe import PENALTIES, best_penalty, fit, fit_head, split

ARCHITECTURE = "vit_tiny_patch16_224"
COLOURS = {"blue": (20, 30, 200), "green": (20, 180, 40), "red": (210, 30, 20)}


def test_the_fit_is_where_the_loss_is_least() -> None:
    """Its gradient vanishes there, of features of any size and offset."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 5, generator=generator).double() * torch.tensor([1, 10, 100, 0.2, 1]) + 7
    truth = torch.randint(0, 3, (60,), generator=generator)
    found = fit(features, truth, 3, penalty=0.01)
    mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0)
    weight = (found.weight * deviation).requires_grad_()
    bias = (found.bias + found.weight @ mean).requires_grad_()
    logits = torch.nn.functional.linear((features - mean) / deviation, weight, bias)
    loss = torch.nn.functional.cross_entropy(logits, truth) + 0.005 * weight.square().sum()
    loss.backward()
    assert weight.grad is not None
    assert bias.grad is not None
    assert max(float(weight.grad.abs().max()), float(bias.grad.abs().max())) < 1e-4


def test_a_feature_that_is_always_the_same_does_no_harm() -> None:
    """It has no deviation to be divided by."""
    features = torch.tensor([[0.0, 3], [1, 3], [0.1, 3], [0.9, 3]], dtype=torch.float64)
    found = fit(features, torch.tensor([0, 1, 0, 1]), 2, penalty=0.01)
    assert torch.isfinite(found.weight).all()
    assert found.right(features, torch.tensor([0, 1, 0, 1])) == 1


def test_noise_gets_the_largest_penalty() -> None:
    """Labels that say nothing of the features are best not believed."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(80, 20, generator=generator).double()
    truth = torch.randint(0, 2, (80,), generator=generator)
    assert best_penalty(features[:40], truth[:40], features[40:], truth[40:], 2) == max(PENALTIES)


def test_a_part_of_each_class_is_held_out() -> None:
    """No image is in both parts; a class of four gives none."""
    truth = np.array([0] * 10 + [1] * 20 + [2] * 4)
    first, second = split(truth, 0.2, seed=0)
    assert sorted([*first, *second]) == list(range(34))
    assert np.bincount(truth[second], minlength=3).tolist() == [2, 4, 0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of three colours, ten each, and a network without a head."""
    folder = tmp_path_factory.mktemp("probe")
    draw = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / "images" / name).mkdir(parents=True)
        for number in range(10):
            pixels = np.clip(np.array(colour) + draw.integers(-20, 20, (48, 48, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / name / f"{number}.png")
    torch.manual_seed(0)
    vit = timm.create_model(ARCHITECTURE, num_classes=0, depth=2)
    save_file(vit.state_dict(), folder / "headless.safetensors")
    (folder / "config.json").write_text(
        f'{{"architecture": "{ARCHITECTURE}", "num_classes": 0, "model_args": {{"depth": 2}}}}'
    )
    return folder


def config(folder: Path, output: Path, **changes: object) -> HeadConfig:
    given = {"data": folder / "images", "output": output, "model": str(folder / "headless.safetensors")}
    return HeadConfig.model_validate({**given, "dtype": "float32", "workers": 0, **changes})


def test_a_network_without_a_head_becomes_a_classifier(folder: Path, tmp_path: Path) -> None:
    """What is written, put on the network, tells the colours apart, also pruned."""
    output = tmp_path / "head.safetensors"
    fitted = fit_head(config(folder, output))
    assert (fitted.held_out, fitted.images, fitted.classes) == (6, 30, 3)
    assert fitted.top1 == 1.0
    assert fitted.top1_error == pytest.approx((7 / 8 * 1 / 8 / 6) ** 0.5)
    model = load(str(folder / "headless.safetensors"), head=output)
    assert model.labels == ("blue", "green", "red")
    classifier = Classifier(model.model, model.input, "cpu", torch.float32)
    colours = torch.tensor(list(COLOURS.values()), dtype=torch.uint8)
    pixels = colours[:, None, None].expand(3, 224, 224, 3).contiguous()
    for ratio in (1.0, 0.5):
        found = classifier.classify(pixels, [ImageRequest(Pruning(ratio), top_k=1)] * 3)
        assert [int(each.classes[0]) for each in found] == [0, 1, 2]


def test_folders_may_have_other_names(folder: Path, tmp_path: Path) -> None:
    """A JSON file says the labels."""
    names = tmp_path / "names.json"
    names.write_text('{"blue": "the sea", "red": "a rose"}')
    fit_head(config(folder, tmp_path / "head.safetensors", labels=names))
    model = load(str(folder / "headless.safetensors"), head=tmp_path / "head.safetensors")
    assert model.labels == ("the sea", "green", "a rose")


def test_what_cannot_be_fitted_is_told(folder: Path, tmp_path: Path) -> None:
    """No network, too few images, nowhere to write."""
    with pytest.raises(ModelError, match=r"the file .* does not exist"):
        fit_head(config(folder, tmp_path / "head.safetensors", model="missing.safetensors"))
    few = tmp_path / "few"
    for name in COLOURS:
        (few / name).mkdir(parents=True)
        Image.new("RGB", (48, 48)).save(few / name / "1.png")
    with pytest.raises(ValueError, match="none can be held out"):
        fit_head(config(folder, tmp_path / "head.safetensors", data=few))
    with pytest.raises(ValueError, match=r"the folder .* does not exist"):
        fit_head(config(folder, tmp_path / "nowhere" / "head.safetensors"))
