"""The input preprocessing of a network, from timm's configuration of its weights, with every value
validated."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from timm.data import resolve_model_data_config

from models.families import Network
from models.load.errors import ModelError
from models.transforms import Crop, InputSpec, Interpolation

log = logging.getLogger(__name__)


def input_spec_of(vit: Network) -> InputSpec:
    """Return the preprocessing that timm specifies for a model. Raises ModelError for invalid or unsupported
    values."""
    try:
        config = resolve_model_data_config(vit)
    except (AssertionError, TypeError, ValueError) as error:
        raise ModelError(f"timm cannot read the model's input configuration: {error}") from error
    if config["crop_mode"] not in get_args(Crop):
        raise ModelError(f"unknown crop mode {config['crop_mode']!r}; supported: center, squash")
    if config["interpolation"] not in get_args(Interpolation):
        raise ModelError(
            f"unknown interpolation {config['interpolation']!r}; "
            f"supported: {', '.join(get_args(Interpolation))}"
        )
    share = config["crop_pct"]
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise ModelError(f"crop_pct must be above 0 and at most 1, for example 0.9; got {share!r}")
    channels = channels_of(vit)
    return InputSpec(
        size=tuple(vit.patch_embed.img_size),
        mean=per_channel(config["mean"], "mean", channels),
        std=per_channel(config["std"], "std", channels),
        interpolation=config["interpolation"],
        crop=config["crop_mode"],
        crop_share=float(share),
        channels=channels,
    )


def channels_of(vit: Network) -> Literal[1, 3]:
    """Return the number of input channels. Raises ModelError unless it is 3 (RGB) or 1 (grayscale)."""
    return channels_in(vit.patch_embed.proj.in_channels)


def channels_in(channels: int) -> Literal[1, 3]:
    """Check a number of channels. Raises ModelError unless it is 3 (RGB) or 1 (grayscale)."""
    if channels == 1:
        return 1
    if channels == 3:
        return 3
    raise ModelError(f"the network has {channels} input channels; TrimViT supports 3 (RGB) and 1 (grayscale)")


def at_size(spec: InputSpec, size: tuple[int, int]) -> InputSpec:
    """Return the spec for another input size (height, width). The share of the photograph that is cropped
    stays the same."""
    resize = spec.resize
    if size == spec.size:
        return spec
    if isinstance(resize, int):
        resize = max(*size, round(resize * min(size) / min(spec.size)))
    elif resize is not None:
        rows, columns = (
            max(new, round(whole * new / old))
            for whole, old, new in zip(resize, spec.size, size, strict=True)
        )
        resize = (rows, columns)
    return replace(spec, size=size, resize=resize)


def per_channel(values: Any, what: str, channels: int) -> tuple[float, float, float]:
    """Expand one or three values to one per RGB channel.

    ``what`` names the values in messages; if it ends with "std", they are standard deviations, otherwise
    means. Raises ModelError if they are impossible for pixel values from 0 to 1.
    """
    deviation = what.endswith("std")
    example = "[0.485, 0.456, 0.406]" if not deviation else "[0.229, 0.224, 0.225]"
    if isinstance(values, int | float):
        values = (values,)
    if not (
        isinstance(values, Sequence)
        and len(values) in (1, 3)
        and all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    ):
        raise ModelError(f"{what} must be one number or three, for example {example}; got {values!r}")
    numbers = [float(value) for value in values]
    if any(number > 1 for number in numbers):
        raise ModelError(
            f"{what} must be for pixel values from 0 to 1, for example {example}; got {values!r} (divide "
            "by 255)"
        )
    if deviation and min(numbers) <= 0:
        raise ModelError(f"{what} must be above 0, for example {example}; got {values!r}")
    if channels == 1 and len(set(numbers)) > 1:
        grey = sum(numbers) / len(numbers)
        log.warning(
            "the network has one grayscale channel, but its %s has three, %s; using the mean, %.4g. "
            'Set the right value in a config.json in the folder of the weights ("pretrained_cfg": {"%s": '
            "[0.5]})",
            *(what, values, grey, what),
        )
        numbers = [grey]
    red, green, blue = numbers * 3 if len(numbers) == 1 else numbers
    return red, green, blue
