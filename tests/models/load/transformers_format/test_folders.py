"""Folders that transformers saved, and repositories of the hub in its format: what is read and what not."""

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file

from models.catalogue import candidates
from models.load import ModelError, hub, load
from models.schedule import UNPRUNED
from tests.models.load.test_model import put_in_cache
from tests.support import transformers_models
from tests.support.transformers_models import LABELS, SIDE, logits_of

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def logits(reference: str | Path, pixels: torch.Tensor, **arguments: Any) -> torch.Tensor:
    with torch.inference_mode():
        return load(str(reference), **arguments).model(pixels, [UNPRUNED] * len(pixels)).logits


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    kept = {key: value for key, value in {**content, **values}.items() if value is not None}
    path.write_text(json.dumps(kept))


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The hub's local cache, empty, and no hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("form", ["shards", "pickle", "pickled shards", "new names", "wrapped"])
@pytest.mark.parametrize("case", ["vit", "dinov2 gated", "clip"])
def test_weights_in_any_form_are_read(case: str, form: str, pixels: torch.Tensor, tmp_path: Path) -> None:
    """Shards with their index, pickles, the names of today's classes, and what DataParallel puts before."""
    model = transformers_models.save(case, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    if form == "shards":
        file.unlink()
        model.save_pretrained(tmp_path, max_shard_size="20KB")
        assert (tmp_path / "model.safetensors.index.json").is_file()
    elif form == "pickle":
        file.unlink()
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    elif form == "pickled shards":
        file.unlink()
        names = sorted(tensors)
        places = {name: f"pytorch_model-0000{1 + index % 2}-of-00002.bin" for index, name in enumerate(names)}
        for place in set(places.values()):
            torch.save({name: tensors[name] for name in names if places[name] == place}, tmp_path / place)
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    elif form == "new names":
        save_file({name: each.contiguous() for name, each in model.state_dict().items()}, file)
    else:
        save_file({f"module.{name}": each for name, each in tensors.items()}, file)
    torch.testing.assert_close(logits(tmp_path, pixels), logits_of(model, pixels), **CLOSE)


def test_a_vision_config_under_its_older_name_is_read(pixels: torch.Tensor, tmp_path: Path) -> None:
    """As the first CLIP repositories have it."""
    model = transformers_models.save("clip", tmp_path)
    own = json.loads((tmp_path / "config.json").read_text())["vision_config"]
    change(tmp_path, vision_config=None, vision_config_dict=own)
    torch.testing.assert_close(logits(tmp_path, pixels), logits_of(model, pixels), **CLOSE)


def test_the_file_in_its_folder_is_as_good(pixels: torch.Tensor, tmp_path: Path) -> None:
    model = transformers_models.save("vit", tmp_path)
    ours = logits(tmp_path / "model.safetensors", pixels)
    torch.testing.assert_close(ours, logits_of(model, pixels), **CLOSE)


def test_half_precision_and_other_widths_and_grids_are_read(tmp_path: Path) -> None:
    """A network of rectangular images in grey."""
    model = transformers_models.make("vit", image_size=[21, 35], num_channels=1, qkv_bias=False)
    model.half().save_pretrained(tmp_path)
    processor = transformers.ViTImageProcessor(
        size={"height": 21, "width": 35}, image_mean=[0.3], image_std=[0.2]
    )
    processor.save_pretrained(tmp_path)
    loaded = load(str(tmp_path))
    assert (loaded.input.size, loaded.input.channels, loaded.model.arch.grid) == ((21, 35), 1, (3, 5))
    assert loaded.input.mean == (0.3,) * 3
    grey = torch.randn(2, 1, 21, 35)
    with torch.inference_mode():
        ours = loaded.model(grey, [UNPRUNED] * 2).logits
        torch.testing.assert_close(ours, model.float()(grey).logits, **CLOSE)


@pytest.mark.parametrize("case", ["dinov2", "dinov2 with registers"])
def test_dinov2_sees_images_of_its_processors_size(case: str, tmp_path: Path) -> None:
    """As in transformers, whose position embedding follows the image."""
    processor = transformers.BitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}
    )
    model = transformers_models.save(case, tmp_path, processor=processor)
    loaded = load(str(tmp_path))
    assert (loaded.input.size, loaded.input.resize, loaded.model.arch.grid) == ((28, 28), 32, (4, 4))
    pixels = torch.randn(2, 3, 28, 28)
    with torch.inference_mode():
        ours = loaded.model(pixels, [UNPRUNED] * 2).logits
    torch.testing.assert_close(ours, logits_of(model, pixels), **CLOSE)


def test_another_input_size_is_timms_resampling(tmp_path: Path) -> None:
    """`--input-size`; as much of a photograph is seen as before."""
    processor = transformers.BitImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 35, "width": 35}
    )
    transformers_models.save("deit", tmp_path, processor=processor)
    usual, wide = load(str(tmp_path)), load(str(tmp_path), input_size=(28, 56))
    assert (wide.input.size, wide.input.resize, wide.model.arch.grid) == ((28, 56), 56, (4, 8))
    usual.model.vit.set_input_size(img_size=(28, 56))
    assert torch.equal(usual.model.vit.pos_embed, wide.model.vit.pos_embed)


@pytest.mark.parametrize(
    ("values", "scores"),
    [
        ({}, "softmax"),
        ({"problem_type": "single_label_classification"}, "softmax"),
        ({"problem_type": "multi_label_classification"}, "sigmoid"),
    ],
)
def test_the_problem_says_what_scores_are(values: dict[str, Any], scores: str, tmp_path: Path) -> None:
    transformers_models.save("vit", tmp_path, **values)
    assert load(str(tmp_path)).scores == scores


def test_a_lone_label_is_a_sigmoid(tmp_path: Path) -> None:
    """As in transformers' pipeline: a softmax over one class is always 1."""
    transformers_models.save("vit", tmp_path, id2label={0: "pond"}, label2id={"pond": 0})
    loaded = load(str(tmp_path))
    assert (loaded.labels, loaded.scores) == (("pond",), "sigmoid")


@pytest.mark.parametrize(
    ("classes", "problem", "scores"),
    [
        (3, None, "softmax"),
        (3, "multi_label_classification", "sigmoid"),
        (1, None, "sigmoid"),
    ],
)
@pytest.mark.parametrize("by", ["folder", "repository"])
def test_networks_of_timm_in_transformers_say_the_same(
    by: str, classes: int, problem: str | None, scores: str, cache: Path, tmp_path: Path
) -> None:
    """TimmWrapper, which `AutoModelForImageClassification` makes of timm's repositories and saves again."""
    config = transformers.TimmWrapperConfig(
        architecture="test_vit",
        pretrained_cfg=timm.get_pretrained_cfg("test_vit").to_dict(),
        id2label={index: f"kind {index}" for index in range(classes)},
        problem_type=problem,
    )
    transformers.TimmWrapperForImageClassification(config).save_pretrained(tmp_path / "model")
    reference = str(tmp_path / "model")
    if by == "repository":
        files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
        put_in_cache(cache, "somebody/ponds", files)
        reference = "somebody/ponds"
    loaded = load(reference)
    assert loaded.scores == scores
    assert loaded.labels == tuple(f"kind {index}" for index in range(classes))
    change(tmp_path / "model", problem_type="regression")
    with pytest.raises(ModelError, match="is for regression"):
        load(str(tmp_path / "model"))


def test_two_default_labels_are_left_out_by_transformers(tmp_path: Path) -> None:
    model = transformers.ViTForImageClassification(
        transformers.ViTConfig(hidden_size=24, num_attention_heads=2, num_hidden_layers=5, image_size=32)
    )
    model.save_pretrained(tmp_path)
    change(tmp_path, id2label=None, label2id=None)
    assert load(str(tmp_path)).labels == ("LABEL_0", "LABEL_1")


def test_labels_given_replace_the_folders(tmp_path: Path) -> None:
    transformers_models.save("vit", tmp_path)
    named = tuple(f"other {index}" for index in range(len(LABELS)))
    assert load(str(tmp_path), labels=named).labels == named
    with pytest.raises(ModelError, match="2 labels"):
        load(str(tmp_path), labels=("one", "two"))


def test_more_classes_than_labels_are_refused(tmp_path: Path) -> None:
    """Rather than named wrongly."""
    transformers_models.save("vit", tmp_path)
    change(tmp_path, id2label={"0": "a", "1": "b"}, label2id=None)
    with pytest.raises(ModelError, match=f"2 labels, but .* has {len(LABELS)} classes"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"architectures": ["ViTModel"]}, "no classifier"),
        ({"architectures": ["CLIPModel"]}, "no classifier"),
        ({"architectures": ["SwinForImageClassification"]}, "cannot prune yet"),
        ({"architectures": ["BertForMaskedLM"]}, "not an image classifier"),
        ({"architectures": None}, "does not name its class"),
        ({"architectures": []}, "does not name its class"),
        ({"hidden_act": "mish"}, "activation 'mish'"),
        ({"hidden_size": 31}, "31 is not a multiple of its 6 heads"),
        ({"head_dim": 8}, "multiple of its 6 heads"),
        ({"hidden_size": "wide"}, "hidden_size must be a whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"patch_size": [7]}, "patch_size must be"),
        ({"layer_norm_eps": -1}, "layer_norm_eps"),
        ({"problem_type": "regression"}, "regression"),
        ({"image_size": 42}, r"position embedding has the shape .* have 37 positions"),
        ({"num_hidden_layers": 4}, "unexpected"),
        ({"num_hidden_layers": 6}, "missing"),
        ({"intermediate_size": 45}, r"has the shape \[44\]"),
        ({"id2label": {"0": [3]}}, "id2label"),
    ],
)
def test_what_cannot_be_served_is_refused_in_words(values: dict[str, Any], said: str, tmp_path: Path) -> None:
    transformers_models.save("vit", tmp_path)
    change(tmp_path, **values)
    with pytest.raises(ModelError, match=said):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"classifier.weight": None, "classifier.bias": None}, "contains no classifier"),
        ({"vit.embeddings.patch_embeddings.projection.weight": None}, "not contain a network in the layout"),
        ({"vit.embeddings.position_embeddings": None}, r"missing \['pos_embed'\]"),
        ({"vit.layernorm.weight": torch.full((30,), torch.nan)}, "vit.layernorm.weight has 30 of 30"),
        ({"vit.something.weight": torch.zeros(3)}, "unexpected"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    tensors: dict[str, torch.Tensor | None], said: str, tmp_path: Path
) -> None:
    transformers_models.save("vit", tmp_path)
    file = tmp_path / "model.safetensors"
    held = {**load_file(file), **tensors}
    save_file({name: each for name, each in held.items() if each is not None}, file)
    with pytest.raises(ModelError, match=said):
        load(str(tmp_path))


def test_a_pickle_that_calls_something_is_refused(tmp_path: Path) -> None:
    """Weights are never unpickled with code."""

    class Calls:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "called",))

    transformers_models.save("vit", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save({**tensors, "more": Calls()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="not a readable checkpoint"):
        load(str(tmp_path))
    assert not (tmp_path / "called").exists()


# The hub.


def in_cache(cache: Path, folder: Path, repository: str = "somebody/ponds") -> None:
    put_in_cache(cache, repository, {path.name: path.read_bytes() for path in folder.iterdir()})


@pytest.mark.parametrize("reference", ["somebody/ponds", "hf-hub:somebody/ponds"])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_repository_in_the_cache_is_served_offline(
    cache: Path, reference: str, sharded: bool, pixels: torch.Tensor, tmp_path: Path
) -> None:
    """Under the hub's name for it, with its labels."""
    model = transformers_models.save("vit", tmp_path / "saved")
    if sharded:
        (tmp_path / "saved" / "model.safetensors").unlink()
        model.save_pretrained(tmp_path / "saved", max_shard_size="20KB")
    in_cache(cache, tmp_path / "saved")
    loaded = load(reference)
    assert (loaded.name, loaded.labels) == ("hf-hub:somebody/ponds", LABELS)
    with torch.inference_mode():
        ours = loaded.model(pixels, [UNPRUNED] * 2).logits
    torch.testing.assert_close(ours, logits_of(model, pixels), **CLOSE)


def test_a_repository_without_weights_says_what_to_do(cache: Path, tmp_path: Path) -> None:
    transformers_models.save("vit", tmp_path / "saved")
    (tmp_path / "saved" / "model.safetensors").unlink()
    in_cache(cache, tmp_path / "saved")
    with pytest.raises(ModelError, match=r"somebody/ponds could not be loaded: .*--model /path/to/folder"):
        load("somebody/ponds")


def test_what_cannot_be_served_is_refused_before_its_weights_are_downloaded(
    cache: Path, tmp_path: Path
) -> None:
    transformers_models.save("vit", tmp_path / "saved")
    change(tmp_path / "saved", architectures=["SwinForImageClassification"])
    (tmp_path / "saved" / "model.safetensors").unlink()
    in_cache(cache, tmp_path / "saved")
    with pytest.raises(ModelError, match="SwinForImageClassification"):
        load("somebody/ponds")


def test_cached_repositories_are_listed(cache: Path, tmp_path: Path) -> None:
    """`trimvit models` knows them, and passes over what is not served."""
    transformers_models.save("siglip", tmp_path / "saved")
    in_cache(cache, tmp_path / "saved")
    change(tmp_path / "saved", architectures=["SiglipModel"])
    in_cache(cache, tmp_path / "saved", "somebody/features")
    (found,) = [each for each in candidates() if each.source == "cached"]
    entry = found.entry()
    assert entry is not None
    assert (entry.reference, entry.classes, entry.arch.grid) == ("hf-hub:somebody/ponds", 11, (5, 5))


@pytest.fixture
def silence() -> Iterator[threading.Event]:
    """Set at the end, so that whoever waits for an answer goes home."""
    event = threading.Event()
    yield event
    event.set()


def test_a_hub_that_is_silent_is_given_up_once(
    cache: Path,
    silence: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """However long its client would wait, for however many addresses, formats and files."""

    class Session:
        def head(self, *_: object, **__: object) -> None:
            silence.wait()

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_ANSWERS_S", 0.05)
    monkeypatch.setattr(hub, "get_session", Session)
    with caplog.at_level(logging.WARNING), pytest.raises(ModelError, match="could not be loaded"):
        load("somebody/ponds")
    assert caplog.text.count("does not respond") == 1
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
