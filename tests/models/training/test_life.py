"""`trimvit train --life`: what is trained and written, and what evaluation makes of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from models.load import Card, input_spec_of, load, save
from models.schedule import Stages, compute
from models.training.average import average
from models.training.calibrate import calibrate
from models.training.config import (
    AverageConfig,
    CalibrateConfig,
    EvaluateConfig,
    SweepConfig,
)
from models.training.evaluate import evaluate
from models.training.fine_tune import _Training, fine_tune
from models.training.sweep import sweep
from tests.models.training.coloured import COLOURS
from tests.models.training.small_runs import ARCHITECTURE, Run, pictures, run_with, start

__all__ = ["pictures", "run_with", "start"]  # fixtures


@pytest.fixture(scope="module")
def run(run_with: Callable[..., Run]) -> Run:
    """A run of 4 steps: 2 epochs of 12 pictures in batches of 6."""
    return run_with(epochs=2, life=True)


@pytest.fixture(scope="module")
def trained(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose predictor was trained, in steps that mix criteria."""
    config = run(tmp_path_factory.mktemp("trained"), criteria=("life", "mad"), epochs=4, ema_decay=0.9)
    return fine_tune(config).checkpoint


def test_a_run_ends_in_a_model_that_is_pruned_by_its_lives(trained: Path) -> None:
    """The first criterion is the checkpoint's own, and its first stage the predictor's."""
    loaded = load(str(trained))
    assert loaded.method.criterion == "life"
    assert loaded.card.life_block == loaded.model.stages.blocks[0]
    assert loaded.model.life_predictor is not None


@pytest.mark.parametrize("bf16", [True, False])
def test_the_predictor_learns_and_alone_where_only_heads_do(
    run: Run, start: Path, tmp_path: Path, *, bf16: bool
) -> None:
    """All of its weights change; with --trained head, no block does."""
    untrained = fine_tune(run(tmp_path / "short", trained="head", learning_rate=1e-12, bf16=bf16)).checkpoint
    report = fine_tune(run(tmp_path / "run", trained="head", bf16=bf16))
    before, after, weights = load_file(untrained), load_file(report.checkpoint), torch.load(start)
    for name, tensor in after.items():
        if name.startswith("life."):
            assert not torch.equal(tensor, before[name]), name
        elif not name.startswith("head."):
            assert torch.equal(tensor, weights[name].half()), name


def test_a_further_run_goes_on_from_the_predictor(run: Run, trained: Path, tmp_path: Path) -> None:
    """Where it was made for the same block; without --life it is left out, and for another block it is a new
    one."""
    there = {name: tensor for name, tensor in load_file(trained).items() if name.startswith("life.")}
    still = {"weights": trained, "learning_rate": 1e-12, "epochs": 1}
    onward = load_file(fine_tune(run(tmp_path / "onward", **still)).checkpoint)
    assert all(torch.equal(onward[name], tensor) for name, tensor in there.items())
    without = fine_tune(run(tmp_path / "without", life=False, **still)).checkpoint
    assert not any(name.startswith("life.") for name in load_file(without))
    later = load(str(fine_tune(run(tmp_path / "later", stages=(3, 5), **still)).checkpoint))
    assert later.card.life_block == 2
    assert not torch.equal(later.model.vit.life.own.weight, there["life.own.weight"].float())


def test_a_resumed_run_is_the_run_that_was_not_interrupted(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the predictor's weights and moments."""
    whole = load_file(fine_tune(run(tmp_path / "whole", criteria=("life", "variance"))).checkpoint)
    config = run(tmp_path / "parts", criteria=("life", "variance"), save_every=1)

    def stop(*_own: Any) -> None:
        raise KeyboardInterrupt

    real = _Training._step

    def step(self: _Training, forward: Any, number: int, *own: Any) -> None:
        if number == 2:
            stop()
        real(self, forward, number, *own)

    with monkeypatch.context() as patch:
        patch.setattr(_Training, "_step", step)
        with pytest.raises(KeyboardInterrupt):
            fine_tune(config)
    resumed = load_file(fine_tune(config).checkpoint)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_lives_are_evaluated_and_swept(trained: Path, pictures: Path, tmp_path: Path) -> None:
    """Beside other criteria, at the same cost; a mass of lives has counts of its own."""
    shared: dict[str, Any] = {"data": pictures, "device": "cpu", "dtype": "float32", "workers": 0}
    settings = {**shared, "keep_ratios": (1.0, 0.5), "criteria": ("life", "variance"), "batch_size": 5}
    rows = evaluate(EvaluateConfig(**settings, model=str(trained)))
    assert [(row.keep_ratio, row.method) for row in rows] == [
        (1.0, "(unpruned)"),
        (0.5, "life"),
        (0.5, "variance"),
    ]
    model = load(str(trained)).model
    assert {row.compute for row in rows[1:]} == {round(compute(model.arch, model.stages, 0.5), 4)}
    rows = sweep(
        SweepConfig(
            **settings,
            models=(str(trained),),
            output=tmp_path / "sweep",
            keep_masses=(0.6,),
            speed=False,
            correlation_images=4,
            picture_images=1,
        )
    )
    assert {row.method for row in rows if row.keep_mass == 0.6} == {"life", "variance"}


def test_commands_refuse_the_criterion_without_a_predictor(run: Run, pictures: Path, tmp_path: Path) -> None:
    """Before any image is read."""
    plain = str(fine_tune(run(tmp_path / "plain", life=False, epochs=1)).checkpoint)
    shared: dict[str, Any] = {"data": pictures, "criteria": ("mad", "life"), "device": "cpu"}
    for command in (
        lambda: evaluate(EvaluateConfig(**shared, model=plain)),
        lambda: sweep(SweepConfig(**shared, models=(plain,), output=tmp_path / "sweep")),
        lambda: calibrate(CalibrateConfig(**shared, model=plain, output=tmp_path / "c.safetensors")),
    ):
        with pytest.raises(ValueError, match="the criterion life needs a life predictor"):
            command()


def test_checkpoints_that_are_averaged_or_calibrated_keep_the_predictor(
    run: Run, trained: Path, pictures: Path, tmp_path: Path
) -> None:
    """The mean of two; and a cascade whose first run is pruned by lives."""
    other = fine_tune(run(tmp_path / "other", criteria=("life", "mad"))).checkpoint
    average(AverageConfig(models=(trained, other), output=tmp_path / "mean.safetensors"))
    mean, parts = load_file(tmp_path / "mean.safetensors"), [load_file(trained), load_file(other)]
    torch.testing.assert_close(
        mean["life.own.weight"].float(), sum(part["life.own.weight"].float() for part in parts) / 2,
        rtol=1e-3, atol=1e-4,
    )  # fmt: skip
    calibrate(
        CalibrateConfig(
            data=pictures,
            model=str(trained),
            output=tmp_path / "calibrated.safetensors",
            agreement=0.5,
            keep_ratios=(0.5,),
            device="cpu",
            dtype="float32",
            workers=0,
        )
    )
    loaded = load(str(tmp_path / "calibrated.safetensors"))
    assert loaded.cascade is not None
    assert loaded.cascade.criterion == "life"
    assert loaded.model.life_predictor is not None


def test_life_and_its_criterion_go_together(run: Run, tmp_path: Path) -> None:
    """--life alone trains by nothing else; otherwise the criterion must be among those drawn."""
    assert run(tmp_path).criteria == ("life",)
    with pytest.raises(ValidationError, match="add life to --criteria"):
        run(tmp_path, criteria=("mad",))
    with pytest.raises(ValidationError, match="the criterion life needs a life predictor: add --life"):
        run(tmp_path, life=False, criteria=("mad", "life"))


def test_a_head_that_would_not_see_patches_fade_is_refused(run: Run, tmp_path: Path) -> None:
    """One that reads their maximum."""
    torch.manual_seed(0)
    weights = tmp_path / "max.safetensors"
    network = timm.create_model(ARCHITECTURE, num_classes=3, img_size=64, global_pool="max")
    save(
        weights,
        network,
        Card(
            architecture=ARCHITECTURE,
            labels=tuple(COLOURS),
            input=input_spec_of(network),
            stages=Stages((1,), "all"),
            model_args={"num_classes": 3, "img_size": 64, "global_pool": "max"},
        ),
    )
    with pytest.raises(ValueError, match="its head reads patches by their maximum"):
        fine_tune(run(tmp_path / "run", weights=weights))
