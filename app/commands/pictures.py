"""Where the pictures of several photographs go: one file, or a folder with a file for each."""

from pathlib import Path

from app.commands.failures import UsageError
from app.commands.photographs import Photograph

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


class PictureFiles:
    """A file for each photograph, none of them twice.

    ``target`` with one of the endings is the file for the only photograph; without any, it is a folder.
    Raises UsageError where it can be neither.
    """

    def __init__(self, target: Path, photographs: int) -> None:
        self._target = target
        self._is_file = target.suffix != "" and not target.is_dir()
        self._taken: set[Path] = set()
        if self._is_file and photographs > 1:
            raise UsageError(
                f"--mask {target} is one picture, and there are {photographs} photographs; name a folder"
            )
        if self._is_file and target.suffix.lower() not in ENDINGS:
            raise UsageError(f"--mask {target} must end with {', '.join(ENDINGS)}, or be a folder")
        if not self._is_file and target.is_file():
            raise UsageError(f"--mask {target} is a file without an ending, and not a folder")

    def path_for(self, photograph: Photograph) -> Path:
        """The file for its picture, its folder made. In a folder, the photograph's own name as a .png."""
        path = self._target if self._is_file else self._free(self._target / photograph.within)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._taken.add(path)
        return path

    def _free(self, wanted: Path) -> Path:
        """Photographs of one name from two folders, or of two formats, do not overwrite each other."""
        path = wanted.with_suffix(".png")
        number = 1
        while path in self._taken:
            number += 1
            path = wanted.with_name(f"{wanted.stem}-{number}.png")
        return path
