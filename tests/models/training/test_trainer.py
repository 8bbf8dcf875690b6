"""What a training is made of beside its steps: parts of a batch, processes, mixing, averages, validation."""

import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from models.training import fine_tune as module
from models.training.config import TrainConfig
from models.training.data import AugmentedPhotographs
from models.training.fine_tune import fine_tune
from models.training.mixing import Mixing
from models.training.packages import MissingPackageError
from models.training.resuming import DivergedError
from models.training.validation import Validation
from tests.models.training.coloured import COLOURS, save_pictures

ROOT = Path(__file__).parents[3]
ARCHITECTURE = "test_vit3"


def fill(folder: Path, images: int, seed: int) -> Path:
    return save_pictures(folder, dict.fromkeys(COLOURS, images), lambda _: (40, 40), seed)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 pictures of three colours."""
    return fill(tmp_path_factory.mktemp("pictures") / "train", 4, seed=0)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """9 more of them."""
    return fill(tmp_path_factory.mktemp("others") / "val", 3, seed=1)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "start.pth"
    torch.save(timm.create_model(ARCHITECTURE, num_classes=3).state_dict(), path)
    return path


@pytest.fixture
def config(pictures: Path, start: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """A run of 6 steps: 3 epochs of 12 pictures in batches of 6."""

    def make(**changes: Any) -> TrainConfig:
        settings: dict[str, Any] = {
            "data": pictures,
            "output": tmp_path / "run",
            "architecture": ARCHITECTURE,
            "weights": start,
            "image_size": 48,
            "epochs": 3,
            "batch_size": 6,
            "learning_rate": 1e-3,
            "workers": 0,
            "device": "cpu",
            "bf16": False,
            "save_every": 2,
        }
        return TrainConfig(**{**settings, **changes})

    return make


def weights_of(config: TrainConfig) -> dict[str, Tensor]:
    return load_file(config.output / "model.safetensors")


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_about_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """To the rounding of sums in another order, and of half precision."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor.float(), other[name].float(), rtol=2e-3, atol=2e-4, msg=name)


@pytest.mark.parametrize("validated", [False, True])
def test_a_run_that_diverges_stops_at_its_next_state(
    config: Callable[..., TrainConfig], others: Path, validated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after its last step; its state and its best model are not overwritten by what is no number."""
    settings = config(validation_data=others if validated else None)
    losses = iter((1.0, 1.0, 1.0, math.nan, 1.0, 1.0))

    def loss_of(*arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:
        loss, right = module_loss(*arguments, **named)
        return loss * next(losses), right

    module_loss = module.loss_of
    monkeypatch.setattr(module, "loss_of", loss_of)
    with pytest.raises(
        DivergedError, match=r"diverged: after 4 steps, reg_token has values that are NaN or inf"
    ):
        fine_tune(settings)
    state = torch.load(settings.output / "resume.pt", weights_only=True)
    assert state["step"] == 2
    assert all(tensor.isfinite().all() for tensor in state["model"].values())
    assert len(lines_of(settings.output / "log.jsonl")) == 4
    assert not (settings.output / "model.safetensors").exists()


# Parts and processes.


def test_a_batch_in_parts_is_the_batch(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """Gradients that are accumulated over three parts are those of the whole."""
    whole, parts = config(), config(accumulate=3, output=tmp_path / "parts")
    fine_tune(whole)
    fine_tune(parts)
    assert_about_equal(weights_of(whole), weights_of(parts))
    for one, other in zip(*(lines_of(each.output / "log.jsonl") for each in (whole, parts)), strict=True):
        assert one == {**other, "loss": pytest.approx(other["loss"], rel=1e-3)}


@pytest.mark.system
@pytest.mark.parametrize("life", [False, True])
def test_two_processes_train_what_one_does(
    config: Callable[..., TrainConfig], tmp_path: Path, *, life: bool
) -> None:
    """Started by torchrun, each with half of every batch; one of them writes. Also with a life predictor,
    which has no part in some of the steps."""
    own: dict[str, Any] = {}
    if life:
        torch.manual_seed(0)
        weights = tmp_path / "start.pth"
        torch.save(timm.create_model("test_vit", num_classes=3).state_dict(), weights)
        own = {"life": True, "criteria": ("life", "mad"), "architecture": "test_vit", "weights": weights}
    alone, together = config(**own), config(output=tmp_path / "together", **own)
    fine_tune(alone)
    flags = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in {
            "data": together.data,
            "output": together.output,
            "architecture": together.architecture,
            "weights": together.weights,
            "criteria": ",".join(together.criteria),
            "image-size": 48,
            "epochs": 3,
            "batch-size": 6,
            "learning-rate": 1e-3,
            "workers": 0,
            "device": "cpu",
            "save-every": 2,
        }.items()
    ]
    flags += ["--life"] * life
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"),
        *("--master-addr=127.0.0.1", f"--master-port={port}"),
        *("-m", "app.cli", "train", *flags, "--no-bf16"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the model is") == 1
    assert_about_equal(weights_of(alone), weights_of(together))


def test_a_batch_that_cannot_be_shared_out_is_refused(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into parts, among processes, or in pairs for mixup."""
    with pytest.raises(ValidationError, match="batch_size 6 cannot be divided into 4 equal parts"):
        config(accumulate=4)
    with pytest.raises(ValueError, match=r"3 images, must be a multiple of .* and, with --mixup .* even"):
        fine_tune(config(batch_size=3, mixup=0.5))


# What the network sees.


def test_mixing_by_hand() -> None:
    """Mixup gives the labels the shares that it gives the images; erasing changes images only; the same seed
    does the same, another one does not."""
    settings = {"data": "x", "output": "y", "label_smoothing": 0.0}
    inputs = torch.stack([torch.full((3, 8, 8), float(value)) for value in (0, 1, 2, 3)])
    truth = torch.tensor([0, 1, 2, 3])
    mixing = Mixing(TrainConfig(**settings, mixup=1.0), classes=4, device="cpu")
    mixed, wanted = mixing(inputs.clone(), truth, seed=3)
    torch.testing.assert_close(wanted.sum(dim=1), torch.ones(4))
    torch.testing.assert_close(mixed[:, 0, 0, 0], wanted @ torch.arange(4.0))
    assert 0 < wanted.max(dim=1).values.min() < 1
    again, other = (mixing(inputs.clone(), truth, seed)[0] for seed in (3, 4))
    assert torch.equal(again, mixed)
    assert not torch.equal(other, mixed)
    erasing = Mixing(TrainConfig(**settings, erasing=1.0), classes=4, device="cpu")
    erased, hard = erasing(inputs.clone(), truth, seed=3)
    assert torch.equal(hard, torch.eye(4))
    assert all((erased[image] != inputs[image]).any() for image in range(4))
    plain, _ = Mixing(TrainConfig(**settings), classes=4, device="cpu")(inputs, truth, seed=3)
    assert torch.equal(plain, inputs)


def test_an_automatic_augmentation_follows_from_the_key(pictures: Path) -> None:
    """RandAugment changes pictures, the same way each time for the same key and seed, and leaves the random
    states of Python and numpy alone."""
    samples = [(path, 0) for path in sorted((pictures / "amber").iterdir())]
    plain, one, again = (
        AugmentedPhotographs(samples, 48, 0.5, 0, augment)
        for augment in (None, "rand-m9-n2-mstd0.5", "rand-m9-n2-mstd0.5")
    )
    before = np.random.get_state()[1].copy()
    items = [dataset[(1, 2)].pixels for dataset in (plain, one, again)]
    assert np.array_equal(np.random.get_state()[1], before)
    assert np.array_equal(items[1], items[2])
    assert not np.array_equal(items[0], items[1])
    with pytest.raises(ValueError, match="--auto-augment 'ran-m9' is not a policy of timm"):
        AugmentedPhotographs(samples, 48, 0.5, 0, "ran-m9")


def test_an_optimizer_that_timm_does_not_have_is_refused(config: Callable[..., TrainConfig]) -> None:
    """Before anything is read."""
    with pytest.raises(ValueError, match="--optimizer 'adamm' is not an optimizer of timm"):
        fine_tune(config(optimizer="adamm"))


@pytest.mark.parametrize(
    ("optimizer", "why"), [("adahessian", "second derivatives"), ("fusedadamw", "cannot be used here")]
)
def test_an_optimizer_that_cannot_be_used_is_refused(
    optimizer: str, why: str, config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm lists optimizers that need second derivatives, a GPU or another package."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=rf"--optimizer {optimizer} .*{why}.* the usual one is adamw"):
        fine_tune(config(optimizer=optimizer))


# Interrupted with all of it.


def test_a_resumed_run_with_everything_is_the_run_that_was_not_interrupted(
    config: Callable[..., TrainConfig], others: Path, tmp_path: Path
) -> None:
    """Mixing, an average, validation, parts, another optimizer and schedule: the same weights and logs."""
    everything: dict[str, Any] = {
        "mixup": 0.4,
        "cutmix": 1.0,
        "erasing": 0.3,
        "auto_augment": "rand-m5-inc1",
        "ema_decay": 0.9,
        "validation_data": others,
        "accumulate": 2,
        "optimizer": "lamb",
        "schedule": "poly",
    }
    whole, parts = config(**everything), config(**everything, output=tmp_path / "parts")
    fine_tune(whole)
    draw = module._draw
    with pytest.MonkeyPatch.context() as monkeypatch:

        def failing(settings: TrainConfig, at: int) -> Any:
            if at == 5:
                raise KeyboardInterrupt
            return draw(settings, at)

        monkeypatch.setattr(module, "_draw", failing)
        with pytest.raises(KeyboardInterrupt):
            fine_tune(parts)
    assert fine_tune(parts).steps == 2
    for name in ("log.jsonl", "validation.jsonl"):
        assert lines_of(parts.output / name) == lines_of(whole.output / name)
    assert len(lines_of(whole.output / "validation.jsonl")) == 3
    for name, tensor in weights_of(whole).items():
        assert torch.equal(weights_of(parts)[name], tensor), name


# Averages and validation.


def test_the_average_of_the_weights_is_saved(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """It lags behind the weights themselves, and both are in the state."""
    plain, averaged = config(), config(ema_decay=0.999, output=tmp_path / "averaged")
    fine_tune(plain)
    fine_tune(averaged)
    state = torch.load(averaged.output / "resume.pt", weights_only=True)
    raw = torch.load(plain.output / "resume.pt", weights_only=True)["model"]
    for name, tensor in weights_of(averaged).items():
        assert torch.equal(tensor, state["ema"][name].half()), name
        torch.testing.assert_close(state["model"][name], raw[name])
    assert any(not torch.equal(state["ema"][name], raw[name]) for name in raw)


def test_the_best_model_of_the_validations_is_saved(
    config: Callable[..., TrainConfig], others: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the last one; the log says which."""
    seen: list[dict[str, Tensor]] = []

    def top1(_: Validation, model: Any) -> dict[float, float]:
        seen.append({name: tensor.clone() for name, tensor in model.vit.state_dict().items()})
        return {1.0: (0.5, 0.8, 0.7)[len(seen) - 1]}

    monkeypatch.setattr(Validation, "top1", top1)
    settings = config(validation_data=others, validation_keep_ratios=(1.0,))
    report = fine_tune(settings)
    assert report.best == 4
    for name, tensor in weights_of(settings).items():
        assert torch.equal(tensor, seen[1][name].half()), name
    assert not torch.equal(seen[1]["head.weight"], seen[2]["head.weight"])
    assert lines_of(settings.output / "validation.jsonl") == [
        {"step": 1, "epoch": 1, "top1": {"1": 0.5}, "best": True},
        {"step": 3, "epoch": 2, "top1": {"1": 0.8}, "best": True},
        {"step": 5, "epoch": 3, "top1": {"1": 0.7}, "best": False},
    ]


def test_validation_counts_right_labels(config: Callable[..., TrainConfig], others: Path) -> None:
    """Of a model that has learned three colours, nearly all at ratio 1; each ratio has its own count."""
    settings = config(
        epochs=12,
        label_smoothing=0.0,
        min_keep_ratio=0.6,
        validation_data=others,
        validation_keep_ratios=(1, 0.6),
    )
    fine_tune(settings)
    last = lines_of(settings.output / "validation.jsonl")[-1]["top1"]
    assert set(last) == {"1", "0.6"}
    assert all(round(share * 9, 3) in range(10) for share in last.values())
    assert last["1"] > 0.8


# Trackers.


class _Writer:
    """Stands for TensorBoard's writer and a run of Weights & Biases."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.scalars: dict[tuple[str, int], float] = {}
        self.closed = False

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars[name, step] = value

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self.scalars.update({(name, step): value for name, value in figures.items()})

    def close(self) -> None:
        self.closed = True

    finish = close


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_figures_go_to_a_tracker(
    config: Callable[..., TrainConfig], others: Path, monkeypatch: pytest.MonkeyPatch, tracker: str
) -> None:
    """Loss, top-1 and ratio of every step, and the validations."""
    writer = _Writer()
    fake = ModuleType("fake")
    fake.SummaryWriter = fake.init = lambda *_, **__: writer  # type: ignore[attr-defined]
    monkeypatch.setitem(
        sys.modules, {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}[tracker], fake
    )
    settings = config(track=(tracker,), validation_data=others)
    fine_tune(settings)
    log = lines_of(settings.output / "log.jsonl")
    assert [writer.scalars["train/loss", line["step"]] for line in log] == [line["loss"] for line in log]
    assert ("validation/top1 at 0.5", 5) in writer.scalars
    assert writer.closed


def test_a_tracker_that_is_not_installed_is_named(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what to install."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingPackageError, match="--track wandb needs wandb: pip install wandb"):
        fine_tune(config(track=("wandb",)))
