"""Graphs of dense batches: the model's own answers, captured when it is time, forgotten when it is time."""

from collections.abc import Callable

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from models.graphs import ASKED_BEFORE, GRAPHS, MOST_IMAGES, GraphedModel
from models.pruned_vit import PrunedViT
from models.schedule import REDUCERS, Pruning
from tests.models.fake_capture import FakeCapture
from tests.models.graphed import assert_same

MakeViT = Callable[..., VisionTransformer]
MakePixels = Callable[..., Tensor]


pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture
def model(make_vit: MakeViT) -> PrunedViT:
    return PrunedViT(make_vit(pool=True))


@pytest.mark.parametrize("pruning", [Pruning(), *(Pruning(0.6, "mad", name) for name in REDUCERS)], ids=str)
@pytest.mark.parametrize("images", [1, 3, 4])
def test_a_graph_answers_as_the_model(
    model: PrunedViT, make_pixels: MakePixels, pruning: Pruning, images: int
) -> None:
    """Before and after it is captured, whatever was computed before it, and of fewer images than it has."""
    capture = FakeCapture()
    graphed = GraphedModel(model, lambda: capture)
    outputs = []
    for seed in range(ASKED_BEFORE + 3):
        pixels = make_pixels(images, seed=seed)
        outputs.append((graphed(pixels, [pruning] * images), model(pixels, [pruning] * images)))
    assert (capture.captures, capture.replays) == (1, 3)
    # Compared only now: an answer must outlast the replays that come after it.
    for got, wanted in outputs:
        assert_same(got, wanted)


def test_numbers_of_images_share_the_next_power_of_two(model: PrunedViT, make_pixels: MakePixels) -> None:
    """Five to eight images are one graph, four another; seeds do not tell prunings apart."""
    capture = FakeCapture()
    graphed = GraphedModel(model, lambda: capture)
    for images in (5, 6, 7, 8, 5, 8):
        graphed(make_pixels(images), [Pruning(0.5, seed=image) for image in range(images)])
    assert (capture.captures, capture.replays) == (1, 6 - ASKED_BEFORE)
    for _ in range(ASKED_BEFORE + 1):
        graphed(make_pixels(4), [Pruning(0.5)] * 4)
    assert capture.captures == 2


@pytest.mark.parametrize(
    "prunings",
    [
        [Pruning(0.5), Pruning(0.6)],
        [Pruning(0.5), Pruning(0.5, "mad")],
        [Pruning(0.5), Pruning(0.5, reducer="fuse")],
        [Pruning(0.5, "random")] * 2,
        [Pruning(keep_mass=0.5)] * 2,
        [Pruning(0.5)] * (MOST_IMAGES + 1),
    ],
    ids=["ratios", "criteria", "reducers", "random", "keep_mass", "many"],
)
def test_all_else_goes_to_the_model(
    model: PrunedViT, make_pixels: MakePixels, prunings: list[Pruning]
) -> None:
    """What a graph could not compute, or is not worth one, is never captured."""
    capture = FakeCapture()
    graphed = GraphedModel(model, lambda: capture)
    for _ in range(ASKED_BEFORE + 2):
        graphed(make_pixels(len(prunings)), prunings)
    assert capture.captures == 0


def test_a_wrong_number_of_prunings_is_the_models_error(model: PrunedViT, make_pixels: MakePixels) -> None:
    """As without graphs."""
    graphed = GraphedModel(model, FakeCapture)
    for prunings in ([], [Pruning()]):
        with pytest.raises(ValueError, match=f"3 images, but {len(prunings)} prunings"):
            graphed(make_pixels(3), prunings)


def test_a_failed_capture_is_told_once_and_computed_eagerly(
    model: PrunedViT, make_pixels: MakePixels, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer is the model's, and the shape is not tried again."""
    capture = FakeCapture(fails=True)
    graphed, pixels = GraphedModel(model, lambda: capture), make_pixels(2)
    for _ in range(ASKED_BEFORE + 3):
        assert_same(graphed(pixels, [Pruning(0.5)] * 2), model(pixels, [Pruning(0.5)] * 2))
    assert capture.captures == 1
    (record,) = caplog.records
    assert "cannot capture a CUDA graph for 2 images" in record.getMessage()


def test_graphs_are_bounded(model: PrunedViT, make_pixels: MakePixels) -> None:
    """Of more shapes than there is room for, the one not asked for longest is forgotten, and captured again
    when it is asked for often enough again."""
    capture = FakeCapture()
    graphed, pixels = GraphedModel(model, lambda: capture), make_pixels(1)

    def ask(ratio: float) -> None:
        for _ in range(ASKED_BEFORE + 1):
            graphed(pixels, [Pruning(ratio)])

    ratios = [0.5 + 0.02 * shape for shape in range(GRAPHS)]
    for ratio in ratios:
        ask(ratio)
    assert capture.captures == GRAPHS
    graphed(pixels, [Pruning(ratios[0])])
    graphed(pixels, [Pruning(0.1)])  # one too many: ratios[1] is now the oldest
    ask(ratios[0])
    assert capture.captures == GRAPHS
    ask(ratios[1])
    assert capture.captures == GRAPHS + 1


def test_each_thread_has_its_own_graphs(model: PrunedViT, make_pixels: MakePixels) -> None:
    """Two threads replay at once: they must not share the memory that a graph computes in."""
    from concurrent.futures import ThreadPoolExecutor

    captures: list[FakeCapture] = []

    def new_capture() -> FakeCapture:
        captures.append(FakeCapture())
        return captures[-1]

    graphed = GraphedModel(model, new_capture)

    def ask() -> None:
        with torch.inference_mode():
            for _ in range(ASKED_BEFORE + 1):
                graphed(make_pixels(1), [Pruning(0.5)])

    for _ in range(2):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(ask).result()
    assert [capture.captures for capture in captures] == [1, 1]
