"""When what ended is started again."""

from hypothesis import given
from hypothesis import strategies as st

from app.processes.restarts import STARTS_BEFORE_GIVING_UP, Restarts

LIVES = st.lists(st.tuples(st.floats(0.0, 100.0), st.booleans()), max_size=50)


@given(LIVES)
def test_starts_are_spaced_and_pauses_bounded(lives: list[tuple[float, bool]]) -> None:
    """However a process behaves, it is started again, within ten seconds unless it was given up."""
    restarts = Restarts(slow_s=60.0)
    failed = 0
    for lived_s, was_ready in lives:
        failed = 0 if was_ready else failed + 1
        pause_s = restarts.ended(lived_s, was_ready=was_ready)
        assert restarts.given_up == (failed >= STARTS_BEFORE_GIVING_UP)
        assert pause_s == 60.0 if restarts.given_up else 0.0 <= pause_s <= 10.0


@given(LIVES, st.floats(10.0, 100.0))
def test_a_process_that_lived_long_is_started_again_at_once(
    lives: list[tuple[float, bool]], lived_s: float
) -> None:
    """Whatever was before: kill -9 every ten seconds costs no pause at all."""
    restarts = Restarts(slow_s=60.0)
    for before in lives:
        restarts.ended(before[0], was_ready=before[1])
    assert restarts.ended(lived_s, was_ready=True) == 0.0


def test_one_that_dies_at_once_is_started_less_and_less_often() -> None:
    """The first death costs nothing; a loop of crashes does not become a loop of starts. Starts that fail are
    spaced further than those that succeed."""
    restarts = Restarts(slow_s=60.0)
    assert [restarts.ended(0.5, was_ready=True) for _ in range(6)] == [0.0, 0.5, 1.5, 1.5, 1.5, 1.5]
    assert restarts.ended(0.5, was_ready=False) == 9.5
    restarts = Restarts(slow_s=60.0)
    assert [restarts.ended(0.5, was_ready=False) for _ in range(4)] == [0.0, 0.5, 1.5, 4.5]


def test_five_failed_starts_in_a_row_are_enough() -> None:
    """Then it is started slowly, until one succeeds."""
    restarts = Restarts(slow_s=33.0)
    pauses = [restarts.ended(1.0, was_ready=False) for _ in range(6)]
    assert pauses[-2:] == [33.0, 33.0]
    assert max(pauses[:-2]) < 33.0
    restarts.came_up()
    assert not restarts.given_up
