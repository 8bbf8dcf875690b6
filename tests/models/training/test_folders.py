"""Folders of classes, as people's are."""

from pathlib import Path

import pytest

from models.training.folders import FolderError, class_folders


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_classes_are_the_folders_that_are_not_hidden(tmp_path: Path) -> None:
    """In timm's order, with their images by path, those of sub-folders, too."""
    make(tmp_path, "10/a.jpg", "9/b.JPG", "9/deep/a.png", "9/.ipynb_checkpoints/b.jpg", "9/._b.JPG")
    make(tmp_path, ".ipynb_checkpoints/x.jpg", "__MACOSX/x.jpg", "@eaDir/x.jpg", ".DS_Store", "9/Thumbs.db")
    found = class_folders(tmp_path)
    assert {name: [path.name for path in images] for name, images in found.images.items()} == {
        "9": ["b.JPG", "a.png"],
        "10": ["a.jpg"],
    }
    assert list(found.images) == ["9", "10"]
    assert found.remarks == ()
    assert found.empty == []


def test_what_is_passed_over_is_told(tmp_path: Path) -> None:
    """Images beside the class folders, and files that are none."""
    make(tmp_path, "cat/1.jpg", "dog/notes.txt", "loose.jpg", "classes.txt")
    (tmp_path / "up").symlink_to(tmp_path.parent)
    found = class_folders(tmp_path)
    assert found.empty == ["dog"]
    files, loose = found.remarks
    assert files.startswith("3 skipped in ")
    assert "dog/notes.txt (no image)" in files
    assert "up (another path to the same folder)" in files
    assert "classes.txt (no image)" in files
    assert loose.startswith("1 images are in ")
    assert "loose.jpg" in loose


def test_images_without_class_folders_are_refused(tmp_path: Path) -> None:
    """With the layout that is wanted."""
    make(tmp_path, "1.jpg", "2.jpg")
    with pytest.raises(FolderError, match="has no class folders, but 2 images of its own; put them"):
        class_folders(tmp_path)


@pytest.mark.parametrize("parts", [("train", "val"), ("Train", "Test", "classes"), ("validation",)])
def test_the_folder_above_the_classes_is_refused(tmp_path: Path, parts: tuple[str, ...]) -> None:
    """Its classes would be train and val."""
    for part in parts:
        make(tmp_path, f"{part}/cat/1.jpg", f"{part}/dog/1.jpg")
    with pytest.raises(FolderError, match=f"look like parts of a data set.*, such as .*/{sorted(parts)[0]}"):
        class_folders(tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    """Its images lie in it, and its neighbours are no parts."""
    make(tmp_path, "train/1.jpg", "tram/2.jpg")
    assert list(class_folders(tmp_path).images) == ["train", "tram"]


def test_two_names_of_one_class_folder_are_refused(tmp_path: Path) -> None:
    """The same images cannot be of two classes."""
    make(tmp_path, "cat/1.jpg")
    (tmp_path / "dog").symlink_to(tmp_path / "cat")
    with pytest.raises(FolderError, match=r"the class folders 'cat' and 'dog' are the same; remove the link"):
        class_folders(tmp_path)


def test_class_folders_may_be_links(tmp_path: Path) -> None:
    """People choose classes of a larger set so."""
    make(tmp_path, "all/cat/1.jpg", "all/dog/1.jpg", "some/readme.md")
    (tmp_path / "some" / "cat").symlink_to(tmp_path / "all" / "cat")
    assert [len(images) for images in class_folders(tmp_path / "some").images.values()] == [1]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "the folder .*nowhere does not exist"),
        ("set.zip", "set.zip is a file, not a folder; unpack"),
    ],
)
def test_what_is_no_folder_is_refused(tmp_path: Path, name: str, words: str) -> None:
    """An archive is not looked into."""
    make(tmp_path, "set.zip")
    with pytest.raises(FolderError, match=words):
        class_folders(tmp_path / name)
