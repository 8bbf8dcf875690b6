"""An image in any supported form -> the bytes of a file."""

import io
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Union

from trimvit_client.errors import UnreadableImage
from trimvit_client.options import Options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image as Pictures

# A path, the bytes of an image file, a file opened for reading bytes; with the extra `pictures` also pixels:
# a numpy array (uint8, [height, width, 3] RGB or [height, width] grey) or a Pillow image.
ImageSource = Union[
    str, "os.PathLike[str]", bytes, bytearray, memoryview, IO[bytes], "NDArray[np.uint8]", "Pictures.Image"
]


@dataclass(frozen=True, slots=True)
class Image:
    """An image with options of its own, for `classify_many`."""

    source: ImageSource
    options: Options = field(default_factory=Options)


def encoded(source: ImageSource) -> bytes:
    """The image as the bytes of a file. Pixels are encoded as PNG, without loss.

    Raises UnreadableImage for a file that cannot be read, and TypeError for an object that is not an image.
    """
    if isinstance(source, str | os.PathLike):
        try:
            return Path(source).read_bytes()
        except OSError as error:
            raise UnreadableImage(f"{source} cannot be read: {error.strerror or error}") from error
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    picture = _picture(source)
    if picture is not None:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return buffer.getvalue()
    read = getattr(source, "read", None)
    data = read() if callable(read) else None
    if not isinstance(data, bytes):
        raise TypeError(
            f"an image is a path, bytes, a file opened for reading bytes, a numpy array or a Pillow image, "
            f"not {type(source).__name__}"
        )
    return data


def _picture(source: object) -> Any:
    """A Pillow image of pixels. None for anything else. Whoever has pixels has already imported the library
    for them."""
    pictures = sys.modules.get("PIL.Image")
    if pictures is not None and isinstance(source, pictures.Image):
        return source
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(source, numpy.ndarray):
        return None
    if (
        source.dtype != numpy.uint8
        or source.ndim not in (2, 3)
        or (source.ndim == 3 and source.shape[2] != 3)
    ):
        raise TypeError(
            "pixels are uint8, [height, width, 3] in RGB or [height, width] in grey, "
            f"not {source.dtype} {list(source.shape)}"
        )
    try:
        from PIL import Image as Pictures
    except ImportError as error:
        raise ImportError("arrays as images need Pillow: pip install 'trimvit-client[pictures]'") from error
    return Pictures.fromarray(source)
