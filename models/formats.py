"""The image formats that are decoded, in serving and in training."""

import pi_heif
from PIL import features

# What HEIC files, which phones write, are decoded by. One thread decodes an image, and nothing is looked at
# but the picture itself.
pi_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)

# An allow-list: Pillow knows some forty formats, and the rest have no business in a photograph's way.
FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"),
    *(("AVIF",) if features.check("avif") else ()),
    "HEIF",
)
