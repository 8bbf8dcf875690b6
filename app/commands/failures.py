"""How a command ends after an error: with a line on standard error and an exit code."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from models.names import in_words

FAILED = 1
WRONG_USAGE = 2
INTERRUPTED = 130  # 128 + SIGINT, as in shells
TERMINATED = 143  # 128 + SIGTERM

Action = TypeVar("Action", bound=Callable[..., int])


class UsageError(Exception):
    """Wrong usage that is not the fault of a single flag."""


def complain(command: str, message: object, code: int = FAILED) -> int:
    """Print the message as a line on standard error and return the exit code. ``command`` is empty if no
    command was given."""
    print(f"trimvit {command}".strip() + f": {message}", file=sys.stderr)
    return code


def reports_expected_errors(action: Action) -> Action:
    """Print expected errors as one line, with exit code 2 for wrong usage and 1 for the rest. Everything else
    is a bug and keeps its traceback."""

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
