"""What processes are told in their environment."""

import pytest

from app.environment import tune_libraries


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, {"GOMP_SPINCOUNT": "2000", "MALLOC_ARENA_MAX": "1"}),
        (
            {"GOMP_SPINCOUNT": "7", "MALLOC_ARENA_MAX": "8"},
            {"GOMP_SPINCOUNT": "7", "MALLOC_ARENA_MAX": "8"},
        ),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, {"OMP_WAIT_POLICY": "PASSIVE", "MALLOC_ARENA_MAX": "1"}),
    ],
    ids=["nothing said", "all said", "threads are to sleep"],
)
def test_what_was_said_stays(given: dict[str, str], told: dict[str, str]) -> None:
    """Defaults go where nobody has chosen."""
    tune_libraries(given)
    assert given == told
