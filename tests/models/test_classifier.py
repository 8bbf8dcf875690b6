"""uint8 images and one request each, to one prediction each."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from models import device
from models.classifier import Classifier, ImageRequest, Prediction, normalise
from models.linear.int8 import Int8Linear
from models.pruned_vit import PrunedViT
from models.schedule import Criterion, Pruning, Stages, compute, keep_counts
from models.transforms import InputSpec

MakeViT = Callable[..., VisionTransformer]

SPEC = InputSpec((20, 28), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


@pytest.fixture(scope="module")
def classifier(make_vit: MakeViT) -> Classifier:
    return Classifier(PrunedViT(make_vit()), SPEC, "cpu", torch.float32)


def photographs(images: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (images, 20, 28, 3), dtype=torch.uint8, generator=generator)


def test_normalise_by_hand() -> None:
    """Channel by channel: value / 255, minus the mean, by the deviation; channels come first."""
    pixels = torch.tensor([0, 102, 255], dtype=torch.uint8).expand(2, 5, 7, 3)
    got = normalise(pixels, SPEC, torch.float32)
    assert got.shape == (2, 3, 5, 7)
    want = torch.tensor([(0 - 0.5) / 0.2, (0.4 - 0.4) / 0.25, (1 - 0.3) / 0.3])
    torch.testing.assert_close(got, want.view(3, 1, 1).expand(2, 3, 5, 7))


def test_normalise_keeps_places() -> None:
    """Pixel (row, column) of the image is entry (row, column) of each channel's plane."""
    pixels = photographs(2)
    got = normalise(pixels, SPEC, torch.float32)
    assert got[1, 2, 3, 11].item() == pytest.approx((pixels[1, 3, 11, 2].item() / 255 - 0.3) / 0.3, abs=1e-5)


def test_normalise_rounds_once() -> None:
    """In bfloat16 the input is the rounded float32 one, not one that was computed in bfloat16."""
    pixels = photographs(1)
    whole = normalise(pixels, SPEC, torch.float32)
    assert torch.equal(normalise(pixels, SPEC, torch.bfloat16), whole.bfloat16())


def test_scores_are_the_softmax_in_falling_order(classifier: Classifier) -> None:
    """Classes and scores are those of the network's own softmax, best first."""
    pixels = photographs(3)
    predictions = classifier.classify(pixels, [ImageRequest(Pruning(), top_k=13)] * 3)
    with torch.inference_mode():
        logits = classifier.model(normalise(pixels, SPEC, torch.float32), [Pruning()] * 3).logits.double()
    for prediction, row in zip(predictions, logits.softmax(dim=1).numpy(), strict=True):
        assert sorted(prediction.classes) == list(range(13))
        assert prediction.classes.tolist() == np.argsort(-row).tolist()
        np.testing.assert_allclose(prediction.scores, np.sort(row)[::-1], rtol=1e-4)
        assert prediction.scores.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exact_logits_are_timms_to_the_last_bit(make_vit: MakeViT, dtype: torch.dtype) -> None:
    """Others, of a network with LayerScale, are rounded otherwise."""
    vit, pixels = make_vit(init_values=1e-5).to(dtype), photographs(3)
    with torch.inference_mode():
        timms = vit(normalise(pixels, SPEC, dtype)).float().numpy()
    for exact in (True, False):
        classifier = Classifier(PrunedViT(vit), SPEC, "cpu", dtype, exact=exact)
        found = classifier.classify(pixels, [ImageRequest(Pruning(), logits=True)] * 3)
        assert np.array_equal([one.logits for one in found], timms) == exact


def test_logits_are_the_networks_own_for_those_who_ask(classifier: Classifier) -> None:
    """Of all classes in their order, whatever top_k; nobody else gets them."""
    pixels = photographs(3)
    requests = [ImageRequest(Pruning(0.6), top_k=2, logits=ask) for ask in (True, False, True)]
    first, second, third = classifier.classify(pixels, requests)
    with torch.inference_mode():
        logits = classifier.model(normalise(pixels, SPEC, torch.float32), [Pruning(0.6)] * 3).logits.numpy()
    assert second.logits is None
    for prediction, row in ((first, logits[0]), (third, logits[2])):
        assert prediction.logits is not None
        assert prediction.logits.dtype == np.float32
        np.testing.assert_allclose(prediction.logits, row, rtol=1e-5)


def test_each_request_gets_its_own_top_k(classifier: Classifier) -> None:
    """1, 4 and 13 labels asked for in one batch are 1, 4 and 13 labels, and the same ones."""
    pixels = photographs(1).expand(3, -1, -1, -1)
    requests = [ImageRequest(Pruning(), top_k=top_k) for top_k in (1, 4, 13)]
    one, four, all_of_them = classifier.classify(pixels, requests)
    assert len(one.classes) == len(one.scores) == 1
    assert len(four.classes) == len(four.scores) == 4
    assert four.classes.tolist() == all_of_them.classes[:4].tolist()
    assert one.classes[0] == all_of_them.classes[0]


@pytest.mark.parametrize("top_k", [13, 14, 1000])
def test_top_k_stops_at_the_number_of_classes(classifier: Classifier, top_k: int) -> None:
    """More labels than there are classes are all of them."""
    (prediction,) = classifier.classify(photographs(1), [ImageRequest(Pruning(), top_k=top_k)])
    assert len(prediction.classes) == len(prediction.scores) == 13


def test_five_labels_unless_asked_otherwise(classifier: Classifier) -> None:
    """Five labels and no list of patches are what a request asks for by default."""
    (prediction,) = classifier.classify(photographs(1), [ImageRequest(Pruning(0.5))])
    assert len(prediction.classes) == 5
    assert prediction.kept is None


def test_counts_and_compute(classifier: Classifier) -> None:
    """Each answer says how many patches were left after each stage, and what share of the MACs it cost."""
    ratios = (0.6, 1.0, 0.2)
    predictions = classifier.classify(photographs(3), [ImageRequest(Pruning(ratio)) for ratio in ratios])
    assert [prediction.kept_counts for prediction in predictions] == [(21, 13, 8), (35, 35, 35), (7, 2, 1)]
    model = classifier.model
    for prediction, ratio in zip(predictions, ratios, strict=True):
        assert prediction.compute == compute(model.arch, model.stages, ratio)
    assert predictions[1].compute == 1.0
    assert predictions[2].compute < predictions[0].compute < 1


def test_kept_patches_are_listed_for_those_who_ask(classifier: Classifier) -> None:
    """Asked for, the kept patches of every stage are there, as many as the counts say; else nothing is."""
    requests = [ImageRequest(Pruning(0.6), kept_patches=ask) for ask in (True, False)]
    pixels = photographs(1).expand(2, -1, -1, -1)
    listed, unlisted = classifier.classify(pixels, requests)
    assert unlisted.kept is None
    assert unlisted.kept_counts == listed.kept_counts
    assert listed.kept is not None
    assert tuple(len(stage) for stage in listed.kept) == listed.kept_counts == keep_counts(35, 0.6, 3)
    with torch.inference_mode():
        inputs = normalise(pixels[:1], SPEC, torch.float32)
        kept = classifier.model(inputs, [Pruning(0.6)]).kept
    assert [stage.tolist() for stage in listed.kept] == [stage[0].tolist() for stage in kept]


def test_answers_come_in_the_order_of_the_requests(classifier: Classifier) -> None:
    """A batch of mixed ratios and criteria answers each image with what it is answered alone."""
    pixels = photographs(6)
    asked: list[tuple[float, Criterion, int]] = [
        (0.3, "variance", 3),
        (1.0, "variance", 5),
        (0.7, "mad", 13),
        (0.3, "mean", 1),
        (0.9, "random", 2),
        (0.7, "mad", 4),
    ]
    requests = [
        ImageRequest(Pruning(ratio, criterion), top_k, kept_patches=True) for ratio, criterion, top_k in asked
    ]
    together = classifier.classify(pixels, requests)
    alone = [
        classifier.classify(pixels[image : image + 1], [request])[0] for image, request in enumerate(requests)
    ]
    assert len({tuple(prediction.classes[:1]) for prediction in alone}) > 1
    for one, other in zip(together, alone, strict=True):
        assert one.classes.tolist() == other.classes.tolist()
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4)
        assert one.kept_counts == other.kept_counts
        assert one.compute == other.compute
        assert one.kept is not None
        assert other.kept is not None
        assert [stage.tolist() for stage in one.kept] == [stage.tolist() for stage in other.kept]


def test_the_dtype_is_the_computing_one(make_vit: MakeViT) -> None:
    """In bfloat16 the network computes in bfloat16, and scores are float32 and near the float32 ones."""
    pixels, requests = photographs(3), [ImageRequest(Pruning(0.7), top_k=13)] * 3
    exact = Classifier(PrunedViT(make_vit()), SPEC, "cpu", torch.float32).classify(pixels, requests)
    half = Classifier(PrunedViT(make_vit()), SPEC, "cpu", torch.bfloat16)
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}
    for rounded, whole in zip(half.classify(pixels, requests), exact, strict=True):
        assert rounded.scores.dtype == np.float32
        np.testing.assert_allclose(by_class(rounded), by_class(whole), atol=0.1)
        assert not np.array_equal(by_class(rounded), by_class(whole))


@pytest.mark.skipif(not device.cpu_has_int8(), reason="int8 needs a CPU with AVX2")
@pytest.mark.parametrize("bfloat16", [True, False])
def test_int8_is_in_the_blocks(make_vit: MakeViT, monkeypatch: pytest.MonkeyPatch, bfloat16: bool) -> None:
    """In int8 the blocks' linear layers are quantised, the rest computes in what the CPU has, and scores are
    near the float32 ones."""
    monkeypatch.setattr(device, "cpu_has_bfloat16", lambda: bfloat16)
    pixels, requests = photographs(3), [ImageRequest(Pruning(), top_k=13)] * 3
    exact = Classifier(PrunedViT(make_vit()), SPEC, "cpu", torch.float32).classify(pixels, requests)
    quantised = Classifier(PrunedViT(make_vit()), SPEC, "cpu", torch.int8)
    assert quantised.dtype == torch.int8
    between = torch.bfloat16 if bfloat16 else torch.float32
    assert {parameter.dtype for parameter in quantised.model.parameters()} == {between}
    assert type(quantised.model.vit.blocks[4].mlp.fc2) is Int8Linear
    for rounded, whole in zip(quantised.classify(pixels, requests), exact, strict=True):
        assert rounded.scores.dtype == np.float32
        np.testing.assert_allclose(by_class(rounded), by_class(whole), atol=0.1)
        assert not np.array_equal(by_class(rounded), by_class(whole))


def by_class(prediction: Prediction) -> np.ndarray:
    scores = np.empty(len(prediction.classes))
    scores[prediction.classes] = prediction.scores
    return scores


def test_a_model_in_training_is_switched_to_evaluation(make_vit: MakeViT) -> None:
    """A classifier answers the same way twice, whatever mode the model came in."""
    model = PrunedViT(make_vit(drop_path_rate=0.9)).train()
    classifier = Classifier(model, SPEC, "cpu", torch.float32)
    first, second = (
        classifier.classify(photographs(1), [ImageRequest(Pruning(0.5), top_k=13)])[0] for _ in range(2)
    )
    assert not model.training
    assert np.array_equal(first.scores, second.scores)


def test_without_stages_there_is_nothing_to_list(make_vit: MakeViT) -> None:
    """A model that is never pruned has no counts, no lists, and costs what it costs."""
    classifier = Classifier(PrunedViT(make_vit(), Stages(())), SPEC, "cpu", torch.float32)
    (prediction,) = classifier.classify(photographs(1), [ImageRequest(Pruning(0.3), kept_patches=True)])
    assert prediction.kept_counts == ()
    assert prediction.kept == ()
    assert prediction.compute == 1.0


@pytest.mark.parametrize("requests", [0, 2, 4])
def test_as_many_requests_as_images(classifier: Classifier, requests: int) -> None:
    """A request too few or too many is an error, and no image is left without an answer."""
    with pytest.raises(ValueError, match=f"3 images, but {requests} requests"):
        classifier.classify(photographs(3), [ImageRequest(Pruning())] * requests)
