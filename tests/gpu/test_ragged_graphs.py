"""CUDA graphs of ragged batches on a GPU."""

from collections.abc import Callable, Iterator

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from models.budget import budgets
from models.graphs import CudaCapture, GraphedModel
from models.pruned_vit import PrunedViT
from models.schedule import Pruning
from tests.models.cuda_batches import HEADS_OF_8

MakeViT = Callable[..., VisionTransformer]
MakePixels = Callable[..., Tensor]

pytestmark = pytest.mark.gpu

BATCHES = [
    [1.0, 0.7],
    [0.5, 0.03, 0.9],
    [0.6, 0.6, 0.5, 1.0, 0.2],
    [1.0, 0.3],
    [0.9 - 0.02 * image for image in range(32)],
]


@pytest.fixture(autouse=True)
def on_a_stream() -> Iterator[None]:
    """As a worker's threads compute: the default stream cannot be captured."""
    with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
        yield


def test_a_replay_answers_as_the_model(
    make_vit: MakeViT, make_pixels: MakePixels, caplog: pytest.LogCaptureFixture
) -> None:
    """All budgets are captured, and batch after batch is answered from one of them as eagerly. In another
    number of rows another kernel may round otherwise, so that now and then another patch stays: such images
    only keep as many."""
    model = PrunedViT(make_vit(**HEADS_OF_8)).to("cuda", torch.float16)
    captures = 0

    class Counting(CudaCapture):
        def __call__(self, forward: Callable[[], tuple[Tensor, ...]]) -> object:
            nonlocal captures
            captures += 1
            return super().__call__(forward)

    graphed = GraphedModel(model, Counting)  # type: ignore[arg-type]
    graphed.warm_up(make_pixels(1).to("cuda", torch.float16), "variance")
    assert captures == len(budgets(model.arch, model.stages))
    assert not [record for record in caplog.records if record.name.startswith("models")]
    answers = []
    for seed, ratios in enumerate(BATCHES):
        pixels = make_pixels(len(ratios), seed=seed).to("cuda", torch.float16)
        prunings = [Pruning(ratio) for ratio in ratios]
        answers.append((graphed(pixels, prunings), model(pixels, prunings)))
    like = images = 0
    for got, wanted in answers:
        for image in range(len(got.logits)):
            stages = [
                (mine[image], theirs[image]) for mine, theirs in zip(got.kept, wanted.kept, strict=True)
            ]
            assert all(len(mine) == len(theirs) and (mine.diff() > 0).all() for mine, theirs in stages)
            images += 1
            if all(mine.equal(theirs) for mine, theirs in stages):
                like += 1
                torch.testing.assert_close(got.logits[image], wanted.logits[image], rtol=0, atol=0.25)
    assert like > 0.7 * images
