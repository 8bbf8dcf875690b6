"""Read a folder with one sub-folder of images per class, and handle common irregularities."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from models.image_files import PassedOver, contents, is_hidden, told
from models.names import shown
from models.training.classes import natural_order

# Sub-folders with these names are the parts of a dataset, not classes.
_PARTS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}


class FolderError(ValueError):
    """The folder does not contain classes of images. The message says what to do."""


@dataclass(frozen=True)
class ClassFolders:
    """The images of each class folder, sorted by path, and remarks for the user about the rest (one line
    each).

    The class folders are in `natural_order`. `models.training.classes` matches them with classes.
    """

    root: Path
    images: Mapping[str, tuple[Path, ...]]
    remarks: tuple[str, ...] = ()

    @property
    def empty(self) -> list[str]:
        """The class folders without any image."""
        return [name for name, images in self.images.items() if not images]


def class_folders(root: Path) -> ClassFolders:
    """Read the class folders and their images. Hidden files and folders are skipped. Raises FolderError if
    there are no classes, or if the sub-folders look like the parts of a dataset."""
    check_is_a_folder(root)
    sub_folders = [entry for entry in os.scandir(root) if entry.is_dir() and not is_hidden(entry.name)]
    real = {os.path.realpath(entry.path): entry.name for entry in sub_folders if not entry.is_symlink()}
    above = [root, *root.resolve().parents]
    images: dict[str, tuple[Path, ...]] = {}
    passed_over: list[PassedOver] = []
    for name in natural_order({entry.name for entry in sub_folders}):
        target = os.path.realpath(root / name)
        if real.setdefault(target, name) != name:
            raise FolderError(
                f"the class folders {real[target]!r} and {name!r} are the same; remove the link"
            )
        found = contents(root / name, within=above)
        passed_over += found.passed_over
        if not any(each.path == root / name for each in found.passed_over):
            images[name] = found.images
    loose = contents(root, sub_folders=False)
    passed_over += loose.passed_over
    if not images:
        raise FolderError(
            f"{shown(root)} has no class folders"
            + (f", but {len(loose.images)} images of its own; put them" if loose.images else "; put images")
            + " into one sub-folder per class, as in cat/1.jpg and dog/2.jpg"
        )
    _refuse_parts(root, images)
    remarks = [told(passed_over, root)] if passed_over else []
    if loose.images:
        remarks.append(
            f"{len(loose.images)} images are in {shown(root)} itself and have no class; skipped "
            f"({', '.join(shown(path.name) for path in loose.images[:3])})"
        )
    return ClassFolders(root, images, tuple(remarks))


def check_is_a_folder(root: Path) -> None:
    """Raise FolderError if the path is not an existing folder."""
    if root.is_dir():
        return
    if root.exists():
        raise FolderError(f"{shown(root)} is a file, not a folder; unpack an archive first")
    raise FolderError(f"the folder {shown(root)} does not exist")


def _refuse_parts(root: Path, images: Mapping[str, tuple[Path, ...]]) -> None:
    """Raise FolderError if the user gave the parent of the right folder, so that the classes would be train
    and val."""
    parts = [
        name
        for name, paths in images.items()
        if name.casefold() in _PARTS and not any(path.parent == root / name for path in paths)
    ]
    if parts and (len(parts) == len(images) or len(parts) > 1):
        raise FolderError(
            f"{shown(root)} holds {' and '.join(parts)}, which look like parts of a data set, not like "
            f"classes; give one of them, such as {shown(root / parts[0])}"
        )
