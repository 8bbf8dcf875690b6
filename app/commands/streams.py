"""Standard input, output and error of a command, whatever it was started with.

They may be closed (a cron job, a daemon), may be unable to show a label's letters (LC_ALL=C), or may be read
by a program that has read enough (`| head`).
"""

import locale
import os
import sys
from io import TextIOWrapper

_NAMES = ("stdin", "stdout", "stderr")


def use_utf8() -> None:
    """Start this program again in Python's UTF-8 mode if text would be ASCII (LC_ALL=C with PYTHONUTF8=0),
    because files with other letters in their names could not be opened. Returns if that is not needed."""
    can = os.name == "posix" and not sys.flags.ignore_environment
    if can and not sys.flags.utf8_mode and locale.getencoding() in ("ANSI_X3.4-1968", "US-ASCII", "646"):
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606


def open_standard_streams() -> None:
    """Open closed standard streams on /dev/null, so that no socket gets their numbers. Characters that cannot
    be shown are escaped in the output."""
    for number, name in enumerate(_NAMES):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free file descriptor, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if name == "stdin" else "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # pytest replaces it with another type
            stream.reconfigure(errors="backslashreplace")


def forget_output() -> None:
    """Nobody reads the output any more: what Python still flushes at its end must not fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
