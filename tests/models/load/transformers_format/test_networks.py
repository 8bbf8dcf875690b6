"""Every class of transformers that is served computes what the transformers package computes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.load import load, save
from models.pruned_vit import check_against_timm
from models.schedule import UNPRUNED, Pruning
from tests.support import transformers_models
from tests.support.transformers_models import CASES, LABELS, SIDE, logits_of

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def pixels_of(images: int, size: tuple[int, int] = (SIDE, SIDE)) -> Tensor:
    return torch.randn(images, 3, *size, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    """At keep ratio 1, in float32; and the load check holds."""
    theirs = transformers_models.save(case, tmp_path / "model")
    loaded = load(str(tmp_path / "model"))
    assert (loaded.labels, loaded.scores, loaded.input.size) == (LABELS, "softmax", (SIDE, SIDE))
    pixels = pixels_of(3)
    with torch.inference_mode():
        ours = loaded.model(pixels, [UNPRUNED] * 3).logits
    want = logits_of(theirs, pixels)
    assert want.std() > 0.1
    torch.testing.assert_close(ours, want, **CLOSE)
    check_against_timm(loaded.model, pixels)


@pytest.mark.parametrize("case", CASES)
def test_patches_are_pruned(case: str, tmp_path: Path) -> None:
    """Each image is answered as alone, with the patches that its ratio keeps."""
    transformers_models.save(case, tmp_path)
    model = load(str(tmp_path)).model
    pixels, prunings = pixels_of(3), [Pruning(0.5), UNPRUNED, Pruning(0.7)]
    with torch.inference_mode():
        together = model(pixels, prunings)
        for image, pruning in enumerate(prunings):
            alone = model(pixels[image : image + 1], [pruning])
            torch.testing.assert_close(together.logits[image], alone.logits[0], rtol=1e-4, atol=1e-4)
    counts = [[len(stage[image]) for stage in together.kept] for image in range(3)]
    assert counts[1] == [25] * len(together.kept)
    assert counts[0][0] == 13
    assert counts[2][0] == 18


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_written_from_it_comes_back(case: str, tmp_path: Path) -> None:
    """`trimvit calibrate` and `average` write such files."""
    transformers_models.save(case, tmp_path / "folder")
    loaded = load(str(tmp_path / "folder"))
    save(tmp_path / "again.safetensors", loaded.model.vit, loaded.card)
    again = load(str(tmp_path / "again.safetensors"))
    args = json.loads(json.dumps(loaded.card.model_args))
    assert again.card == replace(loaded.card, model_args=args)
    pixels = pixels_of(2)
    with torch.inference_mode():
        before, after = (each.model(pixels, [UNPRUNED] * 2).logits for each in (loaded, again))
    torch.testing.assert_close(after, before, rtol=0.02, atol=0.05)
