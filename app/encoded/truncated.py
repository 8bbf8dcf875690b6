"""JPEGs that end too soon: how much of the picture is there, and whether that is answered."""

import io

import numpy as np
from PIL import Image

from app.encoded import TruncatedImages
from app.encoded.jpeg import Jpeg
from app.errors import UndecodableImage
from models.samples import Say

LEAST_SHARE = 0.5
_END = b"\xff\xd9"
# Two ways to go on where the data ends: what comes out alike was there.
_GOES_ON = (b"", b"\x55\xaa" * 32)
_LARGE_ENOUGH = (1024, 1024)


def completed(jpeg: Jpeg, policy: TruncatedImages, say: Say) -> bytes:
    """The JPEG with the end that it lacks, which a decoder takes. Where no pixel is missing, nothing is said;
    else ``say`` hears what is. Raises UndecodableImage where the ``policy`` is so, or too little is
    there for an honest answer."""
    if jpeg.several_scans:
        # Its first scans show the whole picture, but coarsely.
        share, found = float(jpeg.scans > 1), "it is less sharp than it should be, or wrong in parts"
    else:
        share = share_of_rows(jpeg.data)
        found = f"{share:.0%} of its rows are there, the rest is grey"
        if share == 1:
            return jpeg.data + _END
    if policy == "refuse":
        raise UndecodableImage(
            f"the JPEG ends too soon ({found}); send the whole file. A server started with "
            "--truncated-images answer answers such images, with a warning"
        )
    if share < LEAST_SHARE:
        raise UndecodableImage(f"the JPEG ends too soon: less than {LEAST_SHARE:.0%} of its rows are there")
    say(f"the JPEG ends too soon: {found}")
    return jpeg.data + _END


def share_of_rows(data: bytes) -> float:
    """How much of the picture is there, from the top. 1 where nothing is missing but the end mark."""
    one, other = (_decoded(data + rest + _END) for rest in _GOES_ON)
    differing = np.flatnonzero((one != other).reshape(len(one), -1).any(axis=1))
    return 1.0 if not len(differing) else float(min(differing[0] / len(one), 0.99))


def _decoded(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data), formats=["JPEG"])
    image.draft(None, _LARGE_ENOUGH)
    return np.asarray(image)
