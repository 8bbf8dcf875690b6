"""Parse transformers' preprocessor_config.json into an input spec.

transformers' processors resize the whole image, rounded to whole pixels, and then crop whole pixels from its
center, as described by `InputSpec.resize`.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.load.errors import ModelError
from models.load.files import read_json
from models.load.input_spec import at_size, channels_in, per_channel
from models.load.transformers_format.config import TransformersConfig
from models.transforms import InputSpec, Interpolation

log = logging.getLogger(__name__)

PREPROCESSOR = "preprocessor_config.json"
# Models with a tokenizer store the preprocessor's values in this file, under this key.
PROCESSOR, _NESTED = "processor_config.json", "image_processor"

_HALF = [0.5, 0.5, 0.5]
_CLIP_MEAN, _CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
_COMMON: Mapping[str, Any] = {
    "do_resize": True,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}
_OF_CLIP: Mapping[str, Any] = {
    "resample": 3,
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "image_mean": _CLIP_MEAN,
    "image_std": _CLIP_STD,
}
_SQUARE: Mapping[str, Any] = {"size": {"height": 224, "width": 224}, "image_mean": _HALF, "image_std": _HALF}
# Default values of each class, for entries that a file omits.
# Source: transformers' `models/*/image_processing_*.py`.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "ViTImageProcessor": {**_SQUARE, "resample": 2},
    "DeiTImageProcessor": {
        **_SQUARE,
        "resample": 3,
        "size": {"height": 256, "width": 256},
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
    },
    "SiglipImageProcessor": {**_SQUARE, "resample": 3},
    "Siglip2ImageProcessor": {**_SQUARE, "resample": 2},
    "BitImageProcessor": _OF_CLIP,
    "CLIPImageProcessor": _OF_CLIP,
}
# For these classes, a single number as the size means the short side; for the others it means both sides.
_SHORT_SIDE = ("BitImageProcessor", "CLIPImageProcessor", "SiglipImageProcessor")
_NAMES_END = ("Fast", "Pil")
# Unsupported steps that change the image, unless their value is false.
_NOT_SERVED = (
    *("do_pad", "do_flip_channel_order", "do_thumbnail", "do_align_long_axis", "rescale_offset"),
    *("do_grayscale", "crop_pct"),
)
_RESAMPLE: Mapping[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def input_spec(folder: Path, config: TransformersConfig) -> InputSpec:
    """Read the preprocessing for the network in a folder. If the folder has no preprocessor file, use the
    defaults of the class and log a warning. Raises ModelError for invalid values and unsupported steps."""
    content, path = _content(folder)
    kind = config.kind.processor if content is None else _kind(content, config.kind.processor)
    if content is None:
        log.warning(
            "%s contains no %s: using the defaults of %s for %d x %d pixels. To be sure, save the "
            "processor with the model: processor.save_pretrained(FOLDER)",
            *(folder, PREPROCESSOR, kind, *config.image_size),
        )
        content = _at_size(_DEFAULTS[kind], config.image_size)
    values = {**_COMMON, **_DEFAULTS.get(kind, {}), **_given(content)}
    unknown = [key for key in _NOT_SERVED if values.get(key)]
    if unknown:
        raise ModelError(f"{path}: {unknown[0]} is not supported; remove it if the model works without it")
    if kind not in _DEFAULTS:
        log.warning("%s is for %s, which is unknown here: computing what its values say", path, kind)
    missing = [key for key in ("image_mean", "image_std") if key not in values and values["do_normalize"]]
    if missing:
        raise ModelError(f"{path} is for {kind}, which is unknown here, and has no {missing[0]}; add it")
    resize, size = _geometry(values, kind, config, path)
    mean, std = _levels(values, config.args["in_chans"], path)
    interpolation = _interpolation(values, path)
    spec = InputSpec(size, mean, std, interpolation, "squash", channels=channels_in(config.args["in_chans"]))
    if isinstance(resize, int):
        spec = replace(spec, crop="center", crop_share=min(size) / resize, resize=resize)
    else:
        spec = replace(spec, crop_share=size[0] / resize[0], resize=resize)
    if size == config.image_size or config.kind.resampling is not None:
        return spec
    log.warning(
        "%s prepares images of %d x %d pixels, but the network is made for %d x %d: using the network's size",
        *(path, *size, *config.image_size),
    )
    return at_size(spec, config.image_size)


def _content(folder: Path) -> tuple[Mapping[str, Any] | None, Path]:
    path = folder / PROCESSOR
    if path.is_file():
        content = read_json(path)
        if isinstance(content, Mapping) and isinstance(content.get(_NESTED), Mapping):
            return content[_NESTED], path
    path = folder / PREPROCESSOR
    if not path.is_file():
        return None, path
    content = read_json(path)
    if not isinstance(content, Mapping):
        raise ModelError(
            f"{path} is not a JSON object; correct it, or remove it to use the defaults of its class"
        )
    return content, path


def _given(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values in a file without null entries. A null for a step (``do_...``) means that the step is
    skipped."""
    return {
        key: value is not None and value if key.startswith("do_") else value
        for key, value in content.items()
        if value is not None or key.startswith("do_")
    }


def _kind(content: Mapping[str, Any], usual: str) -> str:
    name = content.get("image_processor_type") or content.get("feature_extractor_type") or usual
    name = str(name).replace("FeatureExtractor", "ImageProcessor")
    for ending in _NAMES_END:
        name = name.removesuffix(ending)
    return name


def _at_size(defaults: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Scale the defaults of a class to another network size, keeping the cropped share the same."""
    whole, crop = defaults["size"], defaults.get("crop_size")
    if crop is None:
        return {**defaults, "size": list(size)}
    cut = {"crop_size": list(size)}
    if "shortest_edge" in whole:
        return {**defaults, **cut, "size": {"shortest_edge": max(size) * whole["shortest_edge"] // 224}}
    return {**defaults, **cut, "size": [side * whole["height"] // crop["height"] for side in size]}


def _geometry(
    values: Mapping[str, Any], kind: str, config: TransformersConfig, path: Path
) -> tuple[int | tuple[int, int], tuple[int, int]]:
    """Return the size that the whole image is resized to (short side in pixels, or height and width), and the
    height and width of the center crop. Raises ModelError for unsupported sizes."""
    if not values["do_resize"]:
        raise ModelError(
            f"{path} turns resizing off (do_resize), but photographs have many sizes; turn it on"
        )
    resize = _resize(values.get("size"), kind, path)
    if values["do_center_crop"]:
        crop = _resize(values.get("crop_size", values.get("size")), "", path)
        cut = (crop, crop) if isinstance(crop, int) else crop
    elif isinstance(resize, int):
        cut = config.image_size
        log.warning(
            "%s turns cropping off (do_center_crop): cropping the center anyway, to %d x %d", path, *cut
        )
    else:
        cut = resize
    whole = (resize, resize) if isinstance(resize, int) else resize
    if cut[0] > whole[0] or cut[1] > whole[1]:
        raise ModelError(
            f"{path}: crop_size {cut[0]} x {cut[1]} is larger than size {whole[0]} x {whole[1]}, so "
            "images would have black borders; change one of them"
        )
    return resize, cut


def _resize(size: object, kind: str, path: Path) -> int | tuple[int, int]:
    if isinstance(size, Mapping):
        given = {key: value for key, value in size.items() if value is not None}
        if given.keys() == {"height", "width"}:
            size = [given["height"], given["width"]]
        elif given.keys() == {"shortest_edge"} and _is_side(given["shortest_edge"]):
            return int(given["shortest_edge"])
    if _is_side(size):
        assert isinstance(size, int)
        return size if kind in _SHORT_SIDE else (size, size)
    if isinstance(size, Sequence) and len(size) == 2 and all(map(_is_side, size)):
        return size[0], size[1]
    raise ModelError(
        f'{path}: the size {size!r} is not supported; it can be {{"height": 224, "width": 224}} or '
        '{"shortest_edge": 256}'
    )


def _is_side(value: object) -> bool:
    return type(value) is int and value > 0


def _levels(
    values: Mapping[str, Any], channels: int, path: Path
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return the mean and standard deviation per channel for pixel values from 0 to 1, regardless of how the
    preprocessor rescales pixels."""
    factor = values["rescale_factor"] if values["do_rescale"] else 1.0
    if isinstance(factor, bool) or not isinstance(factor, int | float) or factor <= 0:
        raise ModelError(f"{path}: rescale_factor must be a number above 0, such as 1/255; got {factor!r}")
    mean, std = (values["image_mean"], values["image_std"]) if values["do_normalize"] else (0.0, 1.0)
    # (pixel * factor - mean) / std is (pixel / 255 - mean / (255 factor)) / (std / (255 factor)).
    scale = 255 * factor
    if abs(scale - 1) < 1e-6:
        scale = 1.0
    return (
        per_channel(_divided(mean, scale), f"{path}: image_mean", channels),
        per_channel(_divided(std, scale), f"{path}: image_std", channels),
    )


def _divided(values: Any, scale: float) -> Any:
    if scale == 1:
        return values
    if isinstance(values, int | float):
        return values / scale
    if isinstance(values, Sequence) and all(isinstance(each, int | float) for each in values):
        return [each / scale for each in values]
    return values


def _interpolation(values: Mapping[str, Any], path: Path) -> Interpolation:
    number = values.get("resample", 2)
    if number not in _RESAMPLE:
        names = ", ".join(f"{key} ({name})" for key, name in _RESAMPLE.items())
        raise ModelError(f"{path}: resample {number!r} is not supported; supported are {names}")
    return _RESAMPLE[number]
