"""Which of several processes this is, as the environment says it."""

import pytest

from models.training.processes import Processes, of_environment


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Processes()),
        ({"WORLD_SIZE": "1"}, Processes()),
        ({"WORLD_SIZE": ""}, Processes()),
        ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, Processes()),
        ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}, Processes(3, 4, 1)),
    ],
)
def test_the_environment_says_which_process_it_is(environment: dict[str, str], expected: Processes) -> None:
    """Images for clusters set WORLD_SIZE=1 for programs that run alone."""
    assert of_environment(environment) == expected


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "2", "RANK": "1"},
        {"WORLD_SIZE": "two", "RANK": "1", "LOCAL_RANK": "1"},
        {"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"},
    ],
)
def test_an_environment_that_says_it_in_part_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"WORLD_SIZE='.*start them with torchrun, or unset WORLD_SIZE"):
        of_environment(environment)
