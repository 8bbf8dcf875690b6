"""Fine-tuning and evaluation on three classes of tiny pictures."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import ExifTags, Image
from pydantic import ValidationError
from safetensors.torch import load_file
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from models import device
from models.load import ModelError, create, input_spec_of, load, read_card, save
from models.normalise import normalise
from models.pruned_vit import PrunedViT
from models.schedule import UNPRUNED, Pruning, Stages, compute
from models.training import command
from models.training import fine_tune as module
from models.training import teacher as teaching
from models.training.answers import Row
from models.training.classes import ClassesError
from models.training.config import EvaluateConfig, TrainConfig
from models.training.data import (
    AugmentedPhotographs,
    Photographs,
    Sample,
    StepBatches,
    spread_samples,
)
from models.training.evaluate import evaluate, table
from models.training.fine_tune import fine_tune
from models.training.folders import FolderError, class_folders
from models.training.loading import Batches, BrokenImageError, BrokenImages, evaluation_batches
from models.training.mixing import Mixing
from models.training.objective import loss_of
from models.training.resuming import ResumeError
from models.training.teacher import Teacher
from models.transforms import InputSpec, to_pixels
from tests.models.training.coloured import save_pictures

MakeViT = Callable[..., VisionTransformer]
MakePixels = Callable[..., Tensor]

pytestmark = pytest.mark.usefixtures("without_shape_checks")

# The least of timm's ViTs with a fixed input size: 9 blocks, width 96, map pooling, no CLS.
ARCHITECTURE = "test_vit3"
IMAGES = {"amber": 5, "blue": 7, "coral": 3}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """15 pictures of about 40 pixels, of which the colour tells the class."""
    folder = tmp_path_factory.mktemp("pictures")
    return save_pictures(folder, IMAGES, lambda index: (37 + index, 43 - index))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights to start from, of another size and number of classes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "start.pth"
    torch.save(timm.create_model(ARCHITECTURE, num_classes=11).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def run(pictures: Path, start: Path) -> Callable[..., TrainConfig]:
    """A run of 6 steps (2 epochs of 15 pictures in batches of 5), unless told otherwise."""

    def make(output: Path, **changes: Any) -> TrainConfig:
        settings: dict[str, Any] = {
            "data": pictures,
            "output": output,
            "architecture": ARCHITECTURE,
            "weights": start,
            "image_size": 48,
            "epochs": 2,
            "batch_size": 5,
            "learning_rate": 1e-3,
            "workers": 0,
            "device": "cpu",
            "bf16": False,
            "save_every": 2,
        }
        return TrainConfig(**{**settings, **changes})

    return make


@pytest.fixture
def config(run: Callable[..., TrainConfig], tmp_path: Path) -> Callable[..., TrainConfig]:
    """Such a run in a folder of its own."""

    def make(**changes: Any) -> TrainConfig:
        return run(**{"output": tmp_path / "run", **changes})

    return make


@pytest.fixture(scope="module")
def trained(pictures: Path, start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that tells the three colours apart."""
    config = TrainConfig(
        data=pictures,
        output=tmp_path_factory.mktemp("trained"),
        architecture=ARCHITECTURE,
        weights=start,
        image_size=48,
        epochs=12,
        batch_size=5,
        learning_rate=1e-3,
        workers=0,
        bf16=False,
        min_keep_ratio=0.6,
        label_smoothing=0.0,
    )
    return fine_tune(config).checkpoint


def log_of(config: TrainConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (config.output / "log.jsonl").read_text().splitlines()]


# A run.


@pytest.mark.parametrize("bf16", [False, True])
def test_a_run_ends_in_a_model_that_can_be_served(
    config: Callable[..., TrainConfig], start: Path, bf16: bool
) -> None:
    """A run takes its steps, logs each, and leaves a checkpoint with labels, input spec and stages."""
    settings = config(bf16=bf16)
    report = fine_tune(settings)
    assert report.checkpoint == settings.output / "model.safetensors"
    assert report.steps == 6
    assert report.seconds > 0
    log = log_of(settings)
    assert [line["step"] for line in log] == [0, 1, 2, 3, 4, 5]
    assert all(math.isfinite(line["loss"]) and 0 <= line["top1"] <= 1 for line in log)
    loaded = load(str(report.checkpoint))
    assert loaded.labels == ("amber", "blue", "coral")
    assert loaded.input.size == (48, 48)
    assert loaded.input == input_spec_of(loaded.model.vit)
    assert loaded.model.stages == Stages((2, 4, 6), "all")
    assert loaded.model.arch.grid == (3, 3)
    before = torch.load(start, weights_only=True)
    moved = loaded.model.vit.blocks[8].mlp.fc1.weight - before["blocks.8.mlp.fc1.weight"]
    assert moved.abs().max() > 1e-3


def test_a_run_with_a_patch_stride_ends_in_a_model_with_it(
    config: Callable[..., TrainConfig], pictures: Path
) -> None:
    """Trained with overlapping patches, a checkpoint is loaded and evaluated with them; or with others."""
    settings = config(patch_stride=8)
    checkpoint = fine_tune(settings).checkpoint
    assert [line["step"] for line in log_of(settings)] == [0, 1, 2, 3, 4, 5]
    card = read_card(checkpoint)
    assert card is not None
    assert card.patch_stride == card.origin["patch_stride"] == 8
    model = load(str(checkpoint)).model
    assert model.arch.grid == (5, 5)
    assert model.vit.patch_embed.proj.stride == (8, 8)
    seen = {"data": pictures, "model": str(checkpoint), "device": "cpu", "dtype": "float32", "workers": 0}
    wanted = {**seen, "keep_ratios": (0.5,), "criteria": ("mad",)}
    (row,) = evaluate(EvaluateConfig(**wanted))
    assert (row.images, row.compute) == (15, round(compute(model.arch, model.stages, 0.5), 4))
    (other,) = evaluate(EvaluateConfig(**wanted, patch_stride=6))
    wider = load(str(checkpoint), patch_stride=6).model
    assert wider.arch.grid == (6, 6)
    assert other.compute == round(compute(wider.arch, wider.stages, 0.5), 4)
    assert other.compute != row.compute


def test_the_card_says_how_it_was_trained_but_not_where(config: Callable[..., TrainConfig]) -> None:
    """The settings travel with the weights; folders of the machine do not."""
    settings = config(epochs=1, learning_rate=2e-3)
    card = read_card(fine_tune(settings).checkpoint)
    assert card is not None
    assert card.origin["learning_rate"] == 2e-3
    assert card.origin["epochs"] == 1
    assert card.origin.keys().isdisjoint({"data", "output", "weights", "labels"})
    assert str(settings.data) not in str(asdict(card))


def test_labels_may_be_given_in_a_file(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """Folder names are replaced by the labels that a JSON file has for them, and stay where it has none."""
    (tmp_path / "labels.json").write_text(json.dumps({"amber": "yellow", "coral": "red"}))
    report = fine_tune(config(epochs=1, labels=tmp_path / "labels.json"))
    assert load(str(report.checkpoint)).labels == ("yellow", "blue", "red")


def test_training_learns(config: Callable[..., TrainConfig]) -> None:
    """On pictures that their colour tells apart, the loss falls and the answers become right."""
    settings = config(epochs=12, label_smoothing=0.0, min_keep_ratio=0.5)
    fine_tune(settings)
    log = log_of(settings)
    early = np.mean([line["loss"] for line in log[:6]])
    late = np.mean([line["loss"] for line in log[-6:]])
    assert late < 0.5 * early
    assert np.mean([line["top1"] for line in log[-6:]]) > 0.8


def test_ratios_and_criteria_are_drawn_per_step(config: Callable[..., TrainConfig]) -> None:
    """Ratios fill their range, criteria are all drawn, and the same step draws the same again."""
    settings = config(min_keep_ratio=0.4, max_keep_ratio=0.9, criteria=("variance", "mad", "random"))
    draws = [module._draw(settings, step) for step in range(300)]
    ratios = np.array([draw.keep_ratio for draw in draws])
    assert ratios.min() >= 0.4
    assert ratios.max() <= 0.9
    assert abs(ratios.mean() - 0.65) < 0.03
    assert np.histogram(ratios, bins=5, range=(0.4, 0.9))[0].min() > 40
    counts = [sum(draw.criterion == name for draw in draws) for name in ("variance", "mad", "random")]
    assert sum(counts) == 300
    assert min(counts) > 70
    assert len({draw.seed for draw in draws}) == 300
    assert [module._draw(settings, step) for step in range(300)] == draws
    assert [module._draw(config(seed=1), step) for step in range(300)] != draws


def test_a_fixed_ratio_is_equal_ends_of_the_range(config: Callable[..., TrainConfig]) -> None:
    """With both ends the same, every step trains at that ratio."""
    settings = config(min_keep_ratio=0.55, max_keep_ratio=0.55)
    fine_tune(settings)
    assert {line["keep_ratio"] for line in log_of(settings)} == {0.55}


def test_drawn_ratios_are_logged(config: Callable[..., TrainConfig]) -> None:
    """The log says at which ratio each step was trained."""
    settings = config(min_keep_ratio=0.3, max_keep_ratio=0.8)
    fine_tune(settings)
    want = [round(module._draw(settings, step).keep_ratio, 4) for step in range(6)]
    assert [line["keep_ratio"] for line in log_of(settings)] == want


def test_too_few_pictures_for_a_batch_are_refused(config: Callable[..., TrainConfig]) -> None:
    """A batch larger than the folder is an error that says what to lower."""
    words = "there are 15 training images, but a batch has 16; use --batch-size 15 or less"
    with pytest.raises(ValueError, match=words):
        fine_tune(config(batch_size=16))


def test_weights_that_do_not_fit_are_refused(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """Starting from another network's weights is a ModelError."""
    torch.save({"blocks.0.attn.qkv.weight": torch.zeros(3, 3)}, tmp_path / "odd.pth")
    with pytest.raises(ModelError, match=r"odd\.pth does not fit the architecture"):
        fine_tune(config(weights=tmp_path / "odd.pth"))


# Interrupted and resumed.


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the run break off when it comes to a step."""
    draw = module._draw

    def failing(config: TrainConfig, at: int) -> Pruning:
        if at == step:
            raise KeyboardInterrupt
        return draw(config, at)

    monkeypatch.setattr(module, "_draw", failing)


@pytest.fixture(
    scope="module",
    params=[
        {"criteria": ("variance", "random"), "drop_path": 0.3},
        {"distillation": 0.5, "seed": 7, "bf16": True},
    ],
    ids=["stochastic", "distilled"],
)
def uninterrupted(
    request: pytest.FixtureRequest,
    run: Callable[..., TrainConfig],
    trained: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> TrainConfig:
    """A run from its beginning to its end."""
    changes = request.param
    if "distillation" in changes:
        changes = {**changes, "teacher": trained}
    whole = run(tmp_path_factory.mktemp("whole"), **changes)
    fine_tune(whole)
    return whole


@pytest.mark.parametrize("interrupted_at", [1, 3, 5])
def test_a_resumed_run_is_the_run_that_was_not_interrupted(
    uninterrupted: TrainConfig, tmp_path: Path, interrupted_at: int
) -> None:
    """Broken off at any step and started again, a run ends in the same weights, bit for bit, and log."""
    whole, parts = uninterrupted, uninterrupted.model_copy(update={"output": tmp_path / "parts"})
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt_at(monkeypatch, interrupted_at)
        with pytest.raises(KeyboardInterrupt):
            fine_tune(parts)
    assert not (parts.output / "model.safetensors").exists()
    report = fine_tune(parts)
    assert report.steps == 6 - interrupted_at // 2 * 2  # from the last resume state: every 2 steps
    assert log_of(parts) == log_of(whole)
    assert tensors_of(parts).keys() == tensors_of(whole).keys()
    for name, tensor in tensors_of(whole).items():
        assert torch.equal(tensors_of(parts)[name], tensor), name


def tensors_of(config: TrainConfig) -> dict[str, Tensor]:
    return load_file(config.output / "model.safetensors")


def test_runs_of_different_seeds_differ(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """The comparison of whole and resumed runs could fail: another seed is another run."""
    one, other = config(epochs=1), config(epochs=1, seed=1, output=tmp_path / "other")
    fine_tune(one)
    fine_tune(other)
    assert not torch.equal(tensors_of(one)["head.weight"], tensors_of(other)["head.weight"])


def test_a_finished_run_is_not_run_again(config: Callable[..., TrainConfig]) -> None:
    """Started again after its end, a run takes no step and writes the same checkpoint again."""
    settings = config()
    checkpoint = fine_tune(settings).checkpoint
    content = checkpoint.read_bytes()
    checkpoint.unlink()
    assert fine_tune(settings).steps == 0
    assert checkpoint.read_bytes() == content
    assert len(log_of(settings)) == 6


@pytest.fixture(scope="module")
def finished(run: Callable[..., TrainConfig], tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A short run that has ended."""
    settings = run(tmp_path_factory.mktemp("finished"), epochs=1)
    fine_tune(settings)
    return settings


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 2e-3},
        {"epochs": 3},
        {"batch_size": 4},
        {"seed": 1},
        {"min_keep_ratio": 0.5},
        {"criteria": ("mad",)},
        {"frozen_blocks": 2},
        {"distillation": 0.1},
        {"image_size": 32},
        {"patch_stride": 12},
    ],
    ids=str,
)
def test_other_settings_in_the_same_folder_are_refused(
    finished: TrainConfig, changes: dict[str, Any]
) -> None:
    """A folder that holds a run of other settings is neither mixed up with it nor overwritten."""
    settings = finished
    before = {file.name: file.read_bytes() for file in settings.output.iterdir()}
    with pytest.raises(ResumeError) as caught:
        fine_tune(settings.model_copy(update=changes))
    assert "contains a run with other settings" in str(caught.value)
    ((name, value),) = changes.items()
    assert f"{name} " in str(caught.value)
    assert str(value).strip("(),") in str(caught.value)
    assert {file.name: file.read_bytes() for file in settings.output.iterdir()} == before


def test_where_and_how_it_runs_may_change(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """A run may be moved, read by other workers and saved at other intervals, and is resumed all the same."""
    settings = config()
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt_at(monkeypatch, 4)
        with pytest.raises(KeyboardInterrupt):
            fine_tune(settings)
    settings.output.rename(tmp_path / "moved")
    report = fine_tune(config(output=tmp_path / "moved", save_every=5, workers=1))
    assert report.steps == 2


# Folders as people have them.


def copy_of(pictures: Path, folder: Path) -> Path:
    """A folder of one's own to spoil."""
    shutil.copytree(pictures, folder)
    return folder


def test_broken_images_are_skipped_and_the_run_can_be_resumed(
    config: Callable[..., TrainConfig], pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Counted and named at the end; interrupted or not, the weights are the same."""
    data = copy_of(pictures, tmp_path / "data")
    (data / "blue" / "3.png").write_bytes((data / "blue" / "3.png").read_bytes()[:500])
    (data / "coral" / "0.png").write_bytes(b"")
    whole, parts = config(data=data), config(data=data, output=tmp_path / "parts", workers=1)
    fine_tune(whole)
    assert "2 of 15 images are broken and were skipped: " in caplog.text
    assert f"{data}/coral/0.png: it is empty (0 bytes)" in caplog.text
    caplog.clear()
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt_at(monkeypatch, 4)
        with pytest.raises(KeyboardInterrupt):
            fine_tune(parts)
    fine_tune(parts)
    assert "2 of 15 images are broken and were skipped: " in caplog.text
    for name, tensor in tensors_of(whole).items():
        assert torch.equal(tensors_of(parts)[name], tensor), name


def test_a_run_that_a_broken_image_stopped_goes_on_without_it(
    config: Callable[..., TrainConfig], pictures: Path, tmp_path: Path
) -> None:
    """What to do about broken images may change between the parts of a run."""
    data = copy_of(pictures, tmp_path / "data")
    (data / "blue" / "3.png").write_bytes(b"")
    with pytest.raises(BrokenImageError, match=r"blue/3\.png: it is empty"):
        fine_tune(config(data=data, broken_images="stop", save_every=1))
    assert fine_tune(config(data=data, broken_images="skip", save_every=1)).steps <= 6


def test_a_class_without_a_readable_image_stops_the_run(
    config: Callable[..., TrainConfig], pictures: Path, tmp_path: Path
) -> None:
    """It would be a class that nobody learned."""
    data = copy_of(pictures, tmp_path / "data")
    for path in (data / "coral").iterdir():
        path.write_bytes(b"")
    with pytest.raises(BrokenImageError, match=r"none of the images of .*coral can be read"):
        fine_tune(config(data=data))


def test_labels_are_written_in_the_order_of_the_classes(
    config: Callable[..., TrainConfig], pictures: Path, tmp_path: Path
) -> None:
    """Numbered folders stand in timm's order, and the checkpoint is evaluated in it, by its labels."""
    data = tmp_path / "numbered"
    for name, colour in (("0", "amber"), ("2", "blue"), ("10", "coral")):
        shutil.copytree(pictures / colour, data / name)
    checkpoint = fine_tune(config(data=data, epochs=12, label_smoothing=0.0, min_keep_ratio=0.6)).checkpoint
    card = read_card(checkpoint)
    assert card is not None
    assert card.labels == card.folders == ("0", "2", "10")
    seen = {"model": str(checkpoint), "device": "cpu", "dtype": "float32", "workers": 0}
    (row,) = evaluate(EvaluateConfig(data=data, keep_ratios=(1.0,), **seen))
    assert row.top1 > 80


def test_a_checkpoint_with_other_labels_is_evaluated_on_its_folders(
    config: Callable[..., TrainConfig], pictures: Path, tmp_path: Path
) -> None:
    """It remembers the folders' names beside its labels."""
    (tmp_path / "labels.json").write_text(json.dumps({"amber": "yellow", "blue": "red", "coral": "blue"}))
    checkpoint = fine_tune(config(labels=tmp_path / "labels.json", epochs=12, min_keep_ratio=0.6)).checkpoint
    assert load(str(checkpoint)).labels == ("yellow", "red", "blue")
    seen = {"model": str(checkpoint), "device": "cpu", "dtype": "float32", "workers": 0}
    (row,) = evaluate(EvaluateConfig(data=pictures, keep_ratios=(1.0,), **seen))
    assert row.top1 > 80


@pytest.mark.parametrize("change", ["a class", "an image", "a label"])
def test_other_images_in_the_same_run_are_refused(
    config: Callable[..., TrainConfig], pictures: Path, tmp_path: Path, change: str
) -> None:
    """The run would be neither the one nor the other."""
    data = copy_of(pictures, tmp_path / "data")
    settings = config(data=data, epochs=1)
    fine_tune(settings)
    if change == "a class":
        (data / "blue").rename(data / "green")
        words = r"classes \['amber', 'blue', 'coral'\], not \['amber', 'coral', 'green'\]"
    elif change == "an image":
        (data / "blue" / "3.png").unlink()
        words = "the images are different"
    else:
        (tmp_path / "labels.json").write_text(json.dumps({"amber": "yellow"}))
        settings = config(data=data, epochs=1, labels=tmp_path / "labels.json")
        words = "labels .*yellow"
    with pytest.raises(ResumeError, match=words):
        fine_tune(settings)


def test_the_images_may_be_moved(config: Callable[..., TrainConfig], pictures: Path, tmp_path: Path) -> None:
    """Where they lie is no part of the run."""
    data = copy_of(pictures, tmp_path / "data")
    fine_tune(config(data=data))
    data.rename(tmp_path / "moved")
    assert fine_tune(config(data=tmp_path / "moved")).steps == 0


def test_a_model_without_its_state_is_not_overwritten(config: Callable[..., TrainConfig]) -> None:
    """It is of a run that nobody can go on with."""
    settings = config(epochs=1)
    checkpoint = fine_tune(settings).checkpoint
    (settings.output / "resume.pt").unlink()
    before = checkpoint.read_bytes()
    with pytest.raises(ResumeError, match=r"contains a model\.safetensors but no resume\.pt"):
        fine_tune(settings)
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04half"])
def test_a_state_that_cannot_be_read_is_told(config: Callable[..., TrainConfig], content: bytes) -> None:
    """In a line that says what to do."""
    settings = config(epochs=1)
    settings.output.mkdir()
    (settings.output / "resume.pt").write_bytes(content)
    with pytest.raises(ResumeError, match=r"resume\.pt is not a readable resume state; remove it"):
        fine_tune(settings)


def test_a_teacher_decides_the_order_of_classes(
    config: Callable[..., TrainConfig], trained: Path, tmp_path: Path
) -> None:
    """Its answers must mean what the labels mean; one of other classes is refused."""
    loaded = load(str(trained))
    other = tmp_path / "other.safetensors"
    save(other, loaded.model.vit, replace(loaded.card, labels=("coral", "amber", "blue"), folders=None))
    settings = config(teacher=other, epochs=1)
    fine_tune(settings)
    assert load(str(settings.output / "model.safetensors")).labels == ("coral", "amber", "blue")
    save(other, loaded.model.vit, replace(loaded.card, labels=("cat", "amber", "blue"), folders=None))
    with pytest.raises(ClassesError, match=r"the teacher has other classes: .* coral"):
        fine_tune(config(teacher=other, epochs=1, output=tmp_path / "new"))


def test_going_on_from_a_checkpoint_keeps_its_order_of_classes(
    config: Callable[..., TrainConfig], trained: Path, tmp_path: Path
) -> None:
    """So that its head means what it meant; with other classes, the order is timm's."""
    loaded = load(str(trained))
    start = tmp_path / "start.safetensors"
    for labels, expected in (
        (("coral", "blue", "amber"), ("coral", "blue", "amber")),
        (("x", "y", "z"), ("amber", "blue", "coral")),
    ):
        save(start, loaded.model.vit, replace(loaded.card, labels=labels, folders=None))
        settings = config(weights=start, epochs=1, output=tmp_path / "-".join(labels))
        assert load(str(fine_tune(settings).checkpoint)).labels == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('["yellow", "blue", "red"]', "has the wrong form; it must be a JSON object of folder names"),
        ('{"amber": 1}', "has the wrong form"),
        ('{"0": "yellow", "1": "blue"}', r"contains none of the class folders \(amber, blue, coral"),
        ("amber = yellow", "is not JSON"),
        ("", "is not JSON"),
    ],
)
def test_labels_of_another_form_are_refused(
    config: Callable[..., TrainConfig], tmp_path: Path, text: str, words: str
) -> None:
    """With an example of the right one."""
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        fine_tune(config(labels=tmp_path / "labels.json"))
    assert '{"n01440764": "tench"}' in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_single_class_is_refused(
    config: Callable[..., TrainConfig], pictures: Path, tmp_path: Path
) -> None:
    """As is a class without images: there is nothing to learn."""
    data = tmp_path / "data"
    shutil.copytree(pictures / "amber", data / "amber")
    with pytest.raises(FolderError, match=r"has one class folder \(amber\), but at least two classes"):
        fine_tune(config(data=data))
    (data / "blue").mkdir()
    (data / "blue" / "notes.txt").write_text("")
    with pytest.raises(FolderError, match=r"no images in 1 of the class folders of .*: blue; fill or remove"):
        fine_tune(config(data=data))


# The loss.


@pytest.mark.parametrize("weight", [None, 0.0, 0.3, 1.0])
def test_the_loss_is_the_one_described(
    make_vit: MakeViT, make_pixels: MakePixels, config: Callable[..., TrainConfig], weight: float | None
) -> None:
    """(1 - w) CE + w (KL(teacher || student) + 1 - cos(features)); without a teacher CE alone: in value and
    in gradient."""
    model, teacher = PrunedViT(make_vit()).train(), PrunedViT(make_vit()).eval()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.1)
    pixels, labels, pruning = make_pixels(3), torch.tensor([12, 0, 5]), Pruning(0.4)
    mixing = Mixing(config(label_smoothing=0.2), classes=13, device="cpu")
    _, wanted = mixing(pixels, labels, seed=0)
    prunings = [pruning] * 3
    answering = None if weight is None else Teacher(teacher)
    loss, right = loss_of(model, answering, pixels, wanted, prunings, weight or 0.0)

    read: list[Tensor] = []
    for vit in (model.vit, teacher.vit):
        vit.head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    pruned = model(pixels, [pruning] * 3).logits
    whole = teacher(pixels, [UNPRUNED] * 3).logits.detach()
    # Of 13 classes, 0.2 of the weight is spread evenly.
    target = torch.full((3, 13), 0.2 / 13)
    target[torch.arange(3), labels] += 0.8
    log_p, log_q = torch.log(torch.softmax(pruned, 1)), torch.log(torch.softmax(whole, 1))
    on_labels = -(target * log_p).sum(dim=1).mean()
    divergence = (log_q.exp() * (log_q - log_p)).sum(dim=1).mean()
    own, teachers = read[0], read[1].detach()
    cosine = (own * teachers).sum(dim=1) / (own.norm(dim=1) * teachers.norm(dim=1))
    distance = 1 - cosine.mean()
    want = on_labels if weight is None else (1 - weight) * on_labels + weight * (divergence + distance)

    assert divergence > 0.01
    assert distance > 0.01
    torch.testing.assert_close(loss, want, rtol=1e-4, atol=1e-5)
    assert torch.equal(right, pruned.argmax(dim=1) == labels)
    parameter = model.vit.blocks[1].mlp.fc2.weight
    (got,) = torch.autograd.grad(loss, parameter)
    (wanted_gradient,) = torch.autograd.grad(want, parameter)
    torch.testing.assert_close(got, wanted_gradient, rtol=1e-3, atol=1e-5)


RAGGED = (
    Pruning(0.3),
    Pruning(0.8, "mean", "fuse"),
    Pruning(),
    Pruning(0.5, reducer="merge"),
    Pruning(0.6, reducer="transform"),
    # Never from two patches to one: without a prefix token two share all attention, so rounding decides.
    Pruning(keep_mass=0.7),
)


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"class_token": False, "global_pool": "avg"},
        {"class_token": False, "reg_tokens": 2, "global_pool": "avg"},
        {"reg_tokens": 2, "global_pool": "map"},
        {"cls": VisionTransformerDistilled},
    ],
    ids=["CLS", "patches", "registers", "map", "distilled"],
)
def test_features_are_compared_image_by_image(
    make_vit: MakeViT, make_pixels: MakePixels, layout: dict[str, Any]
) -> None:
    """Whatever token comes first and whatever each image is pruned by, the loss of a batch is the mean of its
    images' losses."""
    model, teacher = PrunedViT(make_vit(**layout)).train(), PrunedViT(make_vit(seed=1, **layout)).eval()
    pixels = make_pixels(len(RAGGED))
    wanted = torch.full((len(RAGGED), 13), 1 / 13)
    together, _ = loss_of(model, Teacher(teacher), pixels, wanted, RAGGED, 0.7)
    alone = [
        loss_of(model, Teacher(teacher), pixels[image : image + 1], wanted[:1], [pruning], 0.7)[0]
        for image, pruning in enumerate(RAGGED)
    ]
    assert torch.stack(alone).std() > 0.01
    torch.testing.assert_close(together, torch.stack(alone).mean(), rtol=2e-5, atol=1e-6)


def test_both_heads_of_a_distilled_model_are_compared(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """1 - cos of what they read, end to end: of the CLS token and of the distillation token."""
    vit, other = (make_vit(VisionTransformerDistilled, seed) for seed in (0, 1))
    read: dict[str, Tensor] = {}
    for name, network in (("own", vit), ("other", other)):
        for head in ("head", "head_dist"):
            getattr(network, head).register_forward_pre_hook(
                lambda _, inputs, key=name + head: read.update({key: inputs[0]})
            )
    pixels, prunings = make_pixels(3), [Pruning(0.4)] * 3
    model, teacher = PrunedViT(vit), PrunedViT(other)
    logits = model(pixels, prunings).logits.log_softmax(1)
    answers = teacher(pixels, [UNPRUNED] * 3).logits.log_softmax(1)
    divergence = (answers.exp() * (answers - logits)).sum(dim=1).mean()
    own, others = (
        torch.cat([read[of + head] for head in ("head", "head_dist")], dim=1) for of in ("own", "other")
    )
    distance = 1 - torch.cosine_similarity(own, others).mean()
    loss, _ = loss_of(model, Teacher(teacher), pixels, torch.full((3, 13), 1 / 13), prunings, 1.0)
    torch.testing.assert_close(loss, divergence + distance, rtol=1e-4, atol=1e-5)


def test_a_student_comes_closer_to_its_teacher(config: Callable[..., TrainConfig], trained: Path) -> None:
    """With a teacher and nothing else to learn from, a run goes to its end, and its loss falls."""
    settings = config(epochs=12, teacher=trained, distillation=1.0, min_keep_ratio=0.5)
    fine_tune(settings)
    losses = [line["loss"] for line in log_of(settings)]
    assert np.mean(losses[-6:]) < 0.5 * np.mean(losses[:6])


def test_a_teacher_of_another_kind_is_refused(config: Callable[..., TrainConfig], trained: Path) -> None:
    """A teacher whose grid or classes are not the student's is refused before anything is trained."""
    with pytest.raises(ModelError, match="the teacher is another network"):
        fine_tune(config(teacher=trained, image_size=64))


def test_a_teacher_may_have_other_patches(config: Callable[..., TrainConfig], trained: Path) -> None:
    """A student with overlapping patches learns from a teacher without them."""
    settings = config(teacher=trained, patch_stride=8, epochs=1)
    fine_tune(settings)
    assert load(str(settings.output / "model.safetensors")).model.arch.grid == (5, 5)


def test_the_head_alone_is_trained(config: Callable[..., TrainConfig], start: Path) -> None:
    """A linear probe changes the head and nothing else."""
    settings = config(trained="head")
    fine_tune(settings)
    torch.manual_seed(settings.seed)
    untrained = create(ARCHITECTURE, start, num_classes=3, img_size=48).vit.state_dict()
    changed = {
        name for name, tensor in tensors_of(settings).items() if not tensor.equal(untrained[name].half())
    }
    assert changed == {"head.weight", "head.bias"}


def test_frozen_blocks_stay_as_they_came(config: Callable[..., TrainConfig], start: Path) -> None:
    """The first blocks and the embeddings before them keep their bits, and every other weight learns."""
    settings = config(frozen_blocks=4, learning_rate=1e-2, layer_decay=1.0)
    fine_tune(settings)
    torch.manual_seed(settings.seed)
    untrained = create(ARCHITECTURE, start, num_classes=3, img_size=48).vit.state_dict()
    same = {name for name, tensor in tensors_of(settings).items() if tensor.equal(untrained[name].half())}
    frozen = ("patch_embed.", "pos_embed", "reg_token", *(f"blocks.{number}." for number in range(4)))
    assert same == {name for name in untrained if name.startswith(frozen)}


def test_a_frozen_start_is_computed_once_for_student_and_teacher(
    config: Callable[..., TrainConfig], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where both begin with the same weights and none of them is trained; what is learned is the same but for
    rounding. Not where some of it is trained or left out at random, or where the first stage is another."""
    begun: list[PrunedViT] = []
    begin = PrunedViT.begin

    def counting(model: PrunedViT, pixels: Tensor) -> Any:
        begun.append(model)
        return begin(model, pixels)

    monkeypatch.setattr(PrunedViT, "begin", counting)
    first = min(load(str(trained)).model.stages.blocks)

    def begins(name: str, **changes: Any) -> int:
        begun.clear()
        like = {"weights": trained, "teacher": trained, "frozen_blocks": first, "epochs": 1}
        fine_tune(config(output=tmp_path / name, **{**like, **changes}))
        return len(begun)

    assert begins("once") == 3
    with monkeypatch.context() as patched:
        patched.setattr(teaching, "begin_alike", lambda *_: False)
        assert begins("twice") == 6
    once, twice = (log_of(config(output=tmp_path / name)) for name in ("once", "twice"))
    assert [line["loss"] for line in once] == pytest.approx([line["loss"] for line in twice], rel=1e-4)
    assert begins("trained", frozen_blocks=first - 1) == 6
    assert begins("random", drop_path=0.2) == 6
    assert begins("later", stages=(first + 2, first + 4)) == 6


def test_all_blocks_frozen_are_refused(config: Callable[..., TrainConfig]) -> None:
    """Nothing would be left to learn but the head, for which there is a flag."""
    with pytest.raises(ValueError, match=r"--frozen-blocks 9 leaves no block to train: .* 9, so at most 8"):
        fine_tune(config(frozen_blocks=9))


# The settings.


def test_settings_are_checked(config: Callable[..., TrainConfig]) -> None:
    """Ratios in the wrong order, out of range or misspelt settings are refused before anything runs."""
    with pytest.raises(ValidationError, match="--min-keep-ratio must be at most --max-keep-ratio"):
        config(min_keep_ratio=0.8, max_keep_ratio=0.5)
    for wrong in (
        {"min_keep_ratio": 0.0},
        {"max_keep_ratio": 1.1},
        {"epochs": 0},
        {"patch_stride": 0},
        {"criteria": ()},
        {"criteria": ("beauty",)},
        {"learning_rat": 1e-3},
    ):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            config(**wrong)


# The pictures.


def samples_of(folder: Path) -> list[Sample]:
    """With classes by the names of their folders."""
    images = class_folders(folder).images
    return [(path, truth) for truth, paths in enumerate(images.values()) for path in paths]


def augmented(folder: Path, seed: int = 0) -> AugmentedPhotographs:
    return AugmentedPhotographs(samples_of(folder), size=24, min_crop=0.3, seed=seed)


def batches_of(folder: Path, spec: InputSpec, batch_size: int, limit: int | None = None) -> Batches:
    samples = spread_samples(samples_of(folder), limit)
    return evaluation_batches(samples, spec, BrokenImages("stop"), batch_size=batch_size, workers=0)


def test_an_items_randomness_follows_from_its_key(pictures: Path) -> None:
    """Whatever came before, an item of one key is the same; of another epoch, index or seed it is not."""
    dataset = augmented(pictures)
    torch.manual_seed(1)
    first = dataset[3, 6]
    torch.manual_seed(2)
    dataset[0, 1]
    assert first.pixels is not None
    assert np.array_equal(dataset[3, 6].pixels, first.pixels)
    assert first.pixels.shape == (24, 24, 3)
    assert first.pixels.dtype == np.uint8
    assert first.truth == 1  # the second of the blue ones
    assert not np.array_equal(dataset[4, 6].pixels, first.pixels)
    assert not np.array_equal(augmented(pictures, seed=1)[3, 6].pixels, first.pixels)


def test_an_item_leaves_the_random_state_alone(pictures: Path) -> None:
    """Reading a picture in the training process draws nothing from that process's generator."""
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    augmented(pictures)[0, 0]
    assert torch.equal(torch.rand(3), want)


def test_batches_do_not_depend_on_the_number_of_workers(pictures: Path) -> None:
    """Read in this process or by one or two others, the batches of a run are the same."""
    runs = []
    for workers in (0, 1, 2):
        keys = StepBatches(images=15, batch_size=4, epochs=2, seed=3, first_step=1)
        torch.manual_seed(workers)
        batches = Batches(augmented(pictures), BrokenImages("stop"), workers, batch_sampler=keys)
        runs.append(list(batches))
    assert len(runs[0]) == 5
    for run in runs[1:]:
        for one, other in zip(runs[0], run, strict=True):
            assert np.array_equal(one.pixels, other.pixels)
            assert np.array_equal(one.truth, other.truth)
            assert np.array_equal(one.numbers, other.numbers)


def test_training_pictures_are_turned_upright(tmp_path: Path) -> None:
    """A photograph stored on its side is trained upright, as it will be served."""
    upright = np.zeros((40, 24, 3), np.uint8)
    upright[:20] = (250, 250, 250)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for name, picture, kind in [("a", upright, None), ("b", upright.swapaxes(0, 1)[::-1].copy(), exif)]:
        (tmp_path / name).mkdir()
        Image.fromarray(picture).save(tmp_path / name / "0.png", exif=kind)
    dataset = AugmentedPhotographs(samples_of(tmp_path), size=16, min_crop=1.0, seed=0)
    # The two have the same seed but not the same key: their crops differ, their halves do not.
    for index in (0, 1):
        read = dataset[0, index].pixels
        assert read is not None
        pixels = read.astype(float).mean(axis=(1, 2))
        assert pixels[:4].min() > pixels[-4:].max() + 50


def test_step_batches_by_hand() -> None:
    """Of 7 images in batches of 3, each epoch takes 6, none of them twice; epochs differ in their order."""
    batches = list(StepBatches(images=7, batch_size=3, epochs=4, seed=0, first_step=0))
    assert [len(batch) for batch in batches] == [3] * 8
    orders = []
    for epoch in range(4):
        keys = batches[2 * epoch] + batches[2 * epoch + 1]
        assert {key[0] for key in keys} == {epoch}
        indices = [key[1] for key in keys]
        assert len(set(indices)) == 6
        assert set(indices) < set(range(7))
        orders.append(tuple(indices))
    assert len(set(orders)) == 4
    assert batches != list(StepBatches(images=7, batch_size=3, epochs=4, seed=1, first_step=0))


@pytest.mark.parametrize("first_step", [0, 1, 2, 5, 8])
def test_step_batches_go_on_where_they_stopped(first_step: int) -> None:
    """From a later step on, the batches are the tail of the whole run's."""
    whole = list(StepBatches(images=7, batch_size=3, epochs=4, seed=0, first_step=0))
    rest = StepBatches(images=7, batch_size=3, epochs=4, seed=0, first_step=first_step)
    assert list(rest) == whole[first_step:]
    assert len(rest) == 8 - first_step


def test_evaluation_sees_what_serving_sees(pictures: Path) -> None:
    """Every picture of the folder, in order, preprocessed by the one preprocessing there is."""
    spec = InputSpec((16, 24), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), crop_share=0.9)
    batches = list(batches_of(pictures, spec, batch_size=4))
    assert [len(batch.truth) for batch in batches] == [4, 4, 4, 3]
    pixels = np.concatenate([batch.pixels for batch in batches])
    labels = np.concatenate([batch.truth for batch in batches]).tolist()
    assert np.concatenate([batch.numbers for batch in batches]).tolist() == list(range(15))
    assert labels == [0] * 5 + [1] * 7 + [2] * 3
    files = [pictures / name / f"{index}.png" for name in IMAGES for index in range(IMAGES[name])]
    for image, file in zip(pixels, files, strict=True):
        assert np.array_equal(image, to_pixels(Image.open(file), spec))


@pytest.mark.parametrize(
    ("limit", "places"),
    [(1, [0]), (4, [0, 3, 7, 11]), (15, list(range(15))), (99, list(range(15)))],
)
def test_a_limit_spreads_over_the_folder(pictures: Path, limit: int, places: list[int]) -> None:
    """So many pictures at even distances, from all classes, not the first so many."""
    spec = InputSpec((16, 24), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    whole = Photographs(samples_of(pictures), spec)
    pixels = np.concatenate([batch.pixels for batch in batches_of(pictures, spec, 2, limit)])
    assert np.array_equal(pixels, np.stack([whole[place].pixels for place in places]))


# Evaluation.


@pytest.fixture
def evaluation(pictures: Path, trained: Path) -> Callable[..., EvaluateConfig]:
    def make(**changes: Any) -> EvaluateConfig:
        settings: dict[str, Any] = {
            "data": pictures,
            "model": str(trained),
            "keep_ratios": (1.0, 0.7, 0.2),
            "criteria": ("variance", "random"),
            "batch_size": 4,
            "device": "cpu",
            "dtype": "float32",
            "workers": 0,
        }
        return EvaluateConfig(**{**settings, **changes})

    return make


def test_evaluation_gives_a_row_per_setting(evaluation: Callable[..., EvaluateConfig], trained: Path) -> None:
    """Ratio 1 once, every other ratio with every criterion, over all images, each with its true compute."""
    rows = evaluate(evaluation())
    assert [(row.keep_ratio, row.criterion) for row in rows] == [
        (1.0, "variance"),
        (0.7, "variance"),
        (0.7, "random"),
        (0.2, "variance"),
        (0.2, "random"),
    ]
    model = load(str(trained)).model
    for row in rows:
        assert row.images == 15
        assert row.compute == round(compute(model.arch, model.stages, row.keep_ratio), 4)
        assert row.images_per_s > 0
    unpruned = rows[0]
    assert unpruned.top1 > 80
    assert (unpruned.top1_change, unpruned.top1_change_error) == (0, 0)
    assert (unpruned.agreement, unpruned.agreement_error) == (100, 0)


def test_evaluation_agrees_with_answers_counted_one_by_one(
    evaluation: Callable[..., EvaluateConfig], trained: Path, pictures: Path
) -> None:
    """Top-1, its change and the agreement are those of counting image by image."""
    (row,) = evaluate(evaluation(keep_ratios=(0.2,), criteria=("mean",)))
    loaded = load(str(trained))
    right, before, same = [], [], []
    photographs = Photographs(samples_of(pictures), loaded.input)
    for index in range(len(photographs)):
        item = photographs[index]
        assert item.pixels is not None
        label = item.truth
        inputs = normalise(torch.from_numpy(item.pixels[None]), loaded.input, torch.float32)
        with torch.inference_mode():
            pruned = loaded.model(inputs, [Pruning(0.2, "mean")]).logits.argmax().item()
            whole = loaded.model(inputs, [UNPRUNED]).logits.argmax().item()
        right.append(pruned == label)
        before.append(whole == label)
        same.append(pruned == whole)
    assert row.top1 == round(100 * sum(right) / 15, 2)
    assert row.top1_change == round(100 * (sum(right) - sum(before)) / 15, 2)
    assert row.agreement == round(100 * sum(same) / 15, 2)
    share = sum(right) / 15
    assert row.top1_error == pytest.approx(100 * math.sqrt(share * (1 - share) / 14), abs=0.01)


def test_evaluation_takes_no_more_than_the_limit(evaluation: Callable[..., EvaluateConfig]) -> None:
    """A limit of 7 is 7 images."""
    assert {row.images for row in evaluate(evaluation(limit=7))} == {7}


@pytest.mark.skipif(not device.cpu_has_int8(), reason="int8 needs a CPU with AVX2")
def test_evaluation_in_int8(evaluation: Callable[..., EvaluateConfig]) -> None:
    """A network that tells its classes apart in float32 does so in int8."""
    (row,) = evaluate(evaluation(keep_ratios=(1.0,), dtype="int8"))
    assert row.top1 > 80


def test_a_subset_of_the_classes_is_evaluated_as_such(
    evaluation: Callable[..., EvaluateConfig],
    pictures: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Labels without a folder are no fault; the folders that are there keep their classes, and it is said."""
    for name in ("blue", "coral"):
        (tmp_path / name).symlink_to(pictures / name)
    (row,) = evaluate(evaluation(data=tmp_path, keep_ratios=(1.0,)))
    assert row.images == IMAGES["blue"] + IMAGES["coral"]
    assert row.top1 > 80
    assert "2 of the model's 3 classes are present; missing: amber" in caplog.text


def test_folders_that_are_no_class_are_refused(
    evaluation: Callable[..., EvaluateConfig], pictures: Path, tmp_path: Path
) -> None:
    """Their images could never be right."""
    for name in ("amber", "blue"):
        (tmp_path / name).symlink_to(pictures / name)
    (tmp_path / "corale").symlink_to(pictures / "coral")
    with pytest.raises(ClassesError, match=r"1 of 3 class folders .*: corale .* did you mean 'coral'\?"):
        evaluate(evaluation(data=tmp_path))


def test_table_by_hand() -> None:
    """Rows become a Markdown table with aligned columns."""
    row = Row(0.5, "mad", "fuse", 200, 91.5, 1.98, -2.5, 1.1, 95.0, 1.54, 0.5123, 123.456)
    unpruned = Row(1.0, "variance", "drop", 200, 94.0, 1.68, 0.0, 0.0, 100.0, 0.0, 1.0, 60.0)
    assert table([unpruned, row]).splitlines() == [
        "| keep_ratio | method     | top-1 %      | change       | agreement %   | compute | images/s |",
        "|------------|------------|--------------|--------------|---------------|---------|----------|",
        "| 1          | (unpruned) | 94.00 ± 1.68 | +0.00 ± 0.00 | 100.00 ± 0.00 | 1.000   | 60.0     |",
        "| 0.5        | mad+fuse   | 91.50 ± 1.98 | -2.50 ± 1.10 | 95.00 ± 1.54  | 0.512   | 123.5    |",
    ]


# The commands.


def test_the_train_command_says_where_the_model_is(
    config: Callable[..., TrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that succeeds exits with 0 and names the checkpoint."""
    settings = config(epochs=1)
    assert command.train(settings) == 0
    out = capsys.readouterr().out
    assert out.startswith("3 steps in ")
    assert out.endswith(f"the model is {settings.output / 'model.safetensors'}\n")


def test_the_train_command_reports_what_is_wrong(
    config: Callable[..., TrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    """A foreseen error is a line and exit code 1, not a traceback."""
    assert command.train(config(batch_size=16)) == 1
    assert capsys.readouterr().err.endswith(
        "trimvit train: there are 15 training images, but a batch has 16; use --batch-size 15 or less\n"
    )


def test_the_train_command_says_how_to_go_on(
    config: Callable[..., TrainConfig], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted run exits with 130 and says that the same command resumes it."""
    interrupt_at(monkeypatch, 2)
    settings = config()
    assert command.train(settings) == 130
    assert f"run the same command again to resume from {settings.output}" in capsys.readouterr().err


def test_the_evaluate_command_prints_and_writes(
    evaluation: Callable[..., EvaluateConfig], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The table goes to the terminal, the rows to the JSON file asked for."""
    assert command.evaluate(evaluation(keep_ratios=(1.0, 0.5), output=tmp_path / "rows.json")) == 0
    out = capsys.readouterr().out
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["keep_ratio"] for row in rows] == [1.0, 0.5, 0.5]
    assert "on 15 images of" in out
    assert out.endswith(table([Row(**row) for row in rows]) + "\n")


def test_the_evaluate_command_reports_what_is_wrong(
    evaluation: Callable[..., EvaluateConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that is not there is a line and exit code 1."""
    assert command.evaluate(evaluation(model="nowhere.safetensors")) == 1
    assert "trimvit evaluate: the file 'nowhere.safetensors' does not exist" in capsys.readouterr().err
