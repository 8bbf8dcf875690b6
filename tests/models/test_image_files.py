"""What a folder holds, as people's folders are."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from models.image_files import contents, is_hidden, told

PICTURE = Path(__file__).parents[1] / "photographs" / "china.jpg"


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"some text")


def found(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The images' names, and the reason of everything that is passed over."""
    there = contents(folder)
    return (
        [path.relative_to(folder).as_posix() for path in there.images],
        {each.path.relative_to(folder).as_posix(): each.reason for each in there.passed_over},
    )


def test_every_ending_of_an_image_is_one_whatever_its_case(tmp_path: Path) -> None:
    """Of formats that are decoded and of those that are not: a HEIC is to be refused by its name."""
    names = ["a.jpg", "b.MPO", "c.HEIC", "d.jpf", "e.jfif", "f.AVIF", "g.webp", "h.Tiff", "i.nef"]
    names += ["j.JPE", "k.bmp", "l.gif", "m.jxl", "n.svg"]
    make(tmp_path, *names)
    assert found(tmp_path) == (sorted(names), {})


def test_what_begins_as_an_image_is_one_whatever_its_name(tmp_path: Path) -> None:
    """Downloads and backups: without an ending, with one too many, with a strange one."""
    for name in ("IMG_1", "b.jpg.1", "c.jpg_large", "d.bak"):
        shutil.copy(PICTURE, tmp_path / name)
    for kind in ("PNG", "GIF", "WEBP", "TIFF", "AVIF", "JPEG2000"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"as-{kind}", kind)
    images, passed_over = found(tmp_path)
    assert len(images) == 10
    assert passed_over == {}


def test_everything_else_is_named_and_hidden_files_are_not(tmp_path: Path) -> None:
    """A list is not lost without a word; what systems leave behind is no news."""
    make(tmp_path, "a.jpg", "labels.csv", "deep/clip.mp4", "empty", "archive.zip")
    make(tmp_path, ".hidden.jpg", "._a.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", "Icon\r", "~$list.png")
    make(tmp_path, ".ipynb_checkpoints/a-checkpoint.jpg", "__MACOSX/._a.jpg", "@eaDir/a.jpg/SYNOPHOTO.jpg")
    make(
        tmp_path, "#recycle/old.jpg", "lost+found/1.jpg", "$RECYCLE.BIN/x.jpg", ".git/a.png", "deep/.x/y.jpg"
    )
    images, passed_over = found(tmp_path)
    assert images == ["a.jpg"]
    assert passed_over == dict.fromkeys(["archive.zip", "deep/clip.mp4", "empty", "labels.csv"], "no image")


def test_a_folder_that_is_hidden_itself_can_be_named(tmp_path: Path) -> None:
    """Only what lies within is left out."""
    make(tmp_path, ".cache/a.jpg")
    assert found(tmp_path / ".cache")[0] == ["a.jpg"]
    assert is_hidden(".cache")


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    """A folder is looked through once, by its own path where it has one here."""
    make(tmp_path, "here/b/c/1.jpg", "elsewhere/2.jpg")
    here = tmp_path / "here"
    (here / "loop").symlink_to(here)
    (here / "b" / "c" / "up").symlink_to("..")
    (here / "a").symlink_to(here / "b" / "c")  # before b, were it in the order of names
    (here / "z").symlink_to(tmp_path / "elsewhere")
    images, passed_over = found(here)
    assert images == ["b/c/1.jpg", "z/2.jpg"]
    assert passed_over == dict.fromkeys(["a", "b/c/up", "loop"], "another path to the same folder")


def test_broken_links_are_tried_and_pipes_are_not(tmp_path: Path) -> None:
    """A lost photograph is told when it is read; opening a pipe would wait for ever."""
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "self.jpg").symlink_to(tmp_path / "self.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert found(tmp_path) == (["gone.jpg", "self.jpg"], {"pipe.jpg": "not a regular file"})


def test_names_that_are_no_text_are_names(tmp_path: Path) -> None:
    """Bytes that are not UTF-8, line breaks, escapes; they are spelt out for a terminal."""
    for name in (b"caf\xe9.jpg", b"two\nlines.txt", b"\x1b[2J.csv"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"")
    there = contents(tmp_path)
    assert len(there.images) == 1
    line = told(there.passed_over, tmp_path)
    assert line == f"2 skipped in {tmp_path}: \\x1b[2J.csv (no image), two\\nlines.txt (no image)"


def test_many_names_are_cut_but_counted(tmp_path: Path) -> None:
    """A line stays a line."""
    make(tmp_path, *(f"{number:03}.txt" for number in range(50)))
    line = told(contents(tmp_path).passed_over, tmp_path)
    assert line.startswith("50 skipped in ")
    assert line.endswith("019.txt (no image) and 30 more")


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """Only folders within may be missing."""
    with pytest.raises(FileNotFoundError):
        contents(tmp_path / "nowhere")
