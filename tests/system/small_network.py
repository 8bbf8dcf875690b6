"""A small network with a cascade that is sure of half of the shipped photographs: quick to load, and what it
answers does not matter."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from app.decoding.images import ImageLimits, decode
from models.cascade import Cascade
from models.classifier import Classifier, ImageRequest, Prediction
from models.clusters import add_clusters
from models.life import add_predictor
from models.load import Card, load, save
from models.paca import Paca
from models.schedule import Pruning, Stages
from models.static_attention import make_static, static_of
from models.token_pool import add_pools
from models.transforms import InputSpec
from tests.system.photographs import SHIPPED

PHOTOGRAPHS = [path.read_bytes() for path in sorted(SHIPPED.glob("*.jpg"))]
LABELS = ("one", "two", "three")
FIRST = Pruning(0.3, "mad", "fuse")


def alone(classifier: Classifier, image: bytes, request: ImageRequest) -> Prediction:
    """What the classifier says of one photograph, without a server."""
    pixels = decode(image, classifier.spec, ImageLimits(64_000_000)).pixels
    (prediction,) = classifier.classify(torch.from_numpy(pixels.copy()).unsqueeze(0), [request])
    return prediction


def _small_vit(seed: int, *, classes: int, side: int = 64) -> tuple[Any, Card]:
    """A network of random weights with four blocks, of which the second and the third prune, and its card."""
    arguments = {"img_size": side, "embed_dim": 96, "depth": 4, "num_classes": classes}
    torch.manual_seed(seed)
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, **arguments)
    if classes:
        with torch.no_grad():
            vit.head.weight *= 50  # so that its answers differ by more than rounding
    card = Card(
        architecture="vit_tiny_patch16_224",
        labels=LABELS[:classes],
        input=InputSpec((side, side), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        stages=Stages((1, 2)),
        model_args=arguments,
    )
    return vit, card


def save_small_network(path: Path) -> None:
    """Write it as a checkpoint. It has a life predictor, and queries for the reducer `pool`."""
    vit, card = _small_vit(3, classes=len(LABELS))
    add_predictor(vit, 1)
    add_pools(tuple(vit.blocks), (1, 2), 96, (4, 4))
    for block in (1, 2):
        vit.blocks[block].token_pool.begin()
    card = replace(card, life_block=1, pool_blocks=(1, 2))
    save(path, vit, card)
    loaded = load(str(path))
    classifier = Classifier(loaded.model, loaded.input, "cpu", torch.float32)
    scores = [alone(classifier, image, ImageRequest(FIRST)).scores for image in PHOTOGRAPHS]
    margins = sorted(float(best - second) for best, second, _ in scores)
    assert np.diff(margins).min() > 1e-4
    margin = (margins[1] + margins[2]) / 2
    cascade = Cascade(FIRST.keep_ratio, FIRST.criterion, FIRST.reducer, margin, 0.9, 50, 1.2)
    save(path, vit, replace(card, cascade=cascade))


def save_headless_network(path: Path) -> None:
    """Write one without a head, which knows no classes and no labels."""
    save(path, *_small_vit(5, classes=0))


def save_clustered_network(path: Path) -> None:
    """Write one whose first and last block attend to clusters of patches."""
    vit, card = _small_vit(9, classes=len(LABELS))
    paca = Paca((0, 3), 5)
    add_clusters(tuple(vit.blocks), paca, 96)
    save(path, vit, replace(card, paca=paca))


def save_static_network(path: Path) -> None:
    """Write one whose first two blocks have static attention."""
    vit, card = _small_vit(10, classes=len(LABELS))
    make_static(vit, 2)
    for block in vit.blocks[:2]:
        static = static_of(block)
        assert static is not None
        static.inherit((2 * torch.randn(3, 17, 17)).softmax(dim=-1))
    save(path, vit, replace(card, stages=Stages((2, 3)), static_blocks=2))


OTHER_LABELS = ("four", "five")


def save_other_network(path: Path) -> None:
    """Write one that has labels and an input size of its own."""
    vit, card = _small_vit(7, classes=len(OTHER_LABELS), side=48)
    save(path, vit, replace(card, labels=OTHER_LABELS))
