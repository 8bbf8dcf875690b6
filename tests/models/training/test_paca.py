"""`trimvit train --paca-blocks`: what is trained and written, and what evaluation makes of it."""

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
from models.offered import REDUCERS_OF_ANY_MODEL
from models.paca import Paca
from models.schedule import Stages, compute
from models.training.average import average
from models.training.config import AverageConfig, EvaluateConfig, SweepConfig
from models.training.evaluate import evaluate
from models.training.fine_tune import fine_tune
from models.training.paca import give_clusters, paca_named
from models.training.run_identity import fingerprint
from models.training.sweep import sweep
from tests.models.training.small_runs import ARCHITECTURE, Run, pictures, run_with, start

__all__ = ["pictures", "run_with", "start"]  # fixtures


@pytest.fixture(scope="module")
def run(run_with: Callable[..., Run]) -> Run:
    """A run of 2 steps: 12 pictures in batches of 6. Blocks 2 and 5 of 6 prune."""
    return run_with(stages=(2, 5), paca_blocks=(1, 3), paca_clusters=5)


@pytest.fixture(scope="module")
def trained(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fine_tune(run(tmp_path_factory.mktemp("trained"), reducers=REDUCERS_OF_ANY_MODEL)).checkpoint


def of_clusters(path: Path) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in load_file(path).items() if ".clusters." in name}


@pytest.mark.parametrize("bf16", [True, False])
def test_clusters_learn_and_alone_where_only_heads_do(
    run: Run, start: Path, tmp_path: Path, *, bf16: bool
) -> None:
    """All of their weights change; with --trained head, nothing else of a block does."""
    still = fine_tune(run(tmp_path / "still", trained="head", learning_rate=1e-12, bf16=bf16)).checkpoint
    moved = fine_tune(run(tmp_path / "moved", trained="head", bf16=bf16)).checkpoint
    before, weights = of_clusters(still), torch.load(start)
    assert len(before) == 2 * 5
    for name, tensor in load_file(moved).items():
        if name in before:
            assert not torch.equal(tensor, before[name]), name
        elif not name.startswith("head."):
            assert torch.equal(tensor, weights[name].half()), name


def test_a_run_ends_in_a_checkpoint_that_says_where_clusters_are(trained: Path) -> None:
    """And is loaded with them; its cost counts them."""
    loaded = load(str(trained))
    assert loaded.card.paca == loaded.model.arch.paca == Paca((0, 2), 5)
    plain = replace(loaded.model.arch, paca=None)
    stages = loaded.model.stages
    assert stages == Stages((1, 4))
    assert compute(loaded.model.arch, stages, 0.5) != compute(plain, stages, 0.5)
    with pytest.raises(ValueError, match="block 3 attends to clusters"):
        loaded.at_stages((3, 5))
    assert loaded.at_stages((4,)).model.arch.paca == Paca((0, 2), 5)


def test_it_is_evaluated_swept_and_averaged(run: Run, trained: Path, pictures: Path, tmp_path: Path) -> None:
    """As any checkpoint; not with one of other blocks."""
    shared: dict[str, Any] = {"data": pictures, "device": "cpu", "dtype": "float32", "workers": 0}
    settings = {**shared, "keep_ratios": (1.0, 0.5), "criteria": ("variance", "mad"), "batch_size": 5}
    settings["reducers"] = ("drop", "merge")
    model = load(str(trained)).model
    rows = evaluate(EvaluateConfig(**settings, model=str(trained)))
    assert [row.method for row in rows] == ["(unpruned)", "variance", "mad", "merge"]
    assert {row.compute for row in rows[1:]} == {round(compute(model.arch, model.stages, 0.5), 4)}
    rows = sweep(
        SweepConfig(
            **settings,
            models=(str(trained),),
            output=tmp_path / "sweep",
            speed=False,
            correlation_images=4,
            picture_images=1,
        )
    )
    assert len(rows) == 4
    other = fine_tune(run(tmp_path / "other", seed=1)).checkpoint
    average(AverageConfig(models=(trained, other), output=tmp_path / "mean.safetensors"))
    assert load(str(tmp_path / "mean.safetensors")).card.paca == Paca((0, 2), 5)
    plain = fine_tune(run(tmp_path / "plain", paca_blocks=None, paca_clusters=None)).checkpoint
    assert not of_clusters(plain)
    with pytest.raises(ModelError, match="differ in their paca"):
        average(AverageConfig(models=(trained, plain), output=tmp_path / "mean.safetensors"))


def test_a_further_run_goes_on_from_the_clusters(run: Run, trained: Path, tmp_path: Path) -> None:
    """In the blocks that had as many; in others, and without the flag, they are new, or none."""
    still = {"weights": trained, "learning_rate": 1e-12}
    there = of_clusters(trained)
    onward = of_clusters(fine_tune(run(tmp_path / "onward", paca_blocks=(1, 4), **still)).checkpoint)
    assert {name.split(".")[1] for name in onward} == {"0", "3"}
    assert all(torch.equal(onward[name], there[name]) for name in onward if name.startswith("blocks.0."))
    more = of_clusters(fine_tune(run(tmp_path / "more", paca_clusters=6, **still)).checkpoint)
    assert len(more["blocks.0.clusters.mlp.fc2.weight"]) == 6
    without = run(tmp_path / "without", paca_blocks=None, paca_clusters=None, **still)
    assert not of_clusters(fine_tune(without).checkpoint)
    frozen = run(tmp_path / "frozen", frozen_blocks=4, **{**still, "learning_rate": 1e-3})
    kept = of_clusters(fine_tune(frozen).checkpoint)
    assert kept.keys() == there.keys()
    assert all(torch.equal(kept[name], there[name]) for name in kept)


def test_an_unpruned_teacher_without_clusters_is_one(run: Run, tmp_path: Path) -> None:
    """Of the same network: its features are compared."""
    teacher = fine_tune(run(tmp_path / "teacher", paca_blocks=None, paca_clusters=None)).checkpoint
    report = fine_tune(run(tmp_path / "student", weights=teacher, teacher=teacher))
    assert load(str(report.checkpoint)).card.paca == Paca((0, 2), 5)


def test_a_resumed_run_is_the_run_that_was_not_interrupted(run: Run, tmp_path: Path) -> None:
    """A run that is there already is only written again."""
    whole = load_file(fine_tune(run(tmp_path / "whole", epochs=2)).checkpoint)
    parts = run(tmp_path / "parts", epochs=2, save_every=1)
    fine_tune(parts)
    (parts.output / "model.safetensors").unlink()
    report = fine_tune(parts)
    assert report.steps == 0
    resumed = load_file(report.checkpoint)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_blocks_as_they_are_named() -> None:
    """Counted from 1; every: all that do not prune. 49 clusters, where nothing is said."""
    stages = Stages((1, 3))
    assert paca_named((1, 3), None, stages, 5) == Paca((0, 2), 49)
    assert paca_named("every", 7, stages, 5) == Paca((0, 2, 4), 7)
    with pytest.raises(ValueError, match="finds no block"):
        paca_named("every", 7, Stages((0, 1)), 2)
    with pytest.raises(ValueError, match="blocks 2, 4 attend to clusters of patches"):
        paca_named((2, 3, 4), 7, stages, 5)
    with pytest.raises(ValueError, match="block 6 cannot attend to clusters: the network has 5 blocks"):
        paca_named((6,), 7, stages, 5)


def test_flags_that_do_not_go_together_are_refused(run: Run, tmp_path: Path) -> None:
    """By name, before anything is trained."""
    with pytest.raises(ValidationError, match="has no effect without --paca-blocks"):
        run(tmp_path, paca_blocks=None)
    with pytest.raises(ValidationError, match="must be in ascending order"):
        run(tmp_path, paca_blocks=(3, 1))
    assert run(tmp_path, paca_blocks="every").paca_blocks == "every"
    with pytest.raises(ValueError, match=r"block 2 attends to clusters of patches \(PaCa\) and cannot prune"):
        fine_tune(run(tmp_path / "run", paca_blocks=(2,)))
    with pytest.raises(ValueError, match="block 3 must learn clusters, but --frozen-blocks 3"):
        fine_tune(run(tmp_path / "run", paca_blocks=(3,), frozen_blocks=3))


def test_clusters_of_another_width_do_not_fit(start: Path) -> None:
    """As other weights that do not fit."""
    begun = create(ARCHITECTURE, start, num_classes=3, img_size=64)
    alien = {
        "blocks.0.clusters.mlp.fc2.weight": torch.zeros(5, 7),
        "blocks.0.clusters.norm.weight": torch.zeros(9),
    }
    with pytest.raises(ModelError, match="the clusters of the weights do not fit"):
        give_clusters(replace(begun, added=Added(clusters=alien)), Paca((0,), 5), 0)


def test_a_checkpoint_is_taken_apart_and_old_ones_have_no_clusters(trained: Path, tmp_path: Path) -> None:
    """What is started from has none until it is given some; a header without the entry is an older one."""
    begun = create(ARCHITECTURE, trained, num_classes=3, img_size=64)
    assert begun.added.clusters.keys() == of_clusters(trained).keys()
    assert not any(".clusters." in name for name in begun.vit.state_dict())
    loaded = load(str(trained))
    card = replace(loaded.card, paca=None)
    save(tmp_path / "plain.safetensors", begun.vit, card)
    assert load(str(tmp_path / "plain.safetensors")).model.arch.paca is None


def test_runs_that_began_before_there_were_clusters_go_on(run: Run, tmp_path: Path) -> None:
    """They are known by what they were known by; a run with clusters is another one."""
    before = run(tmp_path, paca_blocks=None, paca_clusters=None)
    known = fingerprint(before, ("a",), ("a",), [])
    assert not {"paca_blocks", "paca_clusters"} & known.keys()
    assert fingerprint(run(tmp_path), ("a",), ("a",), [])["paca_clusters"] == 5
