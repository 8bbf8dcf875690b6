"""The image formats that are supported in serving and in training."""

import pi_heif
from PIL import features

# Decodes HEIC files, which phones write. It uses one thread per image and decodes only the picture itself.
pi_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)

# An allow-list: Pillow knows some forty formats, and the others are not used for photographs.
FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"),
    *(("AVIF",) if features.check("avif") else ()),
    "HEIF",
)
