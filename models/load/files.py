"""Read a weights file. The format is detected from the content rather than the name. For other files, the
error says what they are: a Git LFS pointer, a web page, an archive, another program's format."""

import json
import pickle
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from models.load.errors import ModelError, first_line
from models.load.pickles import StandIn, UnsafePickleError, load_pickle

_INDEX_ENDING = ".index.json"
_MOST_INDEX_BYTES = 64 << 20
_HEAD_BYTES = 4096

# First bytes of unsupported formats -> what the file is and what to do.
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs.github.com/spec/",
        "is a Git LFS pointer, not the weights: run `git lfs install` and `git lfs pull` in its repository, "
        "or download the file itself",
    ),
    (b"\x1f\x8b", "is compressed with gzip: unpack it first (gunzip, or tar -xzf)"),
    (b"BZh", "is compressed with bzip2: unpack it first (bunzip2, or tar -xjf)"),
    (b"\xfd7zXZ\x00", "is compressed with xz: unpack it first (unxz, or tar -xJf)"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd: unpack it first (unzstd)"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive: unpack it first"),
    (b"Rar!", "is a RAR archive: unpack it first"),
    (b"\x89HDF", "is an HDF5 file (Keras or TensorFlow); TrimViT loads PyTorch weights of timm models"),
    (b"GGUF", "is a GGUF file; TrimViT loads PyTorch weights of timm models"),
    (b"\x93NUMPY", "is a numpy array; TrimViT loads PyTorch weights of timm models"),
)


def read_file(path: Path) -> object:
    """Read a weights file: a state dict, or whatever a training script saved around it. For an
    ``*.index.json``, read all the shards that it lists.

    Raises ModelError for any other file; the message says what it is.
    """
    head = _head(path)
    if path.name.endswith(_INDEX_ENDING):
        return _read_shards(path)
    _refuse_other_kinds(path, head)
    if _is_safetensors(path, head):
        return _read_safetensors(path)
    if zipfile.is_zipfile(path):
        _refuse_other_archives(path)
    elif head.startswith(b"PK\x03\x04"):
        raise _unreadable(path, "it is truncated (a zip archive without its end)")
    return _read_pickle(path)


def is_safetensors(path: Path) -> bool:
    """Whether a file is in the safetensors format, by its name or its first bytes. Raises ModelError if it
    cannot be read."""
    return _is_safetensors(path, _head(path))


def how_to_export(path: Path, load: str) -> str:
    """Return advice with a Python command that saves only the weights. ``load`` is the Python expression that
    loads the model."""
    return (
        "If you trust the file, save only its weights: "
        f'python -c "import torch; model = {load}; '
        f"torch.save(model.state_dict(), '{path.stem}-weights.pth')\""
    )


def _unreadable(path: Path, why: str) -> ModelError:
    return ModelError(f"{path} is not a readable checkpoint: {why}")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except FileNotFoundError as error:
        raise ModelError(f"the file {str(path)!r} does not exist") from error
    except OSError as error:
        why = (error.strerror or first_line(error)).lower()
        raise _unreadable(path, f"it cannot be opened ({why})") from error
    if not head:
        raise _unreadable(path, "it is empty (0 bytes); copy or download it again")
    return head


def _refuse_other_kinds(path: Path, head: bytes) -> None:
    for beginning, what in _BEGINNINGS:
        if head.startswith(beginning):
            raise _unreadable(path, f"it {what}")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<?xml", b"<!--")):
        raise _unreadable(
            path,
            "it is a web page, not weights: download the file itself (on the hub from "
            "/resolve/main/, not /blob/main/; curl needs -fL)",
        )
    if text.startswith((b"{", b"[")) and not _is_safetensors(path, head):
        raise _unreadable(path, "it is JSON, not weights; pass the file of weights or its folder")
    if path.suffix.lower() == ".onnx":
        raise _unreadable(path, "it is an ONNX file; TrimViT loads PyTorch weights of timm models")
    if path.suffix.lower() in (".pb", ".tflite", ".engine", ".plan"):
        raise _unreadable(path, "it is another runtime's model; TrimViT loads PyTorch weights of timm models")


def _is_safetensors(path: Path, head: bytes) -> bool:
    if path.suffix.lower() == ".safetensors":
        return True
    # The file starts with the length of a JSON header (8 bytes), then the header. Pickles and zip files have
    # no { at that position.
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= 100_000_000


def _read_safetensors(path: Path) -> object:
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise of_safetensors(path, error) from error


def of_safetensors(path: Path, error: Exception) -> ModelError:
    """Return the ModelError for a file that the safetensors library cannot read."""
    why = first_line(error)
    if "incomplete" in why.lower() or "InvalidHeaderLength" in why:
        why = f"it is truncated ({path.stat().st_size} bytes); copy or download it again"
    elif "header" in why.lower():
        why = f"its safetensors header is invalid ({why}); copy or download it again"
    return _unreadable(path, why)


def _refuse_other_archives(path: Path) -> None:
    """Raise ModelError for a zip archive that torch.save did not write. Its archives contain a data.pkl and
    no code."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise _unreadable(path, f"it is a corrupt archive ({first_line(error)})") from error
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        raise _unreadable(
            path,
            "it is a TorchScript program. " + how_to_export(path, f"torch.jit.load('{path}', 'cpu')"),
        )
    if any(name.endswith("data.pkl") for name in names):
        return
    if any("exported_program" in name or "serialized_" in name for name in names):
        what = "an exported program (torch.export)"
    elif any(name.endswith(".npy") for name in names):
        what = "an archive of numpy arrays (.npz)"
    elif any(name.startswith("MAR-INF/") for name in names):
        what = "a TorchServe archive (.mar): unpack it and pass the weights file"
    else:
        what = f"a zip archive of {len(names)} files: unpack it and pass the weights file"
    raise _unreadable(path, f"it is {what}; TrimViT loads state dicts saved with torch.save or safetensors")


def _read_pickle(path: Path) -> object:
    if tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            legacy = "pickle" in archive.getnames()
        if not legacy:
            raise _unreadable(
                path, "it is a tar archive: unpack it first (tar -xf) and pass the weights file"
            )
        raise _unreadable(
            path,
            "it is in the tar format of PyTorch before 0.1.10. If you trust the file, save it again: "
            f"python -c \"import torch; content = torch.load('{path}', weights_only=False); "
            f"torch.save(content, '{path.stem}-new.pth')\"",
        )
    try:
        content = load_pickle(path)
    except UnsafePickleError as error:
        raise _unreadable(path, f"{error}; get the weights from a trusted source") from error
    except pickle.UnpicklingError as error:
        raise _unreadable(path, _of_pickle(error)) from error
    except Exception as error:
        # torch raises many kinds of errors for bytes that are not a checkpoint.
        why = first_line(error)
        cut = isinstance(error, EOFError) or "PytorchStreamReader" in why or "unexpected EOF" in why
        raise _unreadable(
            path, "it is truncated or corrupt; copy or download it again" if cut else why
        ) from error
    if isinstance(content, StandIn):
        raise whole_model(path, content)
    return content


def whole_model(path: Path, content: StandIn, where: str = "") -> ModelError:
    """Return the ModelError for a network that was pickled as a whole object. ``where`` is its key path in
    the file, with dots."""
    kind = f"{type(content).__module__}.{type(content).__qualname__}"
    place = "".join(f"[{key!r}]" for key in where.split(".") if key)
    return _unreadable(
        path,
        f"it is a pickled {kind} object, which only its own code can load. "
        + how_to_export(path, f"torch.load('{path}', 'cpu', weights_only=False){place}"),
    )


def _of_pickle(error: pickle.UnpicklingError) -> str:
    """Extract the reason from torch's error, without its many lines of advice."""
    text = str(error)
    if "Only persistent_load of storage" in text:
        return (
            "it holds a pickled network, which only its own code can load. If you trust it, save only its "
            "weights: torch.save(model.state_dict(), 'weights.pth')"
        )
    if "GLOBAL" in text and "blocked" in text:
        name = text.partition("GLOBAL ")[2].split()[0]
        return f"it calls {name}, which no checkpoint needs; get the weights from a trusted source"
    lines = [line.strip() for line in text.splitlines() if "WeightsUnpickler error" in line]
    return (lines[0] if lines else first_line(error))[:300]


def shards_in(index: Path) -> list[str]:
    """Return the file names listed in an index, sorted. Raises ModelError if the file is not an index, or if
    a name points outside its folder."""
    return sorted(set(_weight_map(index).values()))


def _weight_map(index: Path) -> dict[str, str]:
    """Map each tensor name to the name of its file."""
    content = read_json(index)
    shards = content.get("weight_map") if isinstance(content, Mapping) else None
    if not isinstance(shards, Mapping) or not shards:
        raise _unreadable(index, 'it is not an index of shards (it has no "weight_map")')
    for name in map(str, shards.values()):
        if Path(name).name != name or name.endswith(_INDEX_ENDING):
            raise _unreadable(index, f"it names a shard outside its folder: {name!r}")
    return {str(tensor): str(name) for tensor, name in shards.items()}


def _read_shards(index: Path) -> object:
    """Read the tensors from all shards listed in an index, as Hugging Face's libraries write it."""
    shards = _weight_map(index)
    tensors: dict[str, object] = {}
    for name in sorted(set(shards.values())):
        shard = index.parent / name
        if not shard.is_file():
            raise _unreadable(index, f"the shard {name} is missing; download all shards that it lists")
        held = read_file(shard)
        if not isinstance(held, Mapping):
            raise _unreadable(shard, "it contains no named tensors")
        tensors |= held
    missing = next((name for name in shards if name not in tensors), None)
    if missing is not None:
        raise _unreadable(index, f"no shard has the tensor {missing!r} that it lists")
    return tensors


def read_json(path: Path) -> object:
    """Read a JSON file in UTF-8, with or without a byte-order mark. Raises ModelError if it is not valid or
    is longer than 64 MiB."""
    try:
        if path.stat().st_size > _MOST_INDEX_BYTES:
            raise _unreadable(path, "it is too long for such a JSON file")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise _unreadable(path, f"it cannot be opened ({error.strerror or first_line(error)})") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path} is not readable JSON: {first_line(error)}") from error
