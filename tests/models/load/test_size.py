"""What weights take, before anything of them is loaded."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.load import ModelError
from models.load.size import float32_bytes


def test_half_precision_counts_as_float32(tmp_path: Path) -> None:
    """The network is built in float32."""
    path = tmp_path / "half.safetensors"
    save_file({"a": torch.zeros(3, 5, dtype=torch.float16), "b": torch.zeros(7)}, path, {"card": "x"})
    assert float32_bytes(str(path)) == 4 * (15 + 7)


def test_folders_and_shards(tmp_path: Path) -> None:
    for number in (1, 2):
        save_file({f"a{number}": torch.zeros(11 * number)}, tmp_path / f"part-{number}.safetensors")
    index = {"weight_map": {"a1": "part-1.safetensors", "a2": "part-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert float32_bytes(str(tmp_path)) == 4 * 33


def test_of_other_files_the_size(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"a": torch.zeros(1000)}, path)
    assert float32_bytes(str(path)) == path.stat().st_size


def test_a_name_of_timms_without_its_weights() -> None:
    import timm

    network = timm.create_model("vit_tiny_patch16_224")
    assert float32_bytes("vit_tiny_patch16_224") == 4 * sum(each.numel() for each in network.parameters())


def test_what_is_not_there_is_refused_and_what_is_broken_is_left_to_the_reader(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the file .* does not exist"):
        float32_bytes(str(tmp_path / "none.safetensors"))
    (tmp_path / "broken.safetensors").write_bytes(b"\x05\0\0\0\0\0\0\0{nope")
    assert float32_bytes(str(tmp_path / "broken.safetensors")) == 0
    (tmp_path / "short.safetensors").write_bytes(b"\x05\0")
    assert float32_bytes(str(tmp_path / "short.safetensors")) == 0


def test_of_what_is_not_in_the_hubs_cache_nothing_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert float32_bytes("hf-hub:owner/none") is None
