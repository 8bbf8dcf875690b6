"""How a command ends: its exit code, and a line that says why."""

import sys

FAILED = 1
USAGE_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
TERMINATED = 143  # 128 + SIGTERM


def complain(program: str, message: str, code: int) -> int:
    """Say it on standard error, and give the exit code back."""
    print(f"{program}: {message}", file=sys.stderr)
    return code
