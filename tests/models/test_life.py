"""The life predictor: what it predicts, how patches fade in training, and where it can be used."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from models.life import FADING, LifePredictor, add_predictor, faded, predictor_of
from models.pruned_vit import PrunedViT
from models.schedule import Pruning, Stages, every_block
from tests.models.reference import reference, reference_fading, reference_lives

MakeViT = Callable[..., VisionTransformer]
MakePixels = Callable[..., Tensor]

MANY = Stages((1, 2, 3, 4))


@pytest.mark.parametrize("arguments", [{}, {"class_token": False, "reg_tokens": 2, "global_pool": "avg"}])
def test_lives_agree_with_a_slow_reference(
    make_vit: MakeViT, make_pixels: MakePixels, arguments: dict[str, Any]
) -> None:
    """A patch at a time, a number at a time, in float64."""
    vit = make_vit(life=1, **arguments)
    model = PrunedViT(vit)
    with torch.inference_mode():
        tokens = model.begin(make_pixels(3))
        lives = model.lives_for(tokens, ["life"])
        assert lives is not None
        prefix = vit.num_prefix_tokens
        for own, rows in zip(lives, tokens.rows, strict=True):
            wanted = [1 / (1 + np.exp(-life)) for life in reference_lives(vit.double(), rows, prefix)]
            np.testing.assert_allclose(own, wanted, rtol=0, atol=2e-5)
            vit.float()
            assert own.std() > 0.1


def test_patches_leave_in_any_block_by_one_prediction(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """Four stages in four blocks, mixed with other criteria and with counts of an image's own: what stays are
    the longest lives, as in a slow network; and nothing is attended to in order to decide."""
    vit, pixels = make_vit(life=1), make_pixels(5)
    model = PrunedViT(vit, MANY)
    prunings = [
        Pruning(0.8, "life"),
        Pruning(0.6, "variance"),
        Pruning(0.5, "life", "fuse"),
        Pruning(1.0, "life"),
        Pruning(0.7, "life"),
    ]
    with torch.inference_mode():
        output = model(pixels, prunings)
        for image, pruning in enumerate(prunings):
            logits, kept = reference(vit, MANY, pixels[image], pruning)
            assert [stage[image].tolist() for stage in output.kept] == kept
            np.testing.assert_allclose(output.logits[image], logits, rtol=1e-4, atol=1e-4)
    assert output.kept.counts.T.tolist()[0] == [28, 23, 19, 16]


def test_no_attention_is_computed_to_decide(
    make_vit: MakeViT, make_pixels: MakePixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all images are judged by their lives, or at random; as soon as one is not, it is."""
    asked: list[object] = []

    def rows(*own: Any) -> Tensor:
        asked.append(own)
        return real(*own)

    import models.select

    real = models.select.attention_rows
    monkeypatch.setattr(models.select, "attention_rows", rows)
    model, pixels = PrunedViT(make_vit(life=1)), make_pixels(3)
    with torch.inference_mode():
        model(pixels, [Pruning(0.5, "life"), Pruning(0.7, "random"), Pruning(0.5, "life", "merge")])
        assert not asked
        model(pixels, [Pruning(0.5, "life"), Pruning(0.7), Pruning(0.6, "life")])
        assert len(asked) > 0


def test_a_mass_of_lives_gives_every_image_its_own_count(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """As few patches as hold that share of the image's lives; the device is asked as for any criterion."""
    model, pixels = PrunedViT(make_vit(life=1)), make_pixels(6)
    with torch.inference_mode():
        lives = model.lives_for(model.begin(pixels), ["life"])
        assert lives is not None
        counts = model(pixels, [Pruning(keep_mass=0.6, criterion="life")] * 6).kept.counts[0]
    for own, count in zip(lives.double(), counts.tolist(), strict=True):
        longest = own.sort(descending=True).values
        assert longest[:count].sum() >= 0.6 * own.sum() - 1e-6
        assert longest[: count - 1].sum() < 0.6 * own.sum()
    assert len(set(counts.tolist())) > 1


@given(
    lives=st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=12, unique=True),
    share=st.floats(0.05, 1),
)
def test_half_of_the_weight_is_at_the_quantile(lives: Sequence[float], share: float) -> None:
    """The patches that a stage keeps have at least half of their weight, the others less; where it keeps all,
    all of it. Longer lives weigh more."""
    count = max(1, round(share * len(lives)))
    (logs,) = faded(torch.tensor([list(lives)]), [[count]])
    weights = logs.exp()[0].tolist()
    order = sorted(range(len(lives)), key=lambda patch: -lives[patch])
    if count == len(lives):
        assert weights == [1.0] * count
        return
    assert all(weights[patch] >= 0.5 - 1e-6 for patch in order[:count])
    assert all(weights[patch] <= 0.5 + 1e-6 for patch in order[count:])
    assert [weights[patch] for patch in order] == sorted(weights, reverse=True)


def test_fading_by_hand() -> None:
    """Lives 1, 0 and -1, of which two and then one are kept: quantiles -1/2 and 1/2."""
    first, second = faded(torch.tensor([[0.0, 1.0, -1.0]]), [[2, 1]])

    def weight(distance: float) -> float:
        return float(1 / (1 + np.exp(-distance / FADING)))

    torch.testing.assert_close(first.exp(), torch.tensor([[weight(0.5), weight(1.5), weight(-0.5)]]))
    torch.testing.assert_close(second.exp(), torch.tensor([[weight(-0.5), weight(0.5), weight(-1.5)]]))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("arguments", [{}, {"class_token": False, "reg_tokens": 1, "global_pool": "avg"}])
def test_a_step_of_training_agrees_with_a_slow_reference(
    make_vit: MakeViT, make_pixels: MakePixels, arguments: dict[str, Any], *, fused: bool
) -> None:
    """Logits of a batch of different ratios, and the gradients of the predictor and of a block."""
    vit, pixels = make_vit(life=1, **arguments), make_pixels(3)
    for block in vit.blocks:
        block.attn.fused_attn = fused
    stages = Stages((1, 3), "cls" if vit.cls_token is not None else "all")
    model = PrunedViT(vit, stages).train()
    ratios = (0.6, 1.0, 0.4)
    output = model(pixels, [Pruning(ratio, "life") for ratio in ratios])
    output.logits.square().sum().backward()
    assert output.kept.counts.tolist() == [[35] * 3] * 2  # nothing left
    copied = make_vit(life=1, **arguments).double()
    of_all = []
    for image, ratio in enumerate(ratios):
        logits, _ = reference_fading(copied, stages, pixels[image], ratio)
        np.testing.assert_allclose(output.logits[image].detach(), logits.detach(), rtol=1e-4, atol=1e-4)
        of_all.append(logits)
    torch.stack(of_all).square().sum().backward()
    wanted = dict(copied.named_parameters())
    for name, parameter in vit.named_parameters():
        found, right = parameter.grad, wanted[name].grad
        assert found is not None, name
        assert right is not None, name
        np.testing.assert_allclose(found, right, rtol=1e-3, atol=1e-3 * right.abs().max(), err_msg=name)
    assert vit.life.out.weight.grad.abs().max() > 1e-3


def test_steps_that_lose_patches_are_as_ever(make_vit: MakeViT, make_pixels: MakePixels) -> None:
    """Patches fade only in training, with gradients, where all images are judged by their lives."""
    model, pixels = PrunedViT(make_vit(life=1)).train(), make_pixels(2)
    life, other = Pruning(0.5, "life"), Pruning(0.5)
    assert model(pixels, [life, life]).kept.counts[0].tolist() == [35, 35]
    assert model(pixels, [life, other]).kept.counts[0].tolist() == [18, 18]
    with torch.no_grad():
        assert model(pixels, [life, life]).kept.counts[0].tolist() == [18, 18]
    assert model.eval()(pixels, [life, life]).kept.counts[0].tolist() == [18, 18]


def test_a_model_without_a_predictor_refuses_the_criterion(
    make_vit: MakeViT, make_pixels: MakePixels
) -> None:
    """By name, also for an image that is not pruned; and so does one whose first stage is another block than
    the predictor's."""
    for model in (
        PrunedViT(make_vit()),
        PrunedViT(make_vit(life=1), Stages((2, 3))),
        PrunedViT(make_vit(life=1), every_block(5)),
    ):
        assert "life" not in model.criteria
        for ratio in (0.5, 1.0):
            with pytest.raises(ValueError, match="the criterion life needs a life predictor"):
                model(make_pixels(2), [Pruning(), Pruning(ratio, "life")])
        with pytest.raises(ValueError, match="the criterion life"):
            model.first_importance(model.begin(make_pixels(1)), [Pruning(criterion="life")])
    assert "life" in PrunedViT(make_vit(life=1)).criteria


def test_a_predictor_is_a_module_of_its_network(make_vit: MakeViT) -> None:
    """So it is saved, copied and moved with it; timm's own forward pass knows nothing of it."""
    vit = make_vit()
    assert predictor_of(vit) is None
    predictor = add_predictor(vit, 2)
    assert predictor_of(vit) is predictor
    assert predictor.block == 2
    added = {name for name in vit.state_dict() if name.startswith("life.")}
    assert added == {
        *("life.norm.weight", "life.norm.bias", "life.own.weight", "life.own.bias"),
        *("life.whole.weight", "life.out.weight"),
    }
    assert LifePredictor(66, 0).out.weight.shape == (1, 16)


def needles(images: int, seed: int) -> tuple[Tensor, Tensor, list[int]]:
    """Noise of 4 x 4 patches, of which one is brighter in one of three colours: pixels, colours, places."""
    generator = torch.Generator().manual_seed(seed)
    pixels = 0.3 * torch.randn(images, 3, 16, 16, generator=generator)
    colours = torch.randint(0, 3, (images,), generator=generator)
    places: list[int] = torch.randint(0, 16, (images,), generator=generator).tolist()
    for image, place in enumerate(places):
        row, column = divmod(place, 4)
        pixels[image, colours[image], 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 2
    return pixels, colours, places


def test_the_patch_that_matters_lives_longest() -> None:
    """Of 16 patches one shows the class. After a hundred steps it is among the three that are left more often
    than by lot (37 of 200; this network finds 200, of eight others none less than 67), and the class is
    known, which it is not from three patches drawn at random."""
    torch.manual_seed(1)
    vit = VisionTransformer(16, 4, embed_dim=32, depth=4, num_heads=2, num_classes=3, mlp_ratio=2)
    add_predictor(vit, 1)
    model = PrunedViT(vit, Stages((1, 2))).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(100):
        pixels, colours, _ = needles(64, seed=step)
        logits = model(pixels, [Pruning(0.4, "life")] * 64).logits
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, colours).backward()
        optimizer.step()
    pixels, colours, places = needles(200, seed=1000)
    with torch.inference_mode():
        lives = model.eval()(pixels, [Pruning(0.4, "life")] * 200)
        drawn = model(pixels, [Pruning(0.4, "random", seed=image) for image in range(200)])
    left = [place in kept.tolist() for place, kept in zip(places, lives.kept[-1], strict=True)]
    assert lives.kept.counts.tolist() == [[7] * 200, [3] * 200]
    assert sum(left) > 60
    assert (lives.logits.argmax(dim=1) == colours).sum() > 190
    assert (drawn.logits.argmax(dim=1) == colours).sum() < 180
