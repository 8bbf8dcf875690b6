"""Spearman's rank correlation, and the importance that it is taken of."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from models.classifier import Classifier, normalise
from models.criteria import most_important
from models.pruned_vit import PrunedViT
from models.schedule import CRITERIA, Criterion, Pruning, Rows, Stages
from models.training.correlation import rank_correlation, spearman
from models.transforms import InputSpec

MakeViT = Callable[..., VisionTransformer]
MakePixels = Callable[..., Tensor]
SPEC = InputSpec((20, 28), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


def test_spearman_by_hand() -> None:
    """1 - 6 sum(d^2) / (n (n^2 - 1)) without ties: ranks 0 1 2 3 against 1 0 3 2 give 1 - 24 / 60."""
    got = spearman(np.array([[0.1, 0.2, 0.7, 9.0], [5.0, 4.0, 8.0, 6.0], [3.0, 2.0, 1.0, 0.0]]))
    np.testing.assert_allclose(got, [[1, 0.6, -1], [0.6, 1, -0.6], [-1, -0.6, 1]], atol=1e-12)


def test_equal_values_share_their_ranks() -> None:
    """Ranks 0 1.5 1.5 3 against 0 1 2 3: sum of products 4.5, of squares 4.5 and 5."""
    got = spearman(np.array([[1.0, 2.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]]))
    assert got[0, 1] == pytest.approx(4.5 / np.sqrt(4.5 * 5))


def test_no_order_correlates_with_nothing() -> None:
    """A row of one value gives 0, not nan."""
    assert spearman(np.array([[2.0, 2.0, 2.0], [1.0, 2.0, 3.0]]))[0].tolist() == [0.0, 0.0]


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=2, max_size=12, unique=True))
def test_only_the_order_counts(pairs: Sequence[tuple[int, int]]) -> None:
    """Any rising function of the values changes nothing; a falling one changes the sign."""
    values = np.array(pairs, float).T
    got = spearman(values)
    assert (np.abs(got) <= 1 + 1e-12).all()
    np.testing.assert_allclose(got, got.T)
    np.testing.assert_allclose(spearman(values**3 + values), got, atol=1e-12)
    np.testing.assert_allclose(spearman(values * np.array([[1], [-2]]))[0, 1], -got[0, 1], atol=1e-12)


@pytest.mark.parametrize("rows", ["cls", "all"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_first_stage_keeps_what_is_most_important(
    make_vit: MakeViT, make_pixels: MakePixels, criterion: Criterion, rows: Rows
) -> None:
    """`first_importance` is what the forward pass decides by: its largest values are the patches kept."""
    model = PrunedViT(make_vit(life=1), Stages((1, 3), rows))
    prunings = [Pruning(0.4, criterion, seed=seed) for seed in (3, 8, 5)]
    with torch.inference_mode():
        tokens = model.begin(make_pixels(3))
        importance = model.first_importance(tokens, prunings)
        kept = model.finish(tokens, prunings).kept[0]
    assert importance.shape == (3, 35)
    assert torch.equal(most_important(importance, 14), torch.stack(list(kept)))


def test_a_model_without_stages_has_no_importance(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """Said, not guessed."""
    model = PrunedViT(make_vit(), Stages(()))
    with pytest.raises(ValueError, match="a model without stages computes no importance of patches"):
        model.first_importance(model.begin(make_pixels(1)), [Pruning()])


def test_mean_and_error_over_images(make_vit: MakeViT) -> None:
    """Of every two criteria, over the images of all batches; of two heads, variance and mad order alike."""
    classifier = Classifier(PrunedViT(make_vit(num_heads=2)), SPEC, "cpu", torch.float32)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (5, 20, 28, 3), dtype=torch.uint8, generator=generator)
    criteria: list[Criterion] = ["variance", "mad", "mean", "random"]
    got = rank_correlation(classifier, pixels.split(2), criteria)
    assert (got.criteria, got.images) == (tuple(criteria), 5)
    of_each = []
    for image in range(5):
        tokens = classifier.model.begin(normalise(pixels[image : image + 1], SPEC, torch.float32))
        importance = [
            classifier.model.first_importance(tokens, [Pruning(criterion=criterion, seed=image)])[0]
            for criterion in criteria
        ]
        of_each.append(spearman(torch.stack(importance).numpy()))
    np.testing.assert_allclose(got.mean, np.mean(of_each, axis=0), atol=0.02)
    np.testing.assert_allclose(got.error, np.std(of_each, axis=0, ddof=1) / np.sqrt(5), atol=0.02)
    np.testing.assert_allclose(np.diag(got.mean), 1)
    assert got.mean[0, 1] > 0.99
    assert abs(got.mean[0, 3]) < 0.4


def test_a_single_image_has_no_error(make_vit: MakeViT) -> None:
    """0, not nan."""
    classifier = Classifier(PrunedViT(make_vit()), SPEC, "cpu", torch.float32)
    got = rank_correlation(classifier, [torch.zeros(1, 20, 28, 3, dtype=torch.uint8)], ["variance", "mean"])
    assert got.error.tolist() == [[0, 0], [0, 0]]
