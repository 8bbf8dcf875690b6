"""How a command ends after an error: with a line on standard error and an exit code."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from models.names import in_words

FAILED = 1
WRONG_USAGE = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
TERMINATED = 143  # 128 + SIGTERM

Action = TypeVar("Action", bound=Callable[..., int])


class UsageError(Exception):
    """Invalid usage that no single flag shows."""


def complain(command: str, message: object, code: int = FAILED) -> int:
    """Say it in a line on standard error, and give the exit code back. ``command``: empty where there is
    none."""
    print(f"trimvit {command}".strip() + f": {message}", file=sys.stderr)
    return code


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
            return complain(action.__name__, error, WRONG_USAGE)
        except (ImportError, OSError, ValueError) as error:
            return complain(action.__name__, in_words(error))

    return cast("Action", run)
