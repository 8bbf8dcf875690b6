"""`trimvit train --reducers pool`: what is trained and written, and what evaluation makes of it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from models.load import ModelError, create, load, save
from models.load.start import Added
from models.schedule import Stages, compute
from models.training.average import average
from models.training.calibrate import calibrate
from models.training.config import AverageConfig, CalibrateConfig, EvaluateConfig, SweepConfig
from models.training.evaluate import evaluate
from models.training.fine_tune import fine_tune
from models.training.pool import give_pools
from models.training.sweep import sweep
from tests.models.training.small_runs import ARCHITECTURE, Run, pictures, run_with, start

__all__ = ["pictures", "run_with", "start"]  # fixtures


@pytest.fixture(scope="module")
def run(run_with: Callable[..., Run]) -> Run:
    """A run of 2 steps: 12 pictures in batches of 6. Blocks 2 and 5 of 6 prune."""
    return run_with(stages=(2, 5), reducers=("pool",), max_keep_ratio=0.8)


@pytest.fixture(scope="module")
def trained(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fine_tune(run(tmp_path_factory.mktemp("trained"), ema_decay=0.5)).checkpoint


def of_pools(path: Path) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in load_file(path).items() if ".token_pool." in name}


@pytest.mark.parametrize("bf16", [True, False])
def test_queries_learn_and_alone_where_only_heads_do(
    run: Run, start: Path, tmp_path: Path, *, bf16: bool
) -> None:
    """With --trained head, nothing else of a block does."""
    still = fine_tune(run(tmp_path / "still", trained="head", learning_rate=1e-12, bf16=bf16)).checkpoint
    moved = fine_tune(run(tmp_path / "moved", trained="head", bf16=bf16)).checkpoint
    before, weights = of_pools(still), torch.load(start)
    assert len(before) == 2 * 3
    for name, tensor in load_file(moved).items():
        if name in before:
            assert not torch.equal(tensor, before[name]), name
        elif not name.startswith("head."):
            assert torch.equal(tensor, weights[name].half()), name


def test_a_run_ends_in_a_checkpoint_that_has_queries(trained: Path) -> None:
    """It says where, is loaded with them and reduces by them. Other stages and another grid leave it
    without, and that is said."""
    loaded = load(str(trained))
    assert loaded.card.pool_blocks == (1, 4)
    assert (loaded.method.stages, loaded.method.reducer) == (Stages((1, 4)), "pool")
    assert "pool" in loaded.model.reducers
    words = r"the default reducer of .* is pool, but its learned queries are for block 2, 5 and 4 x 4 patches"
    with pytest.raises(ValueError, match=words):
        loaded.at_stages((3, 5))
    with pytest.raises(ValueError, match=words):
        load(str(trained), input_size=(96, 96))
    assert "pool" in loaded.at_stages((5,)).model.reducers


def test_it_is_evaluated_swept_calibrated_and_averaged(
    run: Run, trained: Path, pictures: Path, tmp_path: Path
) -> None:
    """As any checkpoint, measured once whatever the criteria; one without queries is refused by name, and
    not averaged with it."""
    shared: dict[str, Any] = {"data": pictures, "device": "cpu", "dtype": "float32", "workers": 0}
    settings = {**shared, "keep_ratios": (1.0, 0.5), "criteria": ("variance", "mad"), "batch_size": 5}
    settings["reducers"] = ("drop", "pool")
    model = load(str(trained)).model
    rows = evaluate(EvaluateConfig(**settings, model=str(trained)))
    assert [row.method for row in rows] == ["(unpruned)", "variance", "mad", "pool"]
    assert rows[3].compute == round(compute(model.arch, model.stages, 0.5, "pool"), 4)
    of_the_checkpoint = {name: value for name, value in settings.items() if name != "reducers"}
    rows = evaluate(EvaluateConfig(**of_the_checkpoint, model=str(trained)))
    assert [row.method for row in rows] == ["(unpruned)", "pool"]
    swept = {"output": tmp_path / "sweep", "speed": False, "correlation_images": 4, "picture_images": 1}
    rows = sweep(SweepConfig(**settings, **swept, models=(str(trained),)))
    assert len(rows) == 4
    calibrated = tmp_path / "calibrated.safetensors"
    calibrate(
        CalibrateConfig(**shared, model=str(trained), output=calibrated, keep_ratios=(0.5,), agreement=0.05)
    )
    cascade = load(str(calibrated)).cascade
    assert cascade is not None
    assert cascade.reducer == "pool"
    other = fine_tune(run(tmp_path / "other", seed=1)).checkpoint
    average(AverageConfig(models=(trained, other), output=tmp_path / "mean.safetensors"))
    assert "pool" in load(str(tmp_path / "mean.safetensors")).model.reducers
    plain = fine_tune(run(tmp_path / "plain", reducers=("drop",))).checkpoint
    assert not of_pools(plain)
    with pytest.raises(ModelError, match="differ in their pool_blocks"):
        average(AverageConfig(models=(trained, plain), output=tmp_path / "mean.safetensors"))
    for command in (
        lambda: evaluate(EvaluateConfig(**settings, model=str(plain))),
        lambda: sweep(SweepConfig(**settings, **swept, models=(str(plain),))),
        lambda: calibrate(
            CalibrateConfig(
                **shared, model=str(plain), output=tmp_path / "no.safetensors", reducers=("pool",)
            )
        ),
    ):
        with pytest.raises(ValueError, match="the reducer pool needs learned queries"):
            command()


def test_a_further_run_goes_on_from_the_queries(run: Run, trained: Path, tmp_path: Path) -> None:
    """In the blocks that had some, for the same grid; in others they are new, and without the reducer there
    are none. Frozen blocks keep theirs."""
    still = {"weights": trained, "learning_rate": 1e-12}
    there = of_pools(trained)
    onward = of_pools(fine_tune(run(tmp_path / "onward", stages=(2, 4), **still)).checkpoint)
    assert {name.split(".")[1] for name in onward} == {"1", "3"}
    assert all(torch.equal(onward[name], there[name]) for name in onward if name.startswith("blocks.1."))
    larger = of_pools(fine_tune(run(tmp_path / "larger", image_size=96, **still)).checkpoint)
    assert len(larger["blocks.1.token_pool.queries"]) == 36
    assert not of_pools(fine_tune(run(tmp_path / "without", reducers=("drop", "merge"), **still)).checkpoint)
    frozen = run(tmp_path / "frozen", frozen_blocks=5, **{**still, "learning_rate": 1e-3})
    kept = of_pools(fine_tune(frozen).checkpoint)
    assert kept.keys() == there.keys()
    assert all(torch.equal(kept[name], there[name]) for name in kept)


def test_an_unpruned_teacher_without_queries_is_one(run: Run, tmp_path: Path) -> None:
    """Of the same network: its features are compared."""
    teacher = fine_tune(run(tmp_path / "teacher", reducers=("drop",))).checkpoint
    report = fine_tune(
        run(
            tmp_path / "student", weights=teacher, teacher=teacher, frozen_blocks=1, reducers=("drop", "pool")
        )
    )
    loaded = load(str(report.checkpoint))
    assert (loaded.method.reducer, loaded.card.pool_blocks) == ("drop", (1, 4))
    assert "pool" not in loaded.at_stages((3,)).model.reducers


def test_a_resumed_run_is_the_run_that_was_not_interrupted(run: Run, tmp_path: Path) -> None:
    """With its average of weights."""
    settings: dict[str, Any] = {"epochs": 2, "ema_decay": 0.5, "reducers": ("pool", "drop")}
    whole = load_file(fine_tune(run(tmp_path / "whole", **settings)).checkpoint)
    parts = run(tmp_path / "parts", save_every=1, **settings)
    fine_tune(parts)
    (parts.output / "model.safetensors").unlink()
    report = fine_tune(parts)
    assert report.steps == 0
    resumed = load_file(report.checkpoint)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_what_cannot_be_trained_is_refused(run: Run, tmp_path: Path) -> None:
    """By name, before anything is trained."""
    with pytest.raises(
        ValidationError, match="not trained in steps with the reducer pool: add another reducer"
    ):
        run(tmp_path, life=True)
    assert run(tmp_path, life=True, reducers=("pool", "drop")).criteria == ("life",)
    with pytest.raises(ValueError, match="block 2 must learn queries, but --frozen-blocks 2 excludes it"):
        fine_tune(run(tmp_path / "run", frozen_blocks=2))


def test_queries_of_another_width_do_not_fit(start: Path) -> None:
    """As other weights that do not fit."""
    begun = create(ARCHITECTURE, start, num_classes=3, img_size=64)
    alien = {"blocks.1.token_pool.queries": torch.zeros(16, 7)}
    with pytest.raises(ModelError, match="the learned queries of the weights do not fit"):
        give_pools(replace(begun, added=Added(pools=alien, pool_grid=(4, 4))), Stages((1,)), 0)
    with pytest.raises(ValueError, match="there are none; give --stages"):
        give_pools(begun, Stages(()), 0)


def test_a_checkpoint_is_taken_apart_and_old_ones_have_no_queries(trained: Path, tmp_path: Path) -> None:
    """What is started from has none until it is given some; a header without the entry is an older one."""
    begun = create(ARCHITECTURE, trained, num_classes=3, img_size=64)
    assert begun.added.pools.keys() == of_pools(trained).keys()
    assert not any(".token_pool." in name for name in begun.vit.state_dict())
    card = replace(load(str(trained)).card, pool_blocks=None, reducer="drop")
    save(tmp_path / "plain.safetensors", begun.vit, card)
    assert "pool" not in load(str(tmp_path / "plain.safetensors")).model.reducers
    save(tmp_path / "plain.safetensors", begun.vit, replace(card, reducer="pool"))
    with pytest.raises(ValueError, match="but it has no learned queries; every block that prunes"):
        load(str(tmp_path / "plain.safetensors"))
