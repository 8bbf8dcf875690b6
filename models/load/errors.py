"""The error for models that cannot be loaded."""


class ModelError(ValueError):
    """A model cannot be loaded. The message says what is wrong and what to do, in one or two lines."""


def first_line(error: Exception) -> str:
    """Return the first line of another library's error message, truncated to 300 characters."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 300 else f"{line[:297]}..."
