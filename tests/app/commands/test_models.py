"""`trimvit models`: what can be served here, and what it costs."""

import json
from pathlib import Path

import huggingface_hub.constants
import pytest

from models.load import load
from models.schedule import keep_counts, macs
from tests.app.commands.conftest import Trimvit
from tests.system.small_network import save_clustered_network, save_static_network


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The hub's local cache, with nothing in it."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return cache


def test_a_file_costs_what_its_loaded_model_does(trimvit: Trimvit, tiny_model: Path) -> None:
    """Counted without its weights, at the ratios that were asked for."""
    code, out, err = trimvit("models", tiny_model, "--json", "--keep-ratios", "1,0.5")
    line = json.loads(out)
    assert (code, err) == (0, "")
    arch, stages = (loaded := load(str(tiny_model)).model).arch, loaded.stages
    expected = {ratio: macs(arch, stages, keep_counts(6, float(ratio), 2)) / 1e9 for ratio in ("1", "0.5")}
    assert line.pop("gmacs") == pytest.approx(expected, abs=5e-5)
    assert line == {
        "model": str(tiny_model),
        "weights": "file",
        "image_size": [32, 48],
        "classes": 5,
        "patches": 6,
        "grid": [2, 3],
        "stages": [1, 3],
        "static_blocks": [],
        "cluster_blocks": [],
    }


def test_it_says_which_blocks_have_other_attention(trimvit: Trimvit, tmp_path: Path) -> None:
    """Of checkpoints that have static attention or attend to clusters; counted from 1."""
    for save, static, clusters in (
        (save_static_network, [1, 2], []),
        (save_clustered_network, [], [1, 4]),
    ):
        save(tmp_path / "one.safetensors")
        _, out, _ = trimvit("models", tmp_path / "one.safetensors", "--json")
        line = json.loads(out)
        assert (line["static_blocks"], line["cluster_blocks"]) == (static, clusters)


def test_without_a_pattern_the_bundled_models_are_there(trimvit: Trimvit) -> None:
    """And, with nothing in the cache, only they."""
    code, out, _ = trimvit("models")
    head, row, other = out.splitlines()
    assert code == 0
    assert head.split()[:5] == ["model", "weights", "input", "classes", "patches"]
    assert head.endswith("GMACs at 1  GMACs at 0.7  GMACs at 0.5  GMACs at 0.3")
    cells = row.split()
    assert cells == [
        "trimvit-small-109",
        "bundled",
        "224",
        "x",
        "224",
        "109",
        "256",
        "6.12",
        "3.96",
        "3.01",
        "2.38",
    ]
    assert other.split() == ["trimvit-small-imagenette", *cells[1:5], "10", *cells[6:]]


def test_patterns_choose_from_timms_models(trimvit: Trimvit) -> None:
    """Those that can be pruned and that answer with classes. DeiT-S is 4.6 GMACs (arXiv 2012.12877)."""
    code, out, _ = trimvit("models", "deit_small_patch16*", "swin_tiny*", "vit_small_patch14_dinov2*")
    rows = [line.split() for line in out.splitlines()[1:]]
    assert code == 0
    assert [row[0] for row in rows] == ["deit_small_patch16_224.fb_in1k"]
    assert " ".join(rows[0][1:]) == "hub 224 x 224 1000 196 4.60 3.00 2.28 1.80"


def test_no_model_and_no_file_exit_with_1(trimvit: Trimvit, tmp_path: Path) -> None:
    """In a line."""
    assert trimvit("models", "swin*") == (
        1,
        "",
        "trimvit models: no model that can be pruned matches swin*\n",
    )
    code, out, err = trimvit("models", tmp_path / "gone.safetensors")
    assert (code, out) == (1, "")
    assert "does not exist" in err
