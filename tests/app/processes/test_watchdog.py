"""Whether a worker hangs: the judge is shown beats and must find what is stuck and spare what is busy."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.processes.heartbeat import Beat
from app.processes.watchdog import CpuStarvation, Watch

TICK_S = 0.5


def fed() -> bool:
    return False


def starving() -> bool:
    return True


def ticks_until_hung(watch: Watch, beats: "list[Beat]", starved: object = fed) -> tuple[int, str] | None:
    for number, beat in enumerate(beats, 1):
        reason = watch.tick(TICK_S, beat, starved)  # type: ignore[arg-type]
        if reason is not None:
            return number, reason
    return None


@given(st.integers(1, 200), st.floats(1.0, 60.0))
def test_a_worker_that_turns_is_never_hung(ticks: int, silence_s: float) -> None:
    """Idle or busy with one short batch after the other, starved or not."""
    beats = [Beat(turn, turn % 3 and turn, 0.1, ready=True) for turn in range(1, ticks)]
    assert ticks_until_hung(Watch(silence_s, 600.0), beats, starving) is None


@given(st.floats(1.0, 60.0), st.integers(0, 5))
def test_a_silent_loop_is_found_within_the_stated_time(silence_s: float, batch: int) -> None:
    """SIGSTOP, or a thread that holds the interpreter's lock."""
    beats = [Beat(9, batch, 1000.0, ready=True)] * 1000
    found = ticks_until_hung(Watch(silence_s, 600.0), beats)
    assert found is not None
    ticks, reason = found
    assert silence_s < ticks * TICK_S <= silence_s + 3 * TICK_S
    assert "main loop" in reason


@given(st.floats(1.0, 60.0), st.floats(0.5, 100.0))
def test_a_batch_that_never_ends_is_found_though_the_loop_turns(silence_s: float, allowed_s: float) -> None:
    """A kernel that never returns."""
    beats = [Beat(turn, 4, allowed_s, ready=True) for turn in range(1, 1000)]
    found = ticks_until_hung(Watch(silence_s, 600.0), beats)
    assert found is not None
    ticks, reason = found
    assert allowed_s < ticks * TICK_S <= allowed_s + 3 * TICK_S
    assert "a batch" in reason


def test_a_long_batch_within_its_allowance_is_spared() -> None:
    """Silence is no measure of compute."""
    beats = [Beat(turn, 4, 100.0, ready=True) for turn in range(1, 190)]
    assert ticks_until_hung(Watch(2.0, 600.0), beats) is None


@pytest.mark.parametrize("ready", [False, True])
def test_a_worker_that_gets_no_cpu_is_spared_ten_times_as_long(ready: bool) -> None:
    """And found in the end, should it be stuck on a machine that is always overloaded."""
    beats = [Beat(1, 4, 30.0, ready=ready)] * 2000
    fed_ticks = ticks_until_hung(Watch(50.0, 50.0), beats)
    starved_ticks = ticks_until_hung(Watch(50.0, 50.0), beats, starving)
    assert fed_ticks is not None
    assert starved_ticks is not None
    assert starved_ticks[0] > 9 * fed_ticks[0]


def test_loading_has_a_limit_of_its_own() -> None:
    """Silence counts only once the model is there: loading libraries blocks the loop."""
    beats = [Beat()] * 1000
    found = ticks_until_hung(Watch(2.0, 30.0), beats)
    assert found == (61, "it has been loading for more than 30 s")


needs_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def burn() -> None:
    while True:
        pass


@needs_proc
def test_a_stopped_process_is_not_starved() -> None:
    """It does not want to run: it counts as silent."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            process.send_signal(signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            starvation = CpuStarvation(process.pid)
            assert not starvation.starved(0.05)
            time.sleep(0.05)
            assert not starvation.starved(0.05)
        finally:
            process.kill()


@needs_proc
def test_a_process_that_others_crowd_out_is_starved() -> None:
    """One of low priority beside others on the same core wants to run and cannot."""
    core = {min(os.sched_getaffinity(0))}
    context = multiprocessing.get_context("spawn")
    crowd = [context.Process(target=burn, daemon=True) for _ in range(3)]
    with subprocess.Popen([sys.executable, "-c", "import os; os.nice(19)\nwhile True: pass"]) as process:
        try:
            os.sched_setaffinity(process.pid, core)
            for other in crowd:
                other.start()
                assert other.pid is not None
                os.sched_setaffinity(other.pid, core)
            starvation = CpuStarvation(process.pid)
            until = time.monotonic() + 60
            started = time.monotonic()
            while True:
                time.sleep(0.5)
                now = time.monotonic()
                if starvation.starved(now - started):
                    break
                started = now
                assert now < until, "it never seemed to be starved"
        finally:
            process.kill()
            for other in crowd:
                other.kill()


def test_a_process_that_has_gone_is_not_starved() -> None:
    """Asking about it is no error."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert not CpuStarvation(process.pid).starved(0.5)
