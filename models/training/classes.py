"""Match class folders with the classes of a model. The order of class folders is defined only here."""

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache

from timm.data import ImageNetInfo, infer_imagenet_subset

from models.names import shown

_MOST_NAMES = 5
_PLACEHOLDER = re.compile(r"(class |LABEL_)(\d+)")  # of TrimViT and of transformers
_NUMBER = re.compile(r"-?\d+")
_SYNSET = re.compile(r"n\d{8}")


class ClassesError(ValueError):
    """The class folders cannot be matched with the classes. The message says what to do."""


@dataclass(frozen=True)
class Matched:
    """The class index of each folder, and remarks for the user about the match (one line each)."""

    index: Mapping[str, int]
    remarks: tuple[str, ...] = ()


def natural_order(folders: Collection[str]) -> list[str]:
    """Sort folders in timm's class order: numbers in names by value, letters case-insensitively. Names that
    are equal in timm's order are sorted as text."""
    return sorted(folders, key=lambda name: (_natural_key(name), name))


def match(
    folders: Collection[str],
    labels: Sequence[str],
    trained: Sequence[str] | None = None,
    *,
    empty: Collection[str] = (),
) -> Matched:
    """Match each folder with a class.

    ``labels`` are the checkpoint's labels, ``trained`` the names of the folders that it was trained on, both
    in class order. Labels may lack a folder. An exact match takes precedence over one that ignores case,
    whitespace, slashes, `_` and `-`, and that over a match with one of several synonyms in a label.

    If the checkpoint has no labels, folders are matched by number if all names are class numbers, otherwise
    in order; then there must be as many folders as classes, not counting ``empty`` ones. Raises ClassesError
    if a folder matches no class or several, or if two folders match the same class.
    """
    if trained is None:
        trained = _synsets(labels)
    if trained is None and _are_placeholders(labels) and not set(folders) <= set(labels):
        return _by_order(folders, len(labels), empty)
    index: dict[str, int] = {}
    unknown: list[str] = []
    ways = _ways(labels, trained)
    for folder in natural_order(folders):
        found = _find(folder, ways)
        if len(found) > 1:
            meant = " or ".join(f"{labels[place]!r} (class {place})" for place in sorted(found)[:3])
            raise ClassesError(f"the folder {folder!r} may be {meant}; rename it to exactly one of them")
        if found:
            (index[folder],) = found
        else:
            unknown.append(folder)
    if unknown and not index and not any(map(_NUMBER.fullmatch, labels)):
        by_number = _by_number(folders, len(labels))
        if by_number is not None:
            examples = ", ".join(
                f"{name} is {labels[place]!r}" for name, place in list(by_number.items())[:3]
            )
            return Matched(by_number, (f"using folder names as class numbers from 0: {examples}",))
    if unknown:
        raise ClassesError(_unknown(unknown, len(folders), labels))
    _refuse_two_of_one(index, labels)
    return Matched(index, _missing(index, labels))


def _by_order(folders: Collection[str], classes: int, empty: Collection[str]) -> Matched:
    """Match folders by number or by order, for a checkpoint without labels."""
    filled = set(folders) - set(empty)
    # In other training code, empty folders are not classes (timm) or an error (torchvision).
    own = sorted(folders if len(folders) == classes else filled)
    by_number = _by_number(own, classes)
    remarks: list[str] = []
    if by_number is None and len(own) != classes:
        raise ClassesError(
            f"there are {len(own)} class folders, but the model has {classes} classes and no labels to "
            "match them; give its classes in order with --labels FILE, one per line"
        )
    if by_number is not None and len(own) != classes:
        remarks.append(
            f"the checkpoint has no labels: using folder names as class numbers from 0; {len(own)} of its "
            f"{classes} classes are present"
        )
    ordered = natural_order(own)
    keys = [_natural_key(name) for name in ordered]
    if by_number is None:
        for place, key in enumerate(keys[1:]):
            if key == keys[place]:
                raise ClassesError(
                    f"the checkpoint has no labels, and {ordered[place]!r} and {ordered[place + 1]!r} are "
                    "the same in timm's order; give its classes in order with --labels FILE, one per line"
                )
    if ordered != own:
        remarks.append(
            f"the checkpoint has no labels: using its class folders in timm's order ({_begin(ordered)}). "
            f"If it was trained in torchvision's order ({_begin(own)}), give its classes in that order "
            "with --labels FILE, one per line"
        )
    return Matched(by_number or {name: place for place, name in enumerate(ordered)}, tuple(remarks))


def _ways(labels: Sequence[str], trained: Sequence[str] | None) -> list[dict[str, set[int]]]:
    """Build maps from names to classes, in order of precedence."""
    names = trained or ()
    return [
        _places(names),
        _places(labels),
        _places(map(_loose, names)),
        _places(map(_loose, labels)),
        _places_of_many(_synonyms(label) for label in labels),
    ]


def _find(folder: str, ways: Sequence[Mapping[str, set[int]]]) -> set[int]:
    """Return the classes that a folder name may mean."""
    loose = _loose(folder)
    for way, name in zip(ways, (folder, folder, loose, loose, loose), strict=True):
        if name in way:
            return way[name]
    for synonym in _of_synset(folder):
        for way in (ways[3], ways[4]):
            if synonym in way:
                return way[synonym]
    return set()


def _places(names: Iterable[str]) -> dict[str, set[int]]:
    return _places_of_many([name] for name in names)


def _places_of_many(names: Iterable[Iterable[str]]) -> dict[str, set[int]]:
    places: dict[str, set[int]] = {}
    for place, several in enumerate(names):
        for name in several:
            places.setdefault(name, set()).add(place)
    return places


def _loose(name: str) -> str:
    """Normalize a name, ignoring the usual differences between a label and a folder name. (macOS stores an
    umlaut as two characters.)"""
    return re.sub(r"[\s_/\\-]+", " ", unicodedata.normalize("NFKC", name).casefold().strip())


def _synonyms(label: str) -> list[str]:
    return [_loose(part) for part in label.split(",") if part.strip()]


def _of_synset(folder: str) -> list[str]:
    """Return ImageNet's names for a folder that is named by a WordNet ID (n01440764)."""
    if not _SYNSET.fullmatch(folder):
        return []
    try:
        description = _all_synsets().label_name_to_description(folder)
    except KeyError:
        return []
    return [_loose(description), *_synonyms(description)]


@lru_cache(1)
def _all_synsets() -> ImageNetInfo:
    return ImageNetInfo("imagenet-22k")


def _synsets(labels: Sequence[str]) -> list[str] | None:
    """Return ImageNet's folder names if the labels are ImageNet's. Labels alone are ambiguous: two classes
    are called crane."""
    subset = infer_imagenet_subset({"num_classes": len(labels)})
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    if any(info.index_to_description(place) != label for place, label in enumerate(labels)):
        return None
    return list(info.label_names())


def _are_placeholders(labels: Sequence[str]) -> bool:
    found = [_PLACEHOLDER.fullmatch(label) for label in labels]
    return all(each is not None and int(each[2]) == place for place, each in enumerate(found))


def _by_number(folders: Collection[str], classes: int) -> dict[str, int] | None:
    """Return the class numbers that the folders are named by; None unless all names are distinct numbers
    below ``classes``."""
    if not all(re.fullmatch(r"[0-9]+", name) for name in folders):
        return None
    index = {name: int(name) for name in natural_order(folders)}
    return index if len(set(index.values())) == len(index) and max(index.values()) < classes else None


def _natural_key(name: str) -> list[str | int]:
    """Like timm.utils.misc.natural_key, which fails for digits that are not decimals, as in 'x²'."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", name.lower()))]


def _refuse_two_of_one(index: Mapping[str, int], labels: Sequence[str]) -> None:
    by_class: dict[int, str] = {}
    for folder, place in index.items():
        if place in by_class:
            raise ClassesError(
                f"the folders {by_class[place]!r} and {folder!r} are both {labels[place]!r}; merge them"
            )
        by_class[place] = folder


def _missing(index: Mapping[str, int], labels: Sequence[str]) -> tuple[str, ...]:
    missing = [label for place, label in enumerate(labels) if place not in set(index.values())]
    if not missing:
        return ()
    return (f"{len(index)} of the model's {len(labels)} classes are present; missing: {_begin(missing)}",)


def _unknown(unknown: Sequence[str], folders: int, labels: Sequence[str]) -> str:
    loose = {_loose(label): label for label in labels}
    near = get_close_matches(_loose(unknown[0]), loose, n=1)
    hint = f"; did you mean {loose[near[0]]!r}?" if near else ""
    return (
        f"{len(unknown)} of {folders} class folders are not classes of the model: {_begin(unknown)} "
        f"(its labels: {_begin(labels)}){hint or '; name them like its labels, or remove them'}"
    )


def _begin(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _MOST_NAMES else ""
    return ", ".join(shown(name) for name in names[:_MOST_NAMES]) + more
