"""The image formats that are decoded, in serving and in training."""

from PIL import features

# An allow-list: Pillow knows some forty formats, and the rest have no business in a photograph's way.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *(("AVIF",) if features.check("avif") else ()))
