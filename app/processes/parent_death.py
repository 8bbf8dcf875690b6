"""How the children of the supervisor end with it, by the kernel's parent-death signal (PR_SET_PDEATHSIG), and
the exit code of one that cannot load."""

import ctypes
import os
import signal
import sys

LOAD_FAILED = 78  # exit code EX_CONFIG of sysexits.h: a restart will not help

SUPERVISOR_VARIABLE = "TRIMVIT_SUPERVISOR_PID"

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the supervisor dies. On Linux only."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != int(os.environ[SUPERVISOR_VARIABLE]):  # the parent died before the call took effect
        os.kill(os.getpid(), signal.SIGKILL)
