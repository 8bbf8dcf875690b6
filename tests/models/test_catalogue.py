"""What can be served here: the cache is read, not the network, and no weights."""

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm

from models.bundled import BUNDLED_MODELS
from models.catalogue import Candidate, candidates
from models.clusters import add_clusters
from models.load import Card, input_spec_of, load, save
from models.paca import Paca
from models.schedule import Stages, macs
from models.static_attention import make_static
from models.token_pool import pooling_blocks
from tests.system.small_network import save_small_network


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The hub's local cache, empty."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def store(cache: Path, hub_id: str, **files: str) -> None:
    """Put a repository into the cache as huggingface_hub lays it out."""
    folder = cache / f"models--{hub_id.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir()
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    for number, (name, content) in enumerate(files.items()):
        blob = folder / "blobs" / str(number)
        blob.write_text(content)
        (snapshot / name.replace("_json", ".json").replace("_safetensors", ".safetensors")).symlink_to(blob)


def test_cached_weights_are_found_under_the_name_that_serves_them(cache: Path) -> None:
    """timm's by its own name, also where the hub has another; others as hf-hub:OWNER/NAME. What has no
    weights, or is no model of timm's, is none."""
    clip, on_hub = "vit_base_patch16_clip_quickgelu_224.openai", "timm/vit_base_patch16_clip_224.openai"
    assert timm.get_pretrained_cfg(clip).hf_hub_id == on_hub
    own = {"architecture": "vit_tiny_patch16_224", "num_classes": 7, "pretrained_cfg": {"num_classes": 7}}
    store(cache, "timm/deit_tiny_patch16_224.fb_in1k", model_safetensors="", config_json="{}")
    store(cache, on_hub, open_clip_model_safetensors="")
    store(cache, "somebody/birds", model_safetensors="", config_json=json.dumps(own))
    store(cache, "somebody/words", model_safetensors="", config_json='{"architectures": ["Bert"]}')
    store(cache, "somebody/empty", config_json=json.dumps(own))
    found = {candidate.reference: candidate for candidate in candidates()}
    assert clip in found
    assert "deit_tiny_patch16_224.fb_in1k" in found
    assert {name for name in found if ":" in name} == {"hf-hub:somebody/birds"}
    birds = found["hf-hub:somebody/birds"].entry()
    assert birds is not None
    assert (birds.classes, birds.arch.patches, birds.source) == (7, 196, "cached")


def test_without_a_cache_the_bundled_models_are_all() -> None:
    """And with patterns, timm's models are chosen from."""
    bundled = candidates()
    assert [(each.reference, each.source) for each in bundled] == [
        (name, "bundled") for name in BUNDLED_MODELS
    ]
    assert [each.reference for each in candidates(["trimvit*"])] == list(BUNDLED_MODELS)
    tiny = candidates(["deit_tiny_patch16_224*", "deit_tiny_dist*"])
    assert [each.reference for each in tiny] == [
        "deit_tiny_distilled_patch16_224.fb_in1k",
        "deit_tiny_patch16_224.fb_in1k",
    ]
    assert {each.source for each in tiny} == {"hub"}


def test_what_cannot_be_served_has_no_entry() -> None:
    """Blocks that cannot be pruned, and features without classes."""
    parallel, features = candidates(["vit_pwee_*", "vit_small_patch14_dinov2.*"])
    assert isinstance(parallel, Candidate)
    assert parallel.entry() is None
    assert features.entry() is None


def test_a_distilled_models_second_head_is_counted_in_cost_only() -> None:
    """It has a thousand classes and two heads."""
    (distilled,) = candidates(["deit_tiny_distilled_*"])
    entry = distilled.entry()
    assert entry is not None
    assert (entry.classes, entry.arch.classes, entry.image_size) == (1000, 2000, (224, 224))


def test_clusters_and_static_attention_are_counted_in_cost(tmp_path: Path) -> None:
    """A checkpoint whose blocks attend to clusters, or have static attention, costs other than the same
    without."""
    arguments = {"img_size": 64, "embed_dim": 66, "depth": 3, "num_heads": 6, "num_classes": 5}
    costs = []
    for paca, static in ((None, 0), (Paca((1,), 3), 0), (None, 1)):
        vit = timm.create_model("vit_tiny_patch16_224", **arguments)
        if paca is not None:
            add_clusters(tuple(vit.blocks), paca, 66)
        make_static(vit, static)
        path = tmp_path / f"{len(costs)}.safetensors"
        card = Card(
            architecture="vit_tiny_patch16_224",
            labels=("a", "b", "c", "d", "e"),
            input=input_spec_of(vit),
            stages=Stages((2,)),
            model_args=arguments,
            paca=paca,
            static_blocks=static,
        )
        save(path, vit, card)
        (candidate,) = candidates([str(path)])
        entry = candidate.entry()
        assert entry is not None
        assert entry.arch == load(str(path)).model.arch
        costs.append(macs(entry.arch, entry.stages, (16,)))
    hidden, tokens, keys = 16, 17, 4
    of_clusters = (
        tokens * hidden * (66 + 3) + 16 * 3 * 66 + 2 * (tokens + keys) * 66**2 + 2 * tokens * keys * 66
    )
    of_block = 4 * tokens * 66**2 + 2 * tokens**2 * 66
    assert costs[1] - costs[0] == of_clusters - of_block
    assert costs[2] - costs[0] == -of_block // 2


def test_a_network_for_images_of_any_size_is_listed(tmp_path: Path) -> None:
    """It is served at its own size, and so it is listed: timm's test_vit, DINOv3."""
    vit = timm.create_model("test_vit", img_size=64, num_classes=5)
    assert vit.dynamic_img_size
    card = Card(
        architecture="test_vit",
        labels=("a", "b", "c", "d", "e"),
        input=input_spec_of(vit),
        stages=Stages((2,)),
        model_args={"img_size": 64, "num_classes": 5},
    )
    save(tmp_path / "any.safetensors", vit, card)
    (candidate,) = candidates([str(tmp_path / "any.safetensors")])
    entry = candidate.entry()
    assert entry is not None
    assert (entry.image_size, entry.arch) == ((64, 64), load(str(tmp_path / "any.safetensors")).model.arch)
    (candidate,) = candidates(["test_vit.*"])
    assert candidate.entry() is not None


def test_queries_change_nothing_that_is_listed(tmp_path: Path) -> None:
    """A checkpoint whose tokens can be pooled is listed with what it costs unpruned."""
    path = tmp_path / "small.safetensors"
    save_small_network(path)
    (candidate,) = candidates([str(path)])
    entry = candidate.entry()
    assert entry is not None
    assert entry.arch == load(str(path)).model.arch
    assert pooling_blocks(tuple(candidate.build().blocks)) == (1, 2)
