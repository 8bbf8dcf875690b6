"""List the images of a folder of labelled images, with class indices that match a checkpoint."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from unicodedata import category

from models.image_sizes import pixels_of
from models.load import Card, LoadedModel, load, read_card, read_labels
from models.load.config import config_in
from models.load.folder import file_at
from models.load.reference import existing
from models.names import shown
from models.training.classes import ClassesError, match, natural_order
from models.training.config import EvaluateConfig, SweepConfig, TrainConfig
from models.training.data import Sample
from models.training.folders import ClassFolders, FolderError, class_folders

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KnownClasses:
    """The classes of a checkpoint in class order. ``folders``: the names of the folders that it was trained
    on; None if unknown."""

    labels: tuple[str, ...]
    folders: tuple[str, ...] | None = None


def samples_for(card: Card, root: Path, *, tells: bool = True) -> list[Sample]:
    """List the images of a folder with one sub-folder per class, in class order. Classes are matched by the
    card.

    With ``tells``, skipped files and assumptions are logged. Raises FolderError and ClassesError.
    """
    folders = class_folders(root)
    matched = match(folders.images, card.labels, card.folders, empty=folders.empty)
    if tells:
        tell(*folders.remarks, *matched.remarks, *_of_empty(folders))
    by_class = sorted(matched.index, key=matched.index.__getitem__)
    samples = [(path, matched.index[name]) for name in by_class for path in folders.images[name]]
    if not samples:
        raise FolderError(f"there are no images in the class folders of {shown(root)}")
    return samples


def training_images(
    config: TrainConfig, teacher: LoadedModel | None
) -> tuple[tuple[str, ...], list[Sample], tuple[str, ...]]:
    """Return the class folders in class order, the images in the same order, and the labels. Raises as
    `training_order` does."""
    folders = class_folders(config.data)
    tell(*folders.remarks)
    names = label_names(config.labels, folders) if config.labels else {}
    start = None if config.weights is None else known_classes(config.weights)
    teachers = None if teacher is None else KnownClasses(teacher.labels, teacher.card.folders)
    classes = training_order(folders, names, start, teachers)
    samples = [(path, truth) for truth, name in enumerate(classes) for path in folders.images[name]]
    return classes, samples, tuple(names.get(name, name) for name in classes)


def training_order(
    folders: ClassFolders,
    labels: Mapping[str, str],
    start: KnownClasses | None,
    teacher: KnownClasses | None,
) -> tuple[str, ...]:
    """Return the class folders in the class order for training.

    This is the order of the teacher, so that its logits refer to the same classes. Otherwise it is the order
    of the checkpoint to ``start`` from, if it has the same classes, so that its head can be reused. Otherwise
    it is timm's natural order. ``labels`` maps folder names to labels. Raises FolderError if there are fewer
    than two classes, if a class has no images, or for names that no checkpoint can store. Raises ClassesError
    if the teacher has other classes.
    """
    names = natural_order(folders.images)
    for name in names:
        _refuse_what_no_label_can_be(name, labels.get(name, name))
    if len(names) < 2:
        raise FolderError(
            f"{shown(folders.root)} has one class folder ({shown(names[0])}), but at least two classes "
            "are needed; give the folder whose sub-folders are the classes"
        )
    if folders.empty:
        raise FolderError(
            f"there are no images in {len(folders.empty)} of the class folders of {shown(folders.root)}: "
            f"{', '.join(map(shown, folders.empty[:3]))}; fill or remove them"
        )
    if teacher is not None:
        try:
            return _order_of(teacher, names, labels)
        except ClassesError as error:
            raise ClassesError(f"the teacher has other classes: {error}") from error
    if start is not None:
        try:
            return _order_of(start, names, labels)
        except ClassesError as error:
            log.info("starting with a new head, because the classes differ: %s", error)
    return tuple(names)


def _refuse_what_no_label_can_be(folder: str, label: str) -> None:
    """Raise FolderError if a folder name is not UTF-8, or if a label is blank or has control characters,
    which could move a terminal's cursor."""
    if any(category(sign) == "Cs" for sign in folder):
        raise FolderError(f"the name of the class folder {shown(folder)} is not UTF-8; rename it")
    if not label.strip() or any(category(sign) in ("Cc", "Cs") for sign in label):
        raise FolderError(
            f"the class folder {shown(folder)} has the label {label!r}, which is blank or has control "
            "characters; give it another one with --labels, or rename the folder"
        )


def _order_of(known: KnownClasses, names: list[str], labels: Mapping[str, str]) -> tuple[str, ...]:
    """Sort folders in the order of a checkpoint's classes. Raises ClassesError if its classes differ."""
    if len(known.labels) != len(names):
        raise ClassesError(f"it has {len(known.labels)} classes, but there are {len(names)} class folders")
    try:
        matched = match(names, known.labels, known.folders)
        order = matched.index
    except ClassesError:
        by_label = {labels.get(name, name): name for name in names}
        if len(by_label) < len(names) or not labels:
            raise
        matched = match(by_label, known.labels)
        order = {by_label[label]: place for label, place in matched.index.items()}
    tell(*matched.remarks)
    return tuple(sorted(names, key=order.__getitem__))


def known_classes(weights: Path) -> KnownClasses | None:
    """Read the classes from the card of a weights file, or from timm's config.json in its folder. Returns
    None if there are no labels. Raises ModelError if a file cannot be read."""
    file = file_at(existing(str(weights)))
    known = read_card(file) or config_in(file.parent)
    if known is None or not known.labels:
        return None
    return KnownClasses(known.labels, known.folders if isinstance(known, Card) else None)


def labels_in(path: Path | None) -> tuple[str, ...] | None:
    """Read the labels from a file, in class order; None without a file. Raises ModelError if it cannot be
    read."""
    return None if path is None else read_labels(path)


def load_to_measure(config: EvaluateConfig | SweepConfig, model: str) -> LoadedModel:
    """Load a model with the settings of a command. Raises ModelError, and ValueError for stages, criteria or
    reducers that do not fit it."""
    loaded = load(
        model,
        architecture=config.architecture,
        labels=labels_in(config.labels),
        patch_stride=config.patch_stride,
        input_size=pixels_of(config.input_size),
    )
    loaded = loaded.at_stages(config.stages)
    return loaded.check_criteria(config.criteria).check_reducers(config.reducers or ())


def label_names(path: Path, folders: ClassFolders) -> dict[str, str]:
    """Read a map from folder names to labels from a JSON file. Raises ValueError if the file has another
    form, and OSError."""
    example = 'it must be a JSON object of folder names and labels, as in {"n01440764": "tench"}'
    try:
        names = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError(f"--labels {shown(path)} is not UTF-8; {example}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"--labels {shown(path)} is not JSON ({error}); {example}") from None
    if not isinstance(names, dict) or not all(isinstance(label, str) and label for label in names.values()):
        raise ValueError(f"--labels {shown(path)} has the wrong form; {example}")
    strange = [name for name in names if name not in folders.images]
    if len(strange) == len(names):
        raise ValueError(
            f"--labels {shown(path)} contains none of the class folders "
            f"({', '.join(map(shown, list(folders.images)[:3]))}, ...); {example}"
        )
    if strange:
        tell(
            f"{len(strange)} names in {shown(path)} are not class folders: "
            f"{', '.join(map(shown, strange[:3]))}{', ...' if len(strange) > 3 else ''}"
        )
    return names


def _of_empty(folders: ClassFolders) -> list[str]:
    if not folders.empty:
        return []
    return [f"class folders without images: {', '.join(map(shown, folders.empty[:5]))}"]


def tell(*remarks: str) -> None:
    """Log remarks for the user as warnings."""
    for remark in remarks:
        log.warning("%s", remark)
