"""Detects hung processes, without mistaking busy ones or ones that get no CPU for them."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from app.processes.heartbeat import Beat

# The time that a worker lacked the CPU counts for a tenth, so that a hung worker is detected even if the
# machine is always overloaded.
STARVED_WEIGHT = 0.1
_STARVED_BELOW = 0.25  # share of one CPU, for a worker that wants to run


@dataclass(slots=True)
class Watch:
    """Judges one run of a worker or an HTTP process by its heartbeat. Pure: no clock, no files.

    ``silence_s``: how long its main loop may not respond. ``load_s``: how long it may load.
    """

    silence_s: float
    load_s: float
    _last: Beat = field(default_factory=Beat)
    _loading_s: float = 0.0
    _silent_s: float = 0.0
    _batch_s: float = 0.0

    def tick(self, seconds: float, beat: Beat, starved: Callable[[], bool]) -> str | None:
        """Why the process counts as hung, or None. ``seconds`` have passed since the last call. ``starved``
        is only called if there was no progress."""
        last, self._last = self._last, beat
        if beat.ready and beat.turns != last.turns and (beat.batch == 0 or beat.batch != last.batch):
            self._silent_s = self._batch_s = 0.0
            return None
        counted = seconds * (STARVED_WEIGHT if starved() else 1.0)
        if not beat.ready:
            self._loading_s += counted
            if self._loading_s > self.load_s:
                return f"it has been loading for more than {self.load_s:g} s"
            return None
        self._silent_s = 0.0 if beat.turns != last.turns else self._silent_s + counted
        self._batch_s = 0.0 if beat.batch != last.batch else self._batch_s + counted
        if self._silent_s > self.silence_s:
            return f"its main loop has not responded for more than {self.silence_s:g} s"
        if beat.batch and self._batch_s > beat.allowed_s:
            return f"a batch has taken longer than the {beat.allowed_s:.1f} s allowed"
        return None


class CpuStarvation:
    """Whether a process wants to run but gets no CPU. On Linux; elsewhere always False."""

    def __init__(self, pid: int) -> None:
        self._process = Path(f"/proc/{pid}")
        self._used_s: float | None = None

    def starved(self, seconds: float) -> bool:
        """Whether, during the ``seconds`` since the last call, a thread waited for a CPU and hardly got
        one."""
        try:
            used_s = _cpu_seconds((self._process / "stat").read_text(encoding="utf-8"))
            wants = any(
                _state((task / "stat").read_text(encoding="utf-8")) == "R"
                for task in (self._process / "task").iterdir()
            )
        except OSError:  # it has just ended, or there is no /proc
            return False
        before, self._used_s = self._used_s, used_s
        return wants and before is not None and used_s - before < _STARVED_BELOW * seconds


def _state(stat: str) -> str:
    """The third field of /proc/PID/stat (man 5 proc_pid_stat), after the name, which may contain anything."""
    return stat.rpartition(")")[2].split()[0]


def _cpu_seconds(stat: str) -> float:
    """User and system time, fields 14 and 15."""
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
