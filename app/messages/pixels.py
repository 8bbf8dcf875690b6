"""The one function that copies an image's pixels on their way from a decoder to a device.

There are two such copies: into the image's slot, and from there to where the device reads them. (A front end
makes another one of an image whose mask is drawn.)
"""

import numpy as np
from jaxtyping import UInt8


def copy_pixels(target: UInt8[np.ndarray, "..."], pixels: UInt8[np.ndarray, "..."]) -> None:
    """Copy the pixels into the target. Raises ValueError if their shapes differ."""
    if target.shape != pixels.shape:  # numpy would broadcast the smaller array
        raise ValueError(f"pixels of shape {pixels.shape} for a place of shape {target.shape}")
    np.copyto(target, pixels)
