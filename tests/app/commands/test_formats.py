"""Folders of transformers, from the photograph to the labels and the mask, with no flag but --model."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import transformers
from PIL import Image

from tests.app.commands.conftest import Trimvit
from tests.support import transformers_models
from tests.support.transformers_models import CASES, LABELS, PATCH, SIDE, logits_of
from tests.system.photographs import SHIPPED

PHOTOGRAPH = SHIPPED / "china.jpg"


@pytest.mark.parametrize("case", CASES)
def test_every_class_answers_a_photograph_pruned_and_unpruned(
    trimvit: Trimvit, case: str, tmp_path: Path
) -> None:
    """Unpruned with the scores that transformers gives, pruned with the mask of what was kept."""
    processor = transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE})
    theirs = transformers_models.save(case, tmp_path / "model", processor=processor)
    flags = ("--model", tmp_path / "model", "--dtype", "float32", "--json", "--mask-format", "grid")
    code, out, err = trimvit("classify", PHOTOGRAPH, *flags, "--top-k", 11)
    assert code == 0, err
    whole = json.loads(out)
    with Image.open(PHOTOGRAPH) as image:
        shown = processor(image, return_tensors="pt")["pixel_values"]
    want = logits_of(theirs, shown)[0].softmax(0)
    got = {label["label"]: label["score"] for label in whole["labels"]}
    # The photograph may be shown with a level more or less.
    assert [got[label] for label in LABELS] == pytest.approx(want.tolist(), abs=0.02)
    assert whole["patches"]["kept"] == (SIDE // PATCH) ** 2
    code, out, err = trimvit("classify", PHOTOGRAPH, *flags, "--keep-ratio", 0.5)
    assert code == 0, err
    pruned = json.loads(out)
    (stage,) = pruned["mask"]
    mask = np.array(stage["grid"])
    assert mask.shape == (SIDE // PATCH, SIDE // PATCH)
    assert mask.sum() == pruned["patches"]["kept"] == pruned["patches"]["per_stage"][-1]
    assert pruned["patches"]["per_stage"][0] == 13


def test_several_labels_an_image_have_scores_of_their_own(trimvit: Trimvit, tmp_path: Path) -> None:
    """They do not add up to 1."""
    theirs = transformers_models.save("vit", tmp_path, problem_type="multi_label_classification")
    code, out, err = trimvit(
        "classify", PHOTOGRAPH, "--model", tmp_path, "--dtype", "float32", "--json", "--top-k", 11
    )
    assert code == 0, err
    got = {label["label"]: label["score"] for label in json.loads(out)["labels"]}
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    with Image.open(PHOTOGRAPH) as image:
        want = logits_of(theirs, processor(image, return_tensors="pt")["pixel_values"])[0].sigmoid()
    assert [got[label] for label in LABELS] == pytest.approx(want.tolist(), abs=0.02)
    assert not math.isclose(sum(got.values()), 1, abs_tol=0.1)


def test_another_input_size_is_a_flag(trimvit: Trimvit, tmp_path: Path) -> None:
    transformers_models.save("dinov2", tmp_path)
    flags = ("--model", tmp_path, "--json", "--input-size")
    code, out, err = trimvit("classify", PHOTOGRAPH, *flags, "21x42")
    assert code == 0, err
    assert json.loads(out)["patches"]["grid"] == [3, 6]
    code, _, err = trimvit("classify", PHOTOGRAPH, *flags, "30")
    assert code == 1
    assert "30 is not a multiple of 7; the nearest is 28" in err
    code, _, err = trimvit("classify", PHOTOGRAPH, *flags, "large")
    assert code == 2
    assert "--input-size: give pixels, such as 224, or height x width, such as 224x448; got 'large'" in err
