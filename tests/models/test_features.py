"""Feature vectors: timm's own at keep ratio 1, in a ragged batch as alone, for those who ask."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models.classifier import Classifier, ImageRequest
from models.normalise import normalise
from models.pruned_vit import PrunedViT
from models.schedule import REDUCERS, UNPRUNED, Pruning
from models.transforms import InputSpec

MakeViT = Callable[..., VisionTransformer]
MakePixels = Callable[..., Tensor]

SPEC = InputSpec((20, 28), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
VITS: dict[str, dict[str, Any]] = {
    "CLS": {},
    "CLS, norm behind the pooling": {"fc_norm": True},
    "average": {"global_pool": "avg"},
    "average, no CLS": {"global_pool": "avg", "class_token": False},
    "map": {"global_pool": "map", "class_token": False},
    "no head": {"num_classes": 0},
    "two heads": {"cls": VisionTransformerDistilled},
    "two heads taken off": {"cls": VisionTransformerDistilled, "num_classes": 0},
}
EVAS = {
    "DINOv3": "vit_small_patch16_dinov3",
    "EVA-02": "eva02_tiny_patch14_224",
    "PE": "vit_pe_core_small_patch16_384",
}


def of_timm(vit: nn.Module, pixels: Tensor) -> Tensor:
    with torch.inference_mode():
        features: Tensor = vit.forward_head(vit.forward_features(pixels), pre_logits=True)  # type: ignore[operator]
    return features


def ours(model: PrunedViT, pixels: Tensor, prunings: list[Pruning]) -> Tensor:
    with torch.inference_mode():
        return model.family.features(model(pixels, prunings).pooled)


@pytest.fixture(params=[*VITS, *EVAS])
def network(
    request: pytest.FixtureRequest,
    make_vit: MakeViT,
    randomise: Callable[..., nn.Module],
    give_pools: Callable[[nn.Module], None],
) -> nn.Module:
    if request.param in VITS:
        return make_vit(pool=True, **VITS[request.param])
    small: dict[str, Any] = {"depth": 4, "embed_dim": 72, "num_heads": 6, "dynamic_img_size": False}
    if request.param == "PE":
        small["attn_pool_num_heads"] = 6
    eva = timm.create_model(EVAS[request.param], num_classes=0, img_size=(48, 80), patch_size=16, **small)
    randomise(eva)
    give_pools(eva)
    return eva.eval()


def pixels_for(network: nn.Module, make_pixels: MakePixels, images: int) -> Tensor:
    return make_pixels(images, size=network.patch_embed.img_size)  # type: ignore[union-attr]


def test_at_ratio_1_features_are_timms_to_the_last_bit(network: nn.Module, make_pixels: MakePixels) -> None:
    """What its forward_head gives before the logits, with and without a head."""
    pixels = pixels_for(network, make_pixels, 3)
    want = of_timm(network, pixels)
    assert want.std() > 0.01
    model = PrunedViT(network)
    model.exact = True
    assert torch.equal(ours(model, pixels, [UNPRUNED] * 3), want)
    model.exact = False
    torch.testing.assert_close(ours(model, pixels, [UNPRUNED] * 3), want, rtol=1e-4, atol=1e-4)
    assert model.feature_width == want.shape[1]


def test_in_a_ragged_batch_features_are_those_of_each_image_alone(
    network: nn.Module, make_pixels: MakePixels
) -> None:
    """Whatever the ratios and reducers beside it."""
    pixels, model = pixels_for(network, make_pixels, 8), PrunedViT(network)
    prunings = [Pruning(0.3), UNPRUNED, Pruning(0.7), *(Pruning(0.5, reducer=each) for each in REDUCERS)]
    together = ours(model, pixels, prunings)
    alone = [ours(model, pixels[image : image + 1], [pruning]) for image, pruning in enumerate(prunings)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=2e-5)
    unpruned = ours(model, pixels, [UNPRUNED] * 8)
    assert not torch.allclose(together[0], unpruned[0], atol=1e-3), "pruning changes them"


def test_only_those_who_ask_get_features(make_vit: MakeViT, monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch holds both; where nobody asks, none are made."""
    classifier = Classifier(PrunedViT(make_vit()), SPEC, "cpu", torch.float32)
    pixels = torch.randint(0, 256, (4, 20, 28, 3), dtype=torch.uint8)
    prunings = [Pruning(0.5), Pruning(0.9), UNPRUNED, Pruning(0.2)]
    asks = (False, True, False, True)
    requests = [
        ImageRequest(pruning, top_k=2, features=ask) for pruning, ask in zip(prunings, asks, strict=True)
    ]
    found = classifier.classify(pixels, requests)
    want = ours(classifier.model, normalise(pixels, SPEC, torch.float32), prunings).numpy()
    assert [prediction.features is not None for prediction in found] == list(asks)
    assert [len(prediction.classes) for prediction in found] == [2] * 4
    for image in (1, 3):
        features = found[image].features
        assert features is not None
        assert features.dtype == np.float32
        np.testing.assert_allclose(features, want[image], rtol=1e-5, atol=1e-6)

    def never(_: Tensor) -> Tensor:
        raise AssertionError("nobody asked")

    monkeypatch.setattr(classifier.model.family, "features", never)
    classifier.classify(pixels, [ImageRequest(pruning) for pruning in prunings])


def test_features_of_bfloat16_come_as_float32(make_vit: MakeViT) -> None:
    """As a worker sends them, whatever it computes in."""
    classifier = Classifier(PrunedViT(make_vit()), SPEC, "cpu", torch.bfloat16)
    pixels = torch.randint(0, 256, (1, 20, 28, 3), dtype=torch.uint8)
    (found,) = classifier.classify(pixels, [ImageRequest(Pruning(0.5), features=True)])
    assert found.features is not None
    assert found.features.dtype == np.float32


def test_without_a_head_there_are_no_labels(make_vit: MakeViT) -> None:
    """However many are asked for; the features are there."""
    classifier = Classifier(PrunedViT(make_vit(num_classes=0)), SPEC, "cpu", torch.float32)
    pixels = torch.randint(0, 256, (2, 20, 28, 3), dtype=torch.uint8)
    for prediction in classifier.classify(pixels, [ImageRequest(Pruning(0.6), features=True)] * 2):
        assert prediction.classes.tolist() == prediction.scores.tolist() == []
        assert prediction.features is not None
        assert prediction.features.shape == (66,)
