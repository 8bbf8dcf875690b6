"""Outputs that cannot be written are told before anything is computed."""

from pathlib import Path

import pytest

from models.training.outputs import OutputError, check_output_file, make_output_folder


def test_a_file_needs_a_folder(tmp_path: Path) -> None:
    """And must not be one."""
    check_output_file(tmp_path / "rows.json")
    with pytest.raises(OutputError, match=r"the folder .*/gone does not exist; create it first"):
        check_output_file(tmp_path / "gone" / "rows.json")
    with pytest.raises(OutputError, match="is a folder; give a file in it"):
        check_output_file(tmp_path)


def test_a_folder_is_made(tmp_path: Path) -> None:
    """With those above it, once."""
    make_output_folder(tmp_path / "a" / "b", tmp_path / "data")
    make_output_folder(tmp_path / "a" / "b", tmp_path / "data")
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize("where", ["file", "file/below", "data", "data/run", "data/../data/run"])
def test_a_folder_that_cannot_be_is_refused(tmp_path: Path, where: str) -> None:
    """A file, one below a file, or one that would become a class of the images."""
    (tmp_path / "file").write_text("")
    (tmp_path / "data").mkdir()
    with pytest.raises(
        OutputError, match=r"--output .*(is a file|cannot be created|would be read as " r"images)"
    ):
        make_output_folder(tmp_path / where, tmp_path / "data")
    assert not (tmp_path / "data" / "run").exists()
