"""Folders as they come from timm, the hub, training scripts and other libraries."""

from pathlib import Path

import pytest

from models.load.errors import ModelError
from models.load.folder import weights_in


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors", "config.json", "README.md"], "model.safetensors"),
        (["pytorch_model.bin", "model.safetensors"], "model.safetensors"),
        (["model.safetensors", "resume.pt", "log.jsonl"], "model.safetensors"),
        (["pytorch_model.bin", "optimizer.pt", "scheduler.pt", "training_args.bin"], "pytorch_model.bin"),
        (
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors"],
            "model.safetensors.index.json",
        ),
        (["best.pth.tar", "log.txt"], "best.pth.tar"),
        (["last.ckpt", ".last.ckpt.part"], "last.ckpt"),
    ],
)
def test_the_weights_are_found(tmp_path: Path, names: list[str], chosen: str) -> None:
    assert weights_in(touch(tmp_path, *names)) == tmp_path / chosen


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], r"contains no weights \(it is empty\)"),
        (["log.txt"], r"contains no weights \(it contains log\.txt\).*for example model\.safetensors"),
        (["a.pth", "b.pth"], r"several checkpoints \(a\.pth, b\.pth\); pass the path of one"),
        (["checkpoints/last.ckpt"], "a folder in it does: pass .*/checkpoints"),
        (["refs/main", "snapshots/abc/model.safetensors"], "pass .*/snapshots/abc"),
        (["adapter_config.json", "adapter_model.safetensors"], "LoRA or PEFT adapter"),
        (["__0_0.distcp"], "dcp_to_torch"),
        (["saved_model.pb", "variables/a"], "TensorFlow"),
    ],
)
def test_a_folder_without_one_set_of_weights_is_refused(tmp_path: Path, names: list[str], words: str) -> None:
    """With what it holds and what to pass."""
    with pytest.raises(ModelError, match=words):
        weights_in(touch(tmp_path, *names))
