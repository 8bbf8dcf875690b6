"""Class folders and the classes of a checkpoint."""

import random
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from timm.data import ImageNetInfo
from timm.utils.misc import natural_key

from models.training.classes import ClassesError, match, natural_order

TWELVE = [str(number) for number in range(12)]
NAMES = st.lists(st.text("abB01 -_.é", min_size=1, max_size=6), min_size=1, max_size=12, unique=True)


def placeholders(classes: int) -> tuple[str, ...]:
    return tuple(f"class {place}" for place in range(classes))


@given(NAMES)
def test_the_natural_order_is_timms(names: list[str]) -> None:
    """Names that timm tells apart stand as in timm; the others have an order, too, whatever they came in."""
    order = natural_order(names)
    assert [natural_key(name) for name in order] == sorted(map(natural_key, names))
    assert natural_order(names[::-1]) == order


def test_digits_that_are_no_numbers_are_letters() -> None:
    """timm itself fails for them."""
    assert natural_order(["²", "10", "9"]) == ["9", "10", "²"]


@given(NAMES, st.randoms())
def test_labels_decide_the_order(labels: list[str], draw: random.Random) -> None:
    """Folders that are called as the labels are theirs, in any order, and whichever of them are there."""
    folders = draw.sample(labels, draw.randint(1, len(labels)))
    assert match(folders, labels).index == {name: labels.index(name) for name in folders}


def test_numbers_as_labels_are_found_by_name() -> None:
    """A checkpoint of timm on folders 0 to 11 whose labels are 0 to 11, whatever order it learned them in."""
    torchvision = sorted(TWELVE)
    assert match(TWELVE, torchvision).index == {name: torchvision.index(name) for name in TWELVE}
    assert match(TWELVE, TWELVE).index == {name: int(name) for name in TWELVE}
    assert match(TWELVE, TWELVE).remarks == ()


def test_the_folders_that_it_was_trained_on_go_before_labels() -> None:
    """Names and labels may even be exchanged."""
    assert match(["a", "b"], ["b", "a"], ["a", "b"]).index == {"a": 0, "b": 1}
    assert match(["n1", "n2"], ["tench", "church"], ["n1", "n2"]).index == {"n1": 0, "n2": 1}
    assert match(["church"], ["tench", "church"], ["n1", "n2"]).index == {"church": 1}


@pytest.mark.parametrize(
    ("folder", "label"),
    [
        ("Golf_Ball", "golf ball"),
        ("golf-ball", "Golf Ball"),
        ("French horn", "french_horn"),
        (unicodedata.normalize("NFD", "Überraschung"), unicodedata.normalize("NFC", "Überraschung")),
        ("STRASSE", "Straße"),
        ("and_or", "and/or"),
        ("church", "church, church building"),
        ("n03028079", "church"),  # ImageNet's folder
        ("n01440764", "tench, Tinca tinca"),
        ("n01440764", "Tench"),
    ],
)
def test_spellings_of_folders_are_forgiven(folder: str, label: str) -> None:
    """Case, blanks, underscores, hyphens, macOS's umlauts, one of several synonyms, WordNet's numbers."""
    assert match([folder], ["something", label, "other"]).index == {folder: 1}


@pytest.mark.parametrize(
    ("folders", "labels", "words"),
    [
        (
            ["cat", "dgo"],
            ["cat", "dog"],
            "1 of 2 class folders are not classes of the model: dgo .*mean 'dog'",
        ),
        (["x", "y"], ["cat", "dog"], r"2 of 2 .*: x, y \(its labels: cat, dog\); name them like its labels"),
        (["golf_ball"], ["golf ball", "Golf ball"], r"'golf_ball' may be 'golf ball' \(class 0\) or 'Golf"),
        (["golf ball", "golf_ball"], ["golf ball", "x"], "'golf ball' and 'golf_ball' are both 'golf ball'"),
        (["crane"], ["crane", "crane"], "'crane' may be"),
        (["1", "2", "3"], ["one", "two", "three"], "3 of 3 class folders are not classes"),
        (["1"], ["-1", "0"], "1 of 1 class folders are not classes"),
    ],
)
def test_folders_that_cannot_be_meant_are_refused(folders: list[str], labels: list[str], words: str) -> None:
    """By name, with what is there and what is near."""
    with pytest.raises(ClassesError, match=words):
        match(folders, labels)


def test_missing_classes_are_told() -> None:
    """A subset is fine."""
    assert match(["b"], ["a", "b", "c"]).remarks == ("1 of the model's 3 classes are present; missing: a, c",)


def test_imagenets_folders_are_known_to_its_labels() -> None:
    """All thousand by their WordNet numbers, of which two are called crane."""
    info = ImageNetInfo()
    labels = tuple(info.label_descriptions())
    index = match(info.label_names(), labels).index
    assert [index[name] for name in info.label_names()] == list(range(1000))
    assert labels.count("crane") == 2


def test_class_numbers_name_the_classes_of_a_labelled_checkpoint() -> None:
    """ImageNetV2's folders are called 0 to 999: what that is taken for is said."""
    matched = match(["2", "0"], ["tench", "church", "golf ball"])
    assert matched.index == {"0": 0, "2": 2}
    assert matched.remarks == ("using folder names as class numbers from 0: 0 is 'tench', 2 is 'golf ball'",)


def test_without_labels_timms_order_holds_and_the_other_is_told() -> None:
    """Ten stands behind nine; torchvision has it behind one."""
    matched = match(TWELVE, placeholders(12))
    assert matched.index == {name: int(name) for name in TWELVE}
    (remark,) = matched.remarks
    assert "timm's order (0, 1, 2, 3, 4, ...)" in remark
    assert "torchvision's order (0, 1, 10, 11, 2, ...)" in remark
    assert "--labels FILE" in remark
    letters = match(["B", "a"], placeholders(2))
    assert letters.index == {"a": 0, "B": 1}
    assert len(letters.remarks) == 1
    assert match(["a", "b"], placeholders(2)).remarks == ()
    assert match(["a", "b"], ("LABEL_0", "LABEL_1")).index == {"a": 0, "b": 1}


def test_without_labels_folders_from_one_are_counted() -> None:
    """As timm does; 1 to 12 are twelve classes."""
    folders = [str(number) for number in range(1, 13)]
    assert match(folders, placeholders(12)).index == {name: int(name) - 1 for name in folders}


def test_without_labels_an_empty_folder_is_no_class_where_that_fits() -> None:
    """timm counts folders with images; a class may as well have lost its images."""
    assert match(["a", "b", "c"], placeholders(2), empty=["b"]).index == {"a": 0, "c": 1}
    assert match(["a", "b", "c"], placeholders(3), empty=["b"]).index == {"a": 0, "b": 1, "c": 2}


def test_without_labels_a_subset_cannot_be_known() -> None:
    """But for class numbers, of which it is said what they are taken for."""
    with pytest.raises(ClassesError, match=r"2 class folders, but the model has 3 classes and no labels"):
        match(["a", "b"], placeholders(3))
    with pytest.raises(ClassesError, match=r"'A1' and 'a1' are the same in timm's order"):
        match(["a1", "A1"], placeholders(2))
    matched = match(["2", "0"], placeholders(3))
    assert matched.index == {"0": 0, "2": 2}
    assert "2 of its 3 classes are present" in matched.remarks[0]
    assert match(["class 2", "class 0"], placeholders(3)).index == {"class 0": 0, "class 2": 2}
