"""What a command does about what went wrong: a line on standard error and an exit code."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from models.names import in_words

FAILED = 1
WRONG_USAGE = 2

Action = TypeVar("Action", bound=Callable[..., int])


class UsageError(Exception):
    """What was typed cannot be meant, for a reason that no single flag shows."""


def complain(command: str, message: object) -> None:
    """A line on standard error."""
    print(f"trimvit {command}: {message}", file=sys.stderr)


def tells_what_was_foreseen(action: Action) -> Action:
    """What a user can mend is said in a line, with exit code 2 for wrong usage and 1 for the rest; all else
    is a bug and keeps its trace."""

    @wraps(action)
    def run(*arguments: Any) -> int:
        try:
            return action(*arguments)
        except BrokenPipeError:
            raise
        except UsageError as error:
            complain(action.__name__, error)
            return WRONG_USAGE
        except (ImportError, OSError, ValueError) as error:
            complain(action.__name__, in_words(error))
            return FAILED

    return cast("Action", run)
