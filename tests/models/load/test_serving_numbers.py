"""What is served computes with numbers, sees what timm's loader shows, and answers with classes."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from timm.data import create_transform
from torch import Tensor, nn

from models.catalogue import candidates
from models.classifier import Classifier, ImageRequest
from models.load import Card, ModelError, create, load, save
from models.normalise import normalise
from models.schedule import UNPRUNED, Stages
from models.transforms import InputSpec, to_pixels

ARCHITECTURE = "test_vit"
Randomise = Callable[..., nn.Module]
PHOTOGRAPH = Path(__file__).parents[2] / "photographs" / "china.jpg"


def state(**arguments: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    tensors: dict[str, Tensor] = timm.create_model(
        ARCHITECTURE, **{"num_classes": 5, **arguments}
    ).state_dict()
    return tensors


def saved(path: Path, tensors: dict[str, Tensor]) -> Path:
    torch.save(tensors, path)
    return path


# Grey input.


def test_a_network_of_one_channel_sees_what_timms_loader_shows(randomise: Randomise, tmp_path: Path) -> None:
    """The photograph is made grey as timm makes it, and the answer is timm's on the grey picture."""
    vit = randomise(timm.create_model(ARCHITECTURE, num_classes=5, in_chans=1)).eval()
    path = saved(tmp_path / "grey.pth", vit.state_dict())
    card = {"input_size": [1, 160, 160], "mean": [0.4], "std": [0.2], "crop_pct": 1.0, "num_classes": 5}
    card["interpolation"] = "bicubic"
    (tmp_path / "config.json").write_text(json.dumps({"architecture": ARCHITECTURE, "pretrained_cfg": card}))
    loaded = load(str(path))
    assert loaded.input.channels == 1
    image = Image.open(PHOTOGRAPH).resize((160, 160))
    transform = create_transform((1, 160, 160), mean=(0.4,), std=(0.2,), crop_pct=1.0)
    want = transform(image.convert("L")).unsqueeze(0)
    pixels = torch.from_numpy(to_pixels(image, loaded.input).copy()).unsqueeze(0)
    torch.testing.assert_close(normalise(pixels, loaded.input, torch.float32), want)
    classifier = Classifier(loaded.model, loaded.input, "cpu", torch.float32)
    (prediction,) = classifier.classify(pixels, [ImageRequest(UNPRUNED, logits=True)])
    assert prediction.logits is not None
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(prediction.logits), vit(want)[0], rtol=1e-4, atol=1e-4)


def test_pixels_in_colour_are_made_grey_as_pillow_does() -> None:
    """Where a client sends them itself, to the last bit."""
    pixels = np.random.default_rng(3).integers(0, 256, (5, 7, 3), np.uint8)
    spec = InputSpec((5, 7), (0.0,) * 3, (1.0,) * 3, channels=1)
    got = normalise(torch.from_numpy(pixels).unsqueeze(0), spec, torch.float32)
    want = np.asarray(Image.fromarray(pixels).convert("L"))
    assert got.shape == (1, 1, 5, 7)
    assert np.array_equal((got[0, 0] * 255).round().numpy().astype(np.uint8), want)


def test_colours_of_three_channels_for_a_grey_network_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With what is taken instead."""
    path = saved(tmp_path / "grey.pth", state(in_chans=1))
    with caplog.at_level(logging.WARNING):
        loaded = load(str(path), architecture=ARCHITECTURE)
    told = [
        record.getMessage() for record in caplog.records if "one grayscale channel" in record.getMessage()
    ]
    assert len(set(loaded.input.mean)) == 1
    assert bool(told) == (len(set(timm.get_pretrained_cfg(ARCHITECTURE).mean)) > 1)


# Numbers.


def test_weights_beyond_half_precision_are_refused_in_it(tmp_path: Path) -> None:
    """By the tensor's name, with the dtypes that hold them; those serve."""
    tensors = state()
    tensors["blocks.2.mlp.fc2.weight"][0, 0] = 1e6
    path = saved(tmp_path / "wide.pth", tensors)
    loaded = load(str(path), architecture=ARCHITECTURE)
    words = r"blocks\.2\.mlp\.fc2\.weight has values outside the range of float16.*bfloat16 or float32"
    with pytest.raises(ModelError, match=words):
        Classifier(loaded.model, loaded.input, "cpu", torch.float16)
    loaded = load(str(path), architecture=ARCHITECTURE)
    Classifier(loaded.model, loaded.input, "cpu", torch.bfloat16)


def card_of(vit: Any) -> Card:
    labels = tuple(f"class {index}" for index in range(5))
    return Card(
        ARCHITECTURE,
        labels,
        InputSpec((160, 160), (0.5,) * 3, (0.5,) * 3),
        Stages((1,)),
        model_args={"num_classes": 5, "dynamic_img_size": False},
    )


def test_a_checkpoint_keeps_what_half_precision_cannot_hold(tmp_path: Path) -> None:
    """Written in float32 and read as it was; NaN is not written."""
    vit = timm.create_model(ARCHITECTURE, num_classes=5, dynamic_img_size=False)
    with torch.no_grad():
        vit.head.weight[0, 0] = 1e6
    path = tmp_path / "model.safetensors"
    save(path, vit, card_of(vit))
    with safe_open(path, framework="pt") as file:
        assert file.get_tensor("head.weight").dtype == torch.float32
        assert file.get_tensor("head.bias").dtype == torch.float16
    assert load(str(path)).model.vit.head.weight[0, 0] == 1e6
    with torch.no_grad():
        vit.head.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"not written: head\.weight .* diverged"):
        save(path, vit, card_of(vit))


# Classes.


@pytest.mark.parametrize("width", [512, 640])
def test_a_projection_is_no_classifier(tmp_path: Path, width: int) -> None:
    """A CLIP tower in a file is refused unless its outputs are named; other widths are classes."""
    name = "vit_xsmall_patch16_clip_224"
    tensors = timm.create_model(name, num_classes=width).state_dict()
    save_file(tensors, tmp_path / "tower.safetensors")
    path = str(tmp_path / "tower.safetensors")
    if width == 512:
        with pytest.raises(ModelError, match="its head with 512 outputs is a projection of CLIP"):
            load(path, architecture=name)
    assert load(path, architecture=name, labels=tuple(map(str, range(width)))).labels[7] == "7"
    assert [each.entry() for each in candidates([f"{name}.*"])] == [None]


@pytest.mark.parametrize(
    ("classes", "first"), [(1000, "tench, Tinca tinca"), (11821, None), (21843, None), (21841, None)]
)
def test_heads_of_imagenet_have_its_labels(tmp_path: Path, classes: int, first: str | None) -> None:
    """Of the usual thousand, of 12k and 21k classes."""
    path = saved(tmp_path / "head.pth", state(num_classes=classes))
    labels = load(str(path), architecture=ARCHITECTURE).labels
    assert len(labels) == classes
    assert labels[0] != "class 0"
    assert first in (None, labels[0])


# What fine-tuning starts from.


@pytest.mark.parametrize(
    "shape",
    [
        {"global_pool": "avg"},
        {"in_chans": 1},
        {"reg_tokens": 2},
        {"img_size": (224, 448)},
        {"num_classes": 0},
        {"num_classes": 17},
    ],
)
def test_a_run_may_start_from_weights_of_any_shape(tmp_path: Path, shape: dict[str, Any]) -> None:
    """The network is built to fit, its checkpoint is built again from its card, and weights are not lost."""
    tensors = state(**shape)
    path = saved(tmp_path / "start.pth", tensors)
    if "img_size" in shape:
        config = {"architecture": ARCHITECTURE, "model_args": {"img_size": shape["img_size"]}}
        (tmp_path / "config.json").write_text(json.dumps(config))
    start = create(ARCHITECTURE, path, num_classes=5, img_size=96)
    for name in ("blocks.3.mlp.fc1.weight", "patch_embed.proj.weight"):
        assert torch.equal(start.vit.state_dict()[name], tensors[name])
    assert start.vit.patch_embed.grid_size == (6, 6)
    spec = replace(card_of(start.vit).input, size=(96, 96))
    args = {**start.model_args, "num_classes": 5, "img_size": 96}
    card = replace(card_of(start.vit), model_args=args, input=spec)
    save(tmp_path / "run.safetensors", start.vit, card)
    assert load(str(tmp_path / "run.safetensors")).model.vit.global_pool == start.vit.global_pool
