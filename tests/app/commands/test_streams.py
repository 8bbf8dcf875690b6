"""Commands whose standard streams are closed, full, or cannot show every letter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# No UTF-8 anywhere: as in a container without a locale whose image turns Python's UTF-8 mode off.
ASCII = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))},
    "PYTHONPATH": str(ROOT), "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
}  # fmt: skip
COMMAND = f"{sys.executable} -m app.cli"


def shell(script: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-c", script], env={**ASCII, **environment}, cwd=ROOT, capture_output=True, timeout=120
    )


def test_a_reader_that_has_read_enough_leaves_no_trace() -> None:
    """Of the help, too, which argparse writes."""
    for arguments in ("--help", "serve --help"):
        done = shell(f"{COMMAND} {arguments} | head -c 5")
        assert (done.stdout, done.stderr) == (b"usage", b"")


def test_a_full_disk_is_told_in_a_line() -> None:
    """What was printed is lost, and the exit code says so."""
    done = shell(f"{COMMAND} --help > /dev/full")
    assert done.returncode == 1
    assert done.stderr == b"trimvit: cannot write the output: No space left on device\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_keep_no_command_from_running(closed: str) -> None:
    """Nor does a file that it opens get their numbers."""
    code = (
        "from app.commands.streams import *; open_standard_streams(); import os; "
        "print(os.open('/dev/null', 0), file=open('/dev/fd/9', 'w'))"
    )
    done = shell(f'{sys.executable} -c "{code}" 9>&1 {closed}')
    assert done.returncode == 0
    assert int(done.stdout) > 2
    assert shell(f"{COMMAND} --version {closed}").returncode == 0


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", rb"gr\xfc"), ("utf-8", "grü".encode())])
def test_letters_that_cannot_be_shown_are_escaped(encoding: str, shown: bytes) -> None:
    """Rather than end the command."""
    code = "from app.commands.streams import *; open_standard_streams(); print('gr\\u00fc')"
    done = shell(f'{sys.executable} -c "{code}"', PYTHONIOENCODING=encoding)
    assert done.stdout.startswith(shown)
    assert (done.returncode, done.stderr) == (0, b"")


def test_without_a_locale_text_is_utf_8(tmp_path: Path) -> None:
    """A file whose name is not ASCII can be opened and named."""
    (tmp_path / "größe.txt").write_text("keine", encoding="utf-8")
    code = (
        "from app.commands.streams import *; use_utf8(); import sys, pathlib; "
        "print(sys.flags.utf8_mode, *pathlib.Path(sys.argv[1]).iterdir(), sys.argv[2])"
    )
    done = shell(f'{sys.executable} -c "{code}" {tmp_path} maß')
    assert done.stdout.decode().split() == ["1", str(tmp_path / "größe.txt"), "maß"]
