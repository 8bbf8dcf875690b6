"""How many examples hypothesis draws for a test whose examples are slow."""

from hypothesis import settings

DEFAULT, THOROUGH = 50, 500  # of a test that says nothing, in either profile


def examples(number: int) -> int:
    """So many in the default profile, and as many times more as any other test has in `thorough`."""
    return number * settings().max_examples // DEFAULT
