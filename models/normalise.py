"""Normalises uint8 pixels to the input of a network."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from models.ragged import on_device
from models.transforms import InputSpec


class Levels(NamedTuple):
    """Mean and standard deviation of each channel, for values from 0 to 255, and the equivalent ``scale`` and
    ``shift``: (value - mean) / std = value * scale + shift."""

    mean: Float[Tensor, "channels 1 1"]
    std: Float[Tensor, "channels 1 1"]
    scale: Float[Tensor, "channels 1 1"]
    shift: Float[Tensor, "channels 1 1"]


def levels_of(spec: InputSpec, device: torch.device) -> Levels:
    """The levels of an input spec, on the device."""
    mean, std = (255 * np.array(part, np.float32) for part in (spec.mean, spec.std))
    both = on_device(np.stack((mean, std, 1 / std, -mean / std)), device)
    return Levels(*both.unsqueeze(2).unsqueeze(3).unbind())


def normalise(
    pixels: UInt8[Tensor, "B height width 3"],
    spec: InputSpec,
    dtype: torch.dtype,
    levels: Levels | None = None,
) -> Float[Tensor, "B channels height width"]:
    """Convert uint8 RGB to the model's input, (value / 255 - mean) / std per channel, on the pixels' device.

    A grey model gets one channel, with Pillow's luma weights. ``levels``: the result of `levels_of`, if it
    has been computed already.
    """
    if spec.channels == 1:
        red, green, blue = pixels.permute(3, 0, 1, 2).int()
        grey = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
        return grey.unsqueeze(1).float().sub(255 * spec.mean[0]).div(255 * spec.std[0]).to(dtype)
    levels = levels_of(spec, pixels.device) if levels is None else levels
    if pixels.is_cuda:
        return in_one_pass(pixels, dtype, levels)
    return pixels.permute(0, 3, 1, 2).float().sub(levels.mean).div(levels.std).to(dtype)


def in_one_pass(
    pixels: UInt8[Tensor, "B height width 3"], dtype: torch.dtype, levels: Levels
) -> Float[Tensor, "B 3 height width"]:
    """Like `normalise`, up to rounding, in a single operation: on a GPU, every operation reads and writes all
    pixels. Computed in float32."""
    values = pixels.permute(0, 3, 1, 2)
    inputs = torch.empty(values.shape, dtype=dtype, device=pixels.device)
    return torch.addcmul(levels.shift, values, levels.scale, out=inputs)


def renormalise(
    spec: InputSpec, wanted: InputSpec, device: torch.device
) -> Callable[[Float[Tensor, "B C height width"]], Float[Tensor, "B C height width"]] | None:
    """A function that converts inputs on ``device`` normalised by ``spec`` to those of ``wanted``. None if
    both have the same mean and standard deviation."""
    if (spec.mean, spec.std) == (wanted.mean, wanted.std):
        return None
    own, others = (levels_of(each, device) for each in (spec, wanted))
    scale = (own.std / others.std)[: spec.channels]
    shift = ((own.mean - others.mean) / others.std)[: spec.channels]
    return lambda inputs: inputs * scale + shift
