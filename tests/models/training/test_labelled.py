"""From a folder and a checkpoint to images with the numbers of their classes."""

import os
from pathlib import Path

import pytest

from models.load import Card
from models.schedule import Stages
from models.training.classes import ClassesError
from models.training.folders import FolderError, class_folders
from models.training.labelled import labels_in, samples_for, training_order
from models.transforms import InputSpec


def card(*labels: str, folders: tuple[str, ...] | None = None) -> Card:
    spec = InputSpec((16, 16), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return Card("test_vit3", labels, spec, Stages((0,)), folders=folders)


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_a_checkpoint_of_timm_is_evaluated_in_timms_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Folder 10 is class 10, and that torchvision would have it otherwise is said."""
    make(tmp_path, *(f"{number}/{image}.jpg" for number in range(12) for image in "ab"))
    samples = samples_for(card(*(f"class {place}" for place in range(12))), tmp_path)
    assert [(int(path.parent.name), truth) for path, truth in samples] == [
        (number, number) for number in range(12) for _ in "ab"
    ]
    assert "timm's order (0, 1, 2, 3, 4, ...)" in caplog.text


def test_images_come_in_the_order_of_the_classes(tmp_path: Path) -> None:
    """Of the labels, or of the folders that it was trained on; by path within a class."""
    make(tmp_path, "b/2.jpg", "b/1.jpg", "a/1.jpg", ".ipynb_checkpoints/1.jpg")
    samples = samples_for(card("b", "a"), tmp_path)
    assert [(path.relative_to(tmp_path).as_posix(), truth) for path, truth in samples] == [
        ("b/1.jpg", 0),
        ("b/2.jpg", 0),
        ("a/1.jpg", 1),
    ]
    trained = samples_for(card("x", "y", "z", folders=("a", "c", "b")), tmp_path)
    assert [truth for _, truth in trained] == [0, 2, 2]


def test_what_was_passed_over_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Once, where it is wanted."""
    make(tmp_path, "a/1.jpg", "a/notes.txt", "b/list.csv")
    samples_for(card("a", "b"), tmp_path, tells=False)
    assert caplog.text == ""
    samples_for(card("a", "b"), tmp_path)
    assert "a/notes.txt (no image)" in caplog.text
    assert "class folders without images: b" in caplog.text


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Without any image, or of other classes."""
    make(tmp_path, "a/notes.txt")
    with pytest.raises(FolderError, match="there are no images in the class folders of"):
        samples_for(card("a", "b"), tmp_path)
    make(tmp_path, "strange/1.jpg")
    with pytest.raises(ClassesError, match="1 of 2 class folders are not classes of the model: strange"):
        samples_for(card("a", "b"), tmp_path)


def test_labels_of_a_file_are_read_as_in_serving(tmp_path: Path) -> None:
    """A blank last line is no class, and JSON is understood."""
    (tmp_path / "lines.txt").write_text("zwölf\neins\n\n", encoding="utf-8")
    (tmp_path / "labels.json").write_text('["zwölf", "eins"]', encoding="utf-8")
    assert labels_in(tmp_path / "lines.txt") == labels_in(tmp_path / "labels.json") == ("zwölf", "eins")
    assert labels_in(None) is None


def test_names_that_no_checkpoint_can_hold_are_refused(tmp_path: Path) -> None:
    """Before the training, not when its model is written. Another label helps where the name itself can be
    written."""
    make(tmp_path / "lines", "a\nb/1.jpg", "c/1.jpg")
    folders = class_folders(tmp_path / "lines")
    with pytest.raises(
        FolderError, match=r"'a\\nb', which is blank or has control characters; give it another"
    ):
        training_order(folders, {}, None, None)
    assert training_order(folders, {"a\nb": "a b"}, None, None) == ("a\nb", "c")
    with pytest.raises(FolderError, match=r"c has the label ' ', which is blank"):
        training_order(folders, {"a\nb": "a b", "c": " "}, None, None)
    make(tmp_path / "bytes", "c/1.jpg")
    make(tmp_path / "bytes", os.fsdecode(b"r\xffd/1.jpg"))
    for labels in ({}, {os.fsdecode(b"r\xffd"): "red"}):
        with pytest.raises(FolderError, match=r"the name of the class folder .* is not UTF-8; rename it"):
            training_order(class_folders(tmp_path / "bytes"), labels, None, None)
