"""Answers to every setting, and the figures made of them."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from models.classifier import Classifier, ImageRequest
from models.pruned_vit import PrunedViT
from models.schedule import Pruning
from models.training.answers import Answers, answers_to, methods, rows_of, settings_of
from models.training.data import Batch
from models.training.evaluate import table
from models.transforms import InputSpec

MakeViT = Callable[..., VisionTransformer]
SPEC = InputSpec((20, 28), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


def photographs(images: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (images, 20, 28, 3), dtype=torch.uint8, generator=generator)


# Settings.


def test_methods_by_hand() -> None:
    """Each criterion with each reducer, merge and pool once."""
    assert methods(["mad", "mean"], ["merge", "pool", "drop", "fuse"]) == [
        ("mean", "merge"),
        ("mean", "pool"),
        ("mad", "drop"),
        ("mean", "drop"),
        ("mad", "fuse"),
        ("mean", "fuse"),
    ]


def test_settings_by_hand() -> None:
    """The unpruned model first and once, then ratios, then masses without merge; the largest first."""
    pairs = methods(["mad", "mean"], ["drop", "merge"])
    assert settings_of([0.3, 1.0, 0.7, 0.3], pairs, [0.8]) == [
        Pruning(1.0, "mad"),
        Pruning(0.7, "mad"),
        Pruning(0.7, "mean"),
        Pruning(0.7, "mean", "merge"),
        Pruning(0.3, "mad"),
        Pruning(0.3, "mean"),
        Pruning(0.3, "mean", "merge"),
        Pruning(1.0, "mad", keep_mass=0.8),
        Pruning(1.0, "mean", keep_mass=0.8),
    ]


# Answers.


def batch_of(pixels: Tensor, truth: list[int], first: int) -> Batch:
    numbers = np.arange(first, first + len(truth))
    return Batch(numbers, np.array(truth, np.int64), pixels.contiguous().numpy(), broken=())


def test_a_batch_without_readable_images_has_no_answers(make_vit: MakeViT) -> None:
    """It joins the others and changes nothing."""
    classifier = Classifier(PrunedViT(make_vit()), SPEC, "cpu", torch.float32)
    settings = [Pruning(1.0), Pruning(0.5)]
    full = answers_to(classifier, batch_of(photographs(2), [1, 0], first=0), settings)
    empty = answers_to(classifier, batch_of(photographs(2)[:0], [], first=2), settings)
    joined = Answers.joined([empty, full, empty])
    assert joined.truth.tolist() == [1, 0]
    assert joined.classes.tolist() == full.classes.tolist()
    assert joined.classes.dtype == full.classes.dtype


def test_answers_are_those_of_every_image_alone(make_vit: MakeViT) -> None:
    """Class, applied ratio and cost of each image under each setting are what the classifier says of it
    by itself; random goes by the image's number."""
    classifier = Classifier(PrunedViT(make_vit()), SPEC, "cpu", torch.float32)
    settings = settings_of([0.6], methods(["random", "mean"], ["drop", "fuse", "merge"]), [0.7])
    pixels = photographs(3)
    got = answers_to(classifier, batch_of(pixels, [4, 0, 12], first=40), settings)
    assert got.truth.tolist() == [4, 0, 12]
    assert got.classes.shape == got.keep_ratio.shape == got.compute.shape == (len(settings), 3)
    for index, setting in enumerate(settings):
        for image in range(3):
            own = Pruning(
                setting.keep_ratio, setting.criterion, setting.reducer, 40 + image, setting.keep_mass
            )
            (want,) = classifier.classify(pixels[image : image + 1], [ImageRequest(own, top_k=1)])
            assert got.classes[index, image] == want.classes[0]
            assert got.keep_ratio[index, image] == want.keep_ratio
            assert got.compute[index, image] == pytest.approx(want.compute, abs=1e-12)


def test_random_goes_by_the_number_of_the_image(make_vit: MakeViT) -> None:
    """One image under forty numbers loses other patches each time, and the numbers alone say which."""
    classifier = Classifier(PrunedViT(make_vit()), SPEC, "cpu", torch.float32)
    pixels = photographs(1).expand(40, -1, -1, -1)
    got = answers_to(classifier, batch_of(pixels, [0] * 40, first=0), [Pruning(0.1, "random")])
    assert len(set(got.classes[0].tolist())) > 1
    again = answers_to(classifier, batch_of(pixels[:20], [0] * 20, first=20), [Pruning(0.1, "random")])
    assert again.classes[0].tolist() == got.classes[0, 20:].tolist()


def test_parts_are_joined_in_order() -> None:
    """Images stand behind each other, settings stay in their rows."""
    parts = [
        Answers(np.array([n]), np.array([[n], [10 * n]]), np.array([[0.1], [n / 10]]), np.array([[1.0], [n]]))
        for n in (1, 2, 3)
    ]
    joined = Answers.joined(parts)
    assert joined.truth.tolist() == [1, 2, 3]
    assert joined.classes.tolist() == [[1, 2, 3], [10, 20, 30]]
    assert joined.keep_ratio.tolist() == [[0.1, 0.1, 0.1], [0.1, 0.2, 0.3]]
    assert joined.compute.tolist() == [[1, 1, 1], [1, 2, 3]]


# Rows, from made-up answers to five images.

SETTINGS = [
    Pruning(1.0, "variance"),
    Pruning(0.5, "variance"),
    Pruning(0.5, "mad"),
    Pruning(1.0, "mad", keep_mass=0.9),
]
CLASSES = [
    [0, 1, 2, 3, 9],  # right: 1 1 1 1 0
    [0, 1, 9, 9, 4],  # right: 1 1 0 0 1
    [0, 9, 2, 9, 9],  # right: 1 0 1 0 0
    [0, 1, 2, 3, 9],
]


@pytest.fixture
def answers() -> Answers:
    ratios = np.array([[1.0] * 5, [0.5] * 5, [0.5] * 5, [0.2, 0.4, 0.4, 0.6, 0.4]])
    return Answers(np.arange(5), np.array(CLASSES), ratios, ratios)


def test_rows_by_hand(answers: Answers) -> None:
    """Top-1, change, agreement and difference, each with the standard error of its five numbers."""
    rows = rows_of(SETTINGS, answers, reference=("variance", "drop"), model="m")
    unpruned, variance, mad, by_mass = rows
    # Four right of five: squares (4 * 0.04 + 0.64) / 4 = 0.2.
    assert (unpruned.top1, unpruned.top1_error) == (80.0, round(100 * math.sqrt(0.2 / 5), 2))
    assert (unpruned.top1_change, unpruned.agreement, unpruned.difference) == (0.0, 100.0, None)
    # Change 0 0 -1 -1 +1: mean -0.2, squares (2 * 0.04 + 2 * 0.64 + 1.44) / 4 = 0.7.
    assert (variance.top1, variance.top1_change) == (60.0, -20.0)
    assert variance.top1_change_error == round(100 * math.sqrt(0.7 / 5), 2) == 37.42
    # The same as unpruned: 1 1 0 0 0 (the last is right, and was wrong).
    assert (variance.agreement, variance.agreement_error) == (40.0, round(100 * math.sqrt(0.3 / 5), 2))
    assert (variance.reference, variance.difference) == (None, None)
    # mad minus variance: 0 -1 +1 0 -1: mean -0.2, squares (2 * 0.04 + 2 * 0.64 + 1.44) / 4 again.
    assert (mad.reference, mad.difference, mad.difference_error) == ("variance", -20.0, 37.42)
    assert mad.agreement == 60.0  # wrong in the same way counts as the same
    assert (by_mass.top1, by_mass.top1_change, by_mass.top1_change_error) == (80.0, 0.0, 0.0)
    assert (by_mass.keep_ratio, by_mass.compute, by_mass.keep_mass) == (0.4, 0.4, 0.9)
    assert (by_mass.reference, by_mass.difference) == (None, None)
    assert {(row.model, row.images, row.images_per_s) for row in rows} == {("m", 5, None)}


def test_differences_are_to_the_reference_at_the_same_ratio() -> None:
    """With two ratios, each difference is taken within its own."""
    settings = settings_of([0.7, 0.3], methods(["variance", "mad"], ["drop"]))
    classes = np.array([[0, 0], [0, 0], [0, 5], [5, 5], [0, 0]])
    answers = Answers(np.zeros(2, int), classes, np.ones((5, 2)), np.ones((5, 2)))
    rows = rows_of(settings, answers, reference=("mad", "drop"))
    assert [row.difference for row in rows] == [None, 50.0, None, -100.0, None]


def test_speeds_are_the_median_and_range_of_the_rounds(answers: Answers) -> None:
    """Of three rounds; a setting that was not timed has none."""
    speeds = np.array([[10.0, 21, 30, np.nan], [12, 20, 33, np.nan], [11, 25, 31, np.nan]])
    rows = rows_of(SETTINGS, answers, speeds=speeds)
    assert [(row.images_per_s_low, row.images_per_s, row.images_per_s_high) for row in rows] == [
        (10, 11, 12),
        (20, 21, 25),
        (30, 31, 33),
        (None, None, None),
    ]


def test_one_image_has_no_error() -> None:
    """Where nothing can be said about an error, it is 0 and not nan."""
    (row,) = rows_of([Pruning()], Answers(np.array([3]), np.array([[3]]), np.ones((1, 1)), np.ones((1, 1))))
    assert (row.top1, row.top1_error) == (100.0, 0.0)


def test_the_table_of_a_sweep_by_hand(answers: Answers) -> None:
    """Columns of mass, difference and speed stand where they say something."""
    speeds = np.array([[10.0, 20, 30, np.nan], [11.0, 22, 33, np.nan], [9.0, 21, 32, np.nan]])
    lines = table(rows_of(SETTINGS, answers, reference=("variance", "drop"), speeds=speeds)).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert len({len(line) for line in lines}) == 1
    titles = ["keep_ratio", "keep_mass", "method", "top-1 %", "change", "against variance", "agreement %"]
    assert cells[0] == [*titles, "compute", "images/s"]
    same, less, loss = "+0.00 ± 0.00", "-20.00 ± 37.42", "-40.00 ± 24.49"
    assert cells[2:] == [
        ["1", "", "(unpruned)", "80.00 ± 20.00", same, "", "100.00 ± 0.00", "1.000", "10.0 (9.0 to 11.0)"],
        ["0.5", "", "variance", "60.00 ± 24.49", less, "", "40.00 ± 24.49", "0.500", "21.0 (20.0 to 22.0)"],
        ["0.5", "", "mad", "40.00 ± 24.49", loss, less, "60.00 ± 24.49", "0.500", "32.0 (30.0 to 33.0)"],
        ["0.40", "0.9", "mad", "80.00 ± 20.00", same, "", "100.00 ± 0.00", "0.400", ""],
    ]


def test_a_table_of_several_models_names_them(answers: Answers) -> None:
    """And one of a single model does not."""
    one, other = rows_of(SETTINGS, answers, model="one"), rows_of(SETTINGS, answers, model="other")
    assert table(one).startswith("| keep_ratio ")
    first_column = [line.split("|")[1].strip() for line in table([*one, *other]).splitlines()]
    assert first_column == ["model", "-------", *["one"] * 4, *["other"] * 4]
