"""`trimvit train --static-blocks`: what is inherited, trained and written, and what is made of it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.load import ModelError, create, load, save
from models.offered import REDUCERS_OF_ANY_MODEL
from models.paca import Paca
from models.pruned_vit import PrunedViT
from models.schedule import UNPRUNED, Stages, compute
from models.static_attention import make_static, static_of
from models.training import fine_tune as module
from models.training import student as student_module
from models.training.average import average
from models.training.calibrate import calibrate
from models.training.config import (
    AverageConfig,
    CalibrateConfig,
    EvaluateConfig,
    SweepConfig,
    TrainConfig,
)
from models.training.evaluate import evaluate
from models.training.fine_tune import fine_tune
from models.training.freezing import begin_alike
from models.training.loading import BrokenImageError, BrokenImages
from models.training.optimizing import optimizer_of
from models.training.run_identity import fingerprint
from models.training.static import give_static, inherit, mean_attention
from models.training.sweep import sweep
from tests.models.training.small_runs import ARCHITECTURE, Run, pictures, run_with, start

__all__ = ["pictures", "run_with", "start"]  # fixtures


@pytest.fixture(scope="module")
def run(run_with: Callable[..., Run]) -> Run:
    """A run of 2 steps: 12 pictures in batches of 6. Blocks 3 and 5 of 6 prune, the first two are static."""
    return run_with(stages=(3, 5), static_blocks=2)


@pytest.fixture(scope="module")
def trained(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fine_tune(run(tmp_path_factory.mktemp("trained"), reducers=REDUCERS_OF_ANY_MODEL)).checkpoint


def logits_in(path: Path) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in load_file(path).items() if name.endswith(".attn.logits")}


# What is inherited.


def test_the_mean_attention_is_that_of_a_plain_loop(
    make_vit: Callable[..., Any], make_pixels: Callable[..., Tensor]
) -> None:
    """Over all images, whatever batches they come in: an image, a head, a row at a time, in float64."""
    vit, pixels = make_vit(qk_norm=True, drop_path_rate=0.9), make_pixels(5)
    model = PrunedViT(vit.train(), Stages(()))
    found = mean_attention(model, [pixels[:3], pixels[3:]], range(1, 3))
    assert model.training
    vit = vit.double().eval()
    wanted = np.zeros((2, 6, 36, 36))
    with torch.no_grad():
        for image in pixels.double():
            x = vit.norm_pre(vit._pos_embed(vit.patch_embed(image[None])))
            x = vit.blocks[0](x)
            for block in (1, 2):
                attn = vit.blocks[block].attn
                qkv = attn.qkv(vit.blocks[block].norm1(x))[0].unflatten(1, (3, 6, 11))
                q, k = attn.q_norm(qkv[:, 0]).numpy(), attn.k_norm(qkv[:, 1]).numpy()
                for head in range(6):
                    for row in range(36):
                        powers = np.exp(k[:, head] @ q[row, head] / 11**0.5)
                        wanted[block - 1, head, row] += powers / powers.sum() / 5
                x = vit.blocks[block](x)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "eva02_tiny_patch14_224",
        "vit_base_patch16_rope_mixed_ape_224",
        "vit_small_patch16_dinov3_qkvb",
    ],
)
def test_for_the_only_image_that_it_was_taken_from_nothing_changes(
    randomise: Callable[..., nn.Module], make_pixels: Callable[..., Tensor], name: str
) -> None:
    """In networks with and without rotary positions, with one layer for queries, keys and values or three."""
    side = 14 if "patch14" in name else 16
    vit: Any = timm.create_model(
        name, num_classes=13, img_size=(3 * side, 5 * side), depth=4, embed_dim=72, num_heads=6,
        dynamic_img_size=False,
    )  # fmt: skip
    randomise(vit).eval()
    pixels = make_pixels(1, size=vit.patch_embed.img_size)
    model = PrunedViT(vit, Stages((3,)))
    with torch.inference_mode():
        before = model(pixels, [UNPRUNED]).logits
    means = mean_attention(model, [pixels], range(3))
    make_static(vit, 3)
    for block, mean in zip(vit.blocks, means, strict=False):
        static_of(block).inherit(mean)  # type: ignore[union-attr]
    with torch.inference_mode():
        after = PrunedViT(vit, Stages((3,)))(pixels, [UNPRUNED]).logits
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)


def test_a_run_begins_with_the_mean_over_its_images(run: Run, start: Path, tmp_path: Path) -> None:
    """As the network that it starts from sees them in serving; whatever the seed."""
    still = fine_tune(run(tmp_path / "still", learning_rate=1e-12, seed=5)).checkpoint
    begun = create(ARCHITECTURE, start, num_classes=3, img_size=64)
    config = run(tmp_path / "any")
    samples = [(path, 0) for path in sorted(config.data.rglob("*.png"))]
    blocks = give_static(begun, 2, Stages((2, 4)))
    assert blocks == range(2)
    inherit(begun, blocks, samples, BrokenImages("skip"), 0)
    for name, tensor in logits_in(still).items():
        wanted = begun.vit.state_dict()[name]
        torch.testing.assert_close(tensor.float(), wanted, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(wanted.exp().sum(dim=-1), torch.ones(wanted.shape[:2]))


def test_images_that_cannot_be_read_are_not_inherited_from(start: Path, tmp_path: Path) -> None:
    """They are skipped, or stop the run; without any image there is no mean."""
    (tmp_path / "broken.png").write_bytes(b"no picture")
    samples = [(tmp_path / "broken.png", 0)]
    for policy, what in (("skip", "none of the 1 images can be read"), ("stop", "broken.png")):
        begun = create(ARCHITECTURE, start, num_classes=3, img_size=64)
        with pytest.raises(BrokenImageError, match=what):
            inherit(begun, range(2), samples, BrokenImages(policy), 0)  # type: ignore[arg-type]


# What is trained and written.


@pytest.mark.parametrize("bf16", [True, False])
def test_logits_learn_and_alone_where_only_heads_do(
    run: Run, start: Path, tmp_path: Path, *, bf16: bool
) -> None:
    """With --trained head, nothing else of a block changes."""
    still = fine_tune(run(tmp_path / "still", trained="head", learning_rate=1e-12, bf16=bf16)).checkpoint
    moved = fine_tune(run(tmp_path / "moved", trained="head", bf16=bf16)).checkpoint
    before, weights = logits_in(still), torch.load(start)
    assert before.keys() == {"blocks.0.attn.logits", "blocks.1.attn.logits"}
    for name, tensor in load_file(moved).items():
        if name in before:
            assert not torch.equal(tensor, before[name]), name
        elif ".attn.v." in name:
            values = weights[name.replace(".v.", ".qkv.")].chunk(3)[2]
            assert torch.equal(tensor, values.half()), name
        elif not name.startswith("head."):
            assert torch.equal(tensor, weights[name].half()), name


def test_logits_learn_as_fast_as_the_head_and_do_not_decay(run: Run, start: Path, tmp_path: Path) -> None:
    """Decay would make the attention even. All other parameters are grouped as without static blocks."""
    config = run(tmp_path)
    vit = create(ARCHITECTURE, start, num_classes=3, img_size=64).vit
    plain = [{**group, "params": len(group["params"])} for group in optimizer_of(config, vit).param_groups]
    make_static(vit, 2)
    *others, own = optimizer_of(config, vit).param_groups
    assert [{**group, "params": len(group["params"])} for group in others] == plain
    assert [tuple(each.shape) for each in own["params"]] == [(2, 17, 17)] * 2
    assert (own["lr_scale"], own["weight_decay"]) == (1.0, 0.0)
    for parameter in own["params"]:
        parameter.requires_grad_(requires_grad=False)
    assert len(optimizer_of(config, vit).param_groups) == len(plain)


def test_a_run_ends_in_a_checkpoint_that_says_how_many(trained: Path) -> None:
    """And is loaded with them; its cost counts them; stages cannot move into them."""
    loaded = load(str(trained))
    assert loaded.card.static_blocks == loaded.model.arch.static_blocks == 2
    assert not any(".0.attn.qkv" in name for name in loaded.model.vit.state_dict())
    plain, stages = replace(loaded.model.arch, static_blocks=0), loaded.model.stages
    assert compute(loaded.model.arch, stages, 0.5) < compute(plain, stages, 0.5)
    with pytest.raises(ValueError, match="blocks 1 to 2 have static attention, so block 2 cannot prune"):
        loaded.at_stages((2, 5))
    assert loaded.at_stages((4,)).model.arch.static_blocks == 2
    with pytest.raises(ValueError, match="no other input size is possible"):
        load(str(trained), input_size=(80, 80))
    with pytest.raises(ValueError, match="no other patch stride is possible"):
        load(str(trained), patch_stride=8)


def test_it_is_evaluated_swept_calibrated_and_averaged(
    run: Run, trained: Path, pictures: Path, tmp_path: Path
) -> None:
    """As any checkpoint; not averaged with one of another number."""
    shared: dict[str, Any] = {"data": pictures, "device": "cpu", "dtype": "float32", "workers": 0}
    settings = {**shared, "keep_ratios": (1.0, 0.5), "criteria": ("variance", "mad"), "batch_size": 5}
    settings["reducers"] = ("drop", "merge")
    model = load(str(trained)).model
    rows = evaluate(EvaluateConfig(**settings, model=str(trained)))
    assert {row.compute for row in rows[1:]} == {round(compute(model.arch, model.stages, 0.5), 4)}
    settings |= {"models": (str(trained),), "speed": False, "correlation_images": 4, "picture_images": 1}
    assert len(sweep(SweepConfig(**settings, output=tmp_path / "sweep"))) == 4
    calibrated = tmp_path / "calibrated.safetensors"
    calibrate(
        CalibrateConfig(**shared, model=str(trained), output=calibrated, keep_ratios=(0.5,), agreement=0.5)
    )
    assert all(torch.equal(own, logits_in(trained)[name]) for name, own in logits_in(calibrated).items())
    assert load(str(calibrated)).card.static_blocks == 2
    other = fine_tune(run(tmp_path / "other", seed=1)).checkpoint
    mean = tmp_path / "mean.safetensors"
    average(AverageConfig(models=(trained, other), output=mean))
    for name, own in logits_in(mean).items():
        both = (logits_in(trained)[name].float() + logits_in(other)[name].float()) / 2
        torch.testing.assert_close(own.float(), both, rtol=1e-3, atol=1e-3)
    fewer = fine_tune(run(tmp_path / "fewer", static_blocks=1)).checkpoint
    with pytest.raises(ModelError, match="differ in their static_blocks"):
        average(AverageConfig(models=(trained, fewer), output=mean))


def test_a_further_run_goes_on_from_the_static_attention(run: Run, trained: Path, tmp_path: Path) -> None:
    """With as many blocks, or more, whose attention behind the first ones is inherited."""
    still = {"weights": trained, "learning_rate": 1e-12}
    there = load_file(trained)
    onward = load_file(fine_tune(run(tmp_path / "onward", **still)).checkpoint)
    assert all(torch.equal(onward[name], there[name]) for name in there if ".attn." in name)
    more = load_file(fine_tune(run(tmp_path / "more", **still, static_blocks=3, stages=(5,))).checkpoint)
    assert all(torch.equal(more[name], there[name]) for name in there if name.startswith("blocks.0."))
    assert torch.equal(more["blocks.2.attn.v.weight"], there["blocks.2.attn.qkv.weight"].chunk(3)[2])
    assert more["blocks.2.attn.logits"].std() > 0
    for fewer in (0, 1):
        with pytest.raises(ModelError, match=r"attention in blocks 1 to 2, .* add --static-blocks 2 or more"):
            fine_tune(run(tmp_path / "fewer", **still, static_blocks=fewer))
    with pytest.raises(ModelError, match="is for 4 x 4 patches, but this image size and patch stride give 5"):
        fine_tune(run(tmp_path / "size", **still, image_size=80))
    with pytest.raises(ModelError, match="is for 4 x 4 patches"):
        fine_tune(run(tmp_path / "stride", **still, patch_stride=8))


def test_a_static_network_of_three_projections_is_gone_on_from(
    randomise: Callable[..., nn.Module], tmp_path: Path, trained: Path
) -> None:
    """Its values come back as they were, in networks that keep them in other places, too."""
    for name in ("eva02_tiny_patch14_224", "eva02_base_patch14_224", "vit_small_patch16_dinov3_qkvb"):
        side = 14 if "patch14" in name else 16
        args = {"img_size": 3 * side, "num_classes": 5, "depth": 3, "embed_dim": 72, "num_heads": 6}
        vit: Any = timm.create_model(name, **args, dynamic_img_size=False)
        make_static(vit, 2)
        randomise(vit).eval()
        card = replace(
            load(str(trained)).card,
            architecture=name,
            labels=tuple("abcde"),
            input=replace(load(str(trained)).input, size=(3 * side, 3 * side)),
            model_args={**args, "dynamic_img_size": False},
            stages=Stages((2,)),
            folders=None,
        )
        save(tmp_path / "one.safetensors", vit, card)
        begun = create(name, tmp_path / "one.safetensors", num_classes=5, img_size=3 * side)
        assert static_of(begun.vit.blocks[0]) is None
        assert give_static(begun, 2, Stages((2,))) == range(2, 2)
        own, there = begun.vit.state_dict(), load_file(tmp_path / "one.safetensors")
        assert own.keys() == there.keys()
        assert all(torch.equal(own[each], there[each].float()) for each in there)


def test_an_ordinary_network_is_a_teacher(run: Run, tmp_path: Path) -> None:
    """Of the same network: its features are compared. Blocks that differ are not computed once for both."""
    teacher = fine_tune(run(tmp_path / "teacher", static_blocks=0)).checkpoint
    settings = {"weights": teacher, "teacher": teacher, "frozen_blocks": 2}
    report = fine_tune(run(tmp_path / "student", **settings))
    student = load(str(report.checkpoint)).model
    assert student.arch.static_blocks == 2
    assert not begin_alike(student.requires_grad_(requires_grad=False), load(str(teacher)).model)
    same = load(str(report.checkpoint)).model
    assert begin_alike(student, same)
    with torch.no_grad():
        static_of(same.vit.blocks[1]).logits[0, 0, 0] += 1  # type: ignore[union-attr,index]
    assert not begin_alike(student, same)


def test_frozen_blocks_keep_what_they_inherited(run: Run, tmp_path: Path) -> None:
    """Their logits are not trained, those behind them are; the moving average follows."""
    changes = {"frozen_blocks": 1, "ema_decay": 0.5}
    still = logits_in(fine_tune(run(tmp_path / "still", **changes, learning_rate=1e-12)).checkpoint)
    moved = logits_in(fine_tune(run(tmp_path / "moved", **changes)).checkpoint)
    assert torch.equal(moved["blocks.0.attn.logits"], still["blocks.0.attn.logits"])
    assert not torch.equal(moved["blocks.1.attn.logits"], still["blocks.1.attn.logits"])


def test_a_resumed_run_is_the_run_that_was_not_interrupted(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its logits come from its state; nothing is inherited a second time."""
    whole = load_file(fine_tune(run(tmp_path / "whole", epochs=2)).checkpoint)
    parts = run(tmp_path / "parts", epochs=2, save_every=1)

    draw = module._draw

    def failing(settings: TrainConfig, at: int) -> Any:
        if at == 3:
            raise KeyboardInterrupt
        return draw(settings, at)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_draw", failing)
        with pytest.raises(KeyboardInterrupt):
            fine_tune(parts)
    monkeypatch.setattr(student_module, "inherit", None)
    report = fine_tune(parts)
    assert report.steps == 1
    resumed = load_file(report.checkpoint)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_what_cannot_be_is_refused(run: Run, tmp_path: Path) -> None:
    """By name, before anything is trained."""
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        run(tmp_path, static_blocks=-1)
    for changes, what in (
        ({"static_blocks": 3}, "blocks 1 to 3 have static attention, so block 3 cannot prune"),
        ({"static_blocks": 6, "stages": (6,)}, "the network has 6 blocks, of which at most the first 5 can"),
        ({"paca_blocks": (2,)}, "block 2 cannot attend to clusters"),
    ):
        with pytest.raises(ValueError, match=what):
            fine_tune(run(tmp_path / "run", **changes))
    report = fine_tune(run(tmp_path / "beside", paca_blocks=(4,), paca_clusters=5))
    arch = load(str(report.checkpoint)).model.arch
    assert (arch.static_blocks, arch.paca) == (2, Paca((3,), 5))


def test_weights_that_do_not_fit_the_card_are_refused(trained: Path, tmp_path: Path) -> None:
    """A header that speaks of more static blocks than there are."""
    loaded = load(str(trained))
    path = tmp_path / "wrong.safetensors"
    save(path, loaded.model.vit, replace(loaded.card, static_blocks=3, stages=Stages((4,))))
    with pytest.raises(ModelError, match="does not fit the architecture"):
        load(str(path))
    with pytest.raises(ModelError, match="the static attention of block 3 does not fit"):
        create(ARCHITECTURE, path, num_classes=3, img_size=64)


def test_runs_that_began_before_there_was_static_attention_go_on(run: Run, tmp_path: Path) -> None:
    """They are known by what they were known by; a run with static blocks is another one."""
    known = fingerprint(run(tmp_path, static_blocks=0), ("a",), ("a",), [])
    assert "static_blocks" not in json.dumps(known)
    assert fingerprint(run(tmp_path), ("a",), ("a",), [])["static_blocks"] == 2
