"""A run takes its input and its classes from what it starts from, and understands a teacher's."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models import save_for_hf

from models.families import Network
from models.load import Card, ModelError, create, load, read_card, save
from models.normalise import normalise, renormalise
from models.schedule import Stages
from models.training.fine_tune import fine_tune
from models.training.freezing import begin_alike
from models.transforms import InputSpec
from tests.models.training.small_runs import ARCHITECTURE, Run, pictures, run_with, start

__all__ = ["pictures", "run_with", "start"]  # fixtures

OWN = InputSpec((64, 64), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", "center", 0.7)


@pytest.fixture(scope="module")
def run(run_with: Callable[..., Run]) -> Run:
    """Short runs."""
    return run_with()


def saved_with(weights: Path, path: Path, spec: InputSpec) -> Path:
    """The weights as a checkpoint of `trimvit train` that sees ``spec``."""
    loaded = load(str(weights), architecture=ARCHITECTURE, labels=("amber", "blue", "coral"))
    in_full(path, loaded.model.vit, replace(loaded.card, input=spec))
    return path


def in_full(path: Path, vit: Network, card: Card) -> None:
    """Without rounding to half precision."""
    save(path, vit, card, dict.fromkeys(vit.state_dict(), torch.float32))


def timms_folder(folder: Path, labels: tuple[str, ...], seed: int) -> Path:
    """A folder of timm's with labels in its config.json."""
    torch.manual_seed(seed)
    args = {"num_classes": len(labels), "img_size": 64}
    save_for_hf(timm.create_model(ARCHITECTURE, **args), str(folder), model_args=args)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "label_names": labels}))
    return folder


def test_a_further_run_sees_what_the_first_one_saw(run: Run, start: Path, tmp_path: Path) -> None:
    """Mean, standard deviation, interpolation and crop are those of the checkpoint, also at another size,
    not those that timm has for the architecture."""
    first = saved_with(start, tmp_path / "first.safetensors", OWN)
    report = fine_tune(run(tmp_path / "run", weights=first, validation_data=run(tmp_path).data))
    card = read_card(report.checkpoint)
    assert card is not None
    assert card.input == OWN
    larger = create(ARCHITECTURE, first, num_classes=3, img_size=96)
    assert larger.input == replace(OWN, size=(96, 96))
    assert create(ARCHITECTURE, start, num_classes=3, img_size=64).input.mean == (0.5, 0.5, 0.5)


def test_a_further_run_prunes_where_the_first_one_did(run: Run, start: Path, tmp_path: Path) -> None:
    """`--stages` changes it; weights without stages have the default ones."""
    loaded = load(str(start), architecture=ARCHITECTURE, labels=("amber", "blue", "coral"))
    first = tmp_path / "first.safetensors"
    save(first, loaded.model.vit, replace(loaded.card, stages=Stages((1, 4), "all")))

    def stages_of(weights: Path, **flags: Any) -> Stages:
        card = read_card(fine_tune(run(tmp_path / "run", weights=weights, **flags)).checkpoint)
        shutil.rmtree(tmp_path / "run")
        assert card is not None
        return card.stages

    assert stages_of(first) == Stages((1, 4), "all")
    assert stages_of(first, stages=(2, 3)) == Stages((1, 2), "all")
    assert stages_of(start) == loaded.model.stages


def test_inputs_are_normalised_again_exactly() -> None:
    """As if the pixels were normalised for the other model, in float64; nothing to do for the same values."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    spec = replace(OWN, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    change = renormalise(spec, OWN, torch.device("cpu"))
    assert change is not None
    found = change(normalise(torch.from_numpy(pixels), spec, torch.float32))
    want = np.empty((2, 3, 5, 7))
    for place in np.ndindex(pixels.shape):
        image, row, column, channel = place
        want[image, channel, row, column] = (pixels[place] / 255 - OWN.mean[channel]) / OWN.std[channel]
    np.testing.assert_allclose(found.numpy(), want, rtol=1e-5, atol=1e-5)
    grey = replace(OWN, mean=(0.2,) * 3, std=(0.3,) * 3, channels=1)
    change = renormalise(replace(grey, std=(0.6,) * 3), grey, torch.device("cpu"))
    assert change is not None
    torch.testing.assert_close(change(torch.full((1, 1, 2, 2), 0.5)), torch.full((1, 1, 2, 2), 1.0))
    assert renormalise(OWN, replace(OWN, crop="squash"), torch.device("cpu")) is None


def test_a_teacher_sees_its_own_input(run: Run, start: Path, tmp_path: Path) -> None:
    """A teacher that computes the same from pixels with another normalisation has nothing to teach: the
    loss of the first step is 0. Their first blocks are not computed together, though their weights agree."""
    loaded = load(str(start), architecture=ARCHITECTURE)
    old, new = ((torch.tensor(each.mean), torch.tensor(each.std)) for each in (loaded.input, OWN))
    convolution = loaded.model.vit.patch_embed.proj
    with torch.no_grad():
        shift = ((new[0] - old[0]) / old[1])[None, :, None, None]
        convolution.bias += (convolution.weight * shift).sum(dim=(1, 2, 3))
        convolution.weight *= (new[1] / old[1])[None, :, None, None]
    teacher = tmp_path / "teacher.safetensors"
    labels = ("amber", "blue", "coral")
    in_full(teacher, loaded.model.vit, replace(loaded.card, labels=labels, input=OWN))
    settings = run(tmp_path / "run", teacher=teacher, distillation=1.0, min_keep_ratio=1.0)
    fine_tune(settings)
    first = json.loads((settings.output / "log.jsonl").read_text().splitlines()[0])
    assert abs(first["loss"]) < 1e-4


def test_blocks_of_other_inputs_are_not_shared(run: Run, start: Path, tmp_path: Path) -> None:
    """A frozen start that is the teacher's own, fed with another normalisation, is computed twice."""
    teacher = saved_with(start, tmp_path / "teacher.safetensors", OWN)
    student = load(str(start), architecture=ARCHITECTURE).model.requires_grad_(requires_grad=False)
    assert begin_alike(student, load(str(teacher)).model)
    fine_tune(run(tmp_path / "run", teacher=teacher, frozen_blocks=1, distillation=1.0, min_keep_ratio=1.0))
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert json.loads(log[0])["loss"] > 1e-3


@pytest.mark.parametrize("role", ["teacher", "weights"])
def test_classes_of_a_timm_folder_decide_the_order(run: Run, tmp_path: Path, role: str) -> None:
    """The labels of its config.json say what its answers mean."""
    folder = timms_folder(tmp_path / "folder", ("coral", "amber", "blue"), seed=3)
    report = fine_tune(run(tmp_path / "run", **{role: folder}))
    assert load(str(report.checkpoint)).labels == ("coral", "amber", "blue")


def test_another_network_is_refused_by_what_differs(run: Run, start: Path, tmp_path: Path) -> None:
    """Not by a list of all its numbers."""
    teacher = saved_with(start, tmp_path / "teacher.safetensors", OWN)
    words = r"^the teacher is another network than the student: image size \(64, 64\), not \(96, 96\)$"
    with pytest.raises(ModelError, match=words):
        fine_tune(run(tmp_path / "run", teacher=teacher, image_size=96))


def test_an_image_that_cannot_be_cut_into_patches_is_refused(run: Run, start: Path, tmp_path: Path) -> None:
    """In words, with weights of a file and without. Overlapping patches may leave some pixels over."""
    with pytest.raises(ValueError, match="40 is not a multiple of 16; the nearest is 32"):
        fine_tune(run(tmp_path / "run", image_size=40))
    assert create(ARCHITECTURE, start, num_classes=3, img_size=40, patch_stride=12).input.size == (40, 40)
    with pytest.raises(
        ValueError, match=r"^an input of 8 x 8 pixels is smaller than a patch, which has 16 x 16$"
    ):
        fine_tune(run(tmp_path / "run", image_size=8))
    with pytest.raises(ValueError, match="an input of 15 x 15 pixels is smaller than a patch"):
        create(ARCHITECTURE, None, num_classes=3, img_size=15)
