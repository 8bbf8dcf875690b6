"""What the tests of the commands share: a tiny model in a file, and one way to call the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from app.cli import main
from models.load import Card, save
from models.schedule import Stages
from models.transforms import InputSpec

LABELS = ("tench", "chain saw", "church", "golf ball", "parachute")
# 2 x 3 patches, 5 classes, 3 blocks; the first and the third prune.
ARGUMENTS: dict[str, Any] = {
    "img_size": (32, 48),
    "num_classes": 5,
    "depth": 3,
    "embed_dim": 66,
    "num_heads": 6,
}
CARD = Card(
    architecture="vit_tiny_patch16_224",
    labels=LABELS,
    input=InputSpec((32, 48), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", "squash", 0.9),
    stages=Stages((0, 2), "cls"),
    criterion="mad",
    model_args=ARGUMENTS,
)

Trimvit = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny network with random weights."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("tiny") / "pond.safetensors"
    save(path, timm.create_model(CARD.architecture, **ARGUMENTS), CARD)
    return path


@pytest.fixture
def trimvit(capfd: pytest.CaptureFixture[str]) -> Trimvit:
    """Run the command line; gives back its exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        told = capfd.readouterr()
        assert isinstance(exit_.value.code, int)
        return exit_.value.code, told.out, told.err

    return run
