"""`trimvit average`: the mean of checkpoints, and what may not be averaged."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from models.cascade import Cascade
from models.load import Card, load, save
from models.schedule import Stages
from models.training import command
from models.training.config import AverageConfig
from models.transforms import InputSpec

ARGS = {"num_classes": 2, "img_size": 32, "depth": 2}
CARD = Card(
    "vit_tiny_patch16_224",
    ("cat", "dog"),
    InputSpec((32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", "center", 1.0),
    Stages((1,)),
    criterion="mad",
    cascade=Cascade(0.5, "mad", "drop", 0.5, 0.9, 100, 0.7),
    model_args=ARGS,
    origin={"seed": 1},
)


def saved(path: Path, seed: int, card: Card = CARD) -> Path:
    torch.manual_seed(seed)
    save(path, timm.create_model(card.architecture, **card.model_args), card)
    return path


def in_dtype(path: Path, seed: int, kind: str) -> Path:
    """A checkpoint whose tensors are all of this dtype."""
    saved(path, seed)
    torch.manual_seed(seed)
    state = timm.create_model(CARD.architecture, **CARD.model_args).state_dict()
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    tensors = {name: tensor.to(getattr(torch, kind)).contiguous() for name, tensor in state.items()}
    save_file(tensors, path, metadata=header)
    return path


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load(str(path)).model.vit.state_dict()


def test_every_weight_is_the_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of three checkpoints, to half precision; the card stays, but for the cascade, and names all origins."""
    paths = tuple(saved(tmp_path / f"{seed}.safetensors", seed) for seed in range(3))
    output = tmp_path / "mean.safetensors"
    assert command.average(AverageConfig(models=paths, output=output)) == 0
    assert capsys.readouterr().out == f"the mean of 3 checkpoints is {output}\n"
    got, parts = weights(output), [weights(path) for path in paths]
    for name, tensor in got.items():
        mean = sum(part[name] for part in parts) / 3
        torch.testing.assert_close(tensor, mean, rtol=1e-3, atol=1e-6)
    loaded = load(str(output))
    assert loaded.cascade is None
    assert loaded.card.criterion == "mad"
    assert loaded.card.origin == {"mean_of": [{"seed": 1}] * 3}


@pytest.mark.parametrize("kinds", [("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "float16")])
def test_the_mean_has_the_dtype_of_its_parts(tmp_path: Path, kinds: tuple[str, str]) -> None:
    """As exact as that dtype is: the mean is rounded to it once."""
    paths = tuple(in_dtype(tmp_path / f"{seed}.safetensors", seed, kind) for seed, kind in enumerate(kinds))
    output = tmp_path / "mean.safetensors"
    assert command.average(AverageConfig(models=paths, output=output)) == 0
    parts = [load_file(path) for path in paths]
    for name, tensor in load_file(output).items():
        mean = sum(part[name].double() for part in parts) / 2
        dtype = getattr(torch, kinds[0])
        if parts[0][name].unique().numel() > 9:  # of a few values, nothing says what dtype they came in
            assert tensor.dtype == dtype
        assert torch.equal(tensor.to(dtype), mean.to(dtype)), name


def test_the_mean_of_two_dtypes_holds_both(tmp_path: Path) -> None:
    """Half precision cannot hold what bfloat16 can, nor the other way round."""
    paths = (
        in_dtype(tmp_path / "a.safetensors", 0, "bfloat16"),
        in_dtype(tmp_path / "b.safetensors", 1, "float16"),
    )
    output = tmp_path / "mean.safetensors"
    assert command.average(AverageConfig(models=paths, output=output)) == 0
    assert load_file(output)["blocks.0.mlp.fc1.weight"].dtype == torch.float32


def test_a_weighted_mean(tmp_path: Path) -> None:
    """The weights are relative to each other, so 3 and 1 are three quarters and a quarter. The origin has
    them."""
    paths = tuple(saved(tmp_path / f"{seed}.safetensors", seed) for seed in range(2))
    output = tmp_path / "mean.safetensors"
    assert command.average(AverageConfig(models=paths, output=output, weights=(3, 1))) == 0
    got, (one, other) = weights(output), map(weights, paths)
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, 0.75 * one[name] + 0.25 * other[name], rtol=1e-3, atol=1e-6)
    assert load(str(output)).card.origin == {"mean_of": [{"seed": 1}] * 2, "weights": [3.0, 1.0]}


@pytest.mark.parametrize("given", [None, (1.0, 2.0, 5.0)])
def test_a_backbone_counts_but_for_its_head(tmp_path: Path, given: tuple[float, ...] | None) -> None:
    """It may have other labels. The head is the mean of the others', with their weights."""
    three = replace(
        CARD,
        labels=("cat", "dog", "car"),
        scores="sigmoid",
        model_args={**ARGS, "num_classes": 3, "in_chans": 3},
    )
    models = tuple(saved(tmp_path / f"{seed}.safetensors", seed) for seed in range(2))
    backbone, output = saved(tmp_path / "three.safetensors", 2, three), tmp_path / "mean.safetensors"
    config = AverageConfig(models=models, backbones=(backbone,), weights=given, output=output)
    assert command.average(config) == 0
    one, other, third = given or (1.0, 1.0, 1.0)
    parts = [*map(weights, models), weights(backbone)]
    for name, tensor in weights(output).items():
        if name.startswith("head."):
            mean = (one * parts[0][name] + other * parts[1][name]) / (one + other)
        else:
            mean = sum(w * part[name] for w, part in zip((one, other, third), parts, strict=True))
            mean = mean / (one + other + third)
        torch.testing.assert_close(tensor, mean, rtol=1e-3, atol=1e-6)
    assert load(str(output)).labels == ("cat", "dog")


def test_a_backbone_of_another_network_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only what belongs to the head may differ."""
    deeper = replace(CARD, model_args={**ARGS, "depth": 3})
    one, other = saved(tmp_path / "a.safetensors", 0), saved(tmp_path / "b.safetensors", 1, deeper)
    config = AverageConfig(models=(one,), backbones=(other,), output=tmp_path / "mean.safetensors")
    assert command.average(config) == 1
    assert f"{other} and {one} differ in their model_args" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"models": ("a",)}, "a mean needs at least two checkpoints"),
        ({"weights": (1.0,)}, "--weights needs one value per checkpoint: 2, got 1"),
        ({"backbones": ("c",), "weights": (1.0, 2.0)}, "--weights needs one value per checkpoint: 3, got 2"),
        ({"weights": (1.0, 0.0)}, "greater than 0"),
        ({"weights": (1.0, float("nan"))}, "finite"),
        ({"weights": (1.0, float("inf"))}, "finite"),
    ],
)
def test_what_has_no_mean_is_refused(changes: dict[str, Any], problem: str) -> None:
    """Before anything is read."""
    with pytest.raises(ValidationError, match=problem):
        AverageConfig(**{"models": ("a", "b"), "output": "mean.safetensors", **changes})


def test_other_labels_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The mean of a cat and a car is nothing."""
    paths = (
        saved(tmp_path / "a.safetensors", 0),
        saved(tmp_path / "b.safetensors", 1, replace(CARD, labels=("car", "dog"))),
    )
    assert command.average(AverageConfig(models=paths, output=tmp_path / "mean.safetensors")) == 1
    assert f"{paths[1]} and {paths[0]} differ in their labels" in capsys.readouterr().err
    assert not (tmp_path / "mean.safetensors").exists()
