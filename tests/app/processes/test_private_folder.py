"""What a killed server leaves is cleared up by the next one, and nothing else is."""

import fcntl
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.processes.private_folder import NoFolder, PrivateFolder, folders_for_temporary_files

ROOT = Path(__file__).parents[3]
OWNER = """
import sys
from app.processes.private_folder import PrivateFolder
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
    return tmp_path


@pytest.fixture
def private() -> Iterator[PrivateFolder]:
    folder = PrivateFolder()
    yield folder
    folder.remove()


def test_it_is_private_and_goes() -> None:
    """Only its user can look into it; removing it twice does no harm."""
    private = PrivateFolder()
    assert stat.S_IMODE(private.path.stat().st_mode) == 0o700
    (private.path / "dispatcher").touch()
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


@pytest.mark.parametrize("unfit", ["too long", "missing", "a file"], ids=lambda text: text.replace(" ", "-"))
def test_another_folder_is_found_where_one_will_not_do(
    unfit: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A path too long for a socket's, one that does not exist; the log says which was passed over and why."""
    (tmp_path / "file").touch()
    first, why = {
        "too long": (tmp_path / ("x" * 100), "its path is too long for a Unix socket: at most 79 bytes"),
        "missing": (tmp_path / "none", "No such file or directory"),
        "a file": (tmp_path / "file", "Not a directory"),
    }[unfit]
    if unfit == "too long":
        first.mkdir()
    fit = tmp_path / "fit"
    fit.mkdir()
    private = PrivateFolder([first, fit])
    assert private.path.parent == fit
    assert (
        f"using {fit} for sockets and metrics files, because other folders cannot be used ({first}: {why})"
        in caplog.text
    )
    assert list(tmp_path.glob(".trimvit*")) + list(first.glob(".*") if first.is_dir() else []) == []
    private.remove()


def test_the_longest_path_that_is_taken_has_room_for_a_socket(tmp_path: Path) -> None:
    """And one byte more is refused."""
    most = 79
    for length in (most, most + 1):
        parent = Path("/tmp") / ("trimvit-test-" + "x" * (length - len("/tmp/trimvit-test-")))
        parent.mkdir()
        try:
            if length > most:
                with pytest.raises(NoFolder, match="too long"):
                    PrivateFolder([parent])
            else:
                private = PrivateFolder([parent])
                with socket.socket(socket.AF_UNIX) as listener:
                    listener.bind(str(private.path / "dispatcher"))
                private.remove()
        finally:
            shutil.rmtree(parent)


def test_a_full_disk_is_found_out_at_the_start(tmp_path: Path) -> None:
    """Written metrics would end the process later, by a signal and without a word."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], capture_output=True
    ).returncode:
        pytest.skip("this user may mount nothing")
    try:
        with pytest.raises(NoFolder, match="No space left on device"):
            PrivateFolder([small])
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_no_folder_at_all_is_told_with_what_was_tried(tmp_path: Path) -> None:
    """And with the variable that names another."""
    with pytest.raises(NoFolder, match=r"set TMPDIR to one .*none: No such file or directory.*nor this"):
        PrivateFolder([tmp_path / "none", tmp_path / "nor this"])


def test_tmpdir_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then what most systems have; one that is relative is taken from here."""
    monkeypatch.setenv("TMPDIR", "here")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    for name in ("TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    there = ["/run/user/1", "/tmp", "/var/tmp", "/dev/shm"]
    assert folders_for_temporary_files() == [Path.cwd() / "here", *map(Path, there)]


def test_systemd_tmpfiles_leaves_it_alone(private: PrivateFolder) -> None:
    """It passes over a folder on which somebody else holds a lock (tmpfiles.d(5))."""
    cleaner = os.open(private.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(BlockingIOError):
            fcntl.flock(cleaner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        private.remove()
        fcntl.flock(cleaner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(cleaner)


def test_what_is_in_it_is_made_to_look_new(private: PrivateFolder) -> None:
    """Cleaners that go by times find nothing old, however long the server runs."""
    (private.path / "metrics").mkdir()
    (private.path / "metrics/counter.db").write_bytes(b"x")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(private.path / "dispatcher"))
        everything = [private.path, *private.path.rglob("*")]
        assert len(everything) == 5
        for path in everything:
            os.utime(path, (0, 0))
        assert private.refresh()
        assert min(path.stat().st_mtime for path in everything) > 1e9


def test_its_removal_is_seen(private: PrivateFolder) -> None:
    """So that the server need not wait for its next crash to find out."""
    shutil.rmtree(private.path)
    assert not private.refresh()
