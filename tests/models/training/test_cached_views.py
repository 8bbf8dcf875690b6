"""`trimvit train --cached-views`: what is not trained is computed once for each view."""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from models.pruned_vit import PrunedViT
from models.training import fine_tune as module
from models.training.cached_views import CachedViews
from models.training.config import TrainConfig
from models.training.data import AugmentedPhotographs
from models.training.fine_tune import fine_tune
from models.training.loading import BrokenImageError
from models.training.outputs import OutputError
from models.training.processes import Processes
from tests.models.training.small_runs import Run, pictures, run_with, start
from tests.models.training.test_beginnings import OWN, saved_with

__all__ = ["pictures", "run_with", "start"]  # fixtures

IMAGES, STEPS = 12, 2  # of an epoch


@pytest.fixture(scope="module")
def run(run_with: Callable[..., Run]) -> Run:
    """Four epochs whose first four of six blocks are frozen; the first stage is in block 2 or later."""
    return run_with(frozen_blocks=4, epochs=4)


@pytest.fixture(scope="module")
def teacher(run: Run, start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that differs from the start after the frozen blocks only."""
    return fine_tune(run(tmp_path_factory.mktemp("teacher") / "run", min_keep_ratio=1.0)).checkpoint


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of each call of `PrunedViT.begin`."""
    calls: list[int] = []
    begin = PrunedViT.begin

    def counting(model: PrunedViT, pixels: Tensor) -> Any:
        calls.append(len(pixels))
        return begin(model, pixels)

    monkeypatch.setattr(PrunedViT, "begin", counting)
    return calls


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The keys of the images that were read."""
    keys: list[tuple[int, int]] = []
    get = AugmentedPhotographs.__getitem__

    def counting(dataset: AugmentedPhotographs, key: tuple[int, int]) -> Any:
        keys.append(key)
        return get(dataset, key)

    monkeypatch.setattr(AugmentedPhotographs, "__getitem__", counting)
    return keys


def losses(config: TrainConfig) -> list[float]:
    return [json.loads(line)["loss"] for line in (config.output / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("taught", [False, True], ids=["labels", "teacher"])
@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"reducers": ("fuse",)}], ids=str)
def test_a_run_learns_the_same_from_its_cache(
    run: Run, teacher: Path, tmp_path: Path, *, taught: bool, changes: dict[str, Any]
) -> None:
    """While no view repeats, every step has the loss that it has without a cache, up to rounding."""
    if taught:
        changes = {**changes, "weights": teacher, "teacher": teacher}
    plain, cached = run(tmp_path / "plain", **changes), run(tmp_path / "cached", cached_views=4, **changes)
    fine_tune(plain)
    fine_tune(cached)
    assert np.ptp(losses(plain)) > 0.01
    assert losses(cached) == pytest.approx(losses(plain), rel=1e-3)
    assert not (cached.output / "views").exists()


def test_views_repeat_and_are_computed_once(
    run: Run, teacher: Path, tmp_path: Path, begun: list[int], read: list[tuple[int, int]]
) -> None:
    """In four epochs of two views, each image is read twice, and its first blocks are computed twice for
    student and teacher together. (One more image of zeros is computed for the shape.)"""
    fine_tune(run(tmp_path / "run", weights=teacher, teacher=teacher, cached_views=2))
    assert sorted(read) == [(view, image) for view in range(2) for image in range(IMAGES)]
    assert sum(begun) == 2 * IMAGES + 1


def test_other_epochs_have_other_views(run: Run, tmp_path: Path) -> None:
    """One view in four epochs is not what four are; with a learning rate of almost nothing, only views
    and the order differ."""
    still = {"learning_rate": 1e-9, "min_keep_ratio": 1.0, "batch_size": IMAGES}
    one, four = (run(tmp_path / str(views), cached_views=views, **still) for views in (1, 4))
    fine_tune(one)
    fine_tune(four)
    assert np.ptp(losses(one)) < 1e-4
    assert np.ptp(losses(four)) > 1e-3
    assert losses(one)[0] == pytest.approx(losses(four)[0], rel=1e-4)


def test_the_cache_of_an_interrupted_run_is_used(
    run: Run, tmp_path: Path, read: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was interrupted while it computed views or in a step ends with the weights of one that was
    not, and computes nothing again."""
    whole = run(tmp_path / "whole", cached_views=2, save_every=1)
    fine_tune(whole)
    settings = run(tmp_path / "parts", cached_views=2, save_every=1)
    monkeypatch.setattr("models.training.cached_views._AT_ONCE", 5)
    get = AugmentedPhotographs.__getitem__

    def until(last: int) -> Callable[..., Any]:
        def interrupted(dataset: AugmentedPhotographs, key: tuple[int, int]) -> Any:
            if len(read) == last:
                raise KeyboardInterrupt
            return get(dataset, key)

        return interrupted

    read.clear()
    with monkeypatch.context() as patched:
        patched.setattr(AugmentedPhotographs, "__getitem__", until(17))
        with pytest.raises(KeyboardInterrupt):
            fine_tune(settings)
    assert (settings.output / "views" / "records.bin").stat().st_size > 0
    calls = iter((False, False, False, True))
    loss_of = module.loss_of

    def stopping(*arguments: Any) -> Any:
        if next(calls):
            raise KeyboardInterrupt
        return loss_of(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(module, "loss_of", stopping)
        with pytest.raises(KeyboardInterrupt):
            fine_tune(settings)
    assert len(read[17:]) == 2 * IMAGES - 15
    read.clear()
    fine_tune(settings)
    assert read == []
    assert (settings.output / "model.safetensors").read_bytes() == (
        whole.output / "model.safetensors"
    ).read_bytes()


def test_a_cache_of_another_teacher_is_computed_again(
    run: Run, teacher: Path, tmp_path: Path, read: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was replaced has other answers, though the settings are the same."""
    own = tmp_path / "teacher.safetensors"
    shutil.copy(teacher, own)
    settings = run(tmp_path / "run", weights=teacher, teacher=own, cached_views=1)
    with monkeypatch.context() as patched:
        patched.setattr("models.training.fine_tune.CachedViews.batches", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            fine_tune(settings)
        read.clear()
        with pytest.raises(KeyboardInterrupt):
            fine_tune(settings)
        assert read == []
        other = fine_tune(run(tmp_path / "other", weights=teacher, epochs=1, learning_rate=1e-2)).checkpoint
        shutil.copy(other, own)
        read.clear()
        with pytest.raises(KeyboardInterrupt):
            fine_tune(settings)
    assert len(read) == IMAGES


def _interrupt(*_: Any) -> Any:
    raise KeyboardInterrupt


def test_half_precision_is_kept_in_half_the_space(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens are kept in the precision that the run computes in."""
    sizes = []
    monkeypatch.setattr("models.training.fine_tune.CachedViews.batches", _interrupt)
    for bf16 in (False, True):
        settings = run(tmp_path / str(bf16), cached_views=1, bf16=bf16)
        with pytest.raises(KeyboardInterrupt):
            fine_tune(settings)
        sizes.append((settings.output / "views" / "records.bin").stat().st_size)
    assert sizes[0] == 2 * sizes[1]
    monkeypatch.undo()
    fine_tune(settings)
    assert all(np.isfinite(losses(settings)))


def test_what_cannot_be_cached_is_refused(run: Run, start: Path, teacher: Path, tmp_path: Path) -> None:
    """What is trained, or differs at each step."""
    with pytest.raises(
        ValueError, match="--cached-views cannot be used with --mixup, --cutmix and --erasing"
    ):
        run(tmp_path / "run", cached_views=1, mixup=0.2)
    words = "^--cached-views needs first blocks that are not trained: use --frozen-blocks [0-9] or more"
    for changes in (
        {"frozen_blocks": 0},
        {"drop_path": 0.1},
        {"teacher": saved_with(start, tmp_path / "own.safetensors", OWN)},
    ):
        with pytest.raises(ValueError, match=words):
            fine_tune(run(tmp_path / "run", cached_views=1, **changes))
        shutil.rmtree(tmp_path / "run", ignore_errors=True)


def test_several_processes_are_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In words, before anything is computed."""
    monkeypatch.setattr("models.training.fine_tune.of_environment", lambda: Processes(0, 2))
    monkeypatch.setattr(Processes, "wait", lambda _: None)
    monkeypatch.setattr("models.training.fine_tune.joined", lambda *_: nullcontext())
    with pytest.raises(ValueError, match="--cached-views trains in one process; start it without torchrun"):
        fine_tune(run(tmp_path / "run", cached_views=1))


def test_a_full_disk_is_told_before_hours_of_work(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With how much is needed."""
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr("models.training.cached_views.shutil.disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match=r"^--cached-views 3 needs .* GB in .*, where 0\.0 GB are free"):
        fine_tune(run(tmp_path / "run", cached_views=3))


def test_broken_images_are_replaced_and_named(
    run: Run, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As without a cache."""
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    (data / "amber" / "0.png").write_bytes(b"")
    fine_tune(run(tmp_path / "run", data=data, cached_views=1))
    assert "1 of 12 images are broken and were skipped" in caplog.text
    for image in (data / "amber").iterdir():
        image.write_bytes(b"")
    with pytest.raises(BrokenImageError, match=r"none of the images of .*amber can be read"):
        fine_tune(run(tmp_path / "other", data=data, cached_views=1))


def test_a_cache_that_was_shortened_is_an_error(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a batch of whatever memory held."""
    settings = run(tmp_path / "run", cached_views=1)
    batches = CachedViews.batches

    def shortening(views: Any, keys: Any) -> Any:
        (settings.output / "views" / "records.bin").write_bytes(b"")
        return batches(views, keys)

    monkeypatch.setattr("models.training.fine_tune.CachedViews.batches", shortening)
    with pytest.raises(OutputError, match=r"records\.bin was shortened by another program"):
        fine_tune(settings)
