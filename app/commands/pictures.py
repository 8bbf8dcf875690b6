"""Where pictures of masks are saved: a file for one photograph, or a folder for several."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from app.commands.failures import UsageError
from app.commands.photographs import Photograph
from models.files import write_whole
from models.names import shown

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


class PictureFiles:
    """A file for each photograph: all different, and none of them a photograph.

    If ``target`` ends with an image extension, it is the file for the only photograph. Otherwise it is a
    folder, which is created. Raises UsageError if ``target`` is neither, or if nothing can be written there.
    """

    def __init__(self, target: Path, photographs: Sequence[Photograph]) -> None:
        self._target = target
        self._is_file = target.suffix != "" and not target.is_dir()
        self._taken: set[Path] = set()
        self._photographs = {each.path.resolve() for each in photographs if each.path is not None}
        if self._is_file and len(photographs) > 1:
            raise UsageError(
                f"--mask {shown(target)} is a file, but there are {len(photographs)} photographs; give a "
                "folder"
            )
        if self._is_file and target.suffix.lower() not in ENDINGS:
            raise UsageError(f"--mask {shown(target)} must end with {', '.join(ENDINGS)}, or be a folder")
        if not self._is_file and target.is_file():
            raise UsageError(f"--mask {shown(target)} is a file without an ending, and not a folder")
        if self._is_file and target.resolve() in self._photographs:
            raise UsageError(f"--mask {shown(target)} is the photograph itself; give another file")
        _check_can_write(target.parent if self._is_file else target, target)

    def save(self, photograph: Photograph, picture: UInt8[np.ndarray, "height width 3"]) -> Path:
        """Write the picture and return its path: in a folder, the name of the photograph with .png. Raises
        OSError."""
        path = self._target if self._is_file else self._free(self._target / photograph.within)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._taken.add(path)
        kind = Image.registered_extensions()[path.suffix.lower()]
        write_whole(path, lambda file: Image.fromarray(picture).save(file, kind))
        return path

    def _free(self, wanted: Path) -> Path:
        """A path that is not taken: two photographs of one name do not overwrite each other's picture, and no
        picture overwrites a photograph."""
        path = wanted.with_suffix(".png")
        number = 1
        while path in self._taken or path.resolve() in self._photographs:
            number += 1
            path = wanted.with_name(f"{wanted.stem}-{number}.png")
        return path


def _check_can_write(folder: Path, target: Path) -> None:
    """Check before anything is computed. Raises UsageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"cannot write --mask {shown(target)}: {error.strerror or error}") from error
