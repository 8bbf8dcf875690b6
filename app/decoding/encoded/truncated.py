"""Truncated JPEGs: how much of the picture is present, and whether it is accepted."""

from app.decoding.encoded.jpeg import Jpeg
from app.errors import UndecodableImage
from app.settings.truncated_images import TruncatedImages
from models.jpeg_end import END_MARK, share_of_rows
from models.samples import Say

LEAST_SHARE = 0.5


def completed(jpeg: Jpeg, policy: TruncatedImages, say: Say) -> bytes:
    """The JPEG with the missing end added, so that a decoder accepts it. If pixels are missing, ``say`` is
    called with a warning. Raises UndecodableImage if the ``policy`` is to refuse, or if too little of the
    picture is present."""
    if jpeg.several_scans:
        # The first scans already have the whole picture at low quality.
        share, found = float(jpeg.scans > 1), "it is less sharp than it should be, or wrong in parts"
    else:
        share = share_of_rows(jpeg.data)
        found = f"{share:.0%} of its rows are present, the rest is gray"
        if share == 1:
            return jpeg.data + END_MARK
    if policy == "refuse":
        raise UndecodableImage(
            f"the JPEG is truncated ({found}); send the whole file. A server started with "
            "--truncated-images answer answers such images, with a warning"
        )
    if share < LEAST_SHARE:
        raise UndecodableImage(f"the JPEG is truncated: less than {LEAST_SHARE:.0%} of its rows are present")
    say(f"the JPEG is truncated: {found}")
    return jpeg.data + END_MARK
