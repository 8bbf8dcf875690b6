"""The one place where an image's pixels are copied on their way from a decoder to a device.

There are two such copies: into the image's slot, and from there to where the device reads them. (A front end
makes one more of an image whose mask is to be drawn over it.)
"""

import numpy as np
from jaxtyping import UInt8


def copy_pixels(target: UInt8[np.ndarray, "..."], pixels: UInt8[np.ndarray, "..."]) -> None:
    """Make the target's bytes those of the pixels. Raises ValueError if they have not the same shape."""
    if target.shape != pixels.shape:  # numpy would repeat the smaller one
        raise ValueError(f"pixels of shape {pixels.shape} for a place of shape {target.shape}")
    np.copyto(target, pixels)
