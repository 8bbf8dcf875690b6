"""The forms in which people have checkpoints: each gives timm's own logits, or is refused in words.

Every form is made here from a small network with random weights.
"""

import argparse
import enum
import json
import tarfile
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from models.load import LoadedModel, ModelError, load
from models.schedule import UNPRUNED

ARCHITECTURE = "test_vit"
CLASSES = 5
Randomise = Callable[..., Any]
Vit = Any


@pytest.fixture
def make(randomise: Randomise) -> Callable[..., Vit]:
    """A small network of timm's with random weights; arguments are timm's."""

    def build(architecture: str = ARCHITECTURE, seed: int = 0, **arguments: Any) -> Vit:
        vit = timm.create_model(architecture, **{"num_classes": CLASSES, **arguments})
        return randomise(vit, seed).eval()

    return build


def same_logits(loaded: LoadedModel, vit: Vit) -> bool:
    """Whether the loaded model, exact, gives timm's logits, bit for bit, for random pixels."""
    loaded.model.exact = True
    size = vit.patch_embed.img_size
    pixels = torch.randn(2, vit.patch_embed.proj.in_channels, *size, generator=torch.manual_seed(5))
    with torch.inference_mode():
        want = vit(pixels)
        return loaded.input.size == tuple(size) and torch.equal(
            loaded.model(pixels, [UNPRUNED] * 2).logits, want
        )


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


class Stage(enum.Enum):
    FIT = "fit"


class AttributeDict(dict[str, Any]):
    """As Lightning's: a dictionary of a class of its own."""


class NodeList(list[Any]):
    """As OmegaConf's and mmengine's: a list of a class of its own."""


class Recipe:
    """A class of the training script's, which nobody else has."""

    def __init__(self) -> None:
        self.loss = nn.CrossEntropyLoss(weight=torch.ones(3))
        self.where = Path("run")


def lightning(state: dict[str, Tensor], prefix: str = "model.") -> dict[str, Any]:
    hyper_parameters = {
        "data": Path("/data/birds"),
        "elsewhere": PureWindowsPath("C:/data"),
        "lr": np.float64(3e-4),
        "weights": np.arange(3, dtype=np.float32),
        "args": argparse.Namespace(epochs=3, device=torch.device("cpu")),
        "more": AttributeDict(a=1, b=[2]),
        "list": NodeList([1, 2]),
        "by": defaultdict(list, {"a": [1]}),
        "stage": Stage.FIT,
        "recipe": Recipe(),
    }
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": prefixed(state, prefix),
        "hyper_parameters": hyper_parameters,
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}],
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
    }


def other(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that must not be taken."""
    return {name: tensor + 1 for name, tensor in state.items()}


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "the state dict alone": lambda state: state,
    "an OrderedDict with metadata": lambda state: OrderedDict(state),
    "DistributedDataParallel": lambda state: prefixed(state, "module."),
    "torch.compile": lambda state: prefixed(state, "_orig_mod."),
    "compiled and parallel": lambda state: prefixed(state, "module._orig_mod."),
    "parallel and compiled": lambda state: prefixed(state, "_orig_mod.module."),
    "compiled block by block": lambda state: {
        name.replace("blocks.1.", "blocks.1._orig_mod."): tensor for name, tensor in state.items()
    },
    "FSDP": lambda state: {f"_fsdp_wrapped_module.{name}": tensor for name, tensor in state.items()},
    "model": lambda state: {"model": state, "epoch": 3},
    "state_dict": lambda state: {"state_dict": state, "best_acc1": torch.tensor(0.5)},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}}},
    "net": lambda state: {"net": prefixed(state, "module."), "acc": 91.5, "epoch": 3},
    "a prefix net.": lambda state: prefixed(state, "net."),
    "a prefix backbone.": lambda state: prefixed(state, "backbone."),
    "a prefix of several": lambda state: prefixed(state, "model.backbone.vit."),
    "transformers' wrapper of timm": lambda state: prefixed(state, "timm_model."),
    "with things beside the network": lambda state: {
        **prefixed(state, "model."),
        "loss.weight": torch.ones(5),
        "accuracy.correct": torch.tensor(3),
    },
    "timm's EMA": lambda state: {"state_dict": other(state), "state_dict_ema": state},
    "DeiT's EMA": lambda state: {"model": other(state), "model_ema": state},
    "ema": lambda state: {"model": other(state), "ema": state},
    "EMA in a callback": lambda state: {
        "state_dict": prefixed(other(state), "model."),
        "callbacks": {"EMA": {"ema_state_dict": prefixed(state, "model.")}},
    },
    "EMA beside the network": lambda state: {
        "state_dict": {**prefixed(other(state), "model."), **prefixed(state, "ema_model.module.")}
    },
    "torch's AveragedModel": lambda state: {**prefixed(state, "module."), "n_averaged": torch.tensor(3)},
    "DeepSpeed": lambda state: {
        "module": prefixed(state, "module."),
        "optimizer": None,
        "ds_config": {"train_batch_size": 8},
        "ds_version": "0.15",
        "dp_world_size": 1,
    },
    "Lightning": lightning,
    "Lightning, compiled": lambda state: lightning(state, "model._orig_mod."),
    "optimizer beside": lambda state: {
        "state_dict": state,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3), "step": torch.tensor(1.0)}}},
        "scheduler": {"last_epoch": 3},
    },
    "a head of dropout and a linear layer": lambda state: {
        name.replace("head.", "head.1."): tensor for name, tensor in state.items()
    },
    "timm's name of a classifier's layer": lambda state: {
        name.replace("head.", "head.fc."): tensor for name, tensor in state.items()
    },
    "counters of thop": lambda state: {
        **state,
        **{f"{layer}total_{what}": torch.zeros(1) for layer in ("", "head.") for what in ("ops", "params")},
    },
    "float64": lambda state: {name: tensor.double() for name, tensor in state.items()},
    "parameters": lambda state: {name: nn.Parameter(tensor) for name, tensor in state.items()},
}


@pytest.mark.parametrize("form", WRAPPED)
def test_a_wrapped_state_dict_gives_timms_logits(make: Callable[..., Vit], tmp_path: Path, form: str) -> None:
    """Whatever a training script puts around the weights, they are found, and the averaged ones taken."""
    vit = make()
    torch.save(WRAPPED[form](vit.state_dict()), tmp_path / "last.ckpt")
    assert same_logits(load(str(tmp_path / "last.ckpt"), architecture=ARCHITECTURE), vit)


@pytest.mark.parametrize(
    "name",
    ["a.pth", "a.pt", "a.bin", "a.ckpt", "model_best.pth.tar", "checkpoint-3", "ünï cödé.pth", "a.PTH"],
)
def test_a_file_of_any_name_is_read(make: Callable[..., Vit], tmp_path: Path, name: str) -> None:
    """What a file is, its content says."""
    vit = make()
    torch.save(vit.state_dict(), tmp_path / name)
    loaded = load(str(tmp_path / name), architecture=ARCHITECTURE)
    assert same_logits(loaded, vit)
    assert loaded.name in name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_half_precision_gives_the_logits_of_the_rounded_weights(
    make: Callable[..., Vit], tmp_path: Path, dtype: torch.dtype, ending: str
) -> None:
    """In float32, whatever the file is in."""
    vit = make()
    state = {name: tensor.to(dtype) for name, tensor in vit.state_dict().items()}
    path = tmp_path / f"half.{ending}"
    save_file(state, path) if ending == "safetensors" else torch.save(state, path)
    vit.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    assert same_logits(load(str(path), architecture=ARCHITECTURE), vit)


def test_torchs_older_format_is_read(make: Callable[..., Vit], tmp_path: Path) -> None:
    """As PyTorch wrote it before 1.6, with what training scripts put beside the weights."""
    vit = make()
    path, content = tmp_path / "old.pth", lightning(vit.state_dict())
    del content["hyper_parameters"]["recipe"]  # this format asks for the code of the network in it
    torch.save(content, path, _use_new_zipfile_serialization=False)
    assert same_logits(load(str(path), architecture=ARCHITECTURE), vit)


def test_safetensors_under_another_name_is_read(make: Callable[..., Vit], tmp_path: Path) -> None:
    vit = make()
    save_file(vit.state_dict(), tmp_path / "pytorch_model.bin")
    assert same_logits(load(str(tmp_path / "pytorch_model.bin"), architecture=ARCHITECTURE), vit)


@pytest.mark.parametrize("by", ["folder", "index"])
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards_are_put_together(make: Callable[..., Vit], tmp_path: Path, by: str, ending: str) -> None:
    """As Hugging Face's libraries write them, with an index."""
    vit = make()
    shards: dict[str, dict[str, Tensor]] = {}
    for place, (name, tensor) in enumerate(vit.state_dict().items()):
        shards.setdefault(f"model-{place % 2 + 1:05}-of-00002.{ending}", {})[name] = tensor
    stem = "model.safetensors" if ending == "safetensors" else "pytorch_model.bin"
    for file, tensors in shards.items():
        path = tmp_path / file
        save_file(tensors, path) if ending == "safetensors" else torch.save(tensors, path)
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    index = tmp_path / f"{stem}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    loaded = load(str(tmp_path if by == "folder" else index), architecture=ARCHITECTURE)
    assert same_logits(loaded, vit)
    (tmp_path / f"model-00002-of-00002.{ending}").unlink()
    with pytest.raises(ModelError, match=r"the shard model-00002-of-00002\..* is missing"):
        load(str(index), architecture=ARCHITECTURE)


SHAPES: dict[str, dict[str, Any]] = {
    "384 px": {"img_size": 384},
    "96 px": {"img_size": 96},
    "one channel": {"in_chans": 1},
    "averaged patches": {"global_pool": "avg"},
    "averaged patches, grey, 96 px": {"global_pool": "avg", "in_chans": 1, "img_size": 96},
    "registers": {"reg_tokens": 4, "no_embed_class": True},
    "registers with positions": {"reg_tokens": 4},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "no class token, normed before pooling": {
        "class_token": False,
        "global_pool": "avg",
        "fc_norm": False,
    },
    "layer scale": {"init_values": 0.1},
    "queries and keys normed": {"qk_norm": True},
    "normed before the blocks": {"pre_norm": True},
    "no biases of queries, keys and values": {"qkv_bias": False},
    "no biases of projections": {"proj_bias": False},
    "a thousand classes": {"num_classes": 1000},
    "one class": {"num_classes": 1},
}


@pytest.mark.parametrize("form", SHAPES)
def test_a_network_is_built_to_fit_the_file(make: Callable[..., Vit], tmp_path: Path, form: str) -> None:
    """Image size, channels, pooling, tokens and classes are the file's, not the architecture's."""
    vit = make(**SHAPES[form])
    torch.save({"model": vit.state_dict()}, tmp_path / "fits.pth")
    loaded = load(str(tmp_path / "fits.pth"), architecture=ARCHITECTURE)
    assert same_logits(loaded, vit)
    assert loaded.input.channels == vit.patch_embed.proj.in_channels
    assert len(loaded.labels) == vit.num_classes
    assert loaded.scores == ("sigmoid" if form == "one class" else "softmax")  # of one, softmax is always 1


def test_another_size_than_usual_is_told(
    make: Callable[..., Vit], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With both sizes."""
    torch.save(make(img_size=96).state_dict(), tmp_path / "small.pth")
    load(str(tmp_path / "small.pth"), architecture=ARCHITECTURE)
    (text,) = [record.getMessage() for record in caplog.records if "pixels" in record.getMessage()]
    assert "96 x 96 pixels" in text
    assert "160 x 160" in text


def test_a_dinov2_fine_tuned_at_224_is_served_at_224(make: Callable[..., Vit], tmp_path: Path) -> None:
    """Its file has 257 tokens, and timm's weights of this name 1,370."""
    name = "vit_small_patch14_dinov2"
    vit = make(name, img_size=224)
    save_file(vit.state_dict(), tmp_path / "dino.safetensors")
    loaded = load(str(tmp_path / "dino.safetensors"), architecture=name)
    assert same_logits(loaded, vit)
    assert loaded.model.arch.grid == (16, 16)


def test_a_distilled_network_keeps_both_heads(make: Callable[..., Vit], tmp_path: Path) -> None:
    name = "deit_tiny_distilled_patch16_224"
    vit = make(name, img_size=96)
    torch.save({"model": vit.state_dict()}, tmp_path / "distilled.pth")
    assert same_logits(load(str(tmp_path / "distilled.pth"), architecture=name), vit)


def test_a_classifier_beside_a_backbone_is_its_head(make: Callable[..., Vit], tmp_path: Path) -> None:
    """As modules of people's own have them: features of timm's, one linear layer."""
    vit = make()
    state = {
        ("classifier" if name.startswith("head.") else "backbone") + "." + name.removeprefix("head."): tensor
        for name, tensor in vit.state_dict().items()
    }
    torch.save({"state_dict": state}, tmp_path / "own.ckpt")
    assert same_logits(load(str(tmp_path / "own.ckpt"), architecture=ARCHITECTURE), vit)
    weighted = {**state, "criterion.weight": torch.ones(CLASSES), "train_loss.weight": torch.ones(CLASSES)}
    torch.save({"state_dict": weighted}, tmp_path / "weighted.ckpt")
    assert same_logits(load(str(tmp_path / "weighted.ckpt"), architecture=ARCHITECTURE), vit)


def test_a_layer_behind_the_head_is_no_silent_loss(
    make: Callable[..., Vit], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`self.fc = nn.Linear(1000, 3)` behind a network of timm's as it comes: its outputs are the classes.
    Other layers beside a network with a head are named."""
    state = prefixed(make().state_dict(), "backbone.")
    behind = {"fc.weight": torch.ones(3, CLASSES), "fc.bias": torch.ones(3)}
    torch.save({"state_dict": state | behind}, tmp_path / "own.ckpt")
    with pytest.raises(ModelError, match=f"fc, which reads the {CLASSES} outputs of the head of .*fold both"):
        load(str(tmp_path / "own.ckpt"), architecture=ARCHITECTURE)
    beside = {"projector.weight": torch.ones(3, 64), "projector.bias": torch.ones(3)}
    torch.save({"state_dict": state | beside}, tmp_path / "own.ckpt")
    load(str(tmp_path / "own.ckpt"), architecture=ARCHITECTURE)
    assert "ignoring tensors that are not part of the network: projector.weight" in caplog.text


def test_what_may_be_computed_beside_a_backbone_makes_no_head(
    make: Callable[..., Vit], tmp_path: Path
) -> None:
    """A neck, or a matrix without a bias, which may be compared by cosines."""
    backbone = prefixed(make(num_classes=0).state_dict(), "backbone.")
    head = {"head.weight": torch.ones(CLASSES, 64), "head.bias": torch.ones(CLASSES)}
    for beside in (head | {"neck.weight": torch.ones(64)}, {"head.weight": torch.ones(CLASSES, 64)}):
        torch.save({"state_dict": backbone | beside}, tmp_path / "own.ckpt")
        with pytest.raises(ModelError, match="it has no head"):
            load(str(tmp_path / "own.ckpt"), architecture=ARCHITECTURE)


# timm's folders and training script.


def timm_folder(folder: Path, vit: Vit, *, old: bool = False, **more: Any) -> Path:
    """As timm's `save_for_hf` writes it; ``old``: as it was before timm 0.9."""
    labels = ["tench", "chain saw", "church", "golf ball", "parachute"]
    data = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop_pct": 0.75, "interpolation": "bilinear"}
    if vit.patch_embed.proj.in_channels == 1:
        data |= {"mean": (0.4,), "std": (0.2,)}
    args = {name: value for name, value in SHAPES["no class token"].items() if not vit.has_class_token}
    save_for_hf(vit, folder, model_config={"labels": labels, "model_args": args}, safe_serialization="both")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["pretrained_cfg"].update(data)
    config["label_names"] = labels
    if old:
        flat = {**config["pretrained_cfg"], "architecture": config["architecture"], "labels": labels}
        flat |= {"num_classes": CLASSES, "num_features": 64}
        config = flat
    path.write_text(json.dumps(config | more))
    return folder


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("by", ["{}", "local-dir:{}", "{}/", "{}/model.safetensors", "{}/pytorch_model.bin"])
def test_a_timm_folder_says_all(make: Callable[..., Vit], tmp_path: Path, by: str, old: bool) -> None:
    """Architecture, labels, colours and crop come from config.json, for the folder and for a file in it."""
    vit = make()
    folder = timm_folder(tmp_path / "a model", vit, old=old)
    loaded = load(by.format(folder))
    assert same_logits(loaded, vit)
    assert loaded.labels == ("tench", "chain saw", "church", "golf ball", "parachute")
    assert loaded.input.mean == (0.1, 0.2, 0.3)
    assert loaded.input.std == (0.4, 0.5, 0.6)
    assert loaded.input.crop_share == 0.75
    assert loaded.input.interpolation == "bilinear"
    assert loaded.name == ("a model" if "model" not in by[2:] else by[3:].split(".")[0])


def test_the_architecture_named_does_not_hide_config_json(make: Callable[..., Vit], tmp_path: Path) -> None:
    """Both may be given, as long as they say the same."""
    vit = make()
    folder = timm_folder(tmp_path / "ponds", vit)
    loaded = load(str(folder / "model.safetensors"), architecture=f"{ARCHITECTURE}.r160_in1k")
    assert loaded.input.mean == (0.1, 0.2, 0.3)
    assert loaded.labels[4] == "parachute"
    with pytest.raises(ModelError, match="names the architecture test_vit, but --architecture is"):
        load(str(folder), architecture="vit_tiny_patch16_224")


@pytest.mark.parametrize("shape", ["384 px", "averaged patches", "one channel", "registers"])
def test_a_timm_folder_of_another_shape_gives_timms_logits(
    make: Callable[..., Vit], tmp_path: Path, shape: str
) -> None:
    vit = make(**SHAPES[shape])
    loaded = load(str(timm_folder(tmp_path / "ponds", vit)))
    assert same_logits(loaded, vit)
    assert same_logits(loaded, timm.create_model(f"local-dir:{tmp_path / 'ponds'}", pretrained=True).eval())


@pytest.mark.parametrize("size", [(224, 448), (448, 224), (160, 96)])
def test_images_that_are_no_squares_need_a_size(
    make: Callable[..., Vit], tmp_path: Path, size: tuple[int, int]
) -> None:
    """config.json says the grid of 14 x 28 patches; without it, what to write there is said."""
    vit = make(img_size=size)
    torch.save(vit.state_dict(), tmp_path / "wide.pth")
    with pytest.raises(ModelError) as caught:
        load(str(tmp_path / "wide.pth"), architecture=ARCHITECTURE)
    assert "which is not" in str(caught.value)
    assert f"{min(size)} x {max(size)}" in str(caught.value)
    assert '"model_args": {"img_size": [' in str(caught.value)
    config = {"architecture": ARCHITECTURE, "model_args": {"img_size": size}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert same_logits(load(str(tmp_path / "wide.pth")), vit)


def test_timms_training_checkpoints_say_what_they_are(make: Callable[..., Vit], tmp_path: Path) -> None:
    """Architecture, size and colours are in the arguments that timm's script writes beside the weights."""
    vit = make(img_size=(96, 160), global_pool="avg")
    arguments = argparse.Namespace(
        model=ARCHITECTURE,
        img_size=None,
        input_size=[3, 96, 160],
        mean=[0.1, 0.2, 0.3],
        std=[0.4, 0.5, 0.6],
        crop_pct=0.8,
        interpolation="bilinear",
        gp="avg",
        num_classes=CLASSES,
        model_kwargs={},
    )
    content = {"epoch": 3, "arch": ARCHITECTURE, "state_dict": vit.state_dict(), "args": arguments}
    torch.save({**content, "optimizer": {}, "version": 2, "metric": 91.2}, tmp_path / "model_best.pth.tar")
    loaded = load(str(tmp_path / "model_best.pth.tar"))
    assert same_logits(loaded, vit)
    assert loaded.input.mean == (0.1, 0.2, 0.3)
    assert loaded.input.crop_share == 0.8


def test_a_file_of_transformers_without_its_config_is_refused_as_such(tmp_path: Path) -> None:
    name = "vit.embeddings.patch_embeddings.projection.weight"
    save_file({name: torch.zeros(64, 3, 16, 16)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"layout of Hugging Face transformers.*config\.json"):
        load(str(tmp_path))


def test_weights_of_timm_beside_another_config_of_transformers_are_loaded(tmp_path: Path) -> None:
    """What the file holds decides."""
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["ResNetForImageClassification"]}))
    torch.save(state(), tmp_path / "weights.pth")
    assert len(load(str(tmp_path / "weights.pth"), architecture=ARCHITECTURE).labels) == len(
        state()["head.bias"]
    )


CONFIGS: dict[str, tuple[dict[str, Any] | str, str]] = {
    "no JSON": ("{", "is not readable JSON"),
    "a list": ("[]", "not a JSON object"),
    "an unknown architecture": ({"architecture": "vit_enormous"}, "has no architecture 'vit_enormous'"),
    "another width of head": ({"num_classes": 7}, "a head with 5 classes, but .*config.json has 7"),
    "too few labels": ({"label_names": ["a", "b"]}, "2 labels, but .* has 5 classes"),
    "labels that are no text": ({"label_names": [1, 2, 3, 4, 5]}, "label 0 is 1, but must be text"),
    "a mean of 0 to 255": (
        {"mean": [123.7, 116.3, 103.5]},
        r"mean must be for pixel values from 0 to " r"1.*divide",
    ),
    "a std of 0": ({"std": [0, 1, 1]}, "std must be above 0"),
    "two numbers": ({"mean": [0.5, 0.5]}, "mean must be one number or three"),
    "a crop in per cent": ({"crop_pct": 90}, "crop_pct must be above 0 and at most 1"),
    "an unknown interpolation": ({"interpolation": "random"}, "unknown interpolation 'random'; supported"),
    "an unknown crop": ({"crop_mode": "border"}, "unknown crop mode 'border'"),
    "arguments that are none": ({"model_args": {"wings": 2}}, "timm cannot build test_vit"),
}


@pytest.mark.parametrize("form", CONFIGS)
def test_a_config_that_cannot_be_right_is_refused(
    make: Callable[..., Vit], tmp_path: Path, form: str
) -> None:
    """With the value, what is allowed, and an example."""
    changes, words = CONFIGS[form]
    torch.save(make().state_dict(), tmp_path / "model.pth")
    data = ("mean", "std", "crop_pct", "interpolation", "crop_mode")
    text = changes
    if not isinstance(changes, str):
        card = {"input_size": [3, 160, 160], "fixed_input_size": True, "num_classes": CLASSES}
        card |= {name: value for name, value in changes.items() if name in data}
        config = {"architecture": ARCHITECTURE, "pretrained_cfg": card}
        text = json.dumps(config | {name: value for name, value in changes.items() if name not in data})
    (tmp_path / "config.json").write_text(str(text))
    with pytest.raises(ModelError, match=words):
        load(str(tmp_path))


# What is refused.


class Net(nn.Module):
    """A whole network as people pickle it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


def scripted(path: Path) -> None:
    torch.jit.save(torch.jit.trace(Net(), torch.zeros(1, 2)), path)


def legacy_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            file = path.with_name(name)
            file.write_bytes(b"x")
            archive.add(file, name)


def zipped(path: Path, name: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"x")


def cut(path: Path) -> None:
    torch.save({"head.weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-500])


def cut_safetensors(path: Path) -> None:
    save_file({"head.weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-500])


def state() -> dict[str, Tensor]:
    return timm.create_model(ARCHITECTURE, num_classes=CLASSES).state_dict()


def with_value(value: float) -> dict[str, Tensor]:
    tensors = {name: tensor.clone() for name, tensor in state().items()}
    tensors["blocks.1.mlp.fc1.weight"][3, 4] = value
    return tensors


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pickled whole network": (
        lambda path: torch.save(Net(), path),
        "a pickled .*Net object.*torch.load.*weights_only=False.*state_dict",
    ),
    "a pickled network in the older format": (
        lambda path: torch.save(Net(), path, _use_new_zipfile_serialization=False),
        "a pickled network.*state_dict",
    ),
    "a pickled network nested": (
        lambda path: torch.save({"model": Net(), "epoch": 3}, path),
        r"a pickled .*Net object.*\['model'\]",
    ),
    "TorchScript": (scripted, "a TorchScript program.*torch.jit.load.*state_dict"),
    "tar format of old": (legacy_tar, "tar format of PyTorch before 0.1.10.*torch.save"),
    "an empty file": (lambda path: path.write_bytes(b""), "it is empty"),
    "cut short": (cut, "is truncated"),
    "safetensors cut short": (cut_safetensors, "is truncated"),
    "Git LFS pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"),
        "git lfs pull",
    ),
    "a web page": (
        lambda path: path.write_text("\n<!DOCTYPE html><html><body>Sign in</body></html>"),
        "a web page, not weights",
    ),
    "JSON": (lambda path: path.write_text('{"error": "not found"}'), "it is JSON, not weights"),
    "gzip": (lambda path: path.write_bytes(b"\x1f\x8b\x08" + bytes(20)), "compressed with gzip"),
    "numpy archive": (lambda path: np.savez(path.open("wb"), a=np.zeros(3)), "numpy arrays"),
    "another zip": (lambda path: zipped(path, "model/weights.txt"), "a zip archive of 1 files"),
    "TorchServe archive": (lambda path: zipped(path, "MAR-INF/MANIFEST.json"), "TorchServe archive"),
    "HDF5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(20)), "HDF5"),
    "NaN": (lambda path: torch.save(with_value(float("nan")), path), r"blocks\.1\.mlp\.fc1\.weight.*NaN"),
    "Inf": (
        lambda path: torch.save(with_value(float("-inf")), path),
        r"blocks\.1\.mlp\.fc1\.weight.*infinite",
    ),
    "finite, but too large to compute with": (
        lambda path: torch.save(with_value(3e38), path),
        r"scores for noise are NaN or infinite.*blocks\.1\.mlp\.fc1\.weight has the largest",
    ),
    "beyond float32": (
        lambda path: torch.save({name: t.double() * 1e300 for name, t in state().items()}, path),
        "infinite",
    ),
    "quantised": (
        lambda path: torch.save({n: (t * 100).to(torch.int8) for n, t in state().items()}, path),
        "quantised weights",
    ),
    "quantised by torch": (
        lambda path: torch.save(
            torch.ao.quantization.quantize_dynamic(timm.create_model(ARCHITECTURE), {nn.Linear}).state_dict(),
            path,
        ),
        "quantised weights|is not a readable checkpoint",
    ),
    "LoRA": (
        lambda path: torch.save(
            {"base_model.model.blocks.0.attn.qkv.lora_A.weight": torch.zeros(4, 64)}, path
        ),
        "LoRA or PEFT adapter.*merge_and_unload",
    ),
    "LoRA with its base": (
        lambda path: torch.save(
            {f"base_model.model.{n.replace('qkv.', 'qkv.base_layer.')}": t for n, t in state().items()}, path
        ),
        "LoRA or PEFT adapter",
    ),
    "transformers' layout": (
        lambda path: torch.save(
            {"vit.embeddings.patch_embeddings.projection.weight": torch.zeros(64, 3, 16, 16)}, path
        ),
        "layout of Hugging Face transformers",
    ),
    "torchvision's layout": (
        lambda path: torch.save({"conv_proj.weight": torch.zeros(64, 3, 16, 16)}, path),
        "torchvision's layout",
    ),
    "CLIP's own layout": (
        lambda path: torch.save(
            {
                "visual.class_embedding": torch.zeros(64),
                "visual.conv1.weight": torch.zeros(64, 3, 16, 16),
                "visual.proj": torch.zeros(64, 32),
            },
            path,
        ),
        "has features but no classes",
    ),
    "no head": (
        lambda path: torch.save({n: t for n, t in state().items() if not n.startswith("head")}, path),
        "has features but no classes",
    ),
    "another width": (
        lambda path: torch.save(timm.create_model("test_vit2", embed_dim=128).state_dict(), path),
        "a width of 128 and not 64",
    ),
    "other patches": (
        lambda path: torch.save(timm.create_model(ARCHITECTURE, patch_size=8).state_dict(), path),
        "patches of 8 x 8 and not 16 x 16",
    ),
    "another depth": (
        lambda path: torch.save(timm.create_model(ARCHITECTURE, depth=3).state_dict(), path),
        "blocks: 3 and not 6",
    ),
    "four channels": (
        lambda path: torch.save(timm.create_model(ARCHITECTURE, in_chans=4).state_dict(), path),
        "4 input channels",
    ),
    "several networks": (
        lambda path: torch.save(prefixed(state(), "student.") | prefixed(state(), "teacher."), path),
        "contains several networks",
    ),
    "student and teacher": (
        lambda path: torch.save(
            {"student": prefixed(state(), "module.backbone."), "teacher": prefixed(state(), "backbone.")},
            path,
        ),
        r"several networks \(student.module.backbone, teacher.backbone\), but TrimViT serves one: save only",
    ),
    "ZeRO-3": (
        lambda path: torch.save({"module": {n: torch.empty(0) for n in state()}}, path),
        "ZeRO-3",
    ),
    "an optimizer": (
        lambda path: torch.save({"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}, path),
        "no tensors",
    ),
    "a list": (lambda path: torch.save([torch.zeros(3)], path), "not named tensors"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_no_servable_checkpoint_is_refused_in_words(tmp_path: Path, form: str) -> None:
    """In one or two lines that say what it is and what to do."""
    make, words = REFUSED[form]
    path = tmp_path / ("file.safetensors" if "safetensors" in form else "file.pth")
    make(path)
    with pytest.raises(ModelError, match=words) as caught:
        load(str(path), architecture=ARCHITECTURE)
    assert str(caught.value).count("\n") <= 1
    assert len(str(caught.value)) < 600
