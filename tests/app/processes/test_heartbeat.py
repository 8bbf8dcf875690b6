"""What a worker shares with the supervisor."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.processes.heartbeat import PATIENCE, Beat, Heartbeat, Progress


def test_a_heartbeat_is_at_rest_until_the_worker_writes(tmp_path: Path) -> None:
    """Nothing written means: not ready, no turn."""
    assert Heartbeat.made_at(tmp_path / "heartbeat").read() == Beat()


def test_beats_cross_the_border_between_processes(tmp_path: Path) -> None:
    """What another process writes is read here, without closing or flushing anything."""
    heartbeat = Heartbeat.made_at(tmp_path / "heartbeat")
    write = "Heartbeat(Path(sys.argv[1])).write(Beat(7, 3, 2.5, True))"
    code = (
        "import os, sys; from pathlib import Path; from app.processes.heartbeat import *; "
        f"{write}; os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "heartbeat")], check=True, timeout=60)
    assert heartbeat.read() == Beat(7, 3, 2.5, ready=True)


def test_a_new_life_begins_at_rest_and_the_old_one_cannot_touch_it(tmp_path: Path) -> None:
    """A successor is not taken for ready because its predecessor was."""
    old = Heartbeat.made_at(tmp_path / "heartbeat")
    old.write(Beat(9, 0, 0.0, ready=True))
    new = Heartbeat.made_at(tmp_path / "heartbeat")
    old.write(Beat(10, 0, 0.0, ready=True))
    assert new.read() == Beat()


def test_without_a_supervisor_there_is_no_heartbeat(tmp_path: Path) -> None:
    """The file is the supervisor's to make."""
    with pytest.raises(FileNotFoundError):
        Heartbeat(tmp_path / "heartbeat")


def test_the_first_batch_may_take_what_is_expected_of_it() -> None:
    """Before any has ended, what they took is not known."""
    progress = Progress(floor_s=7.0)
    assert progress.oldest == (0, 0.0)
    progress.first_s = 2.0
    progress.began("a", 100)
    assert progress.oldest == (1, 7.0 + PATIENCE * 2.0)


def test_a_batch_may_take_ten_times_its_slowest_tokens_and_the_floor() -> None:
    """The allowance follows the batch's weight."""
    progress = Progress(floor_s=7.0)
    progress.began("a", 100)
    progress.ended("a", 100, 0.5)
    progress.began("b", 300)
    assert progress.oldest == (2, pytest.approx(7.0 + PATIENCE * 1.5))


@given(st.lists(st.booleans(), max_size=60), st.data())
def test_the_oldest_batch_is_told_whatever_ends_in_between(starts: list[bool], data: st.DataObject) -> None:
    """A batch that never ends stays the oldest once those before it are done: it cannot hide."""
    progress, running, begun = Progress(1.0), [], 0
    for start in starts:
        if start or not running:
            begun += 1
            progress.began(f"batch {begun}", 1)
            running.append(begun)
        else:
            ended = data.draw(st.sampled_from(running))
            progress.ended(f"batch {ended}", 1, 0.1)
            running.remove(ended)
        assert progress.oldest[0] == (running[0] if running else 0)


@given(st.lists(st.floats(0.001, 10), min_size=1, max_size=30))
def test_one_slow_batch_is_forgotten_in_time(seconds: list[float]) -> None:
    """An outlier widens the allowance for a while, not for ever."""
    progress = Progress(0.0)
    for number, took in enumerate([*seconds, *[0.001] * 1000]):
        progress.began(number, 1)
        progress.ended(number, 1, took)
    progress.began("last", 1)
    assert progress.oldest[1] == pytest.approx(PATIENCE * 0.001)
