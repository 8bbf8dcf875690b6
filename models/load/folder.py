"""Find the weights file in a folder, by the names that timm and Hugging Face's libraries use. For other
folders, the error says what they contain."""

from collections.abc import Iterable
from pathlib import Path

from models.load.errors import ModelError
from models.load.reference import WEIGHT_ENDINGS

# In timm's order of preference, with the indices of sharded checkpoints.
_USUAL = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model.pth", "model.pth"),
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"),
    *("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth"),
)
_NOT_WEIGHTS = ("optimizer", "scheduler", "scaler", "rng_state", "training_args", "random_states", "resume")
_DEEPEST = 4


def file_at(path: Path) -> Path:
    """Return the weights file: the path itself, or the file in that folder. Raises as `weights_in` does."""
    return weights_in(path) if path.is_dir() else path


def weights_in(folder: Path) -> Path:
    """Return the weights file in a folder. Raises ModelError if there is none, or if there are several and it
    is ambiguous which one to load."""
    names = _names(folder)
    if "adapter_config.json" in names or any(name.startswith("adapter_model.") for name in names):
        raise ModelError(
            f"{folder} contains a LoRA or PEFT adapter, not the weights of a network; merge it first: "
            "model = model.merge_and_unload(); torch.save(model.state_dict(), 'merged.pth')"
        )
    if any(name.endswith(".distcp") for name in names):
        raise ModelError(
            f"{folder} is a distributed checkpoint of PyTorch; convert it to a single file first: "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} weights.pth"
        )
    usual = next((name for name in _USUAL if name in names), None)
    if usual is not None:
        return folder / usual
    found = [
        name for name in names if name.endswith(WEIGHT_ENDINGS) and not name.startswith(_NOT_WEIGHTS)
    ] or [name for name in names if name.endswith(".index.json")]
    if len(found) == 1:
        return folder / found[0]
    if found:
        raise ModelError(
            f"{folder} contains several checkpoints ({_few(found)}); pass the path of one, "
            f"for example {folder / found[0]}"
        )
    raise ModelError(_nothing_in(folder, names))


def _names(folder: Path) -> list[str]:
    try:
        return sorted(
            path.name
            for path in folder.iterdir()
            if not path.name.startswith(".") and (path.is_file() or path.is_symlink())
        )
    except OSError as error:
        raise ModelError(
            f"the folder {folder} cannot be read: {(error.strerror or str(error)).lower()}"
        ) from error


def _nothing_in(folder: Path, names: list[str]) -> str:
    deeper = _deeper(folder)
    if deeper is not None:
        return f"{folder} contains no weights, but a folder in it does: pass {deeper}"
    if "saved_model.pb" in names:
        return f"{folder} is a TensorFlow model; TrimViT loads PyTorch weights of timm models"
    held = f"it contains {_few(names)}" if names else "it is empty"
    return (
        f"the folder {folder} contains no weights ({held}); allowed are files that end in "
        f"{', '.join(WEIGHT_ENDINGS)}, for example model.safetensors"
    )


def _deeper(folder: Path) -> Path | None:
    """Return the nearest subfolder that contains weights, up to 4 levels down; None without any."""
    level = [folder]
    for _ in range(_DEEPEST):
        level = [below for each in level for below in _folders_in(each)]
        for each in level:
            if any(path.name.endswith(WEIGHT_ENDINGS) and path.is_file() for path in each.iterdir()):
                return each
    return None


def _folders_in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and list(path.iterdir()) is not None)
    except OSError:
        return []


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
