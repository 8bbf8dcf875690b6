"""From a model's reference to the model: files, timm names and the hub's cache; and every way to be wrong."""

import hashlib
import json
import os
import pickle
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub.constants
import pytest
import timm
import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from safetensors import safe_open
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

import models
from models.families import UnsupportedModelError
from models.life import add_predictor, predictor_of
from models.load import Card, ModelError, create, input_spec_of, load, save
from models.offered import OF_ANY_MODEL
from models.patch_embed import set_patch_stride
from models.pruned_vit import PrunedViT
from models.schedule import CRITERIA, Pruning, Stages
from models.transforms import InputSpec

REPOSITORY = Path(models.__file__).parents[1]
ARCHITECTURE = "vit_tiny_patch16_224"
# 2 x 3 patches, 5 classes, 3 blocks.
ARGUMENTS: dict[str, Any] = {
    "img_size": (32, 48),
    "num_classes": 5,
    "depth": 3,
    "embed_dim": 66,
    "num_heads": 6,
}
CARD = Card(
    architecture=ARCHITECTURE,
    labels=("tench", "chain saw", "church", "golf ball", "parachute"),
    input=InputSpec((32, 48), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", "squash", 0.9),
    stages=Stages((0, 2), "all"),
    model_args=ARGUMENTS,
    origin={"epochs": 3},
)

Randomise = Callable[..., Any]


@pytest.fixture
def vit(randomise: Randomise) -> VisionTransformer:
    return randomise(timm.create_model(ARCHITECTURE, **ARGUMENTS)).eval()


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No network, and an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def full_size(seed: int = 0, architecture: str = ARCHITECTURE, classes: int = 5) -> dict[str, Tensor]:
    """The tensors of a model by its timm name alone, as a file without a TrimViT header needs."""
    torch.manual_seed(seed)
    return timm.create_model(architecture, num_classes=classes).state_dict()


# What `save` writes, `load` reads.


def test_weights_that_are_replaced_are_not_drawn_first(vit: VisionTransformer, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(path, vit, CARD)
    before = torch.get_rng_state()
    load(str(path))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_saved_model_comes_back(vit: VisionTransformer, tmp_path: Path) -> None:
    """A checkpoint holds all it needs: weights, labels, input spec and stages come back from the file."""
    path = tmp_path / "ponds.safetensors"
    save(path, vit, CARD)
    loaded = load(str(path))
    assert loaded.name == "ponds"
    assert loaded.labels == CARD.labels
    assert loaded.input == CARD.input
    assert loaded.model.stages == CARD.stages
    assert loaded.model.arch.grid == (2, 3)
    assert not loaded.model.training
    state = loaded.model.vit.state_dict()
    assert state.keys() == vit.state_dict().keys()
    for name, tensor in vit.state_dict().items():
        assert state[name].dtype == torch.float32
        assert torch.equal(state[name], tensor.half().float()), name


def test_a_saved_model_answers_as_before(
    vit: VisionTransformer, tmp_path: Path, make_pixels: Callable[..., Tensor]
) -> None:
    """The loaded network computes what the saved one did, to half precision of its weights."""
    save(tmp_path / "model.safetensors", vit, CARD)
    loaded = load(str(tmp_path / "model.safetensors"))
    pixels, prunings = make_pixels(2, size=(32, 48)), [Pruning(0.5), Pruning(1.0)]
    with torch.inference_mode():
        before, after = PrunedViT(vit, CARD.stages)(pixels, prunings), loaded.model(pixels, prunings)
    torch.testing.assert_close(after.logits, before.logits, rtol=0, atol=0.02)


def test_saved_weights_are_half_precision_with_a_readable_header(
    vit: VisionTransformer, tmp_path: Path
) -> None:
    """Any reader of safetensors can see what a checkpoint is, and it takes two bytes a weight."""
    path = tmp_path / "model.safetensors"
    save(path, vit, CARD)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["trimvit"])
        assert file.get_tensor("head.weight").dtype == torch.float16
    assert header["architecture"] == ARCHITECTURE
    assert header["labels"] == list(CARD.labels)
    assert header["stages"] == {"blocks": [0, 2], "rows": "all", "evenly": False}
    assert header["input"]["size"] == [32, 48]
    assert header["origin"] == {"epochs": 3}


def test_saving_replaces_the_file_in_one_step(vit: VisionTransformer, tmp_path: Path) -> None:
    """A save that breaks off leaves the checkpoint that was there; one that succeeds leaves nothing else."""
    path = tmp_path / "model.safetensors"
    save(path, vit, CARD)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    whole = path.read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, before[1]))  # as a full disk
    try:
        with pytest.raises(OSError, match="File too large"):
            save(path, vit, CARD)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == whole
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_labels_and_stages_may_be_replaced(vit: VisionTransformer, tmp_path: Path) -> None:
    """What is passed to `load` goes before what the checkpoint says."""
    path = tmp_path / "model.safetensors"
    save(path, vit, CARD)
    loaded = load(str(path), labels=("a", "b", "c", "d", "e"), stages=Stages((1,)))
    assert loaded.labels == ("a", "b", "c", "d", "e")
    assert loaded.model.stages == Stages((1,))


def test_the_header_goes_before_the_architecture_named(vit: VisionTransformer, tmp_path: Path) -> None:
    """A checkpoint that says what it is needs no --architecture, and is not confused by one."""
    save(tmp_path / "model.safetensors", vit, CARD)
    loaded = load(str(tmp_path / "model.safetensors"), architecture="deit_small_patch16_224")
    assert loaded.model.arch.dim == 66


# Checkpoints and their patch stride.


def overlapping(randomise: Randomise, stride: int, **changes: Any) -> tuple[VisionTransformer, Card]:
    """A network with a patch stride as training leaves it, and its card."""
    arguments = {**ARGUMENTS, **changes}
    vit = timm.create_model(ARCHITECTURE, **arguments)
    set_patch_stride(vit, stride)
    return randomise(vit).eval(), replace(CARD, model_args=arguments, patch_stride=stride)


@pytest.mark.parametrize(
    ("size", "stride", "grid"),
    [
        ((32, 48), 6, (3, 6)),
        ((32, 48), 16, (2, 3)),
        # As many patches as timm's own 14 x 14, for which they must not be mistaken.
        ((64, 232), 8, (7, 28)),
    ],
)
def test_a_checkpoint_is_rebuilt_with_its_patch_stride(
    randomise: Randomise, tmp_path: Path, size: tuple[int, int], stride: int, grid: tuple[int, int]
) -> None:
    """The stride travels in the header, and the positions come back as they were saved."""
    path = tmp_path / "model.safetensors"
    vit, card = overlapping(randomise, stride, img_size=size)
    save(path, vit, card)
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["trimvit"])["patch_stride"] == stride
    loaded = load(str(path)).model
    assert loaded.arch.grid == grid
    assert loaded.vit.patch_embed.proj.stride == (stride, stride)
    assert torch.equal(loaded.vit.pos_embed, vit.pos_embed.half().float())


def test_a_header_without_patch_stride_is_of_plain_patches(vit: VisionTransformer, tmp_path: Path) -> None:
    """Checkpoints that were written before there was a stride are read as before."""
    save(tmp_path / "new.safetensors", vit, CARD)
    with safe_open(tmp_path / "new.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["trimvit"])
    assert header.pop("patch_stride") is None
    loaded = load(str(with_header(vit, tmp_path / "old.safetensors", json.dumps(header)))).model
    assert loaded.arch.grid == (2, 3)
    assert torch.equal(loaded.vit.pos_embed, vit.pos_embed)


def stretched(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """Positions [rows, columns, D] resampled to the rows and columns of ``size``, as [patches, D]."""
    moved = grid.permute(2, 0, 1).unsqueeze(0)
    return F.interpolate(moved, size, mode="bicubic", antialias=True)[0].flatten(1).T


@pytest.mark.parametrize(("stride", "grid"), [(4, (5, 9)), (8, (3, 5)), (16, (2, 3))])
def test_another_stride_than_the_checkpoints_resamples_its_positions(
    randomise: Randomise, tmp_path: Path, stride: int, grid: tuple[int, int]
) -> None:
    """What is asked for goes before the header, back to plain patches too; other weights stay as they are."""
    vit, card = overlapping(randomise, 6)
    save(tmp_path / "model.safetensors", vit, card)
    loaded = load(str(tmp_path / "model.safetensors"), patch_stride=stride).model
    assert loaded.arch.grid == grid
    positions = vit.pos_embed.detach().half().float()[0]
    assert torch.equal(loaded.vit.pos_embed[0, 0], positions[0])
    torch.testing.assert_close(loaded.vit.pos_embed[0, 1:], stretched(positions[1:].view(3, 6, 66), grid))
    assert torch.equal(loaded.vit.patch_embed.proj.weight, vit.patch_embed.proj.weight.half().float())


@pytest.mark.parametrize(("side", "grid"), [(14, (18, 18)), (6, (7, 7))])
def test_a_files_positions_are_resampled_straight_to_the_strides_grid(
    tmp_path: Path, side: int, grid: tuple[int, int]
) -> None:
    """From the file's grid, which also says the image size, once: not by way of the usual grid."""
    tensors = full_size()
    tensors["pos_embed"] = torch.randn(1, 1 + side * side, 192, generator=torch.manual_seed(3))
    save_file(tensors, tmp_path / "plain.safetensors")
    loaded = load(str(tmp_path / "plain.safetensors"), architecture=ARCHITECTURE, patch_stride=12)
    assert loaded.model.arch.grid == grid
    positions = tensors["pos_embed"][0]
    assert torch.equal(loaded.model.vit.pos_embed[0, 0], positions[0])
    want = stretched(positions[1:].view(side, side, 192), grid)
    torch.testing.assert_close(loaded.model.vit.pos_embed[0, 1:], want)


def test_a_file_trained_with_the_stride_elsewhere_is_taken_as_it_is(tmp_path: Path) -> None:
    """Positions that are of the stride's grid already are not resampled."""
    tensors = full_size()
    tensors["pos_embed"] = torch.randn(1, 1 + 18 * 18, 192, generator=torch.manual_seed(3))
    save_file(tensors, tmp_path / "plain.safetensors")
    loaded = load(str(tmp_path / "plain.safetensors"), architecture=ARCHITECTURE, patch_stride=12)
    assert torch.equal(loaded.model.vit.pos_embed, tensors["pos_embed"])


@pytest.mark.parametrize("stride", [0, 17])
def test_a_stride_that_does_not_fit_the_patches_is_refused(
    randomise: Randomise, tmp_path: Path, stride: int
) -> None:
    """Asked for or in a header, with what is allowed."""
    vit, card = overlapping(randomise, 6)
    save(tmp_path / "good.safetensors", vit, card)
    save(tmp_path / "bad.safetensors", vit, replace(card, patch_stride=stride))
    words = (
        f"a patch stride of {stride} is out of range: the patches have 16 x 16 pixels, which allows 1 to 16"
    )
    with pytest.raises(ValueError, match=words):
        load(str(tmp_path / "good.safetensors"), patch_stride=stride)
    with pytest.raises(ValueError, match=words):
        load(str(tmp_path / "bad.safetensors"))


# Files from elsewhere.


def test_a_file_without_header_needs_its_architecture(tmp_path: Path) -> None:
    """A plain safetensors file is refused without --architecture, with the flag in the message, and with what
    a server of several models, which has no such flag, needs instead."""
    path = tmp_path / "plain.safetensors"
    save_file(full_size(), path)
    with pytest.raises(ModelError) as caught:
        load(str(path))
    assert "plain.safetensors does not contain the name of its timm architecture" in str(caught.value)
    assert "--architecture vit_tiny_patch16_224" in str(caught.value)
    (advised,) = re.findall(r"\{.*\}", str(caught.value))
    (tmp_path / "config.json").write_text(advised)
    assert load(str(path)).labels


@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".pt", ".bin"])
def test_a_file_without_header_is_read_with_its_architecture(tmp_path: Path, ending: str) -> None:
    """With the architecture named, the head's size says how many classes there are, and timm the rest."""
    path = tmp_path / f"plain{ending}"
    tensors = full_size()
    if ending == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    loaded = load(str(path), architecture=ARCHITECTURE)
    assert loaded.labels == ("class 0", "class 1", "class 2", "class 3", "class 4")
    assert torch.equal(loaded.model.vit.head.weight, tensors["head.weight"])
    assert loaded.model.stages == Stages((3, 6, 9), "cls")
    assert loaded.input == InputSpec((224, 224), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", "center", 0.9)


@pytest.mark.parametrize("key", ["state_dict", "model", "state_dict_ema"])
def test_training_checkpoints_are_opened(tmp_path: Path, key: str) -> None:
    """Weights wrapped as training loops wrap them, and under a parallel module's prefix, are found."""
    tensors = full_size()
    torch.save({key: {f"module.{name}": t for name, t in tensors.items()}, "epoch": 3}, tmp_path / "last.pth")
    loaded = load(str(tmp_path / "last.pth"), architecture=ARCHITECTURE)
    assert torch.equal(loaded.model.vit.pos_embed, tensors["pos_embed"])


def test_half_precision_files_become_float32(tmp_path: Path) -> None:
    """Whatever the file holds, the network is in float32."""
    save_file({name: t.bfloat16() for name, t in full_size().items()}, tmp_path / "half.safetensors")
    loaded = load(str(tmp_path / "half.safetensors"), architecture=ARCHITECTURE)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}


def test_imagenet_labels(tmp_path: Path) -> None:
    """A model of 1000 classes answers with ImageNet's names, in ImageNet's order."""
    save_file(full_size(classes=1000), tmp_path / "imagenet.safetensors")
    labels = load(str(tmp_path / "imagenet.safetensors"), architecture=ARCHITECTURE).labels
    assert len(labels) == 1000
    assert labels[0] == "tench, Tinca tinca"
    assert labels[217] == "English springer, English springer spaniel"
    assert labels[999] == "toilet tissue, toilet paper, bathroom tissue"


def test_a_distilled_checkpoint_keeps_both_heads(tmp_path: Path) -> None:
    """The distillation token and its head are loaded with the rest."""
    name = "deit_tiny_distilled_patch16_224"
    tensors = full_size(architecture=name)
    save_file(tensors, tmp_path / "distilled.safetensors")
    loaded = load(str(tmp_path / "distilled.safetensors"), architecture=name)
    assert torch.equal(loaded.model.vit.head_dist.weight, tensors["head_dist.weight"])
    assert loaded.model.arch.prefix_tokens == 2


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("ending", [".pth", ".pt", ".bin"])
@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, ending: str, writer: str) -> None:
    """Code in a checkpoint is never run: not by torch's own format, not by a bare pickle."""
    path, witness = tmp_path / f"hostile{ending}", tmp_path / "was-here"
    content = {"head.weight": Hostile(f"touch {witness}")}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(ModelError, match="is not a readable checkpoint"):
        load(str(path), architecture=ARCHITECTURE)
    assert not witness.exists()
    torch.load(path, weights_only=False) if writer == "torch" else pickle.loads(path.read_bytes())
    assert witness.exists()  # it would have


# Files that do not fit.


def changed(tensors: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {
        "too narrow": lambda: full_size() | {"norm.weight": torch.ones(191)},
        "key missing": lambda: {name: t for name, t in tensors.items() if name != "blocks.7.attn.proj.bias"},
        "key left over": lambda: tensors | {"blocks.12.norm1.weight": torch.ones(192)},
        "positions that are no grid": lambda: tensors | {"pos_embed": torch.zeros(1, 151, 192)},
        "positions of one axis": lambda: tensors | {"pos_embed": torch.zeros(197)},
        "patches of odd size": lambda: tensors | {"patch_embed.proj.weight": torch.zeros(192, 700)},
        "head of one number": lambda: tensors | {"head.weight": torch.zeros(())},
        "other things": lambda: {"weight": torch.zeros(3), "bias": torch.zeros(3)},
    }[kind]()


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("too narrow", "norm.weight"),
        ("key missing", "missing ['blocks.7.attn.proj.bias'], unexpected none"),
        ("key left over", "missing none, unexpected ['blocks.12.norm1.weight']"),
        ("positions that are no grid", ""),
        ("positions of one axis", ""),
        ("patches of odd size", ""),
        ("head of one number", "head.weight"),
        ("other things", "it does not contain a timm ViT"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, kind: str, named: str) -> None:
    """Wrong shapes and keys too few or too many are a ModelError that names file and tensor."""
    path = tmp_path / "odd.pth"
    torch.save(changed(full_size(), kind), path)
    with pytest.raises(ModelError) as caught:
        load(str(path), architecture=ARCHITECTURE)
    assert "odd.pth does not fit the architecture: " in str(caught.value)
    assert named in str(caught.value)


@pytest.mark.parametrize("other", ["deit_small_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_another_architecture_is_refused(tmp_path: Path, other: str) -> None:
    """Weights of one architecture are not squeezed into another."""
    save_file(full_size(), tmp_path / "plain.safetensors")
    with pytest.raises(ModelError, match=r"plain\.safetensors does not fit the architecture"):
        load(str(tmp_path / "plain.safetensors"), architecture=other)


@pytest.mark.parametrize("other", ["resnet18", "swin_tiny_patch4_window7_224", "beit_base_patch16_224"])
def test_an_architecture_that_cannot_be_pruned_is_refused(tmp_path: Path, other: str) -> None:
    """A network of a class that is not known is refused by its class, before its weights are looked at."""
    save_file(full_size(), tmp_path / "plain.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"its class is (ResNet|SwinTransformer|Beit)\."):
        load(str(tmp_path / "plain.safetensors"), architecture=other)


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"", b"junk" * 100, b"\xff" * 64])
def test_junk_is_refused(tmp_path: Path, ending: str, content: bytes) -> None:
    """A file that is no checkpoint is a ModelError, whatever reads it."""
    path = tmp_path / f"junk{ending}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=f"junk{ending} is not a readable checkpoint"):
        load(str(path), architecture=ARCHITECTURE)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {1: torch.zeros(3)}])
def test_pickles_of_something_else_are_refused(tmp_path: Path, content: object) -> None:
    """A harmless pickle that holds no weights by name is a ModelError."""
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ModelError, match=r"other\.pth is not a readable checkpoint"):
        load(str(tmp_path / "other.pth"), architecture=ARCHITECTURE)


def test_a_missing_file_is_named() -> None:
    """A path to nothing says so."""
    with pytest.raises(ModelError, match=r"the file 'nowhere/model\.safetensors' does not exist"):
        load("nowhere/model.safetensors")


def with_header(vit: VisionTransformer, path: Path, header: str) -> Path:
    save_file({name: t.detach() for name, t in vit.state_dict().items()}, path, metadata={"trimvit": header})
    return path


@pytest.mark.parametrize(
    "header",
    ["", "{", "[]", '{"architecture": "vit_tiny_patch16_224"}'],
)
def test_a_broken_header_is_refused(vit: VisionTransformer, tmp_path: Path, header: str) -> None:
    """A TrimViT header that cannot be understood is a ModelError, not a guess."""
    path = with_header(vit, tmp_path / "broken.safetensors", header)
    with pytest.raises(ModelError, match=r"the TrimViT header of broken\.safetensors is not valid"):
        load(str(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ("one", "two")}, "2 labels, but model has 5 classes"),
        ({"architecture": "vit_enormous"}, "timm has no model 'vit_enormous'"),
        ({"model_args": {"wings": 2}}, "timm cannot build vit_tiny_patch16_224: "),
        ({"model_args": {**ARGUMENTS, "num_classes": 7}}, "does not fit the architecture"),
    ],
)
def test_a_card_that_contradicts_its_weights_is_refused(
    vit: VisionTransformer, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """Each part of the card is checked against the network it describes."""
    save(tmp_path / "model.safetensors", vit, replace(CARD, **changes))
    with pytest.raises(ModelError) as caught:
        load(str(tmp_path / "model.safetensors"))
    assert message in str(caught.value)


def test_labels_are_counted(vit: VisionTransformer, tmp_path: Path) -> None:
    """Labels from outside must be as many as there are classes."""
    save(tmp_path / "model.safetensors", vit, CARD)
    with pytest.raises(ModelError, match="4 labels, but model has 5 classes"):
        load(str(tmp_path / "model.safetensors"), labels=("a", "b", "c", "d"))


def test_a_model_without_classes_is_refused(tmp_path: Path) -> None:
    """DINOv2's weights answer with features; serving their entries as classes would be nonsense."""
    torch.manual_seed(0)
    network = timm.create_model("vit_small_patch14_dinov2", img_size=28, depth=2)
    card = Card(
        "vit_small_patch14_dinov2",
        (),
        CARD.input,
        Stages((1,)),
        model_args={"img_size": 28, "depth": 2},
    )
    save(tmp_path / "dino.safetensors", network, card)
    with pytest.raises(ModelError, match="dino has features but no classes"):
        load(str(tmp_path / "dino.safetensors"))


# Names.


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("vit_smal_patch16_224", "vit_small_patch16_224"),
        ("deit_small_224.fb_in1k", "deit_small_patch16_224"),
        ("dinov2", "vit_base_patch14_dinov2"),
    ],
)
def test_an_unknown_name_suggests_near_ones(wrong: str, right: str) -> None:
    """A slip of the pen is answered with the name that was meant."""
    with pytest.raises(ModelError) as caught:
        load(wrong)
    text = str(caught.value)
    assert text.startswith(f"timm has no model '{wrong}'. Similar names: ")
    assert right in text.removesuffix(".").split(": ")[-1].split(", ")


def test_a_name_like_no_other_gets_no_suggestion() -> None:
    """Where nothing is near, nothing is suggested."""
    with pytest.raises(ModelError) as caught:
        load("xyzzy")
    assert str(caught.value) == "timm has no model 'xyzzy'."


@pytest.mark.parametrize(
    "reference", ["hf-hub:", "hf-hub:not a name//at all", "hf-hub:a@b@c", "deit_tiny_patch16_224.x"]
)
def test_references_that_cannot_be_are_refused(no_hub: Path, reference: str) -> None:
    """A malformed hub name or an unknown tag is a ModelError like any other."""
    with pytest.raises(ModelError, match="could not be loaded"):
        load(reference)


# The hub and its cache.


@pytest.mark.parametrize(
    ("reference", "architecture"),
    [
        ("deit_tiny_patch16_224", "--architecture deit_tiny_patch16_224"),
        ("hf-hub:somebody/pond-life", "--architecture NAME_OF_ITS_TIMM_ARCHITECTURE"),
    ],
)
def test_an_unreachable_hub_says_what_to_do(no_hub: Path, reference: str, architecture: str) -> None:
    """Without hub or cache, the error tells how to bring the weights by hand."""
    with pytest.raises(ModelError) as caught:
        load(reference)
    text = str(caught.value)
    assert f"the weights of {reference} could not be loaded" in text
    assert f"--model /path/to/model.safetensors {architecture}" in text


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (GatedRepoError, "request access on its page, and set HF_TOKEN"),
        (RepositoryNotFoundError, "or it is private: check the name, or set HF_TOKEN"),
    ],
)
def test_a_repository_that_the_hub_refuses_says_what_to_do(
    no_hub: Path, monkeypatch: pytest.MonkeyPatch, error: type[HfHubHTTPError], words: str
) -> None:
    """A token helps there, and no copy of the file."""

    def refused(*_: object, **__: object) -> None:
        answer = httpx.Response(401, request=httpx.Request("GET", "https://hub.invalid/somebody/private"))
        raise error("401 Client Error.", response=answer)

    monkeypatch.setattr("timm.create_model", refused)
    with pytest.raises(ModelError) as caught:
        load("somebody/private")
    assert words in str(caught.value)
    assert "cannot be reached" not in str(caught.value)


def put_in_cache(hub: Path, repository: str, files: dict[str, bytes]) -> None:
    """A repository as huggingface_hub keeps it: blobs by hash, a snapshot of links, and where `main` is."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    commit = hashlib.sha1(repository.encode()).hexdigest()
    for sub in ("blobs", "refs", f"snapshots/{commit}"):
        (folder / sub).mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    for name, content in files.items():
        blob = hashlib.sha256(content).hexdigest()
        (folder / "blobs" / blob).write_bytes(content)
        (folder / "snapshots" / commit / name).symlink_to(Path("../../blobs") / blob)


def test_weights_to_start_from_that_are_not_there_are_named(tmp_path: Path) -> None:
    """As a model's file is."""
    with pytest.raises(ModelError, match=r"the file '.*nowhere\.safetensors' does not exist"):
        create("test_vit3", tmp_path / "nowhere.safetensors")


def test_a_hub_that_does_not_answer_is_asked_once(
    no_hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without waiting for more tries, what the cache has is loaded and what it has not is refused; the next
    model may ask the hub again."""

    def no_more_tries(seconds: float) -> None:
        pytest.fail(f"waited {seconds} s for another try")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", no_more_tries)
    weights = tmp_path / "weights.safetensors"
    save_file(full_size(1, "test_vit3", classes=1000), weights)
    put_in_cache(no_hub, "timm/test_vit3.r160_in1k", {"model.safetensors": weights.read_bytes()})
    assert load("test_vit3").name == "test_vit3"
    with pytest.raises(ModelError, match="could not be loaded"):
        load("deit_tiny_patch16_224")
    assert len([record for record in caplog.records if "does not respond" in record.getMessage()]) == 2
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE"])
def test_a_local_hub_cache_is_used_without_network(tmp_path: Path, variable: str) -> None:
    """A copied cache serves timm names and hf-hub: references alike, offline; the environment says where."""
    hub = tmp_path / "hub"
    weights = tmp_path / "weights.safetensors"
    tensors = full_size(1, "test_vit3", classes=1000)
    save_file(tensors, weights)
    put_in_cache(hub, "timm/test_vit3.r160_in1k", {"model.safetensors": weights.read_bytes()})
    others = full_size(2, "test_vit3", classes=7)
    save_file(others, weights)
    config = {
        "architecture": "test_vit3",
        "num_classes": 7,
        "pretrained_cfg": {
            "input_size": [3, 160, 160],
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 0.8,
            "crop_mode": "center",
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
            "num_classes": 7,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    files = {"model.safetensors": weights.read_bytes(), "config.json": json.dumps(config).encode()}
    put_in_cache(hub, "somebody/pond-life", files)
    code = """
import json, sys
from dataclasses import asdict
from models.load import load
answers = []
for reference in sys.argv[1:]:
    loaded = load(reference)
    weights = loaded.model.vit.head.weight[0].tolist()
    answers.append([loaded.name, len(loaded.labels), loaded.labels[0], asdict(loaded.input), weights])
answers.append(load(sys.argv[1], patch_stride=10).model.arch.grid)
print(json.dumps(answers))
"""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        variable: str(tmp_path if variable == "HF_HOME" else hub),
        "HF_HUB_OFFLINE": "1",
    }
    references = ["test_vit3.r160_in1k", "hf-hub:somebody/pond-life"]
    output = subprocess.run(
        [sys.executable, "-c", code, *references],
        cwd=REPOSITORY,
        env=environment,
        check=True,
        capture_output=True,
    ).stdout
    by_name, by_repository, grid_with_stride = json.loads(output)
    assert grid_with_stride == [15, 15]
    assert by_name[:3] == ["test_vit3.r160_in1k", 1000, "tench, Tinca tinca"]
    assert by_name[3]["size"] == [160, 160]
    assert by_name[4] == tensors["head.weight"][0].tolist()
    assert by_repository[:3] == ["hf-hub:somebody/pond-life", 7, "class 0"]
    assert by_repository[3] == {
        "size": [160, 160],
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "interpolation": "bilinear",
        "crop": "center",
        "crop_share": 0.8,
        "channels": 3,
        "resize": None,
    }
    assert by_repository[4] == others["head.weight"][0].tolist()


# What fine-tuning starts from.


def test_create_takes_weights_and_leaves_a_head_of_another_size(tmp_path: Path) -> None:
    """All but the head comes from the file; the new head is as timm initialises it."""
    tensors = full_size(classes=11)
    save_file(tensors, tmp_path / "start.safetensors")
    vit = create(ARCHITECTURE, tmp_path / "start.safetensors", num_classes=3).vit
    state = vit.state_dict()
    assert state["head.weight"].shape == (3, 192)
    for name in tensors.keys() - {"head.weight", "head.bias"}:
        assert torch.equal(state[name], tensors[name]), name


def test_create_takes_a_head_that_fits(tmp_path: Path) -> None:
    """A head of the right size is taken over too."""
    tensors = full_size(classes=3)
    save_file(tensors, tmp_path / "start.safetensors")
    vit = create(ARCHITECTURE, tmp_path / "start.safetensors", num_classes=3).vit
    assert torch.equal(vit.head.weight, tensors["head.weight"])


def test_create_resamples_positions_to_the_image_size(tmp_path: Path) -> None:
    """At another size the position embedding is stretched over the new grid; CLS keeps its own."""
    tensors = full_size()
    # Positions that are their own row and column number, over 14 x 14.
    rows, columns = torch.meshgrid(torch.arange(14.0), torch.arange(14.0), indexing="ij")
    tensors["pos_embed"][0, 1:, 0] = rows.flatten()
    tensors["pos_embed"][0, 1:, 1] = columns.flatten()
    tensors["pos_embed"][0, 0] = 77.0
    save_file(tensors, tmp_path / "start.safetensors")
    vit = create(ARCHITECTURE, tmp_path / "start.safetensors", num_classes=5, img_size=(16 * 7, 16 * 28)).vit
    positions = vit.pos_embed[0].detach()
    assert positions.shape == (1 + 7 * 28, 192)
    assert torch.equal(positions[0], torch.full((192,), 77.0))
    grid = positions[1:].view(7, 28, 192)
    assert grid[:, 14, 0].tolist() == pytest.approx([0.5, 2.5, 4.5, 6.5, 8.5, 10.5, 12.5], abs=0.3)
    assert grid[3, 10:18, 1].tolist() == pytest.approx(
        [4.75, 5.25, 5.75, 6.25, 6.75, 7.25, 7.75, 8.25], abs=0.1
    )


@pytest.mark.parametrize("from_hub", [False, True])
def test_create_resamples_positions_straight_to_the_grid_of_size_and_stride(
    tmp_path: Path, from_hub: bool
) -> None:
    """With an image size and a patch stride at once, positions are resampled once, from the weights' grid."""
    tensors = full_size(architecture="deit_tiny_patch16_224", classes=1000)
    tensors["pos_embed"] = torch.randn(1, 1 + 14 * 14, 192, generator=torch.manual_seed(3))
    path = tmp_path / "start.safetensors"
    save_file(tensors, path)
    arguments = {"num_classes": 3, "img_size": (80, 96), "patch_stride": 10}
    # timm takes a file for what it would load from the hub.
    hub = {"pretrained_cfg_overlay": {"file": str(path)}} if from_hub else {}
    vit = create("deit_tiny_patch16_224", None if from_hub else path, **arguments, **hub).vit
    assert vit.patch_embed.grid_size == (7, 9)
    want = stretched(tensors["pos_embed"][0, 1:].view(14, 14, 192), (7, 9))
    torch.testing.assert_close(vit.pos_embed[0, 1:].detach(), want)
    assert vit.head.weight.shape == (3, 192)
    for name in tensors.keys() - {"head.weight", "head.bias", "pos_embed"}:
        assert torch.equal(vit.state_dict()[name], tensors[name]), name


def test_create_without_stride_gives_plain_patches_whatever_the_weights_had(tmp_path: Path) -> None:
    """Weights that were trained with a stride start a run without one on the plain grid."""
    tensors = full_size()
    tensors["pos_embed"] = torch.randn(1, 1 + 18 * 18, 192, generator=torch.manual_seed(3))
    save_file(tensors, tmp_path / "start.safetensors")
    vit = create(ARCHITECTURE, tmp_path / "start.safetensors", num_classes=3).vit
    want = stretched(tensors["pos_embed"][0, 1:].view(18, 18, 192), (14, 14))
    torch.testing.assert_close(vit.pos_embed[0, 1:].detach(), want)


def test_a_folder_of_transformers_is_not_fine_tuned(tmp_path: Path) -> None:
    """Which is said before the image size is compared with the patches of an architecture that it is not."""
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "vit", "architectures": ["ViTForImageClassification"]})
    )
    save_file({"embeddings.cls_token": torch.zeros(1, 1, 8)}, tmp_path / "model.safetensors")
    for place in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(ModelError, match="is a transformers checkpoint, which can be served but not"):
            create("vit_small_patch14_dinov2", place, num_classes=3, img_size=64)


def test_create_refuses_a_stride_before_it_asks_the_hub(no_hub: Path) -> None:
    """A slip in the stride is told at once, not after the download."""
    with pytest.raises(ValueError, match="a patch stride of 17 is out of range"):
        create("deit_tiny_patch16_224", None, patch_stride=17, num_classes=3)


@pytest.mark.parametrize("kind", ["key missing", "key left over", "too narrow"])
def test_create_refuses_weights_that_do_not_fit(tmp_path: Path, kind: str) -> None:
    """Only the head may differ."""
    torch.save(changed(full_size(), kind), tmp_path / "start.pth")
    with pytest.raises(ModelError, match=r"start\.pth does not fit the architecture"):
        create(ARCHITECTURE, tmp_path / "start.pth", num_classes=3)


def test_create_without_weights_asks_the_hub(no_hub: Path) -> None:
    """No file means the hub, and where there is none, the error that says so."""
    with pytest.raises(ModelError, match="the weights of deit_tiny_patch16_224 could not be loaded"):
        create("deit_tiny_patch16_224", None, num_classes=3)


# What a model sees.


@pytest.mark.parametrize(
    ("name", "want"),
    [
        (
            "deit_small_patch16_224.fb_in1k",
            InputSpec((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", "center", 0.9),
        ),
        (
            "vit_base_patch16_clip_384.openai_ft_in12k_in1k",
            InputSpec(
                (384, 384),
                (0.48145466, 0.4578275, 0.40821073),
                (0.26862954, 0.26130258, 0.27577711),
                "bicubic",
                "squash",
                0.95,
            ),
        ),
    ],
)
def test_input_spec_is_timms(name: str, want: InputSpec) -> None:
    """Size, colours and crop are those that timm's card of the weights gives."""
    assert input_spec_of(timm.create_model(name, device="meta")) == want


def test_input_spec_follows_the_size_asked_for() -> None:
    """A model built for another size sees that size."""
    vit = timm.create_model(ARCHITECTURE, img_size=(48, 80), device="meta")
    assert input_spec_of(vit).size == (48, 80)


def test_an_unknown_crop_is_refused() -> None:
    """A crop mode that TrimViT does not have is not quietly replaced by another."""
    vit = timm.create_model(ARCHITECTURE, device="meta", pretrained_cfg_overlay={"crop_mode": "border"})
    with pytest.raises(ModelError, match="unknown crop mode 'border'; supported: center, squash"):
        input_spec_of(vit)


# Life predictors.

LIVES = replace(CARD, criterion="life", life_block=0)


def test_a_life_predictor_is_saved_with_its_network(
    vit: VisionTransformer, tmp_path: Path, make_pixels: Callable[..., Tensor], randomise: Randomise
) -> None:
    """Its tensors lie beside the network's, the header names its block, and what is loaded prunes by it."""
    randomise(add_predictor(vit, 0))
    path = tmp_path / "living.safetensors"
    save(path, vit, LIVES)
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["trimvit"])["life_block"] == 0
        assert file.get_tensor("life.out.weight").shape == (1, 16)
    loaded = load(str(path))
    assert loaded.method.criterion == "life"
    pixels, prunings = make_pixels(2, size=(32, 48)), [Pruning(0.5, "life"), Pruning(0.2, "life")]
    with torch.inference_mode():
        before, after = PrunedViT(vit, CARD.stages)(pixels, prunings), loaded.model(pixels, prunings)
    torch.testing.assert_close(after.logits, before.logits, rtol=0, atol=0.05)
    assert [stage.tolist() for stage in after.kept[0]] == [stage.tolist() for stage in before.kept[0]]


def test_a_header_without_a_life_predictor_is_of_an_older_checkpoint(
    vit: VisionTransformer, tmp_path: Path
) -> None:
    """It is read as ever, and the criterion is refused by name."""
    path = tmp_path / "older.safetensors"
    save(path, vit, CARD)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["trimvit"])
    del header["life_block"]
    loaded = load(str(with_header(vit, path, json.dumps(header))))
    assert loaded.card.life_block is None
    assert loaded.model.stages == CARD.stages
    with pytest.raises(ValueError, match="the criterion life needs a life predictor"):
        loaded.check_criteria(["mad", "life"])
    assert loaded.check_criteria(["mad"]) is loaded


def test_stages_that_leave_a_checkpoint_without_its_criterion_are_refused(
    vit: VisionTransformer, tmp_path: Path
) -> None:
    """Where it would be the default one; another checkpoint only does not offer it any more."""
    add_predictor(vit, 0)
    save(tmp_path / "by_life.safetensors", vit, LIVES)
    by_life = load(str(tmp_path / "by_life.safetensors"))
    assert by_life.at_stages((1, 2)).model.criteria == CRITERIA
    with pytest.raises(
        ValueError, match="its life predictor is for block 1; it must have one for the first block"
    ):
        by_life.at_stages((2, 3))
    save(tmp_path / "by_mad.safetensors", vit, replace(LIVES, criterion="mad"))
    by_mad = load(str(tmp_path / "by_mad.safetensors")).at_stages((2, 3))
    assert by_mad.model.criteria == OF_ANY_MODEL


def test_create_takes_a_checkpoints_life_predictor_apart(vit: VisionTransformer, tmp_path: Path) -> None:
    """The network to train has none until one is given to it."""
    predictor = add_predictor(vit, 0)
    save(tmp_path / "start.safetensors", vit, LIVES)
    start = create(ARCHITECTURE, tmp_path / "start.safetensors", num_classes=5)
    assert predictor_of(start.vit) is None
    assert start.added.life_block == 0
    assert start.added.life.keys() == predictor.state_dict().keys()
