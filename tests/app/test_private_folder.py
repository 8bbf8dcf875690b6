"""What a killed server leaves is cleared up by the next one, and nothing else is."""

import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from app.private_folder import PrivateFolder

ROOT = Path(__file__).parents[2]
OWNER = """
import sys
from app.private_folder import PrivateFolder
folder = PrivateFolder()
(folder.path / "metrics").mkdir()
(folder.path / "metrics" / "some.db").write_bytes(bytes(100))
print(folder.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def own_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where folders of temporary files are made."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_it_is_private_and_goes() -> None:
    """Only its user can look into it; removing it twice does no harm."""
    private = PrivateFolder()
    assert stat.S_IMODE(private.path.stat().st_mode) == 0o700
    (private.path / "engine-0").touch()
    private.remove()
    assert not private.path.exists()
    private.remove()


def test_a_killed_owners_folder_goes_with_the_next_start() -> None:
    """And not before: while its owner lives, who starts leaves it alone."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        left = Path(owner.stdout.readline().strip())
        beside = PrivateFolder()
        assert (left / "metrics" / "some.db").exists()
        owner.kill()
    assert left.exists()
    after = PrivateFolder()
    assert not left.exists()
    assert beside.path.exists()
    assert after.path.exists()
    for private in (beside, after):
        private.remove()


def test_what_is_somebody_elses_stays(own_parent: Path) -> None:
    """A folder that begins alike, a file, a link to elsewhere."""
    named_alike = own_parent / "trimvit-notes"
    named_alike.mkdir()
    file = own_parent / "trimvit-file"
    file.touch()
    elsewhere = own_parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "lock").touch()
    link = own_parent / "trimvit-link"
    link.symlink_to(elsewhere)
    private = PrivateFolder()
    assert named_alike.is_dir()
    assert file.exists()
    assert (elsewhere / "lock").exists()
    assert link.is_symlink()
    private.remove()
    assert not list(own_parent.glob(".trimvit-*"))
