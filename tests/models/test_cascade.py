"""The cascade: when an image is run again, what that costs, and what the fitted margin promises."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from models.cascade import (
    Cascade,
    UnreachableAgreementError,
    choose_and_fit,
    expected_compute,
    fit_margin,
    margins,
    second_run_compute,
)
from models.classifier import Classifier, ImageRequest
from models.offered import REDUCERS_OF_ANY_MODEL
from models.pruned_vit import PrunedViT
from models.schedule import UNPRUNED, Pruning, compute
from models.transforms import InputSpec

MakeViT = Callable[..., VisionTransformer]


def test_margins_by_hand() -> None:
    """The first probability minus the second; a single class leaves no doubt."""
    scores = np.array([[0.2, 0.7, 0.1], [0.4, 0.2, 0.4]])
    np.testing.assert_allclose(margins(scores), [0.5, 0.0])
    assert margins(np.ones((2, 1))).tolist() == [1.0, 1.0]


def test_fit_margin_by_hand() -> None:
    """Of 9 images one more than none may be wrong at 80 %: the most certain mistake is let through, the next
    one is run again."""
    margin = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    agrees = np.array([True, False, True, True, False, True, True, False, True])
    assert fit_margin(margin, agrees, 0.8) == 0.5
    assert fit_margin(margin, agrees, 0.9) == 0.8
    assert fit_margin(margin, agrees, 0.6) == 0.0


@given(data=st.data())
def test_what_is_let_through_is_what_is_allowed(data: st.DataObject) -> None:
    """With the fitted margin (d + 1) / (n + 1) stays within 1 - agreement, and with any lower margin that
    an image has it would not, or there is nothing left to let through."""
    images = data.draw(st.integers(20, 200))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    margin, agrees = generator.random(images), generator.random(images) < data.draw(st.floats(0.3, 1))
    agreement = data.draw(st.sampled_from([0.5, 0.8, 0.9, 0.95]))
    threshold = fit_margin(margin, agrees, agreement)
    wrong = ((margin > threshold) & ~agrees).sum()
    assert (wrong + 1) / (images + 1) <= 1 - agreement + 1e-9
    below = margin[margin < threshold]
    if threshold > 0 and len(below):
        wrong = ((margin > below.max()) & ~agrees).sum()
        assert (wrong + 1) / (images + 1) > 1 - agreement - 1e-9


@pytest.mark.parametrize(
    ("images", "agreement", "need"),
    [(100, 0.995, "at least 199 are needed"), (10, 1.0, "no number of images is enough")],
)
def test_too_few_images_are_refused(images: int, agreement: float, need: str) -> None:
    """A promise that no result on so few images could support is not made."""
    with pytest.raises(UnreachableAgreementError, match=need):
        fit_margin(np.ones(images), np.ones(images, bool), agreement)


def test_the_promise_holds_on_images_to_come() -> None:
    """Fitted on one half of simulated images, the agreement on the other half is what was wanted, on
    average over many draws (to three standard errors of that average)."""
    generator = np.random.default_rng(0)
    shares = []
    for _ in range(200):
        margin = generator.random(800)
        agrees = generator.random(800) < 0.8 + 0.2 * margin
        threshold = fit_margin(margin[:400], agrees[:400], 0.97)
        shares.append((agrees[400:] | (margin[400:] <= threshold)).mean())
    error = np.std(shares, ddof=1) / len(shares) ** 0.5
    assert np.mean(shares) >= 0.97 - 3 * error
    assert error < 0.001


def test_the_promise_holds_for_the_cheapest_of_many() -> None:
    """Many first runs that are equally good, of which the cheapest is chosen: its agreement on further images
    is what was wanted. Fitted on the very images that it was chosen on, it is not."""
    generator = np.random.default_rng(0)
    honest, greedy = [], []
    for _ in range(200):
        margin = generator.random((40, 1200))
        agrees = generator.random((40, 1200)) < 0.8 + 0.2 * margin
        known, new = slice(0, 600), slice(600, None)
        _, chosen, fitted = choose_and_fit(
            margin[:, known], agrees[:, known], 0.97, lambda _, unsure: 0.5 + unsure
        )
        honest.append((agrees[chosen, new] | (margin[chosen, new] <= fitted.margin)).mean())
        thresholds = [
            fit_margin(*each, 0.97) for each in zip(margin[:, known], agrees[:, known], strict=True)
        ]
        least = int(np.argmin((margin[:, known] <= np.array(thresholds)[:, None]).mean(axis=1)))
        greedy.append((agrees[least, new] | (margin[least, new] <= thresholds[least])).mean())
    assert np.mean(honest) >= 0.97 - 3 * np.std(honest, ddof=1) / len(honest) ** 0.5
    assert np.mean(greedy) < 0.97 - 3 * np.std(greedy, ddof=1) / len(greedy) ** 0.5


def test_a_single_first_run_is_fitted_on_all_images() -> None:
    """There is nothing to choose."""
    margin, agrees = np.linspace(0, 1, 50)[None], np.arange(50)[None] % 7 > 0
    compared, chosen, fitted = choose_and_fit(margin, agrees, 0.9, lambda _, unsure: 0.4 + unsure)
    assert (compared, chosen) == ([fitted], 0)
    assert fitted.images == 50
    assert fitted.margin == fit_margin(margin[0], agrees[0], 0.9)
    assert fitted.compute == 0.4 + fitted.unsure


def classifier_of(vit: VisionTransformer) -> Classifier:
    spec = InputSpec((20, 28), (0.5, 0.5, 0.5), (0.3, 0.3, 0.3), "bicubic", "center", 1.0)
    return Classifier(PrunedViT(vit), spec, "cpu", torch.float32)


def photographs(images: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (images, 20, 28, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("reducer", REDUCERS_OF_ANY_MODEL)
def test_only_the_unsure_are_run_again(make_vit: MakeViT, reducer: str) -> None:
    """Images with a margin up to the threshold get the unpruned answer, features and mask, and the cost of
    both runs; the others, and those that asked for no cascade, are what one run makes them."""
    classifier = classifier_of(make_vit())
    pixels, first = photographs(8), Pruning(0.5, "mad", reducer)  # type: ignore[arg-type]
    once = classifier.classify(pixels, [ImageRequest(first, 13, kept_patches=True, features=True)] * 8)
    full = classifier.classify(pixels, [ImageRequest(UNPRUNED, 13, kept_patches=True, features=True)] * 8)
    gaps = [float(prediction.scores[0] - prediction.scores[1]) for prediction in once]
    threshold = sorted(gaps)[4] + 1e-4
    asked = [threshold] * 7 + [None]
    got = classifier.classify(
        pixels, [ImageRequest(first, 13, kept_patches=True, margin=ask, features=True) for ask in asked]
    )
    arch, stages = classifier.model.arch, classifier.model.stages
    low = compute(arch, stages, 0.5, first.reducer)
    runs = []
    for image, prediction in enumerate(got):
        again = image < 7 and gaps[image] <= threshold
        runs.append(prediction.runs)
        want = full[image] if again else once[image]
        assert prediction.runs == (2 if again else 1)
        assert prediction.classes.tolist() == want.classes.tolist()
        np.testing.assert_allclose(prediction.scores, want.scores, atol=1e-5)
        np.testing.assert_allclose(prediction.features, want.features, atol=1e-4)  # type: ignore[arg-type]
        assert prediction.kept_counts == want.kept_counts
        assert [kept.tolist() for kept in prediction.kept or ()] == [
            kept.tolist() for kept in want.kept or ()
        ]
        assert prediction.keep_ratio == (1.0 if again else 0.5)
        assert prediction.compute == pytest.approx(low + second_run_compute(arch, stages) * again)
    assert set(runs) == {1, 2}


def test_the_second_run_costs_what_lies_behind_the_first_stage(make_vit: MakeViT) -> None:
    """The trunk is shared, so both runs together cost less than their sum, and the mean is their mix."""
    model = PrunedViT(make_vit())
    second = second_run_compute(model.arch, model.stages)
    assert 0.5 < second < 1
    first = Pruning(0.5)
    low = compute(model.arch, model.stages, 0.5)
    assert expected_compute(model.arch, model.stages, first, 0.25) == pytest.approx(low + second / 4)


def test_a_cascade_is_checked_when_it_is_made() -> None:
    """A header that was tampered with is refused, not served."""
    with pytest.raises(ValueError, match="margin must be between 0 and 1"):
        Cascade(0.5, "mad", "drop", 1.5, 0.99, 100, 0.6)
    with pytest.raises(ValueError, match="keep_ratio must be above 0"):
        Cascade(0.0, "mad", "drop", 0.5, 0.99, 100, 0.6)
    for agreement in (0.0, 1.01, float("nan")):
        with pytest.raises(ValueError, match="agreement must be above 0"):
            Cascade(0.5, "mad", "drop", 0.5, agreement, 100, 0.6)
    for share in (0.0, 2.01, float("nan")):
        with pytest.raises(ValueError, match="compute must be above 0"):
            Cascade(0.5, "mad", "drop", 0.5, 0.99, 100, share)
