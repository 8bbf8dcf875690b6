"""Resolve a model reference to the path of a file or folder, or to a timm name.

A reference that exists as a path is a path. Otherwise it is a timm name, or a repository on the Hugging Face
hub in any of the spellings that the hub's pages show.
"""

import logging
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import unquote, urlsplit

import timm
from huggingface_hub import constants

from models.bundled import BUNDLED_MODEL, BUNDLED_MODELS, WEIGHTS_FOLDER
from models.load.errors import ModelError, first_line

log = logging.getLogger(__name__)


WEIGHT_ENDINGS = (".safetensors", ".pth.tar", ".pth", ".pt", ".bin", ".ckpt")
_OTHER_FILE_ENDINGS = (".json", ".npz", ".onnx", ".h5", ".tar", ".gz", ".zip", ".mar")
_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def located(reference: str) -> Path | str:
    """Resolve a reference to an existing path, or to a name for timm's `create_model`: a timm name or
    ``hf-hub:owner/name``.

    Raises ModelError for a path that does not exist, a name that timm does not know, and a URL that is not a
    model page on the hub.
    """
    text = reference.strip()
    if not text:
        raise ModelError(f"no model is given; pass a name or a path, for example {BUNDLED_MODEL}")
    if text in BUNDLED_MODELS:
        return WEIGHTS_FOLDER / f"{text}.safetensors"
    if text.startswith("file://"):
        return existing(unquote(urlsplit(text).path))
    if text.lower().startswith("local-dir:"):
        return existing(text.partition(":")[2])
    path = _path(text)
    if _is_there(path):
        return path if path.is_file() or not _means_timms(text, path) else text
    if re.match(r"https?://", text) or text.split("/")[0] in _HUB_HOSTS:
        return _of_url(text)
    if text.startswith("hf://"):
        return _of_hub(text.removeprefix("hf://"), reference)
    if re.match(r"hf[-_]hub:", text, re.IGNORECASE):
        return _of_hub(text.partition(":")[2], reference)
    if _looks_like_a_path(text):
        return existing(text)
    if text.startswith("timm/") and timm.is_model(text.removeprefix("timm/").split(".")[0]):
        return known(text.removeprefix("timm/"))
    if _REPOSITORY.fullmatch(text):
        return f"hf-hub:{text}"
    return known(text)


def existing(text: str) -> Path:
    """Return the path of a file or folder. Raises ModelError if it does not exist; the message suggests
    similar names."""
    path = _path(text)
    if _is_there(path):
        return path
    target = _link(path)
    if target is not None:
        raise ModelError(f"{text} is a symbolic link to {target}, which does not exist")
    kind = "file" if text.endswith((*WEIGHT_ENDINGS, *_OTHER_FILE_ENDINGS)) else "file or folder"
    near, hint = _near(path.name, _names_in(path.parent)), ""
    if near:
        hint = f" Similar: {', '.join(str(path.parent / name) for name in near)}."
    elif not _is_there(path.parent):
        hint = f" The folder {str(path.parent)!r} does not exist either."
    shown = text if len(text) <= 200 else f"{text[:197]}..."
    raise ModelError(f"the {kind} {shown!r} does not exist.{hint}")


def known(name: str) -> str:
    """Check a timm name and its weight tag, and return it. Raises ModelError if timm does not know it; the
    message suggests similar names."""
    stem, _, tag = name.partition(".")
    if not timm.is_model(stem):
        near = get_close_matches(stem.lower(), timm.list_models(), n=5) or timm.list_models(f"*{stem}*")[:5]
        hint = f" Similar names: {', '.join(near)}." if near else ""
        raise ModelError(f"timm has no model {name!r}.{hint}")
    if tag:
        try:
            timm.get_pretrained_cfg(name)
        except RuntimeError as error:
            tags = [each.partition(".")[2] for each in timm.list_models(f"{stem}.*", pretrained=True)]
            near = get_close_matches(tag, tags, n=3, cutoff=0.4) or tags[:3]
            hint = f" Available weights: {', '.join(f'{stem}.{each}' for each in near)}." if near else ""
            raise ModelError(
                f"the weights of {name} could not be loaded: timm has no weights {tag!r} of {stem}.{hint}"
            ) from error
    return name


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~user, if there is no such user
        return Path(text)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError) as error:
        if isinstance(error, PermissionError):
            raise ModelError(f"{path} cannot be read: permission denied") from error
        return False  # too long for a path, or with a character that paths cannot have


def _link(path: Path) -> Path | None:
    try:
        return path.readlink()
    except (OSError, ValueError):
        return None


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(each.name for each in folder.iterdir())
    except (OSError, ValueError):
        return []


def _near(name: str, names: Iterable[str]) -> list[str]:
    return get_close_matches(name, list(names), n=3)


def _means_timms(text: str, folder: Path) -> bool:
    """Whether ``text`` means a timm model, although a folder has the same name. This is so if the folder
    contains no model. Logs the decision."""
    if "/" in text or not timm.is_model(text.split(".")[0]):
        return False
    names = _names_in(folder)
    if any(name.endswith(WEIGHT_ENDINGS) or name == "config.json" for name in names):
        log.warning(
            "loading the folder %s, not timm's model of the same name, because the folder contains a model",
            text,
        )
        return False
    log.warning("loading timm's model %s; the folder of the same name (./%s) contains no model", text, text)
    return True


def _looks_like_a_path(text: str) -> bool:
    return (
        text.startswith(("/", "./", "../", "~", ".\\", "\\"))
        or bool(re.match(r"[A-Za-z]:[\\/]", text))
        or text.endswith((*WEIGHT_ENDINGS, *_OTHER_FILE_ENDINGS, "/"))
        or text.count("/") > 1
    )


def _of_hub(repository: str, reference: str) -> str:
    if re.match(r"https?://", repository):
        return _of_url(repository)
    if not _REPOSITORY.fullmatch(repository):
        raise ModelError(
            f"the weights of {reference} could not be loaded: a repository on the hub is named "
            "OWNER/NAME, for example hf-hub:timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
        )
    return f"hf-hub:{repository}"


def _of_url(url: str) -> str:
    """Return the hub repository for the URL of a model, folder or file page. Raises ModelError for other
    URLs."""
    if "://" not in url:
        url = f"https://{url}"
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ModelError(f"{url!r} is not a valid URL: {first_line(error)}") from error
    hosts = (*_HUB_HOSTS, urlsplit(constants.ENDPOINT).hostname)
    match = re.match(r"/([\w.-]+)/([\w.-]+)(?:/(?:tree|blob|resolve)/([\w.-]+))?(?:/|$)", parts.path)
    if parts.hostname not in hosts or match is None:
        raise ModelError(
            f"{url} is not a model page on {constants.ENDPOINT}; download the file "
            "(curl -fLO URL) and pass its path"
        )
    owner, name, revision = match.groups()
    at = f"@{revision}" if revision not in (None, "main") else ""
    return f"hf-hub:{owner}/{name}{at}"
