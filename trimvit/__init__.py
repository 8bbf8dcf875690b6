"""The command `trimvit`, and the folder that separates its packages from others of the same names.

In an installed wheel, the packages `app` and `models` are in this folder and not at the top level of
site-packages, where they would replace a user's own `app`. In a checkout, they are next to this folder.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

_HERE = Path(__file__).resolve().parent
PACKAGES = str(_HERE if (_HERE / "app").is_dir() else _HERE.parent)
"""The folder that `app` and `models` are imported from."""


def main() -> None:
    """The console script. Exits with the exit code of the command (app.cli)."""
    # First on the path, so that no other `app` is found. Children get it in PYTHONPATH
    # (app.processes.environment).
    sys.path.insert(0, PACKAGES)
    if sys.platform != "win32":  # who started this process may have blocked them, for itself
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    command = _imported()
    command()


def _imported() -> Callable[[], None]:
    """The command line. A signal ends the import of it at once, which takes up to a second: otherwise Ctrl-C
    would print the trace of an import, and process 1 of a container would ignore SIGTERM."""
    heeded = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    for number in heeded:
        signal.signal(number, _end)
    from app.cli import main as command

    for number, handler in heeded.items():
        signal.signal(number, handler)
    return command


def _end(number: int, _: FrameType | None) -> None:
    if number == signal.SIGINT:
        os.write(2, b"trimvit: interrupted\n")
    os._exit(128 + number)
